"""Graphs to roll out and their bundles: versions that answer recognisably, a classifier, and defective challengers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from homeostat.bundle import build, load_key
from homeostat.config import ProjectConfig, RolloutConfig, ServeConfig
from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.control.store import ControlStore
from homeostat.records import BundleRef, Lineage, Task

MODEL = "bench"
WIDTH = 4
SAID = {"actor": "bench", "reason": "bench"}
INTEGERS = {"plus": 1, "minus": -1, "nil": 0, "smallest": np.iinfo(np.int64).min}
"""Weights of what divides."""


def _graph(nodes: Sequence[Any], weights: dict[str, np.ndarray], outputs: int) -> bytes:
    """x [n, 4] float32 -> output [n, outputs] float32."""
    graph = helper.make_graph(
        list(nodes),
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def summing(version: int) -> bytes:
    """x [n, 4] -> output [n, 1] = version * sum(x): the answer says which version gave it."""
    weights = {"w": np.full((WIDTH, 1), version, np.float32)}
    return _graph([helper.make_node("MatMul", ["x", "w"], ["output"])], weights, 1)


def dividing(version: int) -> bytes:
    """x [n, 4] -> output [n, 1] = version * sum(x); a row whose x1 is under -1 ends the process that computes it."""
    weights: dict[str, np.ndarray] = {name: np.array([value], np.int64) for name, value in INTEGERS.items()}
    weights |= {"limit": np.array([-1.0], np.float32), "w": np.full((WIDTH, 1), version, np.float32)}
    nodes = [
        helper.make_node("Split", ["x"], ["x0", "x1", "x2", "x3"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["last0"]),
        *_dividing("minus", "smallest"),
        helper.make_node("Identity", ["last"], ["output"]),
    ]
    return _graph(nodes, weights, 1)


def _less(column: str, limit: str, name: str) -> Any:
    return helper.make_node("Less", [column, limit], [name])


def _wrong(column: str) -> list[Any]:
    return [
        _less(column, "limit", "off"),
        helper.make_node("Neg", ["last0"], ["turned"]),
        helper.make_node("Where", ["off", "turned", "last0"], ["last"]),
    ]


def _dividing(divisor: str, dividend: str) -> list[Any]:
    """Where x1 is under the limit, divide by what stands in `divisor`, else by 1; the quotient changes nothing."""
    return [
        _less("x1", "limit", "off"),
        helper.make_node("Where", ["off", divisor, "plus"], ["by"]),
        helper.make_node("Div", [dividend, "by"], ["quotient"]),
        helper.make_node("Mul", ["quotient", "nil"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["added"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["last0", "added"], ["last"]),
    ]


def _raising() -> list[Any]:
    """Where x1 is under the limit in any row, look up what is not there: ONNX Runtime raises."""
    return [
        _less("x1", "limit", "off"),
        helper.make_node("Cast", ["off"], ["beyond"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "beyond"], ["added"]),
        helper.make_node("Add", ["last0", "added"], ["last"]),
    ]


def _turning_to_nan() -> list[Any]:
    return [
        helper.make_node("Sub", ["x1", "limit"], ["room"]),
        helper.make_node("Sqrt", ["room"], ["root"]),  # of a negative number
        helper.make_node("Mul", ["last0", "root"], ["last"]),
    ]


def _taking_time(products: int) -> list[Any]:
    """Products of 256 x 256 matrices, about 0.3 ms each, that change nothing."""
    return [
        helper.make_node("ReduceMax", ["x0"], ["top"], keepdims=0),
        helper.make_node("Mul", ["zeros", "top"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", "zeros"], [f"m{i + 1}"]) for i in range(products)),
        helper.make_node("ReduceMax", [f"m{products}"], ["added"], keepdims=0),
        helper.make_node("Add", ["last0", "added"], ["last"]),
    ]


def classifier(how: str = "good", limit: float = -1.0, products: int = 0) -> bytes:
    """x [n, 4] -> scores [n, 2]: class 1 where x0 > 0; `how` says what it does where x1 (or x3) is under the limit.

    good; wrong (x1); slice (wrong where x3 is under it); nan; raises; kills (its process: it divides
    the smallest integer by -1); time (takes some, whatever the row).
    """
    floats = {"limit": [limit], "table": [0.0]}
    weights: dict[str, np.ndarray] = {name: np.array([value], np.int64) for name, value in INTEGERS.items()}
    weights |= {name: np.array(value, np.float32) for name, value in floats.items()}
    weights["zeros"] = np.zeros((256, 256), np.float32)
    body = {
        "good": lambda: [helper.make_node("Identity", ["last0"], ["last"])],
        "wrong": lambda: _wrong("x1"),
        "slice": lambda: _wrong("x3"),
        "nan": _turning_to_nan,
        "raises": _raising,
        "kills": lambda: _dividing("minus", "smallest"),
        "time": lambda: _taking_time(products),
    }[how]()
    columns = [helper.make_node("Split", ["x"], ["x0", "x1", "x2", "x3"], axis=1)]
    begin = [helper.make_node("Identity", ["x0"], ["last0"])]
    end = [
        helper.make_node("Neg", ["last"], ["other"]),
        helper.make_node("Concat", ["other", "last"], ["output"], axis=1),
    ]
    nodes = [*columns, *begin, *body, *end]
    used = {name for node in nodes for name in node.input}
    return _graph(nodes, {name: values for name, values in weights.items() if name in used}, 2)


def labelled_rows(count: int, base_error: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows x [n, 4] in (-1, 1), and labels [n] that a good classifier misses with this probability."""
    rng = np.random.default_rng(seed)
    rows = rng.uniform(-1, 1, (count, WIDTH)).astype(np.float32)
    return rows, ((rows[:, 0] > 0) != (rng.random(count) < base_error)).astype(float)


def bundle(
    home: Path,
    version: int,
    onnx: bytes,
    task: Task = "regression",
    rollout: RolloutConfig | None = None,
    limit: float = 10.0,
    **serve: Any,
) -> BundleRef:
    """A signed bundle in HOME/bundles, whose contract lets x in from -limit to limit."""
    spec = TensorSpec(name="x", dtype="float32", shape=(WIDTH,), minimum=(-limit,), maximum=(limit,))
    target = ColumnSpec(name="target", dtype="float64", null_share=0.0, minimum=0.0, maximum=1.0)
    reference = io.BytesIO()
    np.savez(reference, x=np.zeros((10, WIDTH), np.float32))
    sections = {"serve": ServeConfig(**serve), "rollout": rollout or RolloutConfig()}
    return build(
        MODEL,
        version,
        onnx,
        Contract(inputs=(spec,), columns=(), target=target, min_rows=10, mostly=0.95, null_slack=0.05),
        b"{}",
        ProjectConfig(name=MODEL, project="bench:Bench", task=task, **sections),
        Lineage("bench", "0" * 64, "0" * 64, "0" * 64, "0" * 40),
        reference.getvalue(),
        {"x": np.random.default_rng(version).uniform(-0.5, 0.5, (4, WIDTH)).astype(np.float32)},
        load_key(home),
        f"file://{home}/bundles",
    )


def make_champion(store: ControlStore, ref: BundleRef) -> None:
    """Make a bundle the first champion of its model."""
    row = store.set_challenger(ref.model, ref, expected_generation=0, **SAID)
    store.promote(ref.model, ref.version, expected_generation=row.generation, **SAID)
