"""Hard checks on a dataset: what no model can be trained on, all breaches named at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.contract import MAX_COLUMNS
from homeostat.dataset import Array, Dataset
from homeostat.errors import DataInvalid

PARTS = ("train", "validation", "calibration", "test")
"""The four parts, in the order of time when the split is by time."""

EXAMPLES = 3


def check_dataset(data: Dataset, config: ProjectConfig) -> None:
    """Raise DataInvalid that lists every breach: rows, missing or infinite values, and a target that fits the task."""
    breaches = [*_rows(data, config), *_inputs(data), *_missing(data), *_target(data, config)]
    if breaches:
        raise DataInvalid(f"the data of project {config.name!r} cannot be learned from", breaches)


def rows_at(bad: Array) -> str:
    """Return how many rows of a boolean mask [n] are bad, and the positions of the first few."""
    found = np.flatnonzero(bad)
    more = ", ..." if len(found) > EXAMPLES else ""
    positions = ", ".join(map(str, found[:EXAMPLES]))
    return f"{len(found)} of {len(bad)} rows (positions {positions}{more})"


def _rows(data: Dataset, config: ProjectConfig) -> Iterator[str]:
    if len(data) == 0:
        yield "there are no rows"
    elif len(data) < config.data.min_rows:
        yield f"{len(data)} rows, fewer than data.min_rows = {config.data.min_rows}"


def named_columns(data: Dataset) -> Iterator[tuple[str, Array]]:
    """Yield a name and values [n, ...] for each column of small inputs, and for each larger input as a whole."""
    for name, values in data.inputs.items():
        if values.ndim == 2 and values.shape[1] <= MAX_COLUMNS:
            names = data.columns.get(name) or tuple(f"{name}[{i}]" for i in range(values.shape[1]))
            yield from ((f"column {column!r}", values[:, i]) for i, column in enumerate(names))
        else:
            yield f"input {name!r}", values


def _inputs(data: Dataset) -> Iterator[str]:
    if len(data) == 0:
        return
    for name, values in named_columns(data):
        if values.size == 0:
            yield f"{name} has shape {values.shape}, which holds no value"
        elif values.dtype.kind == "f":
            flat = values.reshape(len(values), -1)
            if np.isnan(flat).all():
                yield f"{name}: every value is missing (NaN)"
            infinite = np.asarray(np.isinf(flat).any(axis=1))
            if infinite.any():
                yield f"{name}: Inf in {rows_at(infinite)}"


def _missing(data: Dataset) -> Iterator[str]:
    if data.time is not None and np.isnat(data.time).any():
        yield f"time: missing in {rows_at(np.isnat(data.time))}"


def _target(data: Dataset, config: ProjectConfig) -> Iterator[str]:
    target = data.target
    if len(target) == 0:
        return
    if target.dtype.kind == "f" and not np.isfinite(target).all():
        yield f"target: NaN or Inf in {rows_at(~np.isfinite(target))}"
    elif config.task == "regression":
        yield from _numbers(target)
    elif target.dtype.kind not in "iu":
        yield f"target has dtype {target.dtype}; classes are integers from 0: map them, e.g. .astype('int64')"
    else:
        yield from _classes(target, data.classes)


def _numbers(target: Array) -> Iterator[str]:
    if target.dtype.kind != "f":
        yield f"target has dtype {target.dtype}; a regression needs float: .astype('float32')"
    if (target == target[0]).all():
        yield f"target: every value is {target[0]:g}, so there is nothing to learn"


def _classes(target: Array, names: tuple[str, ...]) -> Iterator[str]:
    if (target < 0).any():
        yield f"target: negative class in {rows_at(target < 0)}; classes are integers from 0"
        return
    seen, counts = np.unique(target, return_counts=True)
    size = max(int(seen[-1]) + 1, len(names))
    if seen[0] == 1 and len(seen) == seen[-1] and len(names) in (0, len(seen)):
        yield "target: no row has class 0; classes are counted from 0: subtract 1"
        return
    if names and int(seen[-1]) >= len(names):
        yield f"target: class {seen[-1]} in {rows_at(target >= len(names))}, but `classes` has {len(names)} names"
    if len(seen) == 1:
        yield f"target: only one class ({seen[0]}), so there is nothing to tell apart"
    if len(target) < size:
        yield f"{len(target)} rows are fewer than the {size} classes (0 to {size - 1})"
        return
    rows = dict(zip(seen.tolist(), counts.tolist(), strict=True))
    few = [f"{label} ({rows.get(label, 0)})" for label in range(size) if rows.get(label, 0) < len(PARTS)]
    if few and len(seen) > 1:
        yield f"target: classes with fewer than {len(PARTS)} rows, one for each part: {', '.join(few)}"
