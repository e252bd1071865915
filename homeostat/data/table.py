"""Where rows are profiled: a frame, Parquet, CSV or a database's table, as one Ibis table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homeostat.errors import ConfigError, DataInvalid

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

# Ibis, DuckDB and pandas are imported where they are used: config, the command line and the server import none.

Source = Any
"""A pandas frame, an Ibis table, or the place of one as text or Path.

A place is a Parquet or CSV file, a folder or a glob of either, or `URL#table` of a database that Ibis
connects to, such as `postgresql://host/db#rows` or `duckdb:///file.duckdb#rows`.
"""
MEMORY = "1500MB"
"""What DuckDB may hold in memory; the rest of a large grouping goes to a temporary folder."""
CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


@contextmanager
def open_table(source: Source) -> Iterator[ir.Table]:
    """Open rows as an Ibis table, for as long as the context lasts.

    Raises DataInvalid when there are none or a file is damaged, ConfigError when a database
    cannot be connected to.
    """
    import duckdb
    import ibis.expr.types as ir

    if isinstance(source, ir.Table):
        yield source
        return
    try:
        if isinstance(source, str) and "://" in source and "#" in source:
            with _database(source) as table:
                yield table
            return
        with _duckdb() as backend:
            yield _files(backend, str(source)) if isinstance(source, str | Path) else _frame(source, backend)
    except duckdb.Error as error:
        place = source if isinstance(source, str | Path) else "the frame"
        raise DataInvalid(f"{place} cannot be read: {str(error).strip()}; is it whole, and of one schema?") from error


@contextmanager
def _duckdb() -> Iterator[Any]:
    import ibis

    with tempfile.TemporaryDirectory(prefix="homeostat-profile-") as folder:
        backend = ibis.duckdb.connect(memory_limit=MEMORY, temp_directory=folder, preserve_insertion_order=False)
        try:
            yield backend
        finally:
            backend.disconnect()


@contextmanager
def _database(source: str) -> Iterator[ir.Table]:
    import ibis

    url, _, name = source.rpartition("#")
    try:
        backend = ibis.connect(url)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{url.partition('://')[0]}: Ibis cannot connect to this kind of database: {error}; "
            "install its driver, such as ibis-framework[postgres]"
        ) from error
    try:
        if name not in backend.list_tables():
            raise DataInvalid(
                f"no table {name!r} there; there are: {', '.join(sorted(backend.list_tables())) or 'none'}"
            )
        yield backend.table(name)
    finally:
        backend.disconnect()


def _files(backend: Any, place: str) -> ir.Table:
    path = Path(place)
    if path.is_dir():
        kinds = {file.suffix for file in path.rglob("*") if file.suffix in (".csv", ".parquet")}
        if len(kinds) != 1:
            raise DataInvalid(
                f"{place} holds {' and '.join(sorted(kinds)) or 'no'} files; name a glob of Parquet or CSV"
            )
        place = str(path / "**" / f"*{kinds.pop()}")
    elif not any(mark in place for mark in "*?[") and "://" not in place and not path.is_file():
        raise DataInvalid(f"{place}: no such file; name a Parquet or CSV file, a folder or a glob")
    if place.endswith(CSV):
        return backend.read_csv(place)
    # an older file lacks a column: its rows have nothing there
    return backend.read_parquet(place, union_by_name=True)


def _frame(frame: pd.DataFrame, backend: Any) -> ir.Table:
    import pyarrow as pa

    ready = frame.reset_index(drop=True)
    ready.columns = ready.columns.map(str)
    for name in ready.columns:
        dtype = ready[name].dtype
        if dtype.name == "float16":  # which no database has
            ready[name] = ready[name].astype("float32")
        elif dtype.name in ("object", "category"):  # of anything: what it reads as
            ready[name] = ready[name].map(str, na_action="ignore").astype(object)
    rows = pa.Table.from_pandas(ready, preserve_index=False)
    for place, field in enumerate(rows.schema):
        if pa.types.is_null(field.type):
            rows = rows.set_column(place, field.name, rows.column(place).cast(pa.string()))
    backend.con.register("rows", rows)
    return backend.table("rows")


def dtype_names(source: Source, table: ir.Table) -> dict[str, str]:
    """Return column -> the dtype that a pandas frame of these rows has, by numpy's name."""
    if hasattr(source, "dtypes") and hasattr(source, "columns") and not hasattr(source, "execute"):
        return {str(name): dtype.name for name, dtype in zip(source.columns, source.dtypes, strict=True)}
    return {name: _numpy_name(dtype) for name, dtype in table.schema().items()}


def _numpy_name(dtype: Any) -> str:
    if dtype.is_boolean():
        return "bool"
    if dtype.is_integer() or dtype.is_floating():
        return str(dtype.copy(nullable=True)).lower()
    if dtype.is_decimal():
        return "float64"
    return "datetime64[ns]" if dtype.is_timestamp() or dtype.is_date() else "object"
