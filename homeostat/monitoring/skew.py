"""Train/serve skew: logged requests replayed through the training-side code give the same features and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from homeostat.data.violations import plain_value
from homeostat.dataset import Array, Dataset
from homeostat.errors import DataInvalid
from homeostat.inference import predict
from homeostat.monitoring.traffic import TrafficRows
from homeostat.project import Project
from homeostat.records import Skew, SkewFinding

if TYPE_CHECKING:
    import pandas as pd

MAX_FINDINGS = 20
TOLERANCES = {"float16": 1e-2, "float32": 1e-3, "float64": 1e-3}
"""|a - b| <= tolerance * (1 + |b|), by the type that a value was served in: what another processor's kernels may do.

The server's own preflight allows an answer as much; other types are equal or not.
"""
FEATURE_TOLERANCE = 1e-6
"""Of features: they are copied and cast, and a mean of pixels may be summed in another order."""


def check_skew(
    project: Project,
    columns: Mapping[str, tuple[str, ...]],
    onnx: bytes,
    rows: TrafficRows,
    *,
    version: int,
    requests: int = 100,
    seed: int = 0,
) -> Skew:
    """Replay requests that a version answered, drawn by `seed`: equal features and equal answers.

    Features: the project's frame of all requests together, as training makes it of its rows, against the
    frame of each request alone, as the server meets it. A `to_frame` that looks at other rows (a mean, a
    rank), at the clock or at a file that changed is skewed. Answers: the version's graph on the logged
    tensors, all in one batch, against what was answered. columns: input name -> names, of the reference.
    """
    mine = rows.take(rows.versions == version)
    if not len(mine):
        return Skew(0, 0, 0, (), f"no request of version {version} in the window: nothing replayed", conclusive=False)
    if rows.masking is not None:
        why = "captured inputs are masked (serve.masking), so that they cannot be answered again"
        return Skew(0, 0, 0, (), why, conclusive=False)
    chosen = _choose(mine, requests, seed)
    ids = [str(chosen.request_ids[start]) for start, _ in _spans(chosen)]
    try:
        findings = [*_features(project, columns, chosen), *_answers(onnx, chosen)]
    except DataInvalid as error:
        return Skew(len(ids), len(chosen), len(ids), (), f"logged requests cannot be replayed: {error}")
    skewed = len({finding.request_id for finding in findings})
    reason = f"{len(ids)} requests replayed: equal features and equal answers"
    if findings:
        first = findings[0]
        reason = (
            f"{skewed} of {len(ids)} replayed requests are skewed, first {first.request_id} row {first.row}: "
            f"{first.kind} {first.column} was {first.served!r}, replayed {first.replayed!r}"
        )
    return Skew(len(ids), len(chosen), skewed, tuple(findings[:MAX_FINDINGS]), reason)


def _choose(rows: TrafficRows, requests: int, seed: int) -> TrafficRows:
    ids, place = np.unique(rows.request_ids, return_inverse=True)
    if len(ids) > requests:
        drawn = np.random.default_rng(seed).choice(len(ids), requests, replace=False)
        rows = rows.take(np.isin(place, drawn))
    order = np.argsort(rows.request_ids, kind="stable")
    return rows.take(order)


def _spans(rows: TrafficRows) -> list[tuple[int, int]]:
    """Return start and end of each request's rows."""
    starts = np.flatnonzero(np.r_[True, rows.request_ids[1:] != rows.request_ids[:-1]])
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True))


def _features(project: Project, columns: Mapping[str, tuple[str, ...]], rows: TrafficRows) -> list[SkewFinding]:
    trained = Dataset.from_arrays(rows.inputs, np.zeros(len(rows)), columns=columns)  # with the dtypes of training
    together = _frame(project, trained.inputs, columns)
    findings = []
    for start, end in _spans(rows):
        alone = _frame(project, {name: values[start:end] for name, values in rows.inputs.items()}, columns)
        for name in alone.columns.union(together.columns, sort=False):
            if name not in alone or name not in together:
                sides = ("absent" if name not in alone else "there", "absent" if name not in together else "there")
                findings.append(SkewFinding(str(rows.request_ids[start]), 0, "feature", str(name), *sides))
                continue
            served, replayed = alone[name].to_numpy(), together[name].to_numpy()[start:end]
            findings += _differing(rows, start, "feature", str(name), served, replayed, FEATURE_TOLERANCE)
    return findings


def _frame(project: Project, inputs: Mapping[str, Array], columns: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    rows = len(next(iter(inputs.values())))
    frame = project.to_frame(inputs, columns)
    if len(frame) != rows:
        raise DataInvalid(f"to_frame gave {len(frame)} rows for {rows}; it must give one for each")
    return frame


def _answers(onnx: bytes, rows: TrafficRows) -> list[SkewFinding]:
    findings = []
    for name, replayed in predict(onnx, rows.inputs).items():
        served = rows.outputs.get(name)
        if served is None or served.shape != replayed.shape:
            shape = "absent" if served is None else list(served.shape[1:])
            told = (shape, list(replayed.shape[1:]))
            findings += [SkewFinding(str(rows.request_ids[s]), 0, "answer", name, *told) for s, _ in _spans(rows)]
            continue
        tolerance = TOLERANCES.get(served.dtype.name, 0.0)
        flat, again = served.reshape(len(rows), -1), replayed.reshape(len(rows), -1)
        for i in range(flat.shape[1]):
            column = name if flat.shape[1] == 1 else f"{name}[{i}]"
            for start, end in _spans(rows):
                findings += _differing(
                    rows, start, "answer", column, flat[start:end, i], again[start:end, i], tolerance
                )
    return findings


def _differing(
    rows: TrafficRows, start: int, kind: str, column: str, served: Array, replayed: Array, tolerance: float
) -> list[SkewFinding]:
    """Return a finding for the first row that differs; NaN equals NaN."""
    if served.dtype.kind in "fiub" and replayed.dtype.kind in "fiub":
        a, b = served.astype(np.float64), replayed.astype(np.float64)
        with np.errstate(invalid="ignore"):
            same = (np.abs(a - b) <= tolerance * (1 + np.abs(b))) | (a == b) | (np.isnan(a) & np.isnan(b))
    else:
        same = np.array([x == y or (x != x and y != y) for x, y in zip(served, replayed, strict=True)], dtype=bool)
    if same.all():
        return []
    row = int(np.flatnonzero(~same)[0])
    values = plain_value(served[row]), plain_value(replayed[row])
    return [SkewFinding(str(rows.request_ids[start]), row, kind, column, *values)]
