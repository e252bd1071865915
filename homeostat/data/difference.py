"""What differs between two contracts, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from homeostat.contract import ColumnSpec, Contract


@dataclass(frozen=True)
class Change:
    """One rule that differs; old and new are None where a side does not have it."""

    place: str
    """`column age`, `input x`, `target` or `table`."""
    rule: str
    """added, removed, dtype, range, null_share, categories, shape, columns, min_rows, mostly or null_slack."""
    old: Any
    new: Any
    effect: str = ""
    """wider, narrower or moved, for what rows may be."""


def differ(old: Contract, new: Contract, tolerance: float = 0.0) -> tuple[Change, ...]:
    """Return what changed from one contract to another, tables first, then inputs, columns and target.

    tolerance: an end of a range that moved by at most this share of the old range, or a null share
    that moved by at most this, counts as the same: the next training part never has quite the same ends.
    """
    return tuple(_differ(old, new, tolerance))


def _differ(old: Contract, new: Contract, tolerance: float) -> Iterator[Change]:
    for rule in ("min_rows", "mostly", "null_slack"):
        before, after = getattr(old, rule), getattr(new, rule)
        if before != after:
            yield Change("table", rule, before, after)
    before_inputs, after_inputs = ({spec.name: spec for spec in c.inputs} for c in (old, new))
    yield from _added(tuple(before_inputs), tuple(after_inputs), "input")
    for name in before_inputs.keys() & after_inputs.keys():
        for rule in ("dtype", "shape", "columns"):
            before, after = getattr(before_inputs[name], rule), getattr(after_inputs[name], rule)
            if before != after:
                yield Change(f"input {name}", rule, before, after)
    before_columns, after_columns = ({column.name: column for column in c.columns} for c in (old, new))
    yield from _added(tuple(before_columns), tuple(after_columns), "column")
    for name, column in before_columns.items():
        if name in after_columns:
            yield from _column(f"column {name}", column, after_columns[name], tolerance)
    yield from _column("target", old.target, new.target, tolerance)


def _added(old: Sequence[str], new: Sequence[str], kind: str) -> Iterator[Change]:
    yield from (Change(f"{kind} {name}", "removed", name, None) for name in old if name not in new)
    yield from (Change(f"{kind} {name}", "added", None, name) for name in new if name not in old)


def _column(place: str, old: ColumnSpec, new: ColumnSpec, tolerance: float) -> Iterator[Change]:
    if old.dtype != new.dtype:
        yield Change(place, "dtype", old.dtype, new.dtype)
    if abs(old.null_share - new.null_share) > tolerance:
        effect = "wider" if new.null_share > old.null_share else "narrower"
        yield Change(place, "null_share", old.null_share, new.null_share, effect)
    if old.categories != new.categories:
        yield Change(place, "categories", old.categories, new.categories, _sets(old, new))
    elif old.categories is None:
        before, after = (old.minimum, old.maximum), (new.minimum, new.maximum)
        if before != after and not _near(before, after, tolerance):
            yield Change(place, "range", before, after, _ranges(before, after))


def _near(old: tuple[float | None, float | None], new: tuple[float | None, float | None], tolerance: float) -> bool:
    if None in (*old, *new):
        return False
    (low, high), (new_low, new_high) = (
        (float(old[0] or 0), float(old[1] or 0)),
        (float(new[0] or 0), float(new[1] or 0)),
    )
    allowed = tolerance * (high - low)
    return abs(new_low - low) <= allowed and abs(new_high - high) <= allowed


def _sets(old: ColumnSpec, new: ColumnSpec) -> str:
    if old.categories is None or new.categories is None:
        return "wider" if new.categories is None else "narrower"
    before, after = set(old.categories), set(new.categories)
    return "wider" if before < after else "narrower" if after < before else "moved"


def _ranges(old: tuple[float | None, float | None], new: tuple[float | None, float | None]) -> str:
    infinity = float("inf")
    low, high = (-infinity if old[0] is None else old[0]), (infinity if old[1] is None else old[1])
    new_low, new_high = (-infinity if new[0] is None else new[0]), (infinity if new[1] is None else new[1])
    if new_low <= low and new_high >= high:
        return "wider"
    return "narrower" if new_low >= low and new_high <= high else "moved"
