"""Captured traffic as Hive-partitioned Parquet: where its files are, and what stands in a row."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    import pyarrow as pa

# pyarrow is imported where it is used: the server and its capture writer import none of it.

COLUMNS = {
    "request_id": "string",
    "time": "float64",
    "sha256": "string",
    "entity_id": "string",
    "rows": "int32",
    "inputs": "binary",
    "outputs": "binary",
    "milliseconds": "float64",
    "arm": "string",
    "client": "string",
    "slices": "binary",
    "masking": "string",
}
"""Column of a file -> its type; model, version and date (UTC, of the request) stand in its path."""


def archive_folder(traffic: Path) -> Path:
    """Return the folder of the Parquet files that belong to a SQLite file of captured traffic."""
    return traffic.with_suffix(".parquet")


def new_part(model: str, version: int, date: str) -> str:
    """Return a fresh path for a file, relative to the folder; date is ISO 8601."""
    return f"model={quote(model, safe='')}/version={version}/date={date}/{uuid.uuid4().hex}.parquet"


def parse_part(path: str) -> tuple[str, int, str]:
    """Return model, version and date of a file's relative path; raises ValueError when it is no such path."""
    values = dict(part.split("=", 1) for part in path.split("/")[:-1] if "=" in part)
    if values.keys() != {"model", "version", "date"}:
        raise ValueError(f"{path} is not model=.../version=.../date=.../*.parquet")
    return unquote(values["model"]), int(values["version"]), values["date"]


def write_part(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Write rows (in the order of COLUMNS) under a temporary name, sync it to the disk, and rename it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()])
    columns = zip(*rows, strict=True)
    table = pa.Table.from_arrays([pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def temporary_name(path: Path) -> Path:
    """Return the name that a file has until it is whole."""
    return path.with_name(f".{path.name}.tmp")


def read_part(path: Path, columns: Sequence[str]) -> pa.Table:
    """Return some columns of a file; raises OSError, or pyarrow's ArrowException when it is damaged."""
    import pyarrow.parquet as pq

    # a file alone: without it, the folders above would become columns
    return pq.ParquetFile(path).read(columns=list(columns))
