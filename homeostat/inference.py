"""ONNX Runtime outside the server: one thread, the very bytes that will be served, answers in batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import BundleInvalid, DataInvalid

if TYPE_CHECKING:
    import onnxruntime as ort


def session(onnx: bytes | Path, threads: int = 1) -> ort.InferenceSession:
    """Load a graph on the CPU with `threads` intra-op threads; a path is read, so that external data is never followed.

    Raises BundleInvalid when ONNX Runtime cannot load it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    data = onnx.read_bytes() if isinstance(onnx, Path) else onnx
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT raises a dozen unrelated types, UnicodeDecodeError among them
        place = str(onnx) if isinstance(onnx, Path) else "the ONNX graph"
        raise BundleInvalid(f"{place} does not load: {error!s:.500}; export the model again") from error


@overload
def predict(model: bytes | Path, inputs: Mapping[str, Array], batch: int = 1024) -> dict[str, Array]: ...


@overload
def predict(model: ort.InferenceSession, inputs: Mapping[str, Array], batch: int = 1024) -> Array: ...


def predict(
    model: bytes | Path | ort.InferenceSession, inputs: Mapping[str, Array], batch: int = 1024
) -> dict[str, Array] | Array:
    """Return the answers to n rows (n may be 0), computed `batch` rows at a time.

    inputs: name -> [n, ...]; names that the graph does not take are left out. From a graph every
    output by name, [n, ...]; from a session, whose graph must have a single output, that output
    alone. Raises DataInvalid when an input is missing or has another dtype or shape.
    """
    if isinstance(model, bytes | Path):
        return predict_all(session(model), inputs, batch)
    outputs = predict_all(model, inputs, batch)
    if len(outputs) != 1:
        raise DataInvalid(f"the graph has outputs {', '.join(outputs)}; use predict_all for more than one")
    return next(iter(outputs.values()))


def predict_all(loaded: ort.InferenceSession, inputs: Mapping[str, Array], batch: int = 1024) -> dict[str, Array]:
    """Return every output of a loaded graph by name, as `predict` does."""
    nodes = loaded.get_inputs()
    missing = [node.name for node in nodes if node.name not in inputs]
    if missing:
        raise DataInvalid(f"the graph takes an input {', '.join(missing)}; the rows have {', '.join(inputs)}")
    taken = {node.name: np.ascontiguousarray(inputs[node.name]) for node in nodes}
    rows = {len(values) for values in taken.values()}
    if len(rows) != 1:
        raise DataInvalid(f"inputs have {', '.join(map(str, sorted(rows)))} rows; each needs the same number")
    n = rows.pop()
    if n == 0:  # not every kernel takes no rows: the shapes come from one row of zeros
        one = {name: np.zeros((1, *values.shape[1:]), values.dtype) for name, values in taken.items()}
        return {name: values[:0] for name, values in _run(loaded, one).items()}
    parts = [_run(loaded, {k: v[i : i + batch] for k, v in taken.items()}) for i in range(0, n, batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _run(loaded: ort.InferenceSession, inputs: dict[str, Array]) -> dict[str, Array]:
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    names = [node.name for node in loaded.get_outputs()]
    try:
        return dict(zip(names, loaded.run(names, inputs), strict=True))
    except InvalidArgument as error:
        raise DataInvalid(f"the graph does not take these rows: {' '.join(str(error).split()):.300}") from error
