"""What is shown of a monitored window: figures that MLflow plots over time, and a table for people."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from homeostat.records import Harm, Interval, Monitoring


def figures(monitoring: Monitoring) -> dict[str, float]:
    """Return the key figures by MLflow metric name; what is not known in this window is left out.

    monitor/* and skew/* counts, drift/<column> p-values or distances, evidence/<column> natural logarithms,
    severity/<column>, quality/<metric> and fairness/<attribute>/<gap> with .low and .high, harm/<all or
    slice>/loss with .low and .high, labels/* in seconds, latency/* in ms, predecessor/gain (positive: the live
    version is better), challenger/gain (positive: the challenger is).
    """
    drifted = sum(column.drifted for column in monitoring.columns) + len(monitoring.faults)
    out: dict[str, float] = {
        "monitor/rows": monitoring.window.rows,
        "monitor/labelled": monitoring.window.labelled,
        "monitor/unreadable": monitoring.window.unreadable,
        "monitor/version": monitoring.version,
        "monitor/drifted": float(monitoring.drifted),
        "monitor/drifted_columns": drifted,
        "monitor/faults": len(monitoring.faults),
        "monitor/contract_broken": sum(one.broken for one in monitoring.violations),
    }
    if monitoring.skew is not None and monitoring.skew.conclusive:
        out |= {"skew/requests": monitoring.skew.requests, "skew/skewed": monitoring.skew.skewed}
    if monitoring.label_quality is not None and monitoring.label_quality.share is not None:
        out |= _bounds("labels/probably_wrong", monitoring.label_quality.share)
    for one in monitoring.fairness:
        for gap in one.gaps:
            out |= _bounds(f"fairness/{_key(one.attribute)}/{gap.metric}", gap.value)
    if monitoring.outliers is not None and monitoring.outliers.scored:
        out["monitor/outlier_share"] = monitoring.outliers.flagged / monitoring.outliers.scored
    for column in monitoring.columns:
        key = _free("drift/" + _key(column.column), out).removeprefix("drift/")
        out |= _known(
            {f"drift/{key}": column.p_value, f"evidence/{key}": column.log_e, f"severity/{key}": column.severity}
        )
    out |= _harm_figures(monitoring.harm)
    if monitoring.delay is not None:
        delay = {"delay_p50_s": monitoring.delay.p50, "delay_p90_s": monitoring.delay.p90}
        delay |= {"coverage": monitoring.delay.coverage, "horizon_s": monitoring.delay.horizon}
        out |= _known({f"labels/{name}": value for name, value in delay.items()})
    if monitoring.estimate is not None and monitoring.estimate.shown:
        out["estimate/" + _key(monitoring.estimate.metric)] = monitoring.estimate.value
    for name, interval in monitoring.quality.items():
        out |= _bounds("quality/" + _key(name), interval)
    if monitoring.latency_p50_ms is not None and monitoring.latency_p99_ms is not None:
        out |= {"latency/p50_ms": monitoring.latency_p50_ms, "latency/p99_ms": monitoring.latency_p99_ms}
    if monitoring.predecessor is not None:
        out |= _bounds("predecessor/gain", monitoring.predecessor.gain)
    if monitoring.trial is not None and monitoring.trial.comparison is not None:
        out |= _bounds("challenger/gain", monitoring.trial.comparison.gain)
    return {name: float(value) for name, value in out.items() if math.isfinite(value)}


def _harm_figures(harm: Sequence[Harm]) -> dict[str, float]:
    out: dict[str, float] = {}
    for one in harm:
        name = _free(f"harm/{_key(one.name)}", {key.rpartition("/")[0]: 0.0 for key in out})
        out |= _bounds(f"{name}/loss", one.loss)
        out |= {f"{name}/log_e": one.log_e, f"{name}/labels": one.labels, f"{name}/harmed": one.harmed}
    return out


def summary(monitoring: Monitoring) -> str:
    """Return the window as markdown: conclusion, harm, figures, and a table of the columns, drifted ones first."""
    window = monitoring.window
    lines = [
        f"## {monitoring.model} v{monitoring.version}: {monitoring.conclusion}",
        "",
        f"{'Drift: ' if monitoring.drifted else ''}{_cell(monitoring.reason)}",
        "",
        f"{window.rows} rows ({window.labelled} labelled) from {window.start} to {window.end}",
        "",
        *_harm_lines(monitoring.harm),
        *_figure_table(monitoring),
        *[f"- fault: {_cell(fault)}" for fault in monitoring.faults],
        *[f"- contract: {_cell(str(one))}" for one in monitoring.violations if one.broken],
        *([f"- skew: {_cell(monitoring.skew.reason)}"] if monitoring.skew and monitoring.skew.skewed else []),
        *[f"- {_cell(one.attribute)}: {_cell(str(gap))}" for one in monitoring.fairness for gap in one.gaps],
        *([f"- outliers: {_cell(monitoring.outliers.reason)}"] if monitoring.outliers else []),
        *[f"- note: {_cell(note)}" for note in monitoring.notes],
    ]
    if monitoring.columns:
        lines += [
            "",
            "| column | method | value | threshold | log e | severity | drifted |",
            "|---|---|---:|---:|---:|---:|---|",
        ]
        lines += [
            f"| {_cell(c.column)} | {c.method} | {c.p_value:.3g} | {c.threshold:.3g} | {_number(c.log_e)} "
            f"| {_number(c.severity)} | {'yes' if c.drifted else ''} |"
            for c in sorted(monitoring.columns, key=lambda c: (not c.drifted, -(c.severity or 0.0)))
        ]
    return "\n".join(lines) + "\n"


def _harm_lines(harm: Sequence[Harm]) -> list[str]:
    """Return a line for all rows and one for each slice that is harmed."""
    lines = []
    for one in harm:
        if one.harmed or one.name == "all":
            said = f"**harm** since {one.since or 'an unknown time'}" if one.harmed else "no harm"
            lines.append(
                f"- {_cell(one.name)}: {said}; loss {_interval(one.loss)}, tolerated {one.tolerated:.4g}; "
                f"log e {one.log_e:.3g}, alarm at {one.threshold:.3g}; {one.labels} labels"
            )
    return [*lines, ""] if lines else []


def _figure_table(monitoring: Monitoring) -> list[str]:
    rows = [(name, _interval(interval)) for name, interval in monitoring.quality.items()]
    delay, estimate = monitoring.delay, monitoring.estimate
    if delay is not None and delay.p50 is not None and delay.p90 is not None:
        rows.append(("label delay p50, p90", f"{delay.p50:.4g} s, {delay.p90:.4g} s"))
    if delay is not None and delay.coverage is not None:
        rows.append((f"labelled, of rows older than {delay.horizon:.4g} s", f"{delay.coverage:.0%}"))
    if estimate is not None:
        shown = f"{estimate.value:.4g}" if estimate.shown else "not shown"
        rows.append((f"{estimate.metric}, estimated without labels", f"{shown}: {_cell(estimate.reason)}"))
    if monitoring.latency_p50_ms is not None:
        rows.append(("latency p50, p99", f"{monitoring.latency_p50_ms:.2f} ms, {monitoring.latency_p99_ms:.2f} ms"))
    beside = monitoring.predecessor
    if beside is not None:
        rows.append(
            (f"{beside.metric} gain over v{beside.champion_version}, {beside.rows} rows", _interval(beside.gain))
        )
    trial = monitoring.trial
    if trial is not None:
        few, found = "too few labels yet", trial.comparison
        name = f"challenger v{trial.version}" + (f": {found.metric} gain, {found.rows} rows" if found else "")
        rows.append((name, _interval(found.gain) if found else few))
    return (
        ["| figure | value |", "|---|---|", *[f"| {_cell(name)} | {value} |" for name, value in rows], ""]
        if rows
        else []
    )


def _interval(interval: Interval) -> str:
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def _bounds(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}.low": interval.low, f"{name}.high": interval.high}


def _known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _key(name: str) -> str:
    """MLflow takes letters, digits and `_-. `, and no path tricks; anything else becomes an underscore."""
    return re.sub(r"[^\w\-. ]|^\.+$", "_", name, flags=re.ASCII)[:200]


def _free(key: str, taken: dict[str, float]) -> str:
    """Return the key, with a number where another column already has it."""
    free, number = key, 2
    while free in taken:
        free, number = f"{key}_{number}", number + 1
    return free


def _cell(text: str) -> str:
    """Keep a name from breaking the table: column names come from users' data."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("`", "'").replace("<", "&lt;")
