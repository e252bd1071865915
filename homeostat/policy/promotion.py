"""Whether a challenger takes over: from the paired comparison on the test part, then from live labels."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime, timedelta

from homeostat.config import RolloutConfig
from homeostat.records import Comparison, Interval, Trial, Verdict

RULE = (
    "promote: the whole paired interval of the gain is above rollout.margin. hold: none of it is. "
    "inconclusive: the margin lies in it; live labels go on to decide (rollout.trial)."
)
TRIAL_RULE = (
    "promote: the whole interval of the gain on live labels is above rollout.trial.margin. hold: the whole interval is "
    "below it; a slice certainly loses more than slice_margin; or days or max_labels are over. inconclusive: else."
)


def describe_gain(gain: Interval) -> str:
    """Return the gain with its interval, such as `+0.0100 (95 % interval +0.0020 to +0.0180)`."""
    return f"{gain.value:+.4f} ({100 * gain.confidence:g} % interval {gain.low:+.4f} to {gain.high:+.4f})"


def is_usable(comparison: Comparison) -> bool:
    """Whether there are rows, and an interval of numbers."""
    gain = comparison.gain
    return comparison.rows > 0 and all(math.isfinite(v) for v in (gain.value, gain.low, gain.high))


def decide_promotion(comparison: Comparison | None, config: RolloutConfig) -> Verdict:
    """Promote when there is no champion, or the lower end of the paired interval is above the margin.

    comparison: challenger against champion on the test part; a positive gain means that the
    challenger is better. Holds when it is worse than the margin, or cannot reach it; else inconclusive.
    """
    if comparison is None:
        return Verdict("promote", ("there is no champion to compare with",))
    evidence = {"comparison": asdict(comparison), "margin": config.margin}
    gain, margin = comparison.gain, config.margin
    figures = (
        f"{comparison.metric} {comparison.challenger:.4f} against {comparison.champion:.4f} of champion "
        f"v{comparison.champion_version} on the same {comparison.rows} rows: gain {describe_gain(gain)}"
    )
    if not is_usable(comparison):
        return Verdict("inconclusive", (figures, "no rows, or an interval that is not a number"), evidence)
    if gain.low > margin:
        return Verdict("promote", (figures, f"the lower end is above the margin {margin:g}"), evidence)
    if gain.high < min(margin, 0):
        limit = "zero" if margin >= 0 else f"the margin {margin:g}"
        return Verdict("hold", (figures, f"worse: the whole interval is below {limit}"), evidence)
    if gain.high <= margin:
        return Verdict("hold", (figures, f"even the upper end is not above the margin {margin:g}"), evidence)
    return Verdict(
        "inconclusive", (figures, f"the lower end {gain.low:+.4f} is not above the margin {margin:g}"), evidence
    )


def decide_trial(trial: Trial, config: RolloutConfig) -> Verdict:
    """Promote, hold, or wait for more labels. The intervals hold at all looks together: asking often costs nothing."""
    rule, comparison = config.trial, trial.comparison
    evidence = {"trial": asdict(trial), "rules": rule.model_dump(mode="json")}
    since, until = datetime.fromisoformat(trial.since), datetime.fromisoformat(trial.until)
    over = until - since >= timedelta(days=rule.days)
    late = f"{rule.days:g} days of trial are over: the champion stays"
    if comparison is None or comparison.rows < rule.min_labels or not is_usable(comparison):
        few = f"v{trial.version}: {comparison.rows if comparison else 'too few'} labelled rows since {trial.since:.16}"
        few += f"; rollout.trial.min_labels is {rule.min_labels}"
        return Verdict("hold", (few, late), evidence) if over else Verdict("inconclusive", (few,), evidence)
    gain = comparison.gain
    figures = (
        f"v{trial.version} on live labels: {comparison.metric} {comparison.challenger:.4f} against "
        f"{comparison.champion:.4f} of champion v{comparison.champion_version} on the same {comparison.rows} rows: "
        f"gain {describe_gain(gain)}"
    )
    if gain.high < rule.margin:
        return Verdict("hold", (figures, f"the whole interval is below the margin {rule.margin:g}"), evidence)
    worse = [one for one in comparison.slices if one.gain.high < -rule.slice_margin]
    if worse:
        said = "; ".join(f"{one.name} gains {describe_gain(one.gain)} on {one.rows} rows" for one in worse)
        return Verdict(
            "hold", (figures, f"a slice loses more than slice_margin {rule.slice_margin:g}: {said}"), evidence
        )
    if gain.low > rule.margin:
        return Verdict("promote", (figures, f"the lower end is above the margin {rule.margin:g}"), evidence)
    if over:
        return Verdict("hold", (figures, late), evidence)
    if comparison.rows >= rule.max_labels:
        return Verdict("hold", (figures, f"max_labels {rule.max_labels} have come: the champion stays"), evidence)
    return Verdict("inconclusive", (figures, f"the interval holds the margin {rule.margin:g}"), evidence)
