"""The Ibis expressions that profile and compare: the same on DuckDB, PostgreSQL or Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from homeostat.dataset import Array

if TYPE_CHECKING:
    import ibis.expr.types as ir

STATISTICS = ("minimum", "maximum", "mean", "std", "distinct")
MAX_TEXT = 200
"""Characters of a category: what is longer is cut."""
EDGE = 1e-9
"""Relative: a value on the last edge belongs to the last bin."""


class Kinds(NamedTuple):
    """The columns of a table by what can be said of them; the others have null shares alone."""

    numbers: tuple[str, ...]
    texts: tuple[str, ...]


def kinds_of(table: ir.Table) -> Kinds:
    """Return which columns are numbers (also flags and times, as unix seconds), and which are text."""
    schema = table.schema()
    numbers = [n for n, d in schema.items() if d.is_numeric() or d.is_boolean() or d.is_timestamp() or d.is_date()]
    return Kinds(tuple(numbers), tuple(name for name, dtype in schema.items() if dtype.is_string()))


def number(column: Any) -> Any:
    """Return a column as float64, NULL where it is missing or not finite."""
    import ibis

    dtype = column.type()
    if dtype.is_timestamp() or dtype.is_date():
        return column.cast("timestamp").epoch_seconds().cast("float64")
    if dtype.is_boolean():
        column = column.cast("int8")
    values = column.cast("float64")
    if not dtype.is_floating():
        return values
    return ibis.ifelse(values.isnan() | values.isinf(), None, values)


def missing(column: Any) -> Any:
    """Return whether a value is missing or NaN."""
    return column.isnull() | column.isnan() if column.type().is_floating() else column.isnull()


def text(column: Any) -> Any:
    """Return a column as text, cut."""
    return column.cast("string").substr(0, MAX_TEXT)


def statistics(table: ir.Table, kinds: Kinds) -> dict[str, dict[str, float | None]]:
    """Return column -> `nulls`, and of numbers and text what STATISTICS names; one look at all rows.

    `rows` of all of them stands under the empty name.
    """
    figures: dict[str, Any] = {"rows": table.count()}
    for place, name in enumerate(table.columns):
        figures[f"nulls_{place}"] = missing(table[name]).sum()
        if name in kinds.numbers:
            values = number(table[name])
            figures[f"minimum_{place}"], figures[f"maximum_{place}"] = values.min(), values.max()
            figures[f"mean_{place}"], figures[f"std_{place}"] = values.mean(), values.std(how="pop")
            figures[f"distinct_{place}"] = values.approx_nunique()
        elif name in kinds.texts:
            figures[f"distinct_{place}"] = table[name].approx_nunique()
    found = table.aggregate(**figures).to_pyarrow().to_pylist()[0]
    out: dict[str, dict[str, float | None]] = {"": {"rows": found["rows"]}}
    for place, name in enumerate(table.columns):
        out[name] = {s: found.get(f"{s}_{place}") for s in ("nulls", *STATISTICS)}
    return out


def histograms(table: ir.Table, edges: Mapping[str, Sequence[float]]) -> dict[str, Array]:
    """Return column -> counts [bins]; what lies beyond the edges is in the outer bins."""
    import ibis

    names = list(edges)
    groups = []
    for place, name in enumerate(names):
        low, high, bins = edges[name][0], edges[name][-1], len(edges[name]) - 1
        scale = bins / (high - low) * (1 - EDGE)
        binned = table.select(bin=((number(table[name]) - low) * scale).floor().clip(0, bins - 1).cast("int16"))
        counted = binned.group_by("bin").aggregate(rows=binned.count())
        groups.append(counted.mutate(place=ibis.literal(place, "int16")))
    counts = {name: np.zeros(len(edges[name]) - 1, dtype=np.int64) for name in names}
    for row in ibis.union(*groups).to_pyarrow().to_pylist() if groups else ():
        if row["bin"] is not None:
            counts[names[row["place"]]][row["bin"]] = row["rows"]
    return counts


def most_frequent(table: ir.Table, name: str, limit: int, *, integers: bool) -> list[tuple[int | str, int]]:
    """Return up to `limit` values of a column and their rows, the most frequent first, then by value."""
    import ibis

    values = number(table[name]).cast("int64") if integers else text(table[name])
    chosen = table.select(value=values)
    counted = chosen.filter(chosen["value"].notnull()).group_by("value").aggregate(rows=lambda t: t.count())
    found = counted.order_by([ibis.desc("rows"), "value"]).limit(limit).to_pyarrow().to_pylist()
    return [(row["value"], row["rows"]) for row in found]


def category_counts(table: ir.Table, known: Mapping[str, Sequence[int | str]]) -> dict[str, Array]:
    """Return column -> rows [values + 1] of each known value, and last of all other values.

    A number is held against integers by its value, so that 1, 1.0 and true are one category.
    """
    import ibis

    names = list(known)
    groups = []
    for place, name in enumerate(names):
        if all(isinstance(value, int) for value in known[name]):
            values = number(table[name])
            listed = values.isin([float(value) for value in known[name]])
        else:
            values = text(table[name])
            listed = values.isin([str(value) for value in known[name]])
        filled = table.filter(~missing(table[name])).select(value=ibis.ifelse(listed, values, None))
        counted = filled.group_by("value").aggregate(rows=filled.count())
        groups.append(
            counted.select(place=ibis.literal(place, "int16"), value=counted["value"].cast("string"), rows="rows")
        )
    counts = {name: np.zeros(len(known[name]) + 1, dtype=np.int64) for name in names}
    places = {name: {str(value): i for i, value in enumerate(known[name])} for name in names}
    for row in ibis.union(*groups).to_pyarrow().to_pylist() if groups else ():
        name, value = names[row["place"]], row["value"]
        whole = value is not None and all(isinstance(one, int) for one in known[name])
        key = str(int(float(value))) if whole else value
        counts[name][-1 if value is None else places[name][key]] += row["rows"]
    return counts


def sample(table: ir.Table, names: Sequence[str], rows: int, wanted: int, seed: int) -> Array:
    """Return about `wanted` of the rows, drawn by `seed`, as float64 [n, columns]; all when there are no more."""
    if not names:
        return np.empty((0, 0))
    chosen = table if rows <= wanted else table.sample(wanted / rows, method="row", seed=seed)
    found = chosen.select(**{f"c{i}": number(chosen[name]) for i, name in enumerate(names)}).to_pyarrow()
    return np.column_stack([column.to_numpy().astype(np.float64) for column in found.columns])
