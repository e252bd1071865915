"""The golden rows of a bundle: a few rows and what the graph answered when the bundle was built."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import BundleInvalid

GOLDEN_ROWS = 16
GOLDEN_BYTES = 64 * 1024 * 1024
"""The most that the file, and the arrays in it, may have."""


def make_golden(onnx: bytes, rows: Mapping[str, Array]) -> bytes:
    """Return the npz of the first rows and the graph's answers; raises BundleInvalid when these are not finite.

    rows: input name -> [n, ...]. The arrays are named `input:<name>` and `output:<name>`.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    few = {name: np.ascontiguousarray(values[:GOLDEN_ROWS]) for name, values in rows.items()}
    names = [output.name for output in session.get_outputs()]
    answers: dict[str, Array] = dict(zip(names, session.run(names, few), strict=True))
    check_finite(few, answers)
    buffer = io.BytesIO()
    arrays = {f"input:{name}": values for name, values in few.items()}
    np.savez(buffer, **arrays, **{f"output:{name}": values for name, values in answers.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def read_golden(golden: bytes) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the golden rows and answers of a bundle; raises BundleInvalid when they cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(golden)) as file:
            size = sum(entry.file_size for entry in file.infolist())
        if size > GOLDEN_BYTES:
            raise BundleInvalid(f"golden.npz unpacks to {size} bytes, at most {GOLDEN_BYTES}; keep fewer rows in it")
        with np.load(io.BytesIO(golden), allow_pickle=False) as arrays:
            named = {name: arrays[name] for name in arrays.files}
    except (ValueError, KeyError, OSError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        raise BundleInvalid(f"golden.npz cannot be read: {error}; build the bundle again") from error
    rows = {name.removeprefix("input:"): v for name, v in named.items() if name.startswith("input:")}
    answers = {name.removeprefix("output:"): v for name, v in named.items() if name.startswith("output:")}
    lengths = {len(values) if values.ndim else 0 for values in rows.values()}
    if not answers or len(lengths) != 1 or not 0 < max(lengths) <= GOLDEN_ROWS:
        raise BundleInvalid(
            f"golden.npz holds {sorted(lengths)} rows, expected 1 to {GOLDEN_ROWS} of each input, and answers; "
            "build the bundle with a few golden rows"
        )
    return rows, answers


def _finite_rows(arrays: Mapping[str, Array], rows: int) -> Array:
    finite = np.ones(rows, bool)
    for values in arrays.values():
        if values.dtype.kind == "f" and values.ndim and len(values) == rows:
            finite &= np.isfinite(values).reshape(rows, -1).all(axis=1)
    return finite


def check_finite(rows: Mapping[str, Array], answers: Mapping[str, Array]) -> None:
    """Raise BundleInvalid when a row of finite numbers is answered with NaN or Inf.

    Where a row itself has NaN (serve.nan = "accept"), so may its answer.
    """
    count = len(next(iter(rows.values())))
    lost = np.flatnonzero(_finite_rows(rows, count) & ~_finite_rows(answers, count))
    if len(lost):
        raise BundleInvalid(
            f"model.onnx answers NaN or Inf on {len(lost)} of {count} golden rows of finite numbers, first on row "
            f"{lost[0]}; train the model again, and look for log(0) or 0/0 in it"
        )
