"""The gates of an exported graph: each raises with the fact, or returns what it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from homeostat.dataset import Array
from homeostat.errors import BundleInvalid, DataInvalid, ExportMismatch, ExportUnsupported, GateFailed
from homeostat.export.onnx import OUTPUT, declared_inputs, unknown_ops
from homeostat.graph import check_graph, read_graph
from homeostat.inference import predict, session
from homeostat.records import Gate, Task

ORT_ERRORS: tuple[type[Exception], ...] = (
    *(ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph),
    *(ort_errors.NotImplemented, ort_errors.RuntimeException),
)
"""What ONNX Runtime raises for a graph that it cannot run; they have no parent of their own."""

_FAILS: tuple[type[Exception], ...] = (DataInvalid, *ORT_ERRORS)

INVARIANCE_TOLERANCE = 1e-5


def _load(data: bytes) -> Any:
    try:
        return session(data)
    except BundleInvalid as error:
        raise ExportUnsupported(f"ONNX Runtime refuses the graph that the checker let pass: {error}") from error


def _answers(loaded: Any, inputs: Mapping[str, Array], rows: int) -> Array:
    """Return the answers [rows, k] to the first rows, in one call."""
    try:
        found: Array = predict(loaded, {name: values[:rows] for name, values in inputs.items()}, batch=rows)
    except _FAILS as error:
        raise ExportMismatch(f"the graph fails at batch {rows}, Keras does not: {error!s:.500}") from error
    return found


def check_structure(data: bytes) -> Gate:
    """Check the whole graph (types and shapes too), and that every weight is in these bytes."""
    try:
        proto = onnx.load_from_string(data)
    except DecodeError as error:
        raise ExportUnsupported(f"these bytes are no ONNX graph: {error}; export the model again") from error
    outside = read_graph(data).external  # at any depth: subgraphs hold weights too
    if outside:
        raise GateFailed(f"weight {outside[0]!r} is in another file; export with every weight inside")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportUnsupported(f"the ONNX checker refuses the graph: {error!s:.500}") from error
    return Gate("checker", f"{len(proto.graph.node)} nodes, opset {proto.opset_import[0].version}")


def check_operators(data: bytes) -> Gate:
    """Check that the graph is one that the server takes: known operators, a bounded size, no NaN in the weights."""
    unknown = unknown_ops(onnx.load_from_string(data))
    if unknown:
        raise ExportUnsupported(f"the graph has operators that ONNX does not know: {', '.join(unknown[:5])}")
    try:
        graph = check_graph(data, "the exported model")
    except BundleInvalid as error:
        raise ExportUnsupported(str(error)) from error
    return Gate("operators", f"{len(graph.operators)} kinds, all known")


_NUMPY = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool"}


def check_inputs(data: bytes, inputs: Mapping[str, Array]) -> Gate:
    """Check that the graph asks for exactly the dataset's inputs, each with an open batch dimension.

    Its single output must be named `output`, which is what a client of the server is told.
    """
    found, loaded = {}, _load(data)
    outputs = [node.name for node in loaded.get_outputs()]
    if outputs != [OUTPUT]:
        raise GateFailed(f"the graph has outputs {', '.join(outputs)}; it must have one, {OUTPUT!r}: export it anew")
    for node in loaded.get_inputs():
        dtype = _NUMPY.get(node.type, node.type.removeprefix("tensor(").removesuffix(")"))
        if not node.shape or isinstance(node.shape[0], int):
            raise GateFailed(f"input {node.name!r} has the fixed shape {node.shape}; its first dimension must be open")
        found[node.name] = (dtype, tuple(node.shape[1:]))
    declared = declared_inputs(inputs)
    if found != declared:
        raise GateFailed(
            f"the graph asks for {found}, the dataset has {declared}; a state of a layer (Normalization, lookup) "
            "that became an input was not frozen"
        )
    return Gate(
        "inputs", ", ".join(f"{name} {dtype}[n, {', '.join(map(str, s))}]" for name, (dtype, s) in found.items())
    )


def check_parity(data: bytes, inputs: Mapping[str, Array], expected: Array, tolerance: float) -> Gate:
    """Check the answers against Keras' on real rows at batch 1, 2 and n: |a-b| <= tolerance * (1 + |b|).

    expected: [n, k], Keras' outputs. Raises ExportMismatch with the worst row and both values.
    """
    _check_expected(expected)
    loaded, worst = _load(data), 0.0
    for rows in sorted({1, min(2, len(expected)), len(expected)}):
        found = _answers(loaded, inputs, rows)
        if found.shape != expected[:rows].shape:
            raise ExportMismatch(f"the graph answers {found.shape} where Keras answers {expected[:rows].shape}")
        if not np.isfinite(found).all():
            raise ExportMismatch(f"the graph answers NaN or Inf at batch {rows}; Keras does not")
        error = np.abs(found - expected[:rows]) / (1 + np.abs(expected[:rows]))
        worst = max(worst, float(error.max()))
        if error.max() > tolerance:
            row, column = np.unravel_index(int(error.argmax()), error.shape)
            raise ExportMismatch(
                f"row {row}, output {column} at batch {rows}: the graph answers {found[row, column]:.6g}, Keras "
                f"{expected[row, column]:.6g}; the difference {error.max():.2g} is over export.tolerance {tolerance:g}"
            )
    return Gate("parity", f"{len(expected)} rows, largest difference {worst:.1e}")


def _check_expected(expected: Array) -> None:
    lost = np.flatnonzero(~np.isfinite(expected).all(axis=1))
    if len(lost):
        raise GateFailed(
            f"Keras itself answers NaN or Inf on {len(lost)} of {len(expected)} rows, first on row {lost[0]}; "
            "look for log(0) or 0/0 in the model"
        )


def agreement(found: Array, expected: Array, task: Task) -> float:
    """Return how far a quantized graph agrees: the share of equal classes, or R2 against Keras' answers."""
    if task == "classification":
        if expected.shape[1] == 1:
            return float(np.mean((found >= 0.5) == (expected >= 0.5)))
        return float(np.mean(found.argmax(axis=1) == expected.argmax(axis=1)))
    spread = float(np.sum((expected - expected.mean()) ** 2))
    return 1.0 - float(np.sum((found - expected) ** 2)) / spread if spread else float(np.allclose(found, expected))


def check_agreement(data: bytes, inputs: Mapping[str, Array], expected: Array, task: Task, least: float) -> Gate:
    """Check a quantized graph at batch 1, 2 and n: finite, of Keras' shape, and agreeing with Keras on n rows."""
    _check_expected(expected)
    loaded = _load(data)
    for rows in sorted({1, min(2, len(expected)), len(expected)}):
        found = _answers(loaded, inputs, rows)
        if found.shape != expected[:rows].shape or not np.isfinite(found).all():
            raise ExportMismatch(f"at batch {rows} the graph answers {found.shape}, finite: {np.isfinite(found).all()}")
    share = agreement(found, expected, task)
    if share < least:
        what = "classes equal Keras'" if task == "classification" else "R2 against Keras' answers"
        error = np.abs(found - expected)
        row, column = np.unravel_index(int(error.argmax()), error.shape)
        raise ExportMismatch(
            f"{what}: {share:.4f} on {len(expected)} rows, under export.quantized_agreement {least:g}; worst in row "
            f"{row}, output {column}: the graph answers {found[row, column]:.6g}, Keras {expected[row, column]:.6g}"
        )
    return Gate("parity", f"{len(expected)} rows, agreement {share:.4f}")


def batch_invariance(data: bytes, inputs: Mapping[str, Array]) -> float:
    """Return the largest relative change of a row's answer when its neighbours are extreme or NaN.

    A graph whose scales depend on the whole batch (dynamic quantization) lets one client's row
    change another's answer; inf when a neighbour's NaN reaches it.
    """
    loaded, worst = _load(data), 0.0
    calm = {name: np.concatenate([values[:2], values[1:3]]) for name, values in inputs.items()}
    rows = len(next(iter(calm.values())))  # of one size, so that rounding is the same
    among_calm = _answers(loaded, calm, rows)[:1]
    for factor in (1000.0, np.nan):
        wild = {name: values.copy() for name, values in calm.items()}
        for values in wild.values():
            if values.dtype.kind == "f":
                values[1:2] = values[1:2] * factor + factor
        change = np.abs(_answers(loaded, wild, rows)[:1] - among_calm) / (1 + np.abs(among_calm))
        worst = max(worst, float(change.max()) if np.isfinite(change).all() else float("inf"))
    return worst


def check_batch_invariance(data: bytes, inputs: Mapping[str, Array]) -> Gate:
    """Check that a row's answer does not depend on the rows beside it."""
    change = batch_invariance(data, inputs)
    if change > INVARIANCE_TOLERANCE:
        raise GateFailed(
            f"a row's answer changes by {change:.2g} with its neighbours in the batch (allowed "
            f"{INVARIANCE_TOLERANCE:g}): leave dynamic_int8 out of compress.candidates"
        )
    return Gate("batch-invariance", f"largest change {change:.1e}")
