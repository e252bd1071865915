"""Windows of captured traffic: a Parquet file to look at, and labelled rows to learn from."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.dataset import Array, Dataset
from homeostat.errors import DataInvalid
from homeostat.monitoring.snapshot import Wanted, capture_files, open_snapshot
from homeostat.monitoring.traffic import TrafficRows, count_finite, read_rows, unix_seconds
from homeostat.records import Window
from homeostat.sealing import Keyring

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

MAX_LABELLED_ROWS = 100_000
"""Labelled traffic rows that one retraining takes at most."""


def read_window(
    traffic: Path,
    model: str,
    start: datetime,
    end: datetime,
    max_rows: int,
    workspace: Path,
    version: int | None = None,
    *,
    newest: int | None = None,
    seed: int = 0,
    keys: Keyring | None = None,
    to_frame: Callable[[Mapping[str, Array], Mapping[str, Array]], pd.DataFrame] | None = None,
) -> tuple[Window, TrafficRows]:
    """Read the rows answered between two times (by one version, if given) and write workspace/window.parquet.

    newest: by count, the last so many of these rows alone.
    to_frame: (inputs, outputs) -> frame [n] whose columns stand in the file beside ids, times,
    version, milliseconds and label. With keys, traffic is encrypted, and no file is written.
    Sampling and errors as in `read_rows`.
    """
    rows = read_rows(traffic, model, start, end, max_rows, version=version, newest=newest, seed=seed, keys=keys)
    path = ""
    if len(rows) and (keys is None or keys.current is None):
        frame = None if to_frame is None else to_frame(rows.inputs, rows.outputs)
        path = str(_write_parquet(rows, frame, workspace / "window.parquet"))
    window = Window(
        model=model,
        start=_iso(start),
        end=_iso(end),
        rows=len(rows),
        labelled=int(rows.labelled.sum()),
        path=path,
        found=rows.found,
        unreadable=len(rows.unreadable),
    )
    return window, rows


def labelled_traffic(
    traffic: Path,
    model: str,
    since: datetime,
    template: Dataset,
    *,
    max_rows: int = MAX_LABELLED_ROWS,
    seed: int = 0,
    keys: Keyring | None = None,
) -> Dataset | None:
    """Return the labelled rows answered since a time, by any version, in the form of `template`; None without any.

    ids hold the entity ids (empty where none was sent); target and inputs get the template's
    dtypes. Rows are left out, and logged, when their inputs are not the template's or are masked,
    when a label or an input is not finite in the template's dtype (NaN stays where the template's
    input has NaN) or, in classification, when the label is not one of its classes.
    """
    end = datetime.now(UTC) + timedelta(days=1)  # a server's clock may be a little ahead
    rows = read_rows(traffic, model, since, end, max_rows, labelled_only=True, seed=seed, keys=keys)
    rows = rows.take(rows.labelled)
    if not len(rows):
        return None
    if rows.masking is not None:
        logger.warning("labelled traffic of %s is masked (serve.masking): left out, %d rows", model, len(rows))
        return None
    expected = {name: values.shape[1:] for name, values in template.inputs.items()}
    if {name: values.shape[1:] for name, values in rows.inputs.items()} != expected:
        logger.warning("labelled traffic of %s has other inputs than its data: left out, %d rows", model, len(rows))
        return None
    rows = rows.take(_possible_labels(rows.labels, template))
    rows = rows.take(_possible_inputs(rows.inputs, template))
    if not len(rows):
        return None
    return Dataset(
        inputs={name: rows.inputs[name].astype(values.dtype) for name, values in template.inputs.items()},
        target=rows.labels.astype(template.target.dtype),
        columns=template.columns,
        time=None if template.time is None else (rows.times * 1e6).astype("int64").astype("datetime64[us]"),
        ids=rows.entity_ids,
        classes=template.classes,
    )


def count_labelled(traffic: Path, model: str, since: datetime, keys: Keyring | None = None) -> int:
    """Return how many rows to learn from, answered since a time by any version, have a label; 0 without a file."""
    if not capture_files(traffic):
        return 0
    with open_snapshot(traffic) as snapshot:
        found = list(snapshot.labelled(Wanted(model, unix_seconds(since))))
    count = 0
    keys = keys or Keyring()
    for request_id, rows, text in found:
        try:
            count += count_finite(keys.open(text, "", request_id, "labels"), rows)
        except (ValueError, TypeError, DataInvalid):
            logger.debug("%s: a label that cannot be read does not count: %.200r", traffic, text)
    return count


def _possible_labels(labels: Array, template: Dataset) -> Array:
    """Return [n] bool: labels that the template's target could hold."""
    if template.target.dtype.kind not in "iu":
        finite = _fits(labels, template.target.dtype)
        if not finite.all():
            logger.warning("%d labels are not finite %s: left out", int((~finite).sum()), template.target.dtype)
        return finite
    classes = len(template.classes) or int(template.target.max()) + 1
    possible = possible_classes(labels, classes)
    if not possible.all():
        logger.warning("%d labels are not one of %d classes: left out", int((~possible).sum()), classes)
    return possible


def _possible_inputs(inputs: Mapping[str, Array], template: Dataset) -> Array:
    """Return [n] bool: rows whose every input the template's dtypes hold; NaN only where the template has it."""
    possible = np.ones(len(next(iter(inputs.values()))), dtype=bool)
    for name, like in template.inputs.items():
        values = inputs[name]
        fits = _fits(values, like.dtype)
        if like.dtype.kind == "f" and np.isnan(like).any():
            fits |= np.isnan(values)
        possible &= fits.all(axis=tuple(range(1, fits.ndim)))
    if not possible.all():
        logger.warning("%d labelled rows have inputs that are not finite: left out", int((~possible).sum()))
    return possible


def _fits(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return bool of the values' shape: what is finite in `dtype`, or in the range of an integer one."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large for dtype becomes Inf, which is what is looked for
            finite: Array = np.isfinite(values.astype(dtype))
        return finite
    limits = np.iinfo(dtype)
    inside: Array = np.isfinite(values) & (values >= float(limits.min)) & (values < float(limits.max) + 1)
    return inside


def possible_classes(labels: Array, classes: int) -> Array:
    """Return [n] bool: labels that are whole numbers in [0, classes)."""
    possible: Array = (labels == np.floor(labels)) & (labels >= 0) & (labels < classes)
    return possible


def _write_parquet(rows: TrafficRows, frame: pd.DataFrame | None, path: Path) -> Path:
    import pandas as pd

    table = pd.DataFrame(
        {
            "request.id": rows.request_ids,
            "request.entity_id": rows.entity_ids,
            "request.time": pd.to_datetime(rows.times, unit="s", utc=True),
            "request.version": rows.versions,
            "request.milliseconds": rows.milliseconds,
            "request.label": rows.labels,
            "request.arm": rows.arms,
            **{f"slice.{name}": values for name, values in rows.slices.items()},
        }
    )
    if frame is not None:
        table = pd.concat([table, frame.reset_index(drop=True)], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        table.to_parquet(temporary, index=False)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.resolve()


def _iso(moment: datetime) -> str:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
