"""Tiny ONNX graphs, their bundles, and rollout rows, for every test that needs something to serve."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from homeostat.bundle import build, load_key
from homeostat.config import ProjectConfig, RolloutConfig, ServeConfig
from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.errors import ControlUnavailable
from homeostat.records import BundleRef, Lineage, Rollout, Task

LINEAGE = Lineage("pipeline", "d" * 64, "c" * 64, "r" * 64, "0" * 40)
WIDTH = 4
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bool": TensorProto.BOOL,
    **{
        f"{sign}int{bits}": getattr(TensorProto, f"{sign}int{bits}".upper())
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def graph_bytes(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Sequence[Any] = ()
) -> bytes:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def linear(scale: float = 1.0, width: int = WIDTH) -> bytes:
    """x [n, width] float32 -> output [n, 1] = scale * sum(x)."""
    weight = numpy_helper.from_array(np.full((width, 1), scale, np.float32), "w")
    return graph_bytes(
        [helper.make_node("MatMul", ["x", "w"], ["output"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 1])],
        [weight],
    )


def two_inputs() -> bytes:
    """a [n, 2] float32, b [n] int64 -> total [n, 2] float32 = a + a, doubled [n] int64 = b + b."""
    return graph_bytes(
        [helper.make_node("Add", ["a", "a"], ["total"]), helper.make_node("Add", ["b", "b"], ["doubled"])],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("b", TensorProto.INT64, ["n"]),
        ],
        [
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("doubled", TensorProto.INT64, ["n"]),
        ],
    )


def identity(dtypes: Sequence[str] = tuple(ONNX_TYPES)) -> bytes:
    """An input [n, 2] for each dtype, named like it -> the same as `out_<dtype>`."""
    nodes = [helper.make_node("Identity", [name], [f"out_{name}"]) for name in dtypes]
    values = [[helper.make_tensor_value_info(f"{p}{d}", ONNX_TYPES[d], ["n", 2]) for d in dtypes] for p in ("", "out_")]
    return graph_bytes(nodes, *values)


def sigmoid() -> bytes:
    """x [n, 1] float32 -> chance [n, 1] = 1 / (1 + exp(-x))."""
    return graph_bytes(
        [helper.make_node("Sigmoid", ["x"], ["chance"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("chance", TensorProto.FLOAT, ["n", 1])],
    )


def softmax() -> bytes:
    """x [n, 3] float32 -> scores [n, 3], which sum to 1."""
    return graph_bytes(
        [helper.make_node("Softmax", ["x"], ["scores"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
    )


def patients() -> bytes:
    """The inputs of projects/diabetes: body [n, 3], sex [n, 1] int64, serum [n, 6] -> the sum of their means [n, 1]."""
    means = [helper.make_node("ReduceMean", [name], [f"mean_{name}"], axes=[1]) for name in ("body", "serum")]
    cast = helper.make_node("Cast", ["sex"], ["mean_sex"], to=TensorProto.FLOAT)
    total = helper.make_node("Sum", ["mean_body", "mean_sex", "mean_serum"], ["output"])
    kinds = {"body": (TensorProto.FLOAT, 3), "sex": (TensorProto.INT64, 1), "serum": (TensorProto.FLOAT, 6)}
    return graph_bytes(
        [*means, cast, total],
        [helper.make_tensor_value_info(name, kind, ["n", width]) for name, (kind, width) in kinds.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 1])],
    )


def chain(nodes: int, op: str = "Relu") -> bytes:
    """x [n, 4] float32 -> output [n, 4], through so many nodes, one after the other."""
    names = ["x", *(f"t{i}" for i in range(1, nodes)), "output"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "output")]
    return graph_bytes([helper.make_node(op, [names[i]], [names[i + 1]]) for i in range(nodes)], values[:1], values[1:])


def function_chain(functions: int) -> bytes:
    """x [n, 4] float32 -> output [n, 4], through functions of the model's own, each of which calls the next."""
    own = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
    calls = [helper.make_node(f"f{i + 1}", ["a"], ["b"], domain="own") for i in range(functions - 1)]
    calls.append(helper.make_node("Relu", ["a"], ["b"]))
    made = [helper.make_function("own", f"f{i}", ["a"], ["b"], [call], own) for i, call in enumerate(calls)]
    model = onnx.load_from_string(chain(1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "f0", "own"
    model.opset_import.append(own[0])
    model.functions.extend(made)
    return model.SerializeToString()


def endless_loop() -> bytes:
    """x [n, 4] float32 -> output [n, 4], after a Loop that no condition ends."""
    body = helper.make_graph(
        [helper.make_node(*node) for node in (("Identity", ["on"], ["on_"]), ("Identity", ["carried"], ["carried_"]))],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, ["n", WIDTH]),
        ],
        [
            helper.make_tensor_value_info("on_", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_", TensorProto.FLOAT, ["n", WIDTH]),
        ],
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "output")]
    yes = numpy_helper.from_array(np.array(True), "yes")
    return graph_bytes(
        [helper.make_node("Loop", ["", "yes", "x"], ["output"], body=body)], values[:1], values[1:], [yes]
    )


def memory_bomb(op: str, size: int = 10**10) -> bytes:
    """x [n, 4] float32 -> output [n, 4] = x + the least of so many numbers, 40 GB of them."""
    shape = numpy_helper.from_array(np.array([size], np.int64), "shape")
    seed = numpy_helper.from_array(np.zeros(1, np.float32), "seed")
    inputs = ["shape"] if op == "ConstantOfShape" else ["seed", "shape"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "output")]
    nodes = [
        helper.make_node(op, inputs, ["many"]),
        helper.make_node("ReduceMin", ["many"], ["least"]),
        helper.make_node("Add", ["x", "least"], ["output"]),
    ]
    return graph_bytes(nodes, values[:1], values[1:], [shape, *([seed] if op != "ConstantOfShape" else [])])


def slow(products: int = 2000, size: int = 1500) -> bytes:
    """x [n, 4] float32 -> output [n, 4], after so many products of matrices, each about a tenth of a second."""
    shape = numpy_helper.from_array(np.array([size, size], np.int64), "shape")
    nodes = [
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Expand", ["least", "shape"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(products)),
        helper.make_node("ReduceMin", [f"m{products}"], ["end"], keepdims=0),
        helper.make_node("Add", ["x", "end"], ["output"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "output")]
    return graph_bytes(nodes, values[:1], values[1:], [shape])


def weighing(values: np.ndarray, *, raw: bool = True) -> bytes:
    """x [n, 4] float32 -> output [n, 4] = x, beside weights w that nothing uses."""
    model = onnx.load_from_string(chain(1, "Identity"))
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    data = values.tobytes() if raw else values
    model.graph.initializer.append(helper.make_tensor("w", kind, values.shape, data, raw=raw))
    return model.SerializeToString()


def contract_of(
    onnx_bytes: bytes, low: float = -10.0, high: float = 10.0, columns: Mapping[str, tuple[str, ...]] | None = None
) -> Contract:
    graph = onnx.load_from_string(onnx_bytes).graph
    names = {code: name for name, code in ONNX_TYPES.items()}
    specs = []
    for node in graph.input:
        tensor = node.type.tensor_type
        shape = tuple(dim.dim_value for dim in tensor.shape.dim[1:])
        specs.append(
            TensorSpec(
                name=node.name,
                dtype=names[tensor.elem_type],
                shape=shape,
                minimum=(low,),
                maximum=(high,),
                columns=(columns or {}).get(node.name, ()),
            )
        )
    target = ColumnSpec(name="target", dtype="float64", null_share=0.0, minimum=0.0, maximum=1.0)
    return Contract(inputs=tuple(specs), columns=(), target=target, min_rows=10, mostly=0.9, null_slack=0.1)


def rows_of(contract: Contract, rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        spec.name: rng.uniform(-1, 1, (rows, *spec.shape)).astype(spec.dtype)
        if np.dtype(spec.dtype).kind == "f"
        else rng.integers(0, 2 if spec.dtype == "bool" else 5, (rows, *spec.shape)).astype(spec.dtype)
        for spec in contract.inputs
    }


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def make_bundle(
    home: Path,
    version: int = 1,
    model: str = "toy",
    onnx_bytes: bytes | None = None,
    task: Task = "regression",
    classes: tuple[str, ...] = (),
    columns: Mapping[str, tuple[str, ...]] | None = None,
    rollout: RolloutConfig | None = None,
    contract: Contract | None = None,
    reference: bytes | None = None,
    **serve: Any,
) -> BundleRef:
    """A signed bundle in HOME/bundles; by default version v answers v * sum(x)."""
    graph = linear(float(version)) if onnx_bytes is None else onnx_bytes
    contract = contract or contract_of(graph, columns=columns)
    sections = {"serve": ServeConfig(**serve), "rollout": rollout or RolloutConfig()}
    config = ProjectConfig(name=model, project="a.b:C", task=task, **sections)
    return build(
        model,
        version,
        graph,
        contract,
        b"{}",
        config,
        LINEAGE,
        npz(x=np.zeros(1)) if reference is None else reference,
        rows_of(contract),
        load_key(home),
        f"file://{home}/bundles",
        classes,
    )


def folder_of(ref: BundleRef) -> Path:
    """The folder of a bundle on this disk."""
    return Path(ref.url.removeprefix("file://"))


def forge(home: Path, ref: BundleRef, **contents: bytes) -> BundleRef:
    """Put other contents (model_onnx=..., ...) into a bundle, sign it with the right key, and return its record."""
    folder = folder_of(ref)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, data in ((key.replace("_", "."), data) for key, data in contents.items()):
        (folder / name).write_bytes(data)
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    signed = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(signed)
    (folder / "manifest.sig").write_bytes(load_key(home).sign(signed))
    digests = hashlib.sha256(signed).hexdigest(), manifest["files"]["model.onnx"]["sha256"]
    return replace(ref, manifest_sha256=digests[0], sha256=digests[1])


def rollout(
    champion: BundleRef | None,
    generation: int = 1,
    previous: BundleRef | None = None,
    challenger: BundleRef | None = None,
    model: str = "toy",
) -> Rollout:
    return Rollout(model, generation, champion, challenger, previous, "2026-01-01T00:00:00+00:00")


@dataclass
class Store:
    """Rollout rows in memory, with the control store's `rows`; `down` makes it fail."""

    table: dict[str, Rollout] = field(default_factory=dict)
    down: bool = False

    def rows(self) -> list[Rollout]:
        if self.down:
            raise ControlUnavailable("the control store does not answer")
        return list(self.table.values())

    def put(self, row: Rollout) -> None:
        self.table[row.model] = row

    def promote(self, ref: BundleRef) -> None:
        old = self.table.get(ref.model)
        if old is None:
            self.put(rollout(ref, model=ref.model))
        else:
            self.put(replace(old, champion=ref, previous=old.champion, generation=old.generation + 1))
