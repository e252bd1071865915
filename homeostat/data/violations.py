"""A window's report by the contract: which rows break which rule, with counts and examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.contract import ColumnSpec, Contract
from homeostat.dataset import Array
from homeostat.records import Violation

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 3
LONGEST = 200
"""Characters of an example."""
NUMBERS = ("float", "int", "uint", "bool")
"""How the names of dtypes begin that hold numbers."""


def check_window(contract: Contract, frame: pd.DataFrame) -> tuple[Violation, ...]:
    """Hold the columns of a project's frame [n] against a contract; the broken rules first, then by their rows.

    The target is held too when the frame has it. A window has not the rows of a training set:
    `min_rows` is not applied. An empty window breaks nothing but columns that are absent.
    """
    wanted = [*contract.columns, *([contract.target] if contract.target.name in frame.columns else [])]
    found = [violation for spec in wanted for violation in _column(contract, spec, frame)]
    names = {spec.name for spec in wanted}
    found += [Violation(str(c), "new", 0, 0.0, 1.0, False, "no such column") for c in frame.columns if c not in names]
    return tuple(sorted(found, key=lambda v: (not v.broken, -v.share)))


def _column(contract: Contract, spec: ColumnSpec, frame: pd.DataFrame) -> Iterator[Violation]:
    if spec.name not in frame.columns:
        yield Violation(spec.name, "absent", len(frame), 1.0, 0.0, True, "the column")
        return
    column = frame[spec.name]
    null = column.isna().to_numpy()
    allowed = min(1.0, spec.null_share + contract.null_slack)
    yield from _rule(spec, "null_share", null, column, allowed, f"at most {allowed:.1%} missing")
    is_number = column.dtype.kind in "fiub"
    if is_number != spec.dtype.startswith(NUMBERS) and not null.all():
        yield Violation(spec.name, "dtype", len(column), 1.0, 0.0, True, spec.dtype, ((0, column.dtype.name),))
        return
    if spec.categories is not None:
        bad = ~column.isin(list(spec.categories)).to_numpy() & ~null
        shown = ", ".join(map(str, spec.categories[:5])) + (", ..." if len(spec.categories) > 5 else "")
        yield from _rule(spec, "categories", bad, column, 1 - contract.mostly, f"one of {shown}")
    elif is_number and (spec.minimum is not None or spec.maximum is not None):
        values = column.to_numpy(np.float64, na_value=np.nan)
        low = -np.inf if spec.minimum is None else spec.minimum
        high = np.inf if spec.maximum is None else spec.maximum
        with np.errstate(invalid="ignore"):
            bad = (values < low) | (values > high)
        yield from _rule(spec, "range", bad, column, 1 - contract.mostly, f"{low:g} to {high:g}")


def _rule(
    spec: ColumnSpec, rule: str, bad: Array, column: pd.Series[Any], allowed: float, expected: str
) -> Iterator[Violation]:
    rows = int(bad.sum())
    if not rows or (rule == "null_share" and rows / len(bad) <= allowed):
        return
    share = rows / len(bad)
    first = np.flatnonzero(bad)[:EXAMPLES]
    examples = () if rule == "null_share" else tuple((int(i), column.iloc[i]) for i in first)
    plain = tuple((i, plain_value(value)) for i, value in examples)
    yield Violation(spec.name, rule, rows, share, allowed, share > allowed + 1e-12, expected, plain)


def plain_value(value: object) -> bool | int | float | str | None:
    """Return an example as JSON has it: a number, or text that is cut where it is long."""
    one = value.item() if isinstance(value, np.generic) else value
    if one is None or isinstance(one, bool | int | float):
        return one
    text = str(one)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
