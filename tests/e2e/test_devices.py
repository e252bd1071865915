"""Several devices: whatever trained it, what is kept is one float32 model that passes the gates."""

import json
import math
import subprocess
import sys

import pytest

from homeostat.dataset import artifact_of
from tests.conftest import ROOT
from tests.keras_projects import check_kept, record, uneven

pytestmark = pytest.mark.e2e


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


def test_two_devices_train_one_model(tmp_path):
    """Two logical CPUs stand in for two GPUs; neither the rows nor the batches can be shared equally."""
    data = record(tmp_path, uneven)
    parts = {name: vars(part) for name, part in data.parts.items()}
    train = {"epochs": 4, "learning_rate": 0.03}
    given = {"data": vars(data) | {"parts": parts}, "folder": str(tmp_path), "train": train}
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
