"""Classifiers to roll out: a good one, and one for each way to be bad."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import graph_bytes


def classifier(wrong_over: float | None = None, nan_over: float | None = None) -> bytes:
    """x [n, 4] -> scores [n, 2]: class 1 where x0 > 0; wrong, or NaN, where x1 is over a limit."""
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["x0"], axis=1),
        helper.make_node("Gather", ["x", "one"], ["x1"], axis=1),
    ]
    weights = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    last = "x0"
    if wrong_over is not None:
        weights.append(numpy_helper.from_array(np.array([wrong_over], np.float32), "limit"))
        nodes += [
            helper.make_node("Greater", ["x1", "limit"], ["over"]),
            helper.make_node("Neg", ["x0"], ["turned"]),
            helper.make_node("Where", ["over", "turned", "x0"], ["after"]),
        ]
        last = "after"
    if nan_over is not None:
        weights.append(numpy_helper.from_array(np.array([nan_over], np.float32), "bad"))
        nodes += [
            helper.make_node("Sub", ["bad", "x1"], ["room"]),
            helper.make_node("Sqrt", ["room"], ["root"]),  # of a negative number: NaN
            helper.make_node("Mul", [last, "root"], ["broken"]),
        ]
        last = "broken"
    nodes += [
        helper.make_node("Neg", [last], ["other"]),
        helper.make_node("Concat", ["other", last], ["output"], axis=1),
    ]
    return graph_bytes(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 2])],
        weights,
    )


def slow(size: int = 700, times: int = 12) -> bytes:
    """The classifier, behind matrix products that change nothing but the time."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["top", "nil"], ["m0"]),
    ]
    weights = [
        numpy_helper.from_array(np.zeros((1, size), np.float32), "nil"),
        numpy_helper.from_array(np.eye(size, dtype=np.float32) * 0.5, "w"),
        numpy_helper.from_array(np.zeros((size, size), np.float32), "nil2"),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
    ]
    nodes += [
        helper.make_node("ReduceMax", ["m0"], ["t0"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["t0"], ["scalar"], keepdims=0),
        helper.make_node("Add", ["nil2", "scalar"], ["a0"]),
    ]
    for step in range(times):
        nodes.append(helper.make_node("MatMul", [f"a{step}", "w"], [f"a{step + 1}"]))
    nodes += [
        helper.make_node("ReduceMax", [f"a{times}"], ["nothing"], keepdims=0),
        helper.make_node("Gather", ["x", "zero"], ["x0"], axis=1),
        helper.make_node("Add", ["x0", "nothing"], ["x0s"]),
        helper.make_node("Neg", ["x0s"], ["other"]),
        helper.make_node("Concat", ["other", "x0s"], ["output"], axis=1),
    ]
    return graph_bytes(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 2])],
        weights,
    )


def crashing() -> bytes:
    """The classifier, which kills its process where x0 < -10: it divides the smallest int64 by -1."""
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["x0"], axis=1),
        helper.make_node("Less", ["x0", "limit"], ["deadly"]),
        helper.make_node("Where", ["deadly", "minus", "plus"], ["divisor"]),
        helper.make_node("Div", ["smallest", "divisor"], ["quotient"]),
        helper.make_node("Mul", ["quotient", "nil"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["nothing_float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x0", "nothing_float"], ["last"]),
        helper.make_node("Neg", ["last"], ["other"]),
        helper.make_node("Concat", ["other", "last"], ["output"], axis=1),
    ]
    integers = {"zero": 0, "minus": -1, "plus": 1, "smallest": np.iinfo(np.int64).min, "nil": 0}
    weights = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in integers.items()]
    return graph_bytes(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 2])],
        [*weights, numpy_helper.from_array(np.array([-10], np.float32), "limit")],
    )
