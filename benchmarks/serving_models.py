"""The graphs and requests of the serving benchmark: W1 (784-64-64-10 classifier) and W4 (30 features)."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from homeostat.bundle import build, load_key
from homeostat.config import ProjectConfig
from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.records import BundleRef, Lineage


@dataclass(frozen=True)
class Workload:
    """One graph and the request that is sent over and over, at batch 1."""

    name: str
    layers: tuple[int, ...]
    title: str

    def onnx(self) -> bytes:
        """Dense layers with ReLU, a softmax at the end, random weights: x [n, first] -> output [n, last]."""
        rng = np.random.default_rng(1)
        nodes, weights, at = [], [], "x"
        for place, (before, after) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            last = place == len(self.layers) - 2
            weights += [
                numpy_helper.from_array(rng.normal(0, 0.1, (before, after)).astype(np.float32), f"w{place}"),
                numpy_helper.from_array(np.zeros(after, np.float32), f"b{place}"),
            ]
            end = "output" if last else f"h{place}"
            nodes.append(helper.make_node("Gemm", [at, f"w{place}", f"b{place}"], [f"g{place}"]))
            nodes.append(helper.make_node("Softmax" if last else "Relu", [f"g{place}"], [end]))
            at = end
        graph = helper.make_graph(
            nodes,
            self.name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", self.layers[0]])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", self.layers[-1]])],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        return model.SerializeToString()

    def rows(self, count: int = 1) -> np.ndarray:
        """Values in [0, 1) with four decimals."""
        return np.random.default_rng(2).random((count, self.layers[0])).round(4).astype(np.float32)

    def values(self) -> list[float]:
        return [round(float(value), 4) for value in self.rows()[0]]

    def body(self, protocol: str) -> bytes:
        """The request body as this protocol has it: `v2` JSON, `mlflow` JSON, or `plain` {"x": [[...]]}."""
        values = self.values()
        if protocol == "v2":
            one = {"name": "x", "shape": [1, len(values)], "datatype": "FP32", "data": values}
            return json.dumps({"inputs": [one]}).encode()
        return json.dumps({"inputs": {"x": [values]}} if protocol == "mlflow" else {"x": [values]}).encode()

    def binary(self) -> tuple[bytes, int]:
        """The v2 body with binary tensors in and out, and the length of its JSON part."""
        one = {"name": "x", "shape": [1, self.layers[0]], "datatype": "FP32"}
        size = {"binary_data_size": 4 * self.layers[0]}
        head = json.dumps(
            {"inputs": [{**one, "parameters": size}], "parameters": {"binary_data_output": True}}
        ).encode()
        return head + self.rows().tobytes(), len(head)

    def bundle(self, home: Path) -> BundleRef:
        """A signed bundle with a contract of one range for each column."""
        width = self.layers[0]
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
            ProjectConfig(name=self.name, project="bench:Bench", task="classification"),
            Lineage("bench", "0" * 64, "0" * 64, "0" * 64, "0" * 40),
            reference.getvalue(),
            {"x": self.rows(8)},
            load_key(home),
            f"file://{home}/bundles",
        )


WORKLOADS = (
    Workload("w1", (784, 64, 64, 10), "W1: 784-64-64-10, one row"),
    Workload("w4", (30, 64, 32, 2), "W4: 30 features, one row"),
)
