"""Geometry of the page's small charts: numbers in, coordinates of an SVG out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from homeostat.monitoring.page.bins import Bins

WIDTH, HEIGHT = 440.0, 176.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 14.0, 26.0
ALARM_AT = 0.4
"""Where the alarm line stands in an evidence bar, whose end is 1 / 0.4 = 2.5 times the alarm."""


@dataclass(frozen=True)
class Point:
    """One value over time (unix seconds), with its interval, if it has one."""

    time: float
    value: float
    low: float | None = None
    high: float | None = None
    alarm: bool = False
    hollow: bool = False
    """Still to change, such as a cohort whose labels come in."""


@dataclass(frozen=True)
class Mark:
    """A point in coordinates; low and high are the ends of its whisker."""

    x: float
    y: float
    low: float | None
    high: float | None
    alarm: bool
    hollow: bool


@dataclass(frozen=True)
class Tick:
    """Where an axis says what."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Values over time, and the line that they should keep."""

    title: str
    alt: str
    marks: tuple[Mark, ...]
    line: str
    """`points` of a polyline; empty without one."""
    rule: float | None
    rule_text: str
    left: tuple[Tick, ...]
    below: tuple[Tick, ...]


@dataclass(frozen=True)
class Histogram:
    """Heights in [0, 1] of the reference's and the window's bins, each as shares of its rows."""

    reference: tuple[float, ...]
    window: tuple[float, ...]
    first: str
    last: str
    alt: str


def over_time(
    title: str,
    points: Sequence[Point],
    *,
    rule: float | None = None,
    rule_text: str = "",
    zero: bool = False,
    whole: bool = False,
) -> Chart | None:
    """Return a chart of the finite points, oldest first; None without any.

    zero: the axis begins at 0. whole: only whole numbers stand at it.
    """
    points = sorted((p for p in points if math.isfinite(p.value)), key=lambda p: p.time)
    if not points:
        return None
    rule = rule if rule is not None and math.isfinite(rule) else None
    low, high = _range(points, rule, zero=zero)
    begin, end = points[0].time, points[-1].time

    def across(time: float) -> float:
        share = 0.5 if end == begin else (time - begin) / (end - begin)
        return round(LEFT + 8 + share * (WIDTH - LEFT - RIGHT - 16), 1)

    def up(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    marks = tuple(
        Mark(across(p.time), up(p.value), _end(p.low, up, low, high), _end(p.high, up, low, high), p.alarm, p.hollow)
        for p in points
    )
    drawn = " ".join(f"{m.x},{m.y}" for m in marks) if len(marks) > 1 else ""
    ticks = tuple(Tick(up(value), short(value)) for value in nice(low, high) if not whole or value == int(value))
    return Chart(
        title=title,
        alt=_alt(title, points, rule, rule_text),
        marks=marks,
        line=drawn,
        rule=None if rule is None else up(rule),
        rule_text=rule_text,
        left=ticks,
        below=_dates(begin, end, across),
    )


def _range(points: Sequence[Point], rule: float | None, *, zero: bool) -> tuple[float, float]:
    values = [v for p in points for v in (p.value, p.low, p.high) if v is not None and math.isfinite(v)]
    values += [] if rule is None else [rule]
    low, high = min(values), max(values)
    if zero:
        low = min(low, 0.0)
    spare = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (low if zero and low == 0 else low - spare), high + spare


def _end(end: float | None, up: Callable[[float], float], low: float, high: float) -> float | None:
    return None if end is None or math.isnan(end) else up(min(max(end, low), high))


def _alt(title: str, points: Sequence[Point], rule: float | None, rule_text: str) -> str:
    last = points[-1]
    text = f"{title}: {len(points)} values, the last {short(last.value)}"
    if last.low is not None and last.high is not None:
        text += f" ({short(last.low)} to {short(last.high)})"
    return text if rule is None else f"{text}; {rule_text} at {short(rule)}"


def nice(low: float, high: float, count: int = 4) -> list[float]:
    """Return about so many round values between two."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((f * power for f in (1, 2, 2.5, 5) if f * power >= raw * 0.999), 10 * power)
    first = math.ceil(low / step)
    return [round(step * i, 12) for i in range(first, first + 2 * count + 2) if step * i <= high]


def short(value: float) -> str:
    """Return a number with at most 3 digits that count, and thousands as k."""
    if abs(value) >= 1e6:
        return f"{value:.1e}"
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _dates(begin: float, end: float, across: Callable[[float], float]) -> tuple[Tick, ...]:
    form = "%-d %b %H:%M" if end - begin < 3 * 86400 else "%-d %b" if end - begin < 300 * 86400 else "%b %Y"
    times = [begin] if begin == end else [begin, (begin + end) / 2, end]
    return tuple(Tick(across(time), datetime.fromtimestamp(time, UTC).strftime(form)) for time in times)


def histogram(bins: Bins) -> Histogram | None:
    """Return the shares of a column's bins, the highest of both sides as 1; None without rows on a side."""
    sides = [sum(bins.reference), sum(bins.window)]
    if not all(sides):
        return None
    shares = [[c / total for c in counts] for counts, total in zip((bins.reference, bins.window), sides, strict=True)]
    top = max(max(side) for side in shares)
    modes = [bins.names[side.index(max(side))] for side in shares]
    before, now = (tuple(round(share / top, 3) for share in side) for side in shares)
    alt = f"most rows of the reference: {modes[0]:.60}; of the window: {modes[1]:.60}"
    return Histogram(before, now, bins.names[0].partition(" to ")[0], bins.names[-1].rpartition(" to ")[2], alt)


def bar(value: float, alarm: float) -> float | None:
    """Return the length of an evidence bar in [0, 1], the alarm at ALARM_AT; None without a finite value."""
    if not math.isfinite(value) or not alarm > 0:
        return None
    return round(min(max(value / alarm * ALARM_AT, 0.0), 1.0), 3)
