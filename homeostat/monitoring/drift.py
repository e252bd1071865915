"""Which columns of a window differ from the reference: faults first, then tests that share one false-alarm rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from homeostat.config import MonitorConfig, ProjectConfig
from homeostat.dataset import Array
from homeostat.monitoring.columns import Kind, column_kind
from homeostat.monitoring.exchangeability import log_weight
from homeostat.monitoring.faults import (
    clean,
    null_faults,
    null_tests,
    structural_faults,
    unit_change,
    unseen_faults,
)
from homeostat.monitoring.joint import joint_p
from homeostat.monitoring.reports import TWO_SAMPLE, ColumnTest, Measured, drift_report
from homeostat.monitoring.seasons import MATCHED, follow, log_evidence
from homeostat.monitoring.sequence import Check, DriftState, Pool, check, make_pool
from homeostat.records import ColumnDrift

if TYPE_CHECKING:
    import pandas as pd

MIN_REFERENCE = 30
"""A reference of fewer rows than this says too little about any column."""
COLUMNS, JOINT, FAULTS = 0.7, 0.2, 0.1
"""Shares of config.monitor.alpha: each column by itself, all together, and missing or new values."""
MIN_AUC = 0.55
"""Share of pairs that the classifier must order rightly: joint drift that is smaller is a trifle."""
ALL_COLUMNS = "model.joint"
"""Name under which joint drift stands among the columns."""
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
    state: DriftState = field(default_factory=DriftState)
    """For the next check."""
    notes: tuple[str, ...] = ()
    basis: str = "reference"
    """What the columns were held against, in words."""
    judged: bool = True
    """Whether there was enough to hold them against."""


def find_drift(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    config: ProjectConfig,
    workspace: Path,
    *,
    html: bool = False,
    state: DriftState | None = None,
    times: Array | None = None,
    seed: str = "",
    importance: Mapping[str, float] | None = None,
) -> Drift:
    """Test each column of `reference` against `current`; writes drift.json, and drift.html on drift or when asked.

    With p-value methods the error rate is of a version's whole life: over any number of checks,
    each going on from the `state` of the one before, rows drawn like the reference's alarm with
    probability at most config.monitor.alpha (shares in COLUMNS, JOINT, FAULTS). With config.monitor.season
    columns are held against earlier blocks of the same season instead of the reference (seasons.py), and
    are not judged before there are enough of them. Distance methods hold
    no such rate. A fault counts as drift. Below config.monitor.min_rows nothing is tested or counted.
    times: event times [n] of `current`, unix seconds, rising: a row counts once. seed: names the
    version. importance: column -> rise of the loss when it is permuted, for the severity.
    """
    reference, current = clean(reference), clean(current)
    state = state or DriftState()
    small = _too_small(len(reference), len(current), config.monitor)
    faults = structural_faults(reference, current)
    if small:
        lasting = {c: what for c, what in faults.items() if what != "without any value"} if len(current) else {}
        return Drift(False, small, faults=_lines(lasting), state=state)
    spent = config.monitor.alpha * math.exp(log_weight(state.checks + 1))
    missing = [column for column in null_tests(reference, current) if column not in faults]
    kinds = {
        column: column_kind(reference[column])
        for column in reference.columns
        if column not in faults and reference[column].notna().any()
    }
    before, now = (_with_text(frame, kinds) for frame in (reference, current))
    named = [column for column, kind in kinds.items() if kind == "category"]
    each = FAULTS * spent / max(1, len(missing) + len(named))
    faults |= null_faults(reference, current, missing, each, config.data.null_slack)
    faults |= unseen_faults(before, now, [column for column in named if column not in faults], each)
    kinds = {column: kind for column, kind in kinds.items() if column not in faults}
    level = config.monitor.alpha / max(1, len(reference.columns))
    columns, reports = _test(before, now, kinds, config.monitor, level, workspace, html=html or bool(faults))
    faults |= {c.column: f"{c.method} gave no number" for c in columns if not math.isfinite(c.p_value)}
    kinds = {column: kind for column, kind in kinds.items() if column not in faults}
    before, now = before[list(kinds)], now[list(kinds)]
    pool = make_pool(before, kinds)
    checked = check(pool, now, state, times, seed)
    held = _seasonal(checked, pool, now, state, times, config.monitor, seed)
    columns = tuple(_decide(c, held.by, held.shown, importance or {}) for c in columns if c.column not in faults)
    alone = bool(kinds) and not held.seasonal and not any(c.drifted for c in columns)
    joint = _joint(before, now, JOINT * spent, state.checks) if alone else None
    columns += (joint,) if joint is not None and joint.drifted else ()
    if any(c.drifted for c in columns) and not any(path.endswith(".html") for path in reports):
        _, reports = _test(before, now, kinds, config.monitor, level, workspace, html=True)
    drifted = bool(faults) or any(column.drifted for column in columns)
    return Drift(
        drifted,
        _reason(columns, faults, config.monitor, now, before)
        if drifted or held.judged
        else f"not judged: {held.basis}",
        columns,
        _lines(faults),
        reports,
        held.by.state,
        (_notes(checked, held.shown, kinds, config.monitor) if not held.seasonal else ()) + held.notes,
        held.basis,
        held.judged,
    )


@dataclass(frozen=True)
class _Held:
    """What the columns were held against, and which of them drift."""

    by: Check
    shown: frozenset[str]
    basis: str = "reference"
    notes: tuple[str, ...] = ()
    judged: bool = True
    seasonal: bool = False


def _seasonal(
    checked: Check,
    pool: Pool,
    current: pd.DataFrame,
    state: DriftState,
    times: Array | None,
    config: MonitorConfig,
    seed: str,
) -> _Held:
    """Return what decides: the reference, or earlier blocks of the same season."""
    if not config.season:
        return _Held(checked, sequential_alarms(checked, COLUMNS * config.alpha, config.min_effect))
    if times is None:
        raise ValueError("seasons need the times of the rows")
    new = times > state.until
    seasons = follow(pool.cells, current[new], times[new], state.seasons, config.season, config.timezone, seed)
    known = {name: seasons.columns[name] for name in checked.log_e if name in seasons.columns}
    evidence = {name: log_evidence(column) for name, column in known.items()}
    effects = {name: column.effect for name, column in known.items()}
    blocks = Check(replace(checked.state, seasons=seasons), evidence, {}, effects)
    shown = sequential_alarms(blocks, COLUMNS * config.alpha, config.min_effect)
    others = sorted(sequential_alarms(checked, COLUMNS * config.alpha, config.min_effect) - shown)
    season, judged = config.season.replace("_", " "), seasons.matched >= MATCHED
    basis = f"{seasons.matched} earlier blocks of the same {season}" + ("" if judged else f", {MATCHED} are needed")
    usual = f"as before at the same {season}" if judged else f"not judged before {MATCHED} blocks of each {season}"
    notes = (f"other than the reference, {usual}: {_some(others)}",) if others else ()
    return _Held(blocks, shown, basis, notes, judged or bool(shown), seasonal=True)


def sequential_alarms(checked: Check, alpha: float, min_effect: float) -> frozenset[str]:
    """Return the columns that drift, by the evidence of all checks and a change that is seen in this window.

    An alarm needs the mean evidence of the d columns to reach 1 / alpha (Ville's inequality: the mean
    of e-processes is one); which they are, the e-BH procedure says (Wang & Ramdas 2022): the k with
    evidence of at least d / (alpha k), whatever the dependence, and the strongest in any case.
    """
    names = sorted(checked.log_e, key=lambda name: -checked.log_e[name])
    if not names:
        return frozenset()
    logs = np.array([checked.log_e[name] for name in names])
    if float(np.logaddexp.reduce(logs)) - math.log(len(logs)) < -math.log(alpha):
        return frozenset()
    lines = math.log(len(logs) / alpha) - np.log(np.arange(1, len(logs) + 1))
    many = int(np.flatnonzero(logs >= lines)[-1]) + 1 if (logs >= lines).any() else 1
    return frozenset(name for name in names[:many] if checked.effect[name] >= min_effect)


def _decide(column: ColumnDrift, checked: Check, shown: frozenset[str], importance: Mapping[str, float]) -> ColumnDrift:
    name, calibrated = column.column, column.method in P_VALUE_METHODS
    weight = importance.get(name)
    return replace(
        column,
        drifted=name in shown if calibrated else column.drifted,
        log_e=checked.log_e.get(name),
        importance=weight,
        severity=None if weight is None else checked.effect.get(name, 0.0) * max(0.0, weight),
    )


def _joint(reference: pd.DataFrame, current: pd.DataFrame, level: float, checks: int) -> ColumnDrift | None:
    p_value, auc = joint_p(reference, current, checks)
    drifted = p_value <= level and auc >= MIN_AUC
    return ColumnDrift(ALL_COLUMNS, "domain_classifier", p_value, level, drifted)


def _notes(checked: Check, shown: frozenset[str], kinds: Mapping[str, Kind], config: MonitorConfig) -> tuple[str, ...]:
    """Return what is no alarm, but should be known: old evidence that this window does not repeat."""
    line = math.log(max(1, len(kinds)) / (COLUMNS * config.alpha))
    over = [name for name in kinds if checked.log_e[name] >= line]
    trifles = [name for name in over if name not in shown]
    calm = [name for name in over if name in shown and checked.log_now[name] < 0]
    notes = []
    if trifles:
        notes.append(
            f"changed by less than monitor.min_effect = {config.min_effect:g} in this window: {_some(trifles)}"
        )
    if calm:
        notes.append(f"drifted before, and the new rows alone do not show it: {_some(calm)}")
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
    reference, current = reference[list(kinds)], current[list(kinds)]
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
    """Return the columns of `kinds`, the categories' values as text: 1, 1.0 and True are one category.

    Floats get 64 bits: in fewer the span of large ones overflows.
    """
    narrow = {c: np.float64 for c, kind in kinds.items() if kind == "number" and frame[c].dtype.kind == "f"}
    return (
        frame[list(kinds)]
        .astype(narrow)
        .assign(
            **{
                c: frame[c].map(_text, na_action="ignore").astype(object)
                for c, kind in kinds.items()
                if kind == "category"
            }
        )
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


def _reason(
    columns: tuple[ColumnDrift, ...],
    faults: dict[str, str],
    config: MonitorConfig,
    current: pd.DataFrame,
    reference: pd.DataFrame,
) -> str:
    drifted = [c for c in columns if c.drifted]
    if not drifted and not faults:
        methods = {c.method for c in columns}
        rate = f"false alarms at most {config.alpha:g}, ever" if methods <= P_VALUE_METHODS else "no error rate"
        return f"no drift in {len(columns)} columns ({', '.join(sorted(methods))}; {rate})"
    drifted.sort(key=lambda c: -(c.log_e or 0.0) if c.method in P_VALUE_METHODS else -c.p_value)
    parts = [f"{column} {what}" for column, what in faults.items()]
    parts += [_describe(c, current, reference) for c in drifted]
    shown = ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")
    return f"{len(parts)} of {len(columns) + len(faults)} columns drifted: {shown}"


def _describe(column: ColumnDrift, current: pd.DataFrame, reference: pd.DataFrame) -> str:
    if column.column == ALL_COLUMNS:
        return "the columns together, each of which is as before alone"
    if column.method not in P_VALUE_METHODS:
        return f"{column.column} ({column.method} {column.p_value:.2g}, threshold {column.threshold:.2g})"
    unit = ""
    if reference[column.column].dtype.kind == "f":
        unit = unit_change(reference[column.column], current[column.column])
    evidence = f"evidence e^{column.log_e or 0.0:.0f}, {column.method} {column.p_value:.2g}"
    return f"{column.column} ({evidence}{f'; {unit}' if unit else ''})"
