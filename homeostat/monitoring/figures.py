"""What is shown of a monitored window: figures that MLflow plots over time, and a table for people."""

from __future__ import annotations

import math
import re

from homeostat.records import Interval, Monitoring


def figures(monitoring: Monitoring) -> dict[str, float]:
    """Return the key figures by MLflow metric name; what is not known in this window is left out.

    monitor/* counts, drift/<column> p-values or distances, quality/<metric> with .low and .high,
    latency/* in ms, predecessor/gain (positive: the live version is better).
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
    }
    for column in monitoring.columns:
        out[_free("drift/" + _key(column.column), out)] = column.p_value
    for name, interval in monitoring.quality.items():
        out |= _bounds("quality/" + _key(name), interval)
    if monitoring.latency_p50_ms is not None and monitoring.latency_p99_ms is not None:
        out |= {"latency/p50_ms": monitoring.latency_p50_ms, "latency/p99_ms": monitoring.latency_p99_ms}
    if monitoring.predecessor is not None:
        out |= _bounds("predecessor/gain", monitoring.predecessor.gain)
    return {name: float(value) for name, value in out.items() if math.isfinite(value)}


def summary(monitoring: Monitoring) -> str:
    """Return the window as markdown: verdict, figures, and a table of the columns, drifted ones first."""
    window = monitoring.window
    lines = [
        f"## {monitoring.model} v{monitoring.version}: {'drift' if monitoring.drifted else 'no drift'}",
        "",
        monitoring.reason,
        "",
        f"{window.rows} rows ({window.labelled} labelled) from {window.start} to {window.end}",
        "",
        *_figure_table(monitoring),
        *[f"- fault: {_cell(fault)}" for fault in monitoring.faults],
        *[f"- note: {_cell(note)}" for note in monitoring.notes],
    ]
    if monitoring.columns:
        lines += ["", "| column | method | value | threshold | drifted |", "|---|---|---:|---:|---|"]
        lines += [
            f"| {_cell(c.column)} | {c.method} | {c.p_value:.3g} | {c.threshold:.3g} | {'yes' if c.drifted else ''} |"
            for c in sorted(monitoring.columns, key=lambda c: not c.drifted)
        ]
    return "\n".join(lines) + "\n"


def _figure_table(monitoring: Monitoring) -> list[str]:
    rows = [(name, _interval(interval)) for name, interval in monitoring.quality.items()]
    if monitoring.latency_p50_ms is not None:
        rows.append(("latency p50, p99", f"{monitoring.latency_p50_ms:.2f} ms, {monitoring.latency_p99_ms:.2f} ms"))
    beside = monitoring.predecessor
    if beside is not None:
        rows.append(
            (f"{beside.metric} gain over v{beside.champion_version}, {beside.rows} rows", _interval(beside.gain))
        )
    return (
        ["| figure | value |", "|---|---|", *[f"| {_cell(name)} | {value} |" for name, value in rows], ""]
        if rows
        else []
    )


def _interval(interval: Interval) -> str:
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def _bounds(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}.low": interval.low, f"{name}.high": interval.high}


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
