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
