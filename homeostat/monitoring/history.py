"""A labelled history out of a Parquet file, as the rows that the live version would have answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array
from homeostat.errors import DataInvalid
from homeostat.inference import predict
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 5_000_000
"""Rows of a file; more would not fit into the memory of a small machine with their answers."""


@dataclass(frozen=True)
class Columns:
    """Which columns of the file hold what the inputs do not."""

    time: str = "time"
    label: str = "label"
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class History:
    """Answered rows, oldest first, each with its label if it ever comes."""

    rows: TrafficRows
    notes: tuple[str, ...] = ()
    """Rows that were left out, and why."""


def read_history(
    path: Path,
    columns: Columns,
    config: ProjectConfig,
    reference: Reference,
    onnx: bytes,
    version: int,
    classes: Sequence[str] = (),
) -> History:
    """Read a Parquet file and answer its rows with a version's graph.

    An input of named columns is read from these, another one from the column of its name, or from
    `name_0`, `name_1`, ...; a tensor from a column of lists. classes: names that labels may have
    instead of numbers. Rows without a time, or with a value that the server would refuse
    (config.serve.nan), are left out. Raises DataInvalid that names what is missing or wrong.
    """
    frame = _read(path, columns, reference)
    times = _times(frame[columns.time], path)
    inputs = {
        name: _input(frame, name, like, reference.columns.get(name, ()), path)
        for name, like in reference.inputs.items()
    }
    labels = _labels(frame[columns.label], config, classes, path)
    kept = np.isfinite(times)
    notes = [(int((~kept).sum()), f"rows have no time in {columns.time!r}")]
    possible = np.ones(len(times), dtype=bool)
    for name, values in inputs.items():
        if config.serve.nan == "reject" or reference.inputs[name].dtype.kind in "iu":
            possible &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    notes.append((int((kept & ~possible).sum()), "rows have missing or infinite inputs, which the server refuses"))
    kept &= possible
    order = np.flatnonzero(kept)[np.argsort(times[kept], kind="stable")]
    notes.append((int((np.diff(times[kept]) < 0).sum()), "times go back: rows were put in order"))
    if not len(order):
        raise DataInvalid(f"{path}: none of {len(frame)} rows can be replayed", [f"{n} {why}" for n, why in notes if n])
    if not np.isfinite(labels[order]).any():
        raise DataInvalid(f"{path}: column {columns.label!r} holds no label; name the right one with --label")
    kept_inputs = {name: values[order].astype(reference.inputs[name].dtype) for name, values in inputs.items()}
    rows = TrafficRows(
        inputs=kept_inputs,
        outputs=predict(onnx, kept_inputs),
        labels=labels[order],
        entity_ids=np.full(len(order), ""),
        request_ids=np.array([f"row {place}" for place in order]),
        versions=np.full(len(order), version),
        times=times[order],
        milliseconds=np.full(len(order), np.nan),
        arms=np.full(len(order), "champion"),
        places=np.zeros(len(order), dtype=np.int64),
        label_times=np.where(np.isfinite(labels[order]), times[order], np.nan),
        slices={name: frame[name].iloc[order].astype(str).to_numpy(dtype=str) for name in columns.slices},
        found=len(order),
    )
    return History(rows, tuple(f"{count} {why}" for count, why in notes if count))


def _read(path: Path, columns: Columns, reference: Reference) -> pd.DataFrame:
    """Return the columns that are needed; raises DataInvalid when the file or one of them is not there."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            if file.metadata.num_rows > MAX_ROWS:
                raise DataInvalid(f"{path} has {file.metadata.num_rows} rows, at most {MAX_ROWS}; replay it in parts")
            wanted = _wanted(path, columns, reference, there)
            frame: pd.DataFrame = file.read(columns=wanted).to_pandas()
            return frame
    except FileNotFoundError as error:
        raise DataInvalid(f"{path}: no such file; give a Parquet file with time, label and input columns") from error
    except (pa.ArrowException, OSError) as error:
        raise DataInvalid(
            f"{path} is no whole Parquet file: {' '.join(str(error).split()):.200}; write it again"
        ) from error


def _wanted(path: Path, columns: Columns, reference: Reference, there: set[str]) -> list[str]:
    wanted, missing = [], []
    for name, like in reference.inputs.items():
        parts = [*_names(name, like, reference.columns.get(name, ()), there)]
        wanted += parts
        missing += [f"no column {part!r}, of input {name!r}" for part in parts if part not in there]
    options = ((columns.time, "--time"), (columns.label, "--label"), *((name, "--slice") for name in columns.slices))
    missing += [
        f"no column {name!r}; name the right one with {option}" for name, option in options if name not in there
    ]
    if missing:
        raise DataInvalid(f"{path} has the columns {', '.join(sorted(there)):.500}", missing[:20])
    return list(dict.fromkeys([*wanted, columns.time, columns.label, *columns.slices]))


def _names(name: str, like: Array, columns: Sequence[str], there: set[str]) -> tuple[str, ...]:
    """Return the file's columns of an input."""
    if columns:
        return tuple(columns)
    if like.ndim != 2 or name in there:
        return (name,)
    return tuple(f"{name}_{i}" for i in range(like.shape[1]))


def _input(frame: pd.DataFrame, name: str, like: Array, columns: Sequence[str], path: Path) -> Array:
    """Return an input [n, ...] as float64, NaN where a value is missing."""
    names = _names(name, like, columns, set(frame.columns))
    try:
        if names == (name,) and frame[name].dtype == object:
            values = np.stack([np.ravel(np.stack(row)) for row in frame[name]]).astype(np.float64)
        else:
            values = frame[list(names)].to_numpy(np.float64, na_value=np.nan)
        return values.reshape((len(frame), *like.shape[1:]))
    except (ValueError, TypeError) as error:
        raise DataInvalid(
            f"{path}: input {name!r} of shape {like.shape[1:]} cannot be made from {', '.join(names):.200}: "
            f"{error!s:.200}; write numbers, or lists of that many"
        ) from error


def _times(column: pd.Series[Any], path: Path) -> Array:
    """Return unix seconds [n], NaN where there is none; numbers are unix seconds already."""
    import pandas as pd

    if column.dtype.kind in "iuf":
        return column.to_numpy(np.float64, na_value=np.nan)
    try:
        moments = pd.to_datetime(column, utc=True, format=None if column.dtype.kind == "M" else "ISO8601")
    except (ValueError, TypeError) as error:
        raise DataInvalid(
            f"{path}: column {column.name!r} holds no times: {error!s:.200}; write timestamps, ISO 8601 or unix seconds"
        ) from error
    seconds: Array = (moments - pd.Timestamp(0, tz="UTC")).dt.total_seconds().to_numpy(np.float64)
    return seconds


def _labels(column: pd.Series[Any], config: ProjectConfig, classes: Sequence[str], path: Path) -> Array:
    """Return labels [n] float64, NaN where there is none."""
    place: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
    if config.task == "classification" and classes and column.dtype.kind == "O" and column.dropna().isin(classes).all():
        column = column.map(place)
    try:
        labels: Array = column.astype("float64").to_numpy(np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        known = f"the classes {', '.join(classes):.200}, or their numbers" if classes else "numbers"
        raise DataInvalid(f"{path}: column {column.name!r} holds no labels: {error!s:.200}; write {known}") from error
    return np.where(np.isfinite(labels), labels, np.nan)
