"""Raw features of unlike scale: compressed forms must not lose what a Normalization layer was adapted to."""

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx import helper

from homeostat.compression.pruning import prune, sparsity
from homeostat.compression.quantization import outer_nodes, to_static_int8
from homeostat.dataset import Dataset, read_artifact
from homeostat.export.onnx import to_onnx
from homeostat.inference import predict, session
from homeostat.model import answer, load_model, save_model
from homeostat.training.fit import fit_model, make_reproducible
from tests.keras_projects import Made, blobs, config

SCALES = np.array([1e-2, 1.0, 1e2, 1e4], np.float32)


def unlike(rows: int, seed: int) -> Dataset:
    data = blobs(rows, seed)
    return Dataset.from_arrays({"x": data.inputs["x"] * SCALES + 5 * SCALES}, data.target)


def build(train: Dataset):
    x = keras.Input((4,), name="x")
    scale = layers.Normalization()
    scale.adapt(train.inputs["x"])
    hidden = layers.Dense(32, activation="relu")(scale(x))
    return keras.Model(x, layers.Dense(3, activation="softmax")(hidden))


TRAIN, HELD = unlike(192, 1), unlike(96, 2)
CONFIG = config(train={"epochs": 15, "learning_rate": 0.02}, compress={"sparsity": 0.5, "pruning_epochs": 4})


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    make_reproducible(1)
    model = build(TRAIN)
    fit_model(model, Made(build), CONFIG, TRAIN, HELD)
    return save_model(model, tmp_path_factory.mktemp("kept") / "model.keras")


def share(outputs) -> float:
    return float(np.mean(outputs.argmax(axis=1) == HELD.target))


def test_pruning_keeps_the_scales_and_holds_its_masks(kept):
    before = answer(load_model(kept), HELD.inputs)
    assert share(before) > 0.9
    pruned = prune(load_model(kept), Made(build), CONFIG, TRAIN, HELD)
    assert sparsity(pruned) == pytest.approx(0.5, abs=0.01)
    assert share(answer(pruned, HELD.inputs)) > share(before) - 0.1


def test_static_int8_leaves_raw_features_and_probabilities_in_fp32(kept, tmp_path):
    model = load_model(kept)
    graph = to_onnx(model, tmp_path / "fp32.onnx", 17)
    data = read_artifact(to_static_int8(graph, tmp_path / "int8.onnx", unlike(64, 3)))
    outputs = predict(session(data), HELD.inputs)
    assert share(outputs) > share(answer(model, HELD.inputs)) - 0.03
    nodes = onnx.load_from_string(data).graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) >= 2
    assert "QuantizeLinear" not in {node.op_type for node in nodes if "x" in node.input}
    assert nodes[-1].op_type == "Softmax"
    assert "output" in nodes[-1].output


def test_outer_nodes_are_those_outside_the_weights_on_every_path():
    chain = [("Sub", "x", "a"), ("Conv", "a", "b"), ("Relu", "b", "c"), ("Gemm", "c", "d"), ("Softmax", "d", "e")]
    nodes = [helper.make_node(op, [source], [target], name=op) for op, source, target in chain]
    # a second output that no weight follows, and an input that joins between the weights
    nodes.insert(3, helper.make_node("Exp", ["c"], ["f"], name="Exp"))
    nodes.insert(4, helper.make_node("Neg", ["y"], ["g"], name="Neg"))
    nodes[5].input.append("g")
    graph = helper.make_graph(nodes, "g", [], [])
    assert outer_nodes(graph) == ["Sub", "Exp", "Neg", "Softmax"]
    assert outer_nodes(helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"], name="n")], "g", [], [])) == ["n"]
