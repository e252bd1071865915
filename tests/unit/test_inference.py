"""Answers of small graphs: batches, no rows, names, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from homeostat.errors import BundleInvalid, DataInvalid
from homeostat.inference import predict, predict_all, session


def sum_graph(two_outputs: bool = False) -> bytes:
    """a [n, 3] @ w + b [n, 1]; if asked, twice it as well."""
    nodes = [helper.make_node("MatMul", ["a", "w"], ["y"]), helper.make_node("Add", ["y", "b"], ["output"])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 1])]
    if two_outputs:
        nodes.append(helper.make_node("Add", ["output", "output"], ["twice"]))
        outputs.append(helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["n", 1]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", k]) for name, k in (("a", 3), ("b", 1))]
    weights = [numpy_helper.from_array(np.array([[1], [2], [3]], np.float32), "w")]
    model = helper.make_model(
        helper.make_graph(nodes, "sum", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def rows(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(n, 3)).astype(np.float32), "b": rng.normal(size=(n, 1)).astype(np.float32)}


@pytest.mark.parametrize("n", [0, 1, 4, 5, 11])
def test_batches_give_every_row_its_answer(n):
    inputs = rows(n)
    answers = predict(session(sum_graph()), inputs, batch=4)
    assert (answers.shape, answers.dtype) == ((n, 1), np.float32)
    np.testing.assert_allclose(answers, inputs["a"] @ [[1], [2], [3]] + inputs["b"], rtol=1e-5, atol=1e-6)


def test_a_graph_answers_by_name_from_bytes_or_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(sum_graph(two_outputs=True))
    inputs = rows(5) | {"not_taken": np.zeros(5)}
    answers = predict(path, inputs)
    assert set(answers) == {"output", "twice"}
    np.testing.assert_array_equal(answers["twice"], 2 * answers["output"])
    np.testing.assert_array_equal(answers["output"], predict(path.read_bytes(), inputs)["output"])
    loaded = session(path)
    assert set(predict_all(loaded, inputs)) == {"output", "twice"}
    with pytest.raises(DataInvalid, match="outputs output, twice"):
        predict(loaded, inputs)


def test_one_thread_unless_asked():
    options = session(sum_graph()).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert session(sum_graph(), threads=2).get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: i.pop("b"), "takes an input b; the rows have a"),
        (lambda i: i.update(b=i["b"][:2]), "2, 5 rows"),
        (lambda i: i.update(b=i["b"].astype(np.float64)), "does not take these rows"),
        (lambda i: i.update(a=i["a"][:, :2]), "does not take these rows"),
    ],
)
def test_other_inputs_are_refused(change, said):
    inputs = rows(5)
    change(inputs)
    with pytest.raises(DataInvalid, match=said):
        predict(session(sum_graph()), inputs)


@pytest.mark.parametrize("data", [b"", b"nonsense", sum_graph()[:40]])
def test_bytes_that_are_no_graph_are_refused(data, tmp_path):
    with pytest.raises(BundleInvalid, match="the ONNX graph does not load"):
        session(data)
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(BundleInvalid, match=r"broken\.onnx does not load"):
        session(path)


@pytest.mark.parametrize("module", ["homeostat.inference", "homeostat.serving.session"])
def test_onnx_runtime_keeps_no_telemetry(tmp_path: Path, module: str) -> None:
    graph, home = tmp_path / "model.onnx", tmp_path / "home"
    graph.write_bytes(sum_graph())
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    code = f"import {module}, onnxruntime; onnxruntime.InferenceSession({str(graph)!r})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert [path for path in home.rglob("*") if path.is_file()] == []
