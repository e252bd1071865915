"""The page itself: records become figures and sentences, and a template becomes HTML."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from homeostat import __version__
from homeostat.monitoring.page import charts, words
from homeostat.monitoring.page.bins import Bins
from homeostat.monitoring.page.charts import Chart, Histogram, Point
from homeostat.records import ColumnDrift, Fairness, Harm, LabelIssue, LedgerEntry, Monitoring

HERE = Path(__file__).parent
WINDOWS, COLUMNS, HISTOGRAMS, SLICES, COHORTS, FAULTS, NOTES, DECISIONS = 100, 400, 100, 200, 100, 100, 50, 12
RULES = 50
"""What the page shows at most, so that it stays under 1 MB; the JSON has all."""
OPEN_COLUMNS, OPEN_SLICES = 15, 10
"""How many of them stand open; the rest is folded."""
REASON = 400


@dataclass(frozen=True)
class ColumnRow:
    """One column of the list."""

    name: str
    drifted: bool
    text: str
    bar: float | None
    severity: str
    histogram: Histogram | None
    shown_for: str


@dataclass(frozen=True)
class SliceRow:
    """One slice of the list; loss, low, high and tolerated as shares of the common scale's width."""

    name: str
    harmed: bool
    labels: int
    text: str
    tolerated_text: str
    evidence: str
    since: str
    loss: float | None
    low: float | None
    high: float | None
    tolerated: float


def window_page(
    monitoring: Monitoring,
    history: Sequence[Monitoring] = (),
    decisions: Sequence[LedgerEntry] = (),
    *,
    bins: Mapping[str, Bins] | None = None,
) -> bytes:
    """Return one self-contained HTML page (UTF-8, under 1 MB, no JavaScript) of a window.

    history: the earlier windows of the same version, oldest first. decisions: of the model,
    oldest first. bins: binned counts of columns, for histograms.
    """
    ours = tuple(w for w in history if w.version == monitoring.version and w.window.end < monitoring.window.end)
    ours = ours[-WINDOWS:]
    style = (HERE / "page.css").read_text(encoding="utf-8")
    columns = _columns(monitoring, ours, bins or {})
    slices = _slices(monitoring)
    text: str = _template().render(
        m=monitoring,
        style=Markup(style),  # noqa: S704  our own file
        style_sha256=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        mark=words.MARKS[monitoring.conclusion],
        headline=words.headline(monitoring),
        answers=words.answers(monitoring, ours, decisions),
        harm_charts=[chart for chart in (_loss(monitoring, ours), _detector(monitoring, ours)) if chart],
        cohort_chart=_cohorts(monitoring),
        drift_chart=_drifting(monitoring, ours),
        metric=_metric(monitoring),
        columns=columns[:COLUMNS],
        slices=slices[:SLICES],
        open_columns=max(OPEN_COLUMNS, min(40, sum(c.drifted for c in columns))),
        open_slices=max(OPEN_SLICES, min(40, sum(s.harmed for s in slices))),
        all_columns=len(columns),
        all_slices=len(slices),
        alarm_at=charts.ALARM_AT,
        faults=[words.clip(fault, 200) for fault in monitoring.faults[:FAULTS]],
        notes=[words.clip(note, REASON) for note in monitoring.notes[:NOTES]],
        rules=[(one.broken, words.rule(one)) for one in monitoring.violations[:RULES]],
        replay=words.replay(monitoring),
        skewed=[words.skewed(one) for one in (monitoring.skew.findings[:RULES] if monitoring.skew else ())],
        doubted=[words.clip(str(one), 200) for one in _doubted(monitoring)],
        fairness=[_groups(one) for one in monitoring.fairness],
        outliers=words.sentence(monitoring.outliers.reason) if monitoring.outliers else "",
        outlying=[words.outlier(one) for one in (monitoring.outliers.worst if monitoring.outliers else ())],
        figures=figure_rows(monitoring),
        labels=label_rows(monitoring),
        decisions=_decisions(decisions),
        reports=sorted(Path(path).name for path in monitoring.reports),
        day=words.day,
        rows=words.rows,
        clip=words.clip,
        sentence=words.sentence,
        geometry=charts,
        software=__version__,
    )
    return text.encode("utf-8", "replace")


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    return environment.get_template("page.html")


def _plain(value: Any) -> Any:
    return words.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _loss(monitoring: Monitoring, history: Sequence[Monitoring]) -> Chart | None:
    points, rule = [], None
    for window in (*history, monitoring):
        found, time = words.overall(window), words.seconds(window.window.end)
        if found is not None and time is not None:
            rule = found.tolerated
            points.append(Point(time, found.loss.value, found.loss.low, found.loss.high, alarm=found.harmed))
    return charts.over_time("Loss of each look's labels", points, rule=rule, rule_text="tolerated", zero=True)


def _detector(monitoring: Monitoring, history: Sequence[Monitoring]) -> Chart | None:
    points, rule = [], None
    for window in (*history, monitoring):
        found, time = words.overall(window), words.seconds(window.window.end)
        if found is not None and time is not None:
            rule = found.threshold
            over = found.standing or found.log_e >= found.threshold
            points.append(Point(time, max(found.log_e, 0.0), alarm=over))
    return charts.over_time("Evidence of harm (logarithm)", points, rule=rule, rule_text="alarm", zero=True)


def _cohorts(monitoring: Monitoring) -> Chart | None:
    points = []
    for cohort in monitoring.cohorts[-COHORTS:]:
        time, metric = words.seconds(cohort.end), cohort.metric
        if metric is not None and time is not None:
            points.append(Point(time, metric.value, metric.low, metric.high, hollow=not cohort.mature))
    return charts.over_time(f"Realized {_metric(monitoring)} by time of answer", points)


def _drifting(monitoring: Monitoring, history: Sequence[Monitoring]) -> Chart | None:
    if not history:
        return None
    points = []
    for window in (*history, monitoring):
        time, tested = words.seconds(window.window.end), window.columns or window.faults
        if time is not None and tested:
            count = len(words.changed(window))
            points.append(Point(time, float(count), alarm=window.drifted))
    return charts.over_time("Columns changed", points, zero=True, whole=True)


def _metric(monitoring: Monitoring) -> str:
    if monitoring.estimate is not None:
        return words.clip(monitoring.estimate.metric, 60)
    return words.clip(monitoring.predecessor.metric, 60) if monitoring.predecessor else "primary metric"


def _columns(monitoring: Monitoring, history: Sequence[Monitoring], bins: Mapping[str, Bins]) -> list[ColumnRow]:
    drifted = [{column.column for column in window.columns if column.drifted} for window in history]
    rows = []
    for place, column in enumerate(words.by_severity(monitoring.columns)):
        shown = words.evidence(column)
        found = bins.get(column.column) if place < HISTOGRAMS else None
        rows.append(
            ColumnRow(
                name=words.clip(column.column),
                drifted=column.drifted,
                text=shown.text,
                bar=charts.bar(shown.value, shown.alarm),
                severity="" if column.severity is None else f"{column.severity:.2g}",
                histogram=None if found is None else charts.histogram(found),
                shown_for=_shown_for(column, drifted),
            )
        )
    return rows


def _shown_for(column: ColumnDrift, drifted: Sequence[set[str]]) -> str:
    if not column.drifted:
        return ""
    count = 1
    for names in reversed(drifted):
        if column.column not in names:
            break
        count += 1
    return "new" if count == 1 and drifted else f"{count} windows" if count > 1 else ""


def _slices(monitoring: Monitoring) -> list[SliceRow]:
    slices = [one for one in monitoring.harm if one.name != words.ALL]
    ends = [v for one in slices for v in (one.loss.value, one.loss.high, one.tolerated) if math.isfinite(v)]
    top = max(ends, default=0.0) or 1.0

    def place(value: float) -> float | None:
        return round(min(max(value / top, 0.0), 1.0), 3) if math.isfinite(value) else None

    def rank(one: Harm) -> tuple[bool, float]:
        over = one.loss.value - one.tolerated
        return not one.harmed, -over if math.isfinite(over) else math.inf

    return [
        SliceRow(
            name=words.clip(one.name),
            harmed=one.harmed,
            labels=one.labels,
            text=words.interval(one.loss),
            tolerated_text=f"{one.tolerated:.3g}",
            evidence=words.detector(one),
            since="" if words.seconds(one.since) is None else words.day(one.since),
            loss=place(one.loss.value),
            low=place(one.loss.low),
            high=place(one.loss.high),
            tolerated=place(one.tolerated) or 0.0,
        )
        for one in sorted(slices, key=rank)
    ]


def _doubted(monitoring: Monitoring) -> tuple[LabelIssue, ...]:
    return monitoring.label_quality.worst if monitoring.label_quality is not None else ()


def _groups(found: Fairness) -> tuple[str, list[str], list[tuple[str, ...]], list[str]]:
    """Return an attribute's name, the head of its table, a row of each group, and what is said of them."""
    rates = list(dict.fromkeys(rate for group in found.groups for rate in group.rates))
    rows = [
        (
            words.clip(group.group, 60),
            f"{group.rows:,}",
            f"{group.labelled:,}",
            *(words.interval(group.rates[rate]) if rate in group.rates else "" for rate in rates),
        )
        for group in found.groups
    ]
    said = [words.clip(words.sentence(str(gap)), REASON) for gap in found.gaps] + [
        words.clip(note, REASON) for note in found.notes
    ]
    return words.clip(found.attribute, 60), [rate.replace("_", " ") for rate in rates], rows, said


def figure_rows(monitoring: Monitoring) -> list[tuple[str, str]]:
    """Return the window's figures: name and value."""
    rows = [(words.clip(name), words.interval(value)) for name, value in list(monitoring.quality.items())[:NOTES]]
    beside = monitoring.predecessor
    if beside is not None:
        name = f"{words.clip(beside.metric)}, gain over v{beside.champion_version} on the same {beside.rows:,} rows"
        rows.append((name, words.interval(beside.gain)))
    trial = monitoring.trial
    if trial is not None:
        found, name = trial.comparison, f"challenger v{trial.version}"
        if found is not None:
            name += f", {words.clip(found.metric)}, gain over the live version on the same {found.rows:,} rows"
        rows.append((name, words.interval(found.gain) if found else "too few labels yet"))
    if monitoring.latency_p50_ms is not None and monitoring.latency_p99_ms is not None:
        latency = f"{monitoring.latency_p50_ms:.3g} ms, {monitoring.latency_p99_ms:.3g} ms"
        rows.append(("latency, p50 and p99", latency))
    rows += [
        (change.name.replace("_", " "), f"{'worse: ' if change.changed else ''}{words.clip(change.reason, 200)}")
        for change in monitoring.changes[:NOTES]
    ]
    return rows


def label_rows(monitoring: Monitoring) -> list[tuple[str, str]]:
    """Return how labels come, and the estimate without them: name and value."""
    rows, delay, guess = [], monitoring.delay, monitoring.estimate
    if delay is not None:
        known = delay.p50 is not None and delay.p90 is not None
        late = f"half after {words.span(delay.p50 or 0)}, 90 % after {words.span(delay.p90 or 0)}"
        rows.append(("labels come", late if known else "none has come"))
        rows.append(("a row is mature after", words.span(delay.horizon)))
        if delay.coverage is not None:
            rows.append(("of mature rows are labelled", f"{delay.coverage:.0%}"))
    if monitoring.label_quality is not None:
        rows.append(("labels that are probably wrong", words.label_quality(monitoring.label_quality)))
    if guess is not None:
        shown = words.number(guess.value) if guess.shown else "not shown"
        rows.append((f"{words.clip(guess.metric)}, without labels", f"{shown}: {words.clip(guess.reason, 200)}"))
    return rows


def _decisions(decisions: Sequence[LedgerEntry]) -> list[tuple[str, str, str, str]]:
    done = [entry for entry in decisions if entry.action not in words.LOOKING][-DECISIONS:]
    return [
        (words.day(e.time), words.decision(e), words.clip(e.reason, REASON), words.clip(e.actor)) for e in done[::-1]
    ]
