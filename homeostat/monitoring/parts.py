"""Captured requests in Parquet files: their index by DuckDB, and whole requests by their place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from homeostat.archive import COLUMNS
from homeostat.errors import Unavailable
from homeostat.monitoring.index import Index, make_index

logger = logging.getLogger(__name__)

NEEDED = ("request_id", "time", "rows", "arm", "inputs", "outputs")
"""Columns without which a file says nothing; another one that an older file lacks is empty."""


class Part(NamedTuple):
    """One file: its path under the capture's folder, the version that answered, and how many requests it has."""

    path: str
    version: int
    rows: int


def index_parts(
    folder: Path, parts: Sequence[Part], start: float, end: float, capture: int, problems: list[str]
) -> Index | None:
    """Return where the answered requests with start <= time < end are; None without any file.

    A file that is damaged, half written or lacks a column is left out and named in `problems`; one
    that has been deleted since, as too old or too much, is left out.
    """
    there = [part for part in parts if _is_there(folder, part)]
    if not there:
        return None
    import duckdb

    with duckdb.connect() as database:
        try:
            newest = all(set(COLUMNS) <= columns for columns in _columns(database, folder, there))
            found = _query(database, folder, there, start, end) if newest else None
        except duckdb.Error:
            found = None
        if found is None:
            found, there = _one_by_one(database, folder, there, start, end, problems)
    times, ids, rows, masked, places, file = found
    versions = np.array([part.version for part in there], dtype=np.int64)
    return make_index(
        (times, ids, rows, versions[file], masked, places),
        capture,
        parts=file + 1,
        paths=("", *(part.path for part in there)),
    )


def _is_there(folder: Path, part: Part) -> bool:
    if (folder / part.path).is_file():
        return True
    logger.info("%s has been deleted since", folder / part.path)
    return False


def _columns(database: Any, folder: Path, parts: Sequence[Part]) -> list[set[str]]:
    """Return the columns of each file: one that a file lacks would be empty in a common query, and its rows lost."""
    names = [str(folder / part.path) for part in parts]
    found = database.execute("SELECT file_name, list(name) FROM parquet_schema(?) GROUP BY file_name", [names])
    columns = {name: set(there) for name, there in found.fetchall()}
    return [columns[name] for name in names]


def _query(
    database: Any, folder: Path, parts: Sequence[Part], start: float, end: float, masking: str = "masking"
) -> tuple[Any, ...]:
    """Return times, ids, rows, masked, places and position in `parts` of the answered requests."""
    names = [str(folder / part.path) for part in parts]
    sql = (
        f"SELECT time, request_id, rows, {masking} IS NOT NULL AS masked, file_row_number, file_index "  # noqa: S608
        "FROM read_parquet(?, file_row_number = true, hive_partitioning = false, union_by_name = true) "
        "WHERE arm IS DISTINCT FROM 'shadow' AND time >= ? AND time < ?"
    )
    values = database.execute(sql, [names, start, end]).fetchnumpy()
    columns = ("time", "request_id", "rows", "masked", "file_row_number", "file_index")
    return tuple(np.ma.filled(values[name], 0) for name in columns)


def _one_by_one(
    database: Any, folder: Path, parts: Sequence[Part], start: float, end: float, problems: list[str]
) -> tuple[tuple[Any, ...], list[Part]]:
    """Do as `_query` for each file by itself, so that one that cannot be read costs no other."""
    import duckdb

    found: list[tuple[Any, ...]] = []
    sound: list[Part] = []
    for part in parts:
        try:
            (names,) = _columns(database, folder, [part])
            lacking = [name for name in NEEDED if name not in names]
            if lacking:
                problems.append(f"{part.path}: {part.rows} requests: of an older schema, without {', '.join(lacking)}")
                continue
            masking = "masking" if "masking" in names else "NULL"
            *columns, _ = _query(database, folder, [part], start, end, masking)
        except duckdb.Error as error:
            problems.append(f"{part.path}: {part.rows} requests: damaged or half written: {str(error).strip():.200}")
            continue
        found.append((*columns, np.full(len(columns[0]), len(sound), dtype=np.int64)))
        sound.append(part)
    if not found:
        return tuple(np.empty(0, dtype=object if i == 1 else np.int64) for i in range(6)), sound
    return tuple(np.concatenate(column) for column in zip(*found, strict=True)), sound


def read_requests(
    folder: Path, path: str, places: Sequence[int], columns: Sequence[str], problems: list[str]
) -> list[dict[str, Any]]:
    """Return the requests at these rows of a file, empty where an older file lacks a column.

    What is damaged is named in `problems`. Raises Unavailable when the file has been deleted meanwhile.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(folder / path)
        there = [name for name in columns if name in file.schema_arrow.names]
        table = file.read(columns=there).take(list(places))
    except FileNotFoundError as error:
        raise Unavailable(f"{folder / path} was deleted while it was being read; try again") from error
    except (pa.ArrowException, OSError) as error:
        problems.append(f"{path}: {len(places)} requests: damaged: {str(error).strip():.200}")
        return []
    empty = dict.fromkeys(set(columns) - set(there))
    return [row | empty for row in table.to_pylist()]
