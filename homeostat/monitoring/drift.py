"""Which columns of a window differ from the reference: faults first, then tests that share one false-alarm rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from homeostat.config import MonitorConfig, ProjectConfig
from homeostat.monitoring.columns import Kind, column_kind
from homeostat.monitoring.faults import clean, null_faults, null_tests, structural_faults
from homeostat.monitoring.reports import TWO_SAMPLE, ColumnTest, Measured, drift_report
from homeostat.records import ColumnDrift

if TYPE_CHECKING:
    import pandas as pd

MIN_REFERENCE = 30
"""A reference of fewer rows than this says too little about any column."""
P_VALUE_METHODS = frozenset({"ks", TWO_SAMPLE})
"""Methods that hold an error rate; the others are distances, held against config.monitor.distance."""


@dataclass(frozen=True)
class Drift:
    """What a window's columns say; `reason` is one sentence for people."""

    drifted: bool
    reason: str
    columns: tuple[ColumnDrift, ...] = ()
    faults: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()


def find_drift(
    reference: pd.DataFrame, current: pd.DataFrame, config: ProjectConfig, workspace: Path, *, html: bool = False
) -> Drift:
    """Test each column of `reference` against `current`; writes drift.json, and drift.html on drift or when asked.

    With p-value methods, a window of rows drawn like the reference's alarms with probability at
    most config.monitor.alpha: each test runs at alpha / number of tests (Bonferroni), the tests
    being one for each column and one for each column that misses values. Distance methods hold
    no such rate. A fault counts as drift. Below config.monitor.min_rows nothing is tested.
    """
    reference, current = clean(reference), clean(current)
    small = _too_small(len(reference), len(current), config.monitor)
    faults = structural_faults(reference, current)
    if small:
        lasting = {c: what for c, what in faults.items() if what != "without any value"} if len(current) else {}
        return Drift(False, small, faults=_lines(lasting))
    missing = [column for column in null_tests(reference, current) if column not in faults]
    level = config.monitor.alpha / (len(reference.columns) + len(missing))
    faults |= null_faults(reference, current, missing, level, config.data.null_slack)
    kinds = {
        column: column_kind(reference[column])
        for column in reference.columns
        if column not in faults and reference[column].notna().any()
    }
    columns, reports = _test(reference, current, kinds, config.monitor, level, workspace, html=html or bool(faults))
    faults |= {c.column: f"{c.method} gave no number" for c in columns if not math.isfinite(c.p_value)}
    columns = tuple(c for c in columns if c.column not in faults)
    drifted = bool(faults) or any(column.drifted for column in columns)
    return Drift(drifted, _reason(columns, faults, config.monitor), columns, _lines(faults), reports)


def planned_tests(config: MonitorConfig, level: float) -> dict[Kind, ColumnTest]:
    """Return how each kind of column is tested, at this level for each p-value."""

    def test(method: str) -> ColumnTest:
        name = TWO_SAMPLE if method == "chisquare" else method
        return ColumnTest(name, level if name in P_VALUE_METHODS else config.distance)

    return {"number": test(config.numeric_method), "category": test(config.categorical_method)}


def _test(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    kinds: dict[str, Kind],
    config: MonitorConfig,
    level: float,
    workspace: Path,
    *,
    html: bool,
) -> tuple[tuple[ColumnDrift, ...], tuple[str, ...]]:
    if not kinds:
        return (), ()
    reference, current = _with_text(reference, kinds), _with_text(current, kinds)
    measured, report = drift_report(reference, current, kinds, planned_tests(config, level))
    columns = tuple(_column(name, value) for name, value in measured.items())
    paths = [report.write_json(workspace / "drift.json")]
    if html or any(column.drifted for column in columns):
        paths.append(report.write_html(workspace / "drift.html"))
    return columns, tuple(paths)


def _column(name: str, measured: Measured) -> ColumnDrift:
    if measured.method in P_VALUE_METHODS:
        drifted = measured.value <= measured.threshold
    else:
        drifted = measured.value >= measured.threshold
    return ColumnDrift(name, measured.method, measured.value, measured.threshold, drifted)


def _with_text(frame: pd.DataFrame, kinds: dict[str, Kind]) -> pd.DataFrame:
    """Return the columns of `kinds`, the categories' values as text: 1, 1.0 and True are one category."""
    return frame[list(kinds)].assign(
        **{c: frame[c].map(_text, na_action="ignore").astype(object) for c, kind in kinds.items() if kind == "category"}
    )


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)
    return str(int(number)) if number.is_integer() else repr(number)


def _too_small(reference: int, current: int, config: MonitorConfig) -> str:
    if current < config.min_rows:
        return f"window of {current} rows is under monitor.min_rows = {config.min_rows}: not tested"
    if reference < MIN_REFERENCE:
        return f"reference of {reference} rows is under {MIN_REFERENCE}: not tested; hold out more rows"
    return ""


def _lines(faults: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{column}: {what}" for column, what in faults.items())


def _reason(columns: tuple[ColumnDrift, ...], faults: dict[str, str], config: MonitorConfig) -> str:
    drifted = [c for c in columns if c.drifted]
    if not drifted and not faults:
        methods = {c.method for c in columns}
        rate = f"false alarms at most {config.alpha:g} a window" if methods <= P_VALUE_METHODS else "no error rate"
        return f"no drift in {len(columns)} columns ({', '.join(sorted(methods))}; {rate})"
    drifted.sort(key=lambda c: c.p_value if c.method in P_VALUE_METHODS else -c.p_value)
    parts = [f"{column} {what}" for column, what in faults.items()]
    parts += [f"{c.column} ({c.method} {c.p_value:.2g}, threshold {c.threshold:.2g})" for c in drifted]
    shown = ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")
    return f"{len(parts)} of {len(columns) + len(faults)} columns drifted: {shown}"
