"""The page in plain words: what changed, does it hurt, since when, how sure, what was done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from homeostat.monitoring.drift import COLUMNS, P_VALUE_METHODS
from homeostat.records import (
    ColumnDrift,
    Harm,
    Interval,
    LabelQuality,
    LedgerEntry,
    Monitoring,
    Outlier,
    SkewFinding,
    Violation,
)

ALL = "all"
MARKS = {"healthy": "✓", "drift": "▲", "harm": "✕", "inconclusive": "?"}
LOOKING = frozenset({"drift", "reconcile"})
"""Actions of the ledger that only write down what was seen."""
LONGEST = 120
NO_ODDS = "none"
DONE = {
    "challenger": "v{} became challenger",
    "promote": "v{} was promoted",
    "rollback": "rolled back to v{}",
    "hold": "v{} was held",
    "release": "v{} left quarantine",
}


@dataclass(frozen=True)
class Answer:
    """One question and what the window says to it."""

    question: str
    text: str


@dataclass(frozen=True)
class ColumnEvidence:
    """How strong a column's change is, and where its alarm line stands, in the same unit."""

    value: float
    alarm: float
    text: str


def seconds(time: str) -> float | None:
    """Return an ISO 8601 time as unix seconds, UTC unless it has an offset; None for other text."""
    try:
        moment = datetime.fromisoformat(time)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def day(time: str) -> str:
    """Return an ISO 8601 time as people write it, in UTC, to the minute; other text as it is."""
    moment = seconds(time)
    return time[:LONGEST] if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%-d %b %Y %H:%M")


def span(value: float) -> str:
    """Return seconds in the unit that people use."""
    for size, unit in ((86400 * 2, 86400), (3600 * 2, 3600), (60 * 2, 60)):
        if value >= size:
            return f"{value / unit:.3g} { {86400: 'days', 3600: 'hours', 60: 'minutes'}[unit] }"
    return f"{value:.3g} s"


def plain(text: str) -> str:
    """Return text without characters that control a terminal or the direction of reading."""
    return "".join(c if c.isprintable() else " " if c in "\t\n\r" else "�" for c in text)


def clip(text: str, longest: int = LONGEST) -> str:
    """Return plain text of at most so many characters."""
    start = plain(text[: longest + 1])
    return start if len(start) <= longest else start[: longest - 1] + "…"


def odds(log_e: float) -> str:
    """Return evidence as odds against `no change`."""
    return NO_ODDS if math.isnan(log_e) or log_e < math.log(1.5) else f"{power(log_e)}:1"


def detector(harm: Harm) -> str:
    """Return a harm detector's statistic beside the value at which its alarm comes: no odds, for it grows by itself."""
    return f"{'0' if math.isnan(harm.log_e) else power(harm.log_e)} of {power(harm.threshold)}"


def power(logarithm: float) -> str:
    """Return e to the power of it."""
    return "over 10⁹" if logarithm > math.log(1e9) else count(math.exp(logarithm))


def count(value: float) -> str:
    """Return a number with two digits that count."""
    if value < 10:
        return f"{value:.2g}"
    digits = 10 ** (math.floor(math.log10(value)) - 1)
    return f"{round(value / digits) * digits:,.0f}"


def number(value: float, form: str = ".3g") -> str:
    """Return a number with few digits, `unknown` when it is not finite."""
    return format(value, form) if math.isfinite(value) else "unknown"


def rows(many: int) -> str:
    """Return a number of rows, in words."""
    return f"{many:,} row{'' if many == 1 else 's'}"


def interval(value: Interval) -> str:
    """Return value and interval."""
    found = number(value.value)
    return found if found == "unknown" else f"{found} ({number(value.low)} to {number(value.high)})"


def names(found: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(clip(name, 60) for name in found[:most])
    return shown + (f" and {len(found) - most} more" if len(found) > most else "")


def evidence(column: ColumnDrift) -> ColumnEvidence:
    """Return what the alarm of a column rests on: odds over all checks, a p-value, or a distance."""
    held = column.method in P_VALUE_METHODS
    sound = 0 < column.threshold < 1
    if held and column.log_e is not None and sound:
        alarm = -math.log(column.threshold * COLUMNS)
        seen = odds(column.log_e)
        return ColumnEvidence(
            column.log_e, alarm, "no evidence" if seen == NO_ODDS else f"{seen}, alarm at {odds(alarm)}"
        )
    if sound and (held or column.method == "domain_classifier"):
        strength = math.nan if math.isnan(column.p_value) else -math.log(max(column.p_value, 1e-300))
        return ColumnEvidence(
            strength,
            -math.log(column.threshold),
            f"p = {number(column.p_value, '.2g')}, alarm at {column.threshold:.2g}",
        )
    text = f"distance {number(column.p_value)}, alarm at {number(column.threshold)}"
    return ColumnEvidence(column.p_value, column.threshold, text)


def by_severity(columns: Sequence[ColumnDrift]) -> list[ColumnDrift]:
    """Return the columns, those that drifted first, and among them the severest, else the strongest, first."""

    def rank(column: ColumnDrift) -> tuple[bool, float, float]:
        shown = evidence(column)
        strength = shown.value / shown.alarm if shown.alarm > 0 and math.isfinite(shown.value) else -math.inf
        return not column.drifted, -(column.severity or 0.0), -strength

    return sorted(columns, key=rank)


def overall(monitoring: Monitoring) -> Harm | None:
    """Return what labels say of all rows, if any label has been counted."""
    return next((one for one in monitoring.harm if one.name == ALL and one.labels), None)


def drifting_since(monitoring: Monitoring, history: Sequence[Monitoring]) -> tuple[str, bool]:
    """Return the start of the first of the windows that drifted without a break up to this one; whether it was all."""
    start = monitoring.window.start
    for earlier in reversed(history):
        if not earlier.drifted:
            return start, False
        start = earlier.window.start
    return start, bool(history)


def changed(monitoring: Monitoring) -> list[str]:
    """Return the faults' and drifted columns' names, the worst first."""
    faults = [fault.partition(":")[0] for fault in monitoring.faults]
    return faults + [column.column for column in by_severity(monitoring.columns) if column.drifted]


def headline(monitoring: Monitoring) -> str:
    """Return the conclusion in one sentence."""
    found, labels = changed(monitoring), overall(monitoring)
    many = f"{len(found)} of {_all_columns(monitoring)} columns changed"
    if monitoring.conclusion == "harm":
        hurt = [one for one in monitoring.harm if one.harmed]
        if any(one.name == ALL for one in hurt) or not hurt:
            return f"Harm: v{monitoring.version} answers worse than is tolerated."
        slices = len([one for one in monitoring.harm if one.name != ALL])
        return f"Harm in {len(hurt)} of {slices} slices: {names([one.name for one in hurt])}."
    if monitoring.conclusion == "drift":
        return f"Drift without harm: {many}." if labels else f"Drift: {many}; no label tells yet whether it hurts."
    if monitoring.conclusion == "healthy":
        return "Healthy: nothing changed, and labels show no harm." if labels else "Healthy: nothing changed."
    return f"Inconclusive: {sentence(clip(monitoring.reason, 200), upper=False)}"


def answers(
    monitoring: Monitoring, history: Sequence[Monitoring], decisions: Sequence[LedgerEntry]
) -> tuple[Answer, ...]:
    """Return the five questions and their answers; history and decisions oldest first."""
    return (
        Answer("What changed?", _what(monitoring)),
        Answer("Does it hurt?", _hurts(monitoring)),
        Answer("Since when?", _since(monitoring, history)),
        Answer("How sure?", _sure(monitoring)),
        Answer("What was done?", _done(monitoring, decisions)),
    )


def _all_columns(monitoring: Monitoring) -> int:
    return len(monitoring.columns) + len(monitoring.faults)


def _what(monitoring: Monitoring) -> str:
    found = changed(monitoring)
    worse = [change.name for change in monitoring.changes if change.changed]
    also = f" Worse too: {names(worse)}." if worse else ""
    rules = sum(one.broken for one in monitoring.violations)
    also += f" {rules} rule{'s' if rules > 1 else ''} of the contract broken." if rules else ""
    also += f" {replay(monitoring)}" if monitoring.skew is not None and monitoring.skew.skewed else ""
    if found:
        broken = f", {len(monitoring.faults)} of them broken" if monitoring.faults else ""
        return f"{len(found)} of {_all_columns(monitoring)} columns{broken}: {names(found)}.{also}"
    if monitoring.columns:
        return f"Nothing: none of {len(monitoring.columns)} columns is over its alarm line.{also}"
    return f"Unknown: {sentence(clip(monitoring.reason, 200), upper=False)}{also}"


def replay(monitoring: Monitoring) -> str:
    """Return what replaying logged requests through the training-side code showed; empty when it was not done."""
    found = monitoring.skew
    if found is None:
        return ""
    if found.skewed and found.findings:
        return f"{found.skewed} of {found.requests} replayed requests differ from what was served."
    return sentence(clip(found.reason, 200))


def skewed(finding: SkewFinding) -> str:
    """Return one difference between serving and replay."""
    where = f"request {clip(finding.request_id, 60)} row {finding.row}: {finding.kind} {clip(finding.column, 60)}"
    return f"{where} was {clip(str(finding.served), 40)}, replayed {clip(str(finding.replayed), 40)}"


def label_quality(found: LabelQuality) -> str:
    """Return how many labels are probably wrong, and what that may mean."""
    if found.share is None:
        return sentence(found.reason)
    share, usual = found.share, found.usual
    said = f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}) of {found.rows:,}"
    if usual is not None:
        said += f"; {usual.value:.1%} of the reference's"
        if share.low > usual.high:
            said += ". Either the labels have become worse, or the model: look at some of these rows"
    return said


def outlier(found: Outlier) -> str:
    """Return one request unlike the others, and what is unusual of it."""
    what = "; ".join(clip(one, 120) for one in found.columns) or f"score {found.score:.4g}"
    return f"request {clip(found.request_id, 60)} row {found.row}: {what} (p = {found.p_value:.2g})"


def rule(violation: Violation) -> str:
    """Return a rule and what breaks it, its names and values cut where they are long."""
    examples = tuple((row, clip(str(value), 40)) for row, value in violation.examples)
    return str(
        replace(violation, column=clip(violation.column, 60), expected=clip(violation.expected), examples=examples)
    )


def _hurts(monitoring: Monitoring) -> str:
    hurt, labels = [one for one in monitoring.harm if one.harmed], overall(monitoring)
    if hurt:
        worst = max(hurt, key=lambda one: (one.name == ALL, _over(one)))
        where = "" if worst.name == ALL else f" on {clip(worst.name, 60)}"
        return f"Yes: loss {interval(worst.loss)}{where}, tolerated {worst.tolerated:.3g}."
    if labels is not None:
        seen = interval(labels.loss)
        loss = "no new labels in this window" if seen == "unknown" else f"loss {seen}"
        said = f"{loss}, tolerated {labels.tolerated:.3g}; {labels.labels:,} labels counted"
        if labels.loss.high > labels.tolerated:
            return f"No sign of it so far, but too few labels to rule it out: {said}."
        return f"Labels say no: {said}."
    guess = monitoring.estimate
    known = f" Estimated {clip(guess.metric)} {number(guess.value)}." if guess is not None and guess.shown else ""
    return f"Unknown: no label has been counted.{known}"


def _over(harm: Harm) -> float:
    over = harm.loss.value - harm.tolerated
    return over if math.isfinite(over) else -math.inf


def _since(monitoring: Monitoring, history: Sequence[Monitoring]) -> str:
    said = []
    begun = min((one.since for one in monitoring.harm if one.harmed and seconds(one.since) is not None), default="")
    if begun:
        said.append(f"Harm since {day(begun)} UTC, most likely.")
    elif any(one.harmed for one in monitoring.harm):
        said.append("Harm: in this window's labels.")
    if monitoring.drifted:
        start, whole = drifting_since(monitoring, history)
        at_least = "at least " if whole else ""
        said.append(f"Drift since {at_least}the window that began {day(start)} UTC.")
    return " ".join(said) or ("There is nothing to date." if monitoring.columns else "Unknown.")


def _sure(monitoring: Monitoring) -> str:
    said = []
    hurt, labels = [one for one in monitoring.harm if one.harmed], overall(monitoring)
    if hurt:
        worst = max(hurt, key=lambda one: (one.name == ALL, _over(one)))
        if worst.standing or worst.log_e >= worst.threshold:
            said.append(_promise(worst))
        elif worst.p_value is not None:
            said.append(f"This window's labels alone are worse than the reference's (p = {worst.p_value:.2g}).")
    elif labels is not None:
        said.append(f"{_promise(labels)} Small harm takes longer to show.")
    strongest = next((c for c in by_severity(monitoring.columns) if c.drifted), None)
    if strongest is not None:
        shown = evidence(strongest).text
        said.append(f"Evidence of change in {clip(strongest.column, 60)}: {shown}.")
    elif monitoring.faults:
        said.append("Broken columns are seen directly.")
    return " ".join(said) or ("No evidence reaches an alarm line." if monitoring.columns else "Too little to tell.")


def _promise(harm: Harm) -> str:
    return f"Without harm, the detector alarms once in {power(harm.threshold)} labels on average, at most."


def _done(monitoring: Monitoring, decisions: Sequence[LedgerEntry]) -> str:
    done = [entry for entry in decisions if entry.action not in LOOKING]
    if not done:
        return "No decision is written down."
    start = seconds(monitoring.window.start) or -math.inf
    last = done[-1]
    what = f"{decision(last)}, {day(last.time)} UTC: {clip(last.reason)}"
    recent = (seconds(last.time) or math.inf) >= start
    return sentence(what) if recent else f"Nothing since this window began; before: {sentence(what, upper=False)}"


def sentence(text: str, *, upper: bool = True) -> str:
    """Return text as a sentence: a capital letter, and a period."""
    text = text[:1].upper() + text[1:] if upper else text
    return text if text.endswith((".", "…")) else f"{text}."


def decision(entry: LedgerEntry) -> str:
    """Return what was decided, of which version."""
    kind = entry.evidence.get("verdict") or entry.evidence.get("kind")
    if entry.action == "verdict" and isinstance(kind, str):
        return clip(f"verdict: {kind}")
    name = DONE.get(entry.action, entry.action + " v{}")
    return clip(entry.action if entry.version is None else name.format(entry.version))
