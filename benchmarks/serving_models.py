"""The graphs of the serving benchmark: W1 and W2 (784-64-64-10, one row and 32), W3 (a CNN) and W4 (30 features)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from homeostat.bundle import build, load_key
from homeostat.config import ProjectConfig, ServeConfig
from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.records import BundleRef, Lineage

SIDE = 28
"""Pixels of an image."""


@dataclass(frozen=True)
class Workload:
    """One graph and the request that is sent over and over."""

    name: str
    layers: tuple[int, ...]
    title: str
    batch: int = 1
    """Rows of the request."""
    channels: tuple[int, ...] = ()
    """Of convolutions in front of the dense layers, each of which halves the image that a row then is."""
    scale: float = 0.1
    """Standard deviation of the dense layers' weights."""

    def onnx(self) -> bytes:
        """Dense layers with ReLU, a softmax at the end, random weights: x [n, width] -> output [n, last]."""
        rng = np.random.default_rng(1)
        nodes, weights, at = _convolutions(self.channels, rng) if self.channels else ([], [], "x")
        for place, (before, after) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            last = place == len(self.layers) - 2
            weights += [
                numpy_helper.from_array(rng.normal(0, self.scale, (before, after)).astype(np.float32), f"w{place}"),
                numpy_helper.from_array(np.zeros(after, np.float32), f"b{place}"),
            ]
            end = "output" if last else f"h{place}"
            nodes.append(helper.make_node("Gemm", [at, f"w{place}", f"b{place}"], [f"g{place}"]))
            nodes.append(helper.make_node("Softmax" if last else "Relu", [f"g{place}"], [end]))
            at = end
        graph = helper.make_graph(
            nodes,
            self.name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", self.width])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", self.layers[-1]])],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        return model.SerializeToString()

    @property
    def width(self) -> int:
        """Values of a row."""
        return SIDE * SIDE if self.channels else self.layers[0]

    def rows(self, count: int | None = None) -> np.ndarray:
        """Values in [0, 1) with four decimals, [count, width]; as many as a request has if nothing is said."""
        shape = (self.batch if count is None else count, self.width)
        return np.random.default_rng(2).random(shape).round(4).astype(np.float32)

    def bundle(self, home: Path, **serve: Any) -> BundleRef:
        """A signed bundle with a contract of one range for each column. serve: what is not as by default."""
        width = self.width
        spec = TensorSpec(name="x", dtype="float32", shape=(width,), minimum=(0.0,) * width, maximum=(1.0,) * width)
        target = ColumnSpec(name="target", dtype="int64", null_share=0.0, minimum=0.0, maximum=9.0)
        contract = Contract(inputs=(spec,), columns=(), target=target, min_rows=10, mostly=0.95, null_slack=0.05)
        reference = io.BytesIO()
        np.savez(reference, x=self.rows(10))
        return build(
            self.name,
            1,
            self.onnx(),
            contract,
            b"{}",
            ProjectConfig(name=self.name, project="bench:Bench", task="classification", serve=ServeConfig(**serve)),
            Lineage("bench", "0" * 64, "0" * 64, "0" * 64, "0" * 40),
            reference.getvalue(),
            {"x": self.rows(8)},
            load_key(home),
            f"file://{home}/bundles",
        )


def _convolutions(channels: Sequence[int], rng: np.random.Generator) -> tuple[list[Any], list[Any], str]:
    """Nodes and weights of 3 x 3 convolutions with ReLU and pooling: x [n, 784] -> flat, whose name is returned."""
    weights = [numpy_helper.from_array(np.array([-1, 1, SIDE, SIDE], np.int64), "image")]
    nodes, at, before = [helper.make_node("Reshape", ["x", "image"], ["c"])], "c", 1
    for place, after in enumerate(channels):
        kernel = rng.normal(0, 0.1, (after, before, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"k{place}"))
        nodes += [
            helper.make_node("Conv", [at, f"k{place}"], [f"v{place}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"v{place}"], [f"r{place}"]),
            helper.make_node("MaxPool", [f"r{place}"], [f"p{place}"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        at, before = f"p{place}", after
    return [*nodes, helper.make_node("Flatten", [at], ["flat"])], weights, "flat"


WORKLOADS = (
    Workload("w1", (784, 64, 64, 10), "W1: 784-64-64-10, one row"),
    Workload("w2", (784, 64, 64, 10), "W2: 784-64-64-10, 32 rows", batch=32),
    Workload("w3", (1568, 136, 10), "W3: CNN of 224 thousand parameters, one image of 28 x 28", channels=(32, 32)),
    Workload("w4", (30, 64, 32, 2), "W4: 30 features, one row"),
)
