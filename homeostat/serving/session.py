"""One ONNX Runtime session, from bytes: one thread, quiet, and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from homeostat.dataset import Array
from homeostat.errors import BundleInvalid
from homeostat.golden import check_finite, read_golden

GOLDEN_TOLERANCE = 1e-3
"""|a - b| <= tolerance * (1 + |b|): what another processor's kernels may do to an answer."""
TIMED_RUNS, TIMED_ROWS = 20, 32
WILD_ROWS = 4
SLOW_SECONDS = 0.02
SLOW_ROWS = 8
"""Rows of the one timed call of a graph that is slow with one."""
HEAVY_SECONDS = 0.25
"""A call with one row that takes longer is not timed with more."""


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

    def run_until_told(self, tensors: Mapping[str, Array], options: ort.RunOptions) -> list[Array]:
        """Do the same, and raise after the operator of now once another thread sets `options.terminate`."""
        answers: list[Array] = self._run(self.output_names, tensors, options)
        return answers


def make_run_options() -> ort.RunOptions:
    """Return the options of one run, as quiet as the session's."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    return options


def _close(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if expected.dtype.kind != "f":  # integers and booleans are exact, and their difference may wrap around
        return np.array_equal(found, expected)
    limit = GOLDEN_TOLERANCE * (1 + np.abs(expected))
    return bool(np.all((np.abs(found - expected) <= limit) | (np.isnan(found) & np.isnan(expected))))


def check_golden(session: Session, golden: bytes) -> bool:
    """Raise BundleInvalid unless the golden rows are answered as they were when the bundle was built, and finitely.

    Returns whether the answer to a row depends on no other row of its batch (batch-invariance).
    """
    rows, expected = read_golden(golden)
    found = dict(zip(session.output_names, session.run(rows), strict=True))
    if found.keys() != expected.keys():
        raise BundleInvalid(f"model.onnx answers {', '.join(found)}; golden.npz expects {', '.join(expected)}")
    check_finite(rows, found)
    for name, values in expected.items():
        if not _close(found[name], values):
            raise BundleInvalid(
                f"model.onnx: output {name!r} of the golden rows is not the one recorded (shape "
                f"{list(found[name].shape)} and {list(values.shape)}); build the bundle again on this kind of machine"
            )
    answers = list(found.values())
    single = [session.run({n: v[i : i + 1] for n, v in rows.items()}) for i in range(len(next(iter(rows.values()))))]
    calm = all(_alone(answers, i, len(single), one) for i, one in enumerate(single))
    return calm and _among_wild(session, rows, single)


def _alone(answers: Sequence[Array], row: int, rows: int, one: Sequence[Array]) -> bool:
    """Return whether a row of a batch is answered as it is alone."""
    return all(len(many) == rows and _close(many[row : row + 1], own) for many, own in zip(answers, one, strict=True))


def _among_wild(session: Session, rows: Mapping[str, Array], single: Sequence[Sequence[Array]]) -> bool:
    """Return whether a row, first or last, is answered as alone when its neighbours are extreme, NaN or refused."""
    places = [i % len(single) for i in range(WILD_ROWS)]
    for row in (0, WILD_ROWS - 1):
        neighbours = [i for i in range(WILD_ROWS) if i != row]
        for factor in (1000.0, np.nan):
            wild = {name: values[places] for name, values in rows.items()}  # copies
            for values in wild.values():
                if values.dtype.kind == "f":
                    with np.errstate(over="ignore"):  # half precision ends at 65504
                        values[neighbours] = values[neighbours] * factor + factor
            try:
                answers = session.run(wild)
            except Exception:  # noqa: BLE001  any failure of one row that fails its neighbours is a dependence
                return False
            if not _alone(answers, row, WILD_ROWS, single[places[row]]):
                return False
    return True


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
    if single > HEAVY_SECONDS:
        return single, single
    if single > SLOW_SECONDS:
        few = {name: np.repeat(values[:1], SLOW_ROWS, axis=0) for name, values in rows.items()}
        start = time.perf_counter()
        session.run(few)
        return single, max(0.0, (time.perf_counter() - start - single) / (SLOW_ROWS - 1))
    return single, max(0.0, (median(many) - single) / (TIMED_ROWS - 1))
