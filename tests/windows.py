"""Made-up windows of each kind, with their history and the decisions about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np

from homeostat.monitoring.page import Bins
from homeostat.records import (
    Change,
    Cohort,
    ColumnDrift,
    Comparison,
    Estimate,
    Harm,
    Interval,
    LabelDelay,
    LedgerEntry,
    Monitoring,
    Outlier,
    Outliers,
    Skew,
    SkewFinding,
    Violation,
    Window,
)

START = datetime(2026, 3, 1, tzinfo=UTC)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "a|b`c\n# not a heading",
    "right\u202eto left",
    "null\x00 and \x1b[31mred",
    "lone \ud800 surrogate",
    "</style><style>*{display:none}",
    "&lt;b&gt; &amp;",
)


@dataclass(frozen=True)
class Case:
    """What a page is made of."""

    window: Monitoring
    history: tuple[Monitoring, ...] = ()
    decisions: tuple[LedgerEntry, ...] = ()
    bins: dict[str, Bins] = field(default_factory=dict)


def time(hours: float) -> str:
    return (START + timedelta(hours=hours)).isoformat()


def interval(value: float, half: float) -> Interval:
    return Interval(value, max(0.0, value - half), value + half)


def harm(name="all", loss=0.09, tolerated=0.12, log_e=0.4, labels=4000, since="") -> Harm:
    return Harm(
        name, labels, interval(loss, 0.02), tolerated, log_e, 10.6, bool(since), since, 0.4, standing=bool(since)
    )


def column(name: str, log_e=-2.0, p_value=0.4, drifted=False, severity=None, method="ks") -> ColumnDrift:
    return ColumnDrift(name, method, p_value, 0.001, drifted, log_e, 0.05, severity)


def entry(sequence: int, hours: float, action: str, reason: str, version: int | None = 3, **evidence) -> LedgerEntry:
    return LedgerEntry(
        sequence,
        time(hours),
        "readmission",
        action,
        "flow_run 5f0a",
        reason,
        sequence,
        version,
        "a" * 64,
        evidence,
        "",
        "",
    )


DECISIONS = (
    entry(1, -90, "challenger", "registered by lifecycle/readmission"),
    entry(2, -80, "promote", "accuracy gain +0.013 [+0.004, +0.022] over v2 on 1,200 test rows"),
    entry(3, 20, "drift", "no drift in 12 columns"),
)
NAMES = ("age", "bmi", "glucose", "systolic", "ward", "sex", "stay_days", "prior_visits", "insulin")
DELAY = LabelDelay(5.2 * 3600, 31 * 3600, 0.83, 36 * 3600)
CHANGES = (
    Change("calibration_error", 0.021, 0.027, 0.31, changed=False, reason="calibration error 0.027, was 0.021"),
    Change("latency_p99_ms", 6.1, 6.4, 0.5, changed=False, reason="p99 6.4 ms, was 6.1 (p = 0.5)"),
)


OUTLIERS = Outliers(
    "isolation forest",
    0.1,
    2150,
    2150,
    1,
    6,
    (Outlier("visit-17", 0, 1.9, 2.7e-4, ("age 412, mostly 19 to 93", "ward Z, 0.0% of the reference")),),
    "1 of 2,150 requests' rows are unlike the reference; at most 10% of those named are none, on average",
)


def bins(shift: float, seed: int = 0) -> Bins:
    rng = np.random.default_rng(seed)
    edges = np.linspace(-3, 3, 13)
    sides = [np.histogram(rng.normal(m, 1, 2000), edges)[0].tolist() for m in (0, shift)]
    names = tuple(f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges))
    return Bins(names, tuple(sides[0]), tuple(sides[1]))


def look(number: int, **fields) -> Monitoring:
    """The window of day `number`."""
    window = Window("readmission", time(24 * number - 24), time(24 * number), 2150, 1730, "", found=2150)
    found = Monitoring(
        "readmission",
        3,
        window,
        False,
        "no drift in 9 columns",
        columns=tuple(column(name, log_e=-2.0 - i / 3) for i, name in enumerate(NAMES)),
        quality={"accuracy": interval(0.91, 0.015), "f1": interval(0.84, 0.02)},
        latency_p50_ms=2.1,
        latency_p99_ms=6.4,
        predecessor=Comparison("accuracy", 2, 1400, 0.91, 0.897, Interval(0.013, 0.004, 0.022)),
        conclusion="healthy",
        harm=(harm(),),
        cohorts=cohorts(0.91),
        delay=DELAY,
        estimate=Estimate("accuracy", 0.905, True, 0.011, 0.019, "error 0.011, of the constant 0.019, 12 windows"),
        changes=CHANGES,
        outliers=OUTLIERS,
        skew=Skew(100, 100, 0, (), "100 requests replayed: equal features and equal answers"),
        reports=("/x/drift.json", "/x/drift.html"),
    )
    return replace(found, **fields)


def cohorts(*metrics: float) -> tuple[Cohort, ...]:
    last = len(metrics) - 1
    return tuple(
        Cohort(
            time(i * 24), time(i * 24 + 24), 2100, 1700 - 900 * (i == last), i < last, Interval(m, m - 0.02, m + 0.018)
        )
        for i, m in enumerate(metrics)
    )


def history(count: int = 9) -> tuple[Monitoring, ...]:
    rng = np.random.default_rng(3)
    return tuple(
        look(i + 1, harm=(harm(loss=0.09 + 0.01 * rng.normal(), log_e=abs(float(rng.normal()))),)) for i in range(count)
    )


def healthy() -> Case:
    good = 0.91 + 0.008 * np.random.default_rng(1).normal(size=10)
    return Case(look(10, cohorts=cohorts(*good)), history(), DECISIONS, {n: bins(0.05, i) for i, n in enumerate(NAMES)})


def harmless() -> Case:
    moved = (column("bmi", 12.3, 1e-7, True, 0.004), column("ward", 9.8, 2e-5, True, 0.011, "two_sample_chisquare"))
    columns = moved + tuple(column(n) for n in NAMES if n not in ("bmi", "ward"))
    drifting = {"drifted": True, "reason": "2 of 9 columns drifted", "conclusion": "drift", "columns": columns}
    before = (*history(8), look(9, **drifting))
    ward = Bins(("A", "B", "C", "D", "other"), (800, 600, 400, 200, 50), (300, 500, 480, 700, 170))
    shown = {n: bins(0.7 if n == "bmi" else 0.03, i) for i, n in enumerate(NAMES)} | {"ward": ward}
    done = (*DECISIONS, entry(4, 241, "verdict", "drift does no harm: loss 0.09 is tolerated", None, verdict="hold"))
    return Case(look(10, cohorts=cohorts(0.91, 0.9, 0.92, 0.91), **drifting), before, done, shown)


def harmful() -> Case:
    begun = time(24 * 7 + 6)
    slices = tuple(
        harm(f"ward={name}", loss, tolerated, log_e, labels, begun if hurt else "")
        for name, loss, tolerated, log_e, labels, hurt in (
            ("D", 0.41, 0.14, 25.2, 700, True),
            ("C", 0.2, 0.13, 12.0, 810, True),
            ("A", 0.08, 0.12, 0.1, 1400, False),
            ("B", 0.1, 0.12, 0.3, 1090, False),
        )
    )
    falling = [0.91, 0.912, 0.905, 0.9, 0.915, 0.9, 0.88, 0.83, 0.79, 0.78]
    worse = [
        replace(w, harm=(harm(loss=loss, log_e=log_e, since=begun if log_e > 10.6 else ""), *slices[:2]))
        for w, loss, log_e in zip(history(9)[6:], (0.1, 0.16, 0.2), (1.2, 5.1, 12.5), strict=True)
    ]
    columns = (column("ward", 22.0, 1e-9, True, 0.12), *(column(n) for n in NAMES if n != "ward"))
    ward = Bins(("A", "B", "C", "D", "other"), (800, 600, 400, 200, 50), (300, 500, 480, 700, 170))
    now = look(
        10,
        conclusion="harm",
        drifted=True,
        reason="1 of 9 columns drifted",
        columns=columns,
        harm=(harm(loss=0.221, log_e=23.8, since=begun), *slices),
        cohorts=cohorts(*falling),
        estimate=Estimate("accuracy", 0.9, False, 0.041, 0.02, "over 8 mature windows no nearer than the reference's"),
        violations=(
            Violation("age", "range", 430, 0.2, 0.05, True, "0 to 110", ((3, 130.0), (9, 997.0))),
            Violation("ward", "categories", 12, 0.006, 0.05, False, "one of A, B, C, D", ((41, "E"),)),
        ),
        skew=Skew(
            100, 100, 7, (SkewFinding("r-81", 0, "feature", "stay_days", 3.0, 2.5),), "7 of 100 requests are skewed"
        ),
        changes=(replace(CHANGES[0], now=0.09, changed=True, reason="calibration error 0.090, was 0.021"), CHANGES[1]),
        quality={"accuracy": interval(0.779, 0.018), "f1": interval(0.63, 0.03)},
    )
    done = (
        *DECISIONS,
        entry(4, 241, "verdict", "harm: loss 0.221 is over 0.120", None, verdict="retrain"),
        entry(5, 242, "rollback", "v2 is better on the same 1,400 rows: +0.061 [+0.041, +0.080]", 2),
    )
    return Case(now, (*history(6), *worse), done, {"ward": ward} | {n: bins(0.04) for n in NAMES if n != "ward"})


def tiny() -> Case:
    window = replace(look(1).window, rows=14, labelled=0)
    why = "window of 14 rows is under monitor.min_rows = 100: not tested"
    empty = Monitoring("readmission", 3, window, False, why, delay=LabelDelay(None, None, None, 86400.0))
    return Case(replace(empty, notes=("2 unreadable: r00003: labels: 2 of them for a request of 10 rows",)))


def faulty() -> Case:
    faults = ("glucose: absent", "bmi: 63% missing, was 2%", "insulin: re-typed: object, was float64")
    rest = tuple(column(n) for n in NAMES if n not in ("glucose", "bmi", "insulin"))
    now = look(3, faults=faults, columns=rest, drifted=True, reason="3 of 9", conclusion="drift", harm=(), cohorts=())
    return Case(replace(now, estimate=None, predecessor=None, quality={}), history(2), DECISIONS)


def wide(columns: int = 60, windows: int = 9, slices: int = 40) -> Case:
    found = tuple(
        column(f"sensor_{i:03}.temperature", 20 - i / 2, 1e-5 if i < 18 else 0.3, i < 18, 0.5 / (i + 1))
        for i in range(columns)
    )
    slots = tuple(harm(f"site={i}", 0.1 + i / 400, 0.15, i / 10, 50 + i) for i in range(slices))
    shown = {c.column: bins(0.6 if c.drifted else 0, i) for i, c in enumerate(found)}
    now = look(windows + 1, columns=found, drifted=True, reason="many", conclusion="drift", harm=(harm(), *slots))
    many = [0.9 + 0.01 * (i % 4) for i in range(windows)]
    return Case(replace(now, cohorts=cohorts(*many)), history(windows), DECISIONS * 30, shown)


def hostile() -> Case:
    long = "a_very_long_name_of_a_column_that_somebody_made_by_joining_many_tables_" * 4
    names = (*HOSTILE, long)
    columns = tuple(column(n, 9.0, 1e-6, True, 0.1, "two_sample_chisquare") for n in names)
    text = " ".join(HOSTILE)
    now = look(
        10,
        columns=columns,
        drifted=True,
        conclusion="harm",
        reason=text,
        faults=tuple(f"{n}: absent" for n in names),
        notes=(text, "x" * 5000),
        harm=(harm(loss=float("nan"), log_e=float("-inf")), *(harm(n, since="not a time") for n in names)),
        quality={n: interval(0.5, 0.1) for n in names},
        violations=tuple(Violation(n, "categories", 3, 0.1, 0.0, True, n, ((0, n), (1, 9.5))) for n in names),
        skew=Skew(9, 9, 9, tuple(SkewFinding(n, 0, "feature", n, n, None) for n in names), text),
        estimate=Estimate(HOSTILE[0], float("nan"), True, None, None, text),
    )
    done = (replace(entry(1, 250, "promote", text * 20), actor=HOSTILE[0]),)
    return Case(now, history(), done, {n: Bins((n, n), (1, 2), (3, 0)) for n in names})


CASES = {
    "healthy": healthy,
    "harmless": harmless,
    "harmful": harmful,
    "tiny": tiny,
    "faulty": faulty,
    "wide": wide,
    "hostile": hostile,
}
