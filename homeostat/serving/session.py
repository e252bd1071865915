"""One ONNX Runtime session, from bytes: one thread, quiet, and timed."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from homeostat.dataset import Array
from homeostat.errors import BundleInvalid

GOLDEN_TOLERANCE = 1e-3
"""|a - b| <= tolerance * (1 + |b|): what another processor's kernels may do to an answer."""
TIMED_RUNS, TIMED_ROWS = 20, 32
SLOW_SECONDS = 0.02


@dataclass(frozen=True)
class Output:
    """One output of a graph: its name and its shape without the batch dimension (-1 where it is open)."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


ORT_DTYPES = {
    "tensor(bool)": "?",
    "tensor(float16)": "<f2",
    "tensor(float)": "<f4",
    "tensor(double)": "<f8",
    **{f"tensor({sign}int{bits})": f"<{sign or 'i'}{bits // 8}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class Session:
    """A loaded graph. `run` may be called from any thread."""

    def __init__(self, onnx: bytes) -> None:
        """Load the graph; raises BundleInvalid when ONNX Runtime cannot, or an output is not a tensor of numbers."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ORT raises a dozen unrelated types, UnicodeDecodeError among them
            raise BundleInvalid(f"model.onnx does not load: {error!s:.500}; export the model again") from error
        self.inputs = {node.name: (node.type, tuple(node.shape)) for node in self._session.get_inputs()}
        outputs = []
        for node in self._session.get_outputs():
            if node.type not in ORT_DTYPES:
                raise BundleInvalid(
                    f"model.onnx: output {node.name!r} is {node.type}; only tensors of numbers are served"
                )
            shape = tuple(size if isinstance(size, int) else -1 for size in node.shape[1:])
            outputs.append(Output(node.name, np.dtype(ORT_DTYPES[node.type]), shape))
        self.outputs = tuple(outputs)
        self.output_names = [output.name for output in outputs]
        self._run = self._session.run

    def run(self, tensors: Mapping[str, Array]) -> list[Array]:
        """Return the outputs [n, ...] in the order of `outputs`."""
        answers: list[Array] = self._run(self.output_names, tensors)
        return answers


def read_golden(golden: bytes) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the golden rows and answers of a bundle; raises BundleInvalid when they cannot be read."""
    try:
        with np.load(io.BytesIO(golden), allow_pickle=False) as arrays:
            named = {name: arrays[name] for name in arrays.files}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleInvalid(f"golden.npz cannot be read: {error}") from error
    rows = {name.removeprefix("input:"): v for name, v in named.items() if name.startswith("input:")}
    answers = {name.removeprefix("output:"): v for name, v in named.items() if name.startswith("output:")}
    if not rows or not answers or min(len(v) for v in rows.values()) == 0:
        raise BundleInvalid("golden.npz holds no rows; build the bundle with a few golden rows")
    return rows, answers


def _close(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if expected.dtype.kind != "f":  # integers and booleans are exact, and their difference may wrap around
        return np.array_equal(found, expected)
    limit = GOLDEN_TOLERANCE * (1 + np.abs(expected))
    return bool(np.all((np.abs(found - expected) <= limit) | (np.isnan(found) & np.isnan(expected))))


def check_golden(session: Session, golden: bytes) -> bool:
    """Raise BundleInvalid unless the golden rows are answered as they were when the bundle was built.

    Returns whether each row alone gets the answer that it gets in the batch (batch-invariance).
    """
    rows, expected = read_golden(golden)
    found = dict(zip(session.output_names, session.run(rows), strict=True))
    if found.keys() != expected.keys():
        raise BundleInvalid(f"model.onnx answers {', '.join(found)}; golden.npz expects {', '.join(expected)}")
    for name, values in expected.items():
        if not _close(found[name], values):
            raise BundleInvalid(
                f"model.onnx: output {name!r} of the golden rows is not the one recorded (shape "
                f"{list(found[name].shape)} and {list(values.shape)}); build the bundle again on this kind of machine"
            )
    single = [session.run({n: v[i : i + 1] for n, v in rows.items()}) for i in range(len(next(iter(rows.values()))))]
    return all(
        len(found[name]) == len(single)
        and all(_close(one[place], found[name][i : i + 1]) for i, one in enumerate(single))
        for place, name in enumerate(session.output_names)
    )


def time_rows(session: Session, golden: bytes) -> tuple[float, float]:
    """Warm up, and return the median seconds of a call with one row, and what each further row adds."""
    rows, _ = read_golden(golden)
    one = {name: np.ascontiguousarray(values[:1]) for name, values in rows.items()}
    many = {name: np.repeat(values[:1], TIMED_ROWS, axis=0) for name, values in rows.items()}

    def median(tensors: dict[str, Array]) -> float:
        seconds = []
        for _ in range(TIMED_RUNS):
            start = time.perf_counter()
            session.run(tensors)
            seconds.append(time.perf_counter() - start)
            if sum(seconds) > 0.5:
                break
        return sorted(seconds)[len(seconds) // 2]

    session.run(one)
    single = median(one)
    if single > SLOW_SECONDS:  # it will run in a thread whatever a further row costs
        return single, single
    return single, max(0.0, (median(many) - single) / (TIMED_ROWS - 1))
