"""The gates: each is shown a graph that it must stop."""

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from homeostat.compression.quantization import to_dynamic_int8, to_static_int8
from homeostat.dataset import read_artifact
from homeostat.errors import ExportMismatch, ExportUnsupported, GateFailed
from homeostat.export import gates
from homeostat.export.export import run_gates
from homeostat.export.onnx import to_onnx
from homeostat.model import answer
from tests.keras_projects import blobs, config, mlp

ROWS = blobs(48, 2)


@pytest.fixture(scope="session")
def graph(tmp_path_factory):
    """An exported model's graph with Keras' answers on ROWS."""
    keras.utils.set_random_seed(1)
    model = mlp()(blobs(96, 1))
    artifact = to_onnx(model, tmp_path_factory.mktemp("graph") / "m.onnx", 17)
    return artifact, answer(model, ROWS.inputs)


@pytest.fixture
def proto(graph):
    return onnx.load(graph[0].path)


def passed(data, expected, *, quantized=False, rows=ROWS, **export):
    return run_gates(data, rows, expected, config(export=export), quantized=quantized)


def test_a_good_graph_passes_every_gate(graph, proto):
    found = passed(proto.SerializeToString(), graph[1])
    assert [gate.name for gate in found] == ["checker", "operators", "inputs", "parity", "batch-invariance"]
    assert found[2].detail == "x float32[n, 4]"
    assert "48 rows" in found[3].detail


def test_one_changed_weight_is_a_mismatch_that_names_the_row(graph, proto):
    weight = max(proto.graph.initializer, key=lambda t: np.prod(t.dims))
    values = numpy_helper.to_array(weight).copy()
    values.flat[np.abs(values).argmax()] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportMismatch, match=r"row \d+, output \d at batch \d+: the graph answers .* over export.tol"):
        passed(proto.SerializeToString(), graph[1])


def test_a_difference_in_a_late_row_alone_is_found_and_named(graph, proto):
    expected = graph[1].copy()
    expected[41, 2] += 0.01
    with pytest.raises(ExportMismatch, match=r"row 41, output 2 at batch 48"):
        passed(proto.SerializeToString(), expected)
    passed(proto.SerializeToString(), expected, tolerance=0.02)


def test_an_extra_input_is_named(graph, proto):
    proto.graph.input.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 4]))
    with pytest.raises(GateFailed, match=r"asks for .*'mean'.* that became an input was not frozen"):
        passed(proto.SerializeToString(), graph[1])


@pytest.mark.parametrize("change", ["name", "type"])
def test_inputs_that_are_not_the_datasets(graph, proto, change):
    rows = blobs(48, 2)
    values = rows.inputs["x"]
    wrong = {"y": values} if change == "name" else {"x": values.astype(np.int64)}
    with pytest.raises(GateFailed, match=r"the graph asks for .* the dataset has"):
        gates.check_inputs(proto.SerializeToString(), wrong)


def test_a_fixed_batch_dimension(graph, proto):
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(GateFailed, match=r"input 'x' has the fixed shape \[1, 4\]; its first dimension must be open"):
        passed(proto.SerializeToString(), graph[1])


def test_a_batch_size_in_the_graph_is_found(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4])
    shape = numpy_helper.from_array(np.array([1, 4]), "shape")
    body = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["output"])], "g", [x], [y], [shape])
    data = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with pytest.raises(ExportMismatch, match="the graph fails at batch 2, Keras does not"):
        gates.check_parity(data, ROWS.inputs, ROWS.inputs["x"], 1e-4)


def test_external_data_is_refused(graph, proto, tmp_path):
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(GateFailed, match=r"weight '.*' is in another file; export with every weight inside"):
        passed((tmp_path / "m.onnx").read_bytes(), graph[1])


def test_an_unknown_domain_a_function_and_a_contrib_op_are_refused(graph, proto):
    node = proto.graph.node[0]
    node.domain = "evil.corp"
    with pytest.raises(ExportUnsupported, match=f"{node.op_type} "):
        gates.check_operators(proto.SerializeToString())
    node.domain, node.op_type = "com.microsoft", "Inverse"
    with pytest.raises(ExportUnsupported, match=r"not served: com.microsoft.Inverse"):
        gates.check_operators(proto.SerializeToString())
    node.domain, node.op_type = "", "Relu"
    proto.functions.append(helper.make_function("own", "f", ["a"], ["b"], [], [helper.make_opsetid("", 17)]))
    with pytest.raises(ExportUnsupported, match="1 functions of the model's own"):
        gates.check_operators(proto.SerializeToString())


def test_a_graph_that_the_checker_refuses(graph, proto):
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ExportUnsupported, match="the ONNX checker refuses the graph"):
        passed(proto.SerializeToString(), graph[1])


def test_nan_answers_are_a_mismatch(graph, proto):
    weight = max(proto.graph.initializer, key=lambda t: np.prod(t.dims))
    values = np.full_like(numpy_helper.to_array(weight), np.nan)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportUnsupported, match=f"the weights {weight.name} hold NaN"):
        passed(proto.SerializeToString(), graph[1])
    weight.CopyFrom(numpy_helper.from_array(np.full_like(values, np.inf), weight.name))  # which may be meant
    for quantized in (False, True):
        with pytest.raises(ExportMismatch, match=r"NaN or Inf at batch 1|finite: False"):
            passed(proto.SerializeToString(), graph[1], quantized=quantized)


def test_an_answer_of_another_shape(graph, proto):
    with pytest.raises(ExportMismatch, match=r"answers \(1, 3\) where Keras answers \(1, 1\)"):
        gates.check_parity(proto.SerializeToString(), ROWS.inputs, graph[1][:, :1], 1e-4)


def test_static_int8_passes_and_disagreement_does_not(graph, tmp_path):
    data = (tmp_path / "q.onnx", to_static_int8(graph[0], tmp_path / "q.onnx", blobs(32, 3)))[0].read_bytes()
    found = passed(data, graph[1], quantized=True)
    assert "agreement" in found[3].detail
    with pytest.raises(ExportMismatch, match=r"classes equal Keras': 0\.\d+ on 48 rows, under export.quantized_agr"):
        passed(data, np.roll(graph[1], 1, axis=1), quantized=True)


def test_dynamic_int8_lets_a_neighbour_in(graph, tmp_path):
    data = (tmp_path / "q.onnx", to_dynamic_int8(graph[0], tmp_path / "q.onnx"))[0].read_bytes()
    with pytest.raises(GateFailed, match=r"changes by (inf|0\.\d+) with its neighbours .* leave dynamic_int8 out"):
        passed(data, graph[1], quantized=True)


def test_a_neighbours_value_and_its_nan_are_found(tmp_path):
    x = keras.Input((4,), name="x")

    @keras.saving.register_keras_serializable("tests")
    class Centered(layers.Layer):
        def call(self, v):
            return v - keras.ops.mean(v, axis=0, keepdims=True)

    artifact = to_onnx(keras.Model(x, Centered()(x)), tmp_path / "m.onnx", 17)
    assert gates.batch_invariance(read_artifact(artifact), ROWS.inputs) == float("inf")


@pytest.mark.parametrize(
    ("found", "expected", "task", "share"),
    [
        ([[0.2, 0.8], [0.9, 0.1]], [[0.4, 0.6], [0.3, 0.7]], "classification", 0.5),
        ([[0.4], [0.6], [0.5]], [[0.1], [0.9], [0.4]], "classification", 2 / 3),
        ([[1.0], [2.0], [4.0]], [[1.0], [2.0], [3.0]], "regression", 0.5),
        ([[1.0], [1.0]], [[1.0], [1.0]], "regression", 1.0),
        ([[1.0], [2.0]], [[1.0], [1.0]], "regression", 0.0),
    ],
)
def test_agreement(found, expected, task, share):
    assert gates.agreement(np.array(found), np.array(expected), task) == pytest.approx(share)


def test_bytes_that_are_no_graph():
    with pytest.raises(ExportUnsupported, match="these bytes are no ONNX graph"):
        gates.check_structure(b"not a graph")
