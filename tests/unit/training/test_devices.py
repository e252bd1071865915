"""Several devices and float16: whatever trained it, what is kept is one float32 model that passes the gates."""

import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from homeostat.dataset import Dataset, artifact_of, read_artifact
from homeostat.errors import ConfigError
from homeostat.export.export import run_gates
from homeostat.export.onnx import to_onnx
from homeostat.model import answer, load_model
from homeostat.training.fit import train
from tests.conftest import ROOT
from tests.keras_projects import Made, blobs, config, mlp, record

TRAIN = {"epochs": 4, "learning_rate": 0.03}


def uneven(rows: int, seed: int) -> Dataset:
    """One row more than two devices can share equally."""
    return blobs(rows + 1, seed)


@pytest.fixture
def data(tmp_path):
    return record(tmp_path, uneven)


def check_kept(keras_file, data, tmp_path, metrics):
    """The kept model is float32, its figures are those of all validation rows, and its graph passes the gates."""
    model, rows = load_model(keras_file), Dataset.load(data.parts["validation"])
    assert {layer.compute_dtype for layer in model.layers} == {layer.variable_dtype for layer in model.layers}
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    expected = answer(model, rows.inputs)
    share = np.mean(expected.argmax(axis=1) == rows.target)
    assert metrics["val_accuracy"] == pytest.approx(share)
    assert share > 0.9
    graph = read_artifact(to_onnx(model, tmp_path / "model.onnx", 17))
    passed = run_gates(graph, rows, expected, config(), quantized=False)
    assert {"inputs", "parity"} <= {gate.name for gate in passed}


TWO_DEVICES = """
import json, sys, pathlib
import tensorflow as tf
from homeostat.training import fit
from homeostat.records import Artifact, DatasetRecord
from tests.keras_projects import Augmenting, Made, config, mlp

cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
given = json.loads(sys.argv[1])
data = DatasetRecord(**given["data"] | {"parts": {k: Artifact(**v) for k, v in given["data"]["parts"].items()}})
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
fit.choose_strategy = lambda: (strategy, f"{strategy.num_replicas_in_sync} CPUs")
found = {}
for kind in (Made, Augmenting):
    losses, folder = [], pathlib.Path(given["folder"], kind.__name__)
    options = config(train=given["train"] | {"batch_size": 15, "class_weights": "balanced"})
    trained = fit.train(kind(mlp()), options, data, folder, lambda _, figures: losses.append(figures["loss"]))
    found[kind.__name__] = {
        "losses": losses, "keras": trained.keras.path, "metrics": trained.metrics, "device": trained.device
    }
print(json.dumps(found))
"""


def test_two_devices_train_one_model(data, tmp_path):
    """Two logical CPUs stand in for two GPUs; neither the rows nor the batches can be shared equally."""
    parts = {name: vars(part) for name, part in data.parts.items()}
    given = {"data": vars(data) | {"parts": parts}, "folder": str(tmp_path), "train": TRAIN}
    command = [sys.executable, "-c", TWO_DEVICES, json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"Made", "Augmenting"}
    for name, one in found.items():
        assert one["device"] == "2 CPUs"
        assert all(map(math.isfinite, one["losses"]))
        assert one["losses"][-1] < 0.5 * one["losses"][0]
        check_kept(artifact_of(tmp_path / name / "train" / "model.keras"), data, tmp_path, one["metrics"])


def test_float16_trains_and_a_float32_model_is_kept(data, tmp_path):
    before, seen, losses = keras.config.dtype_policy(), [], []

    def build(rows):
        seen.append(keras.config.dtype_policy().name)
        return mlp()(rows)

    options = config(train=TRAIN | {"mixed_precision": True})
    trained = train(Made(build), options, data, tmp_path, lambda _, figures: losses.append(figures["loss"]))
    assert seen == ["mixed_float16", "float32"]
    assert keras.config.dtype_policy() == before
    assert losses[-1] < 0.5 * losses[0]
    check_kept(trained.keras, data, tmp_path, trained.metrics)


def test_the_policy_of_before_holds_again_when_training_fails(data, tmp_path):
    def build(_):
        assert keras.config.dtype_policy().name == "mixed_float16"
        x = keras.Input((4,), name="x")
        return keras.Model(x, layers.Dense(2, activation="softmax")(x))

    keras.config.set_dtype_policy("bfloat16")
    try:
        with pytest.raises(ConfigError, match="the target has 3 classes"):
            train(Made(build), config(train={"mixed_precision": True}), data, tmp_path)
        assert keras.config.dtype_policy().name == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
