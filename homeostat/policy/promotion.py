"""Whether a challenger takes over, from the paired comparison with the champion on the same rows."""

from __future__ import annotations

import math
from dataclasses import asdict

from homeostat.config import RolloutConfig
from homeostat.records import Comparison, Interval, Verdict


def describe_gain(gain: Interval) -> str:
    """Return the gain with its interval, such as `+0.0100 (95 % interval +0.0020 to +0.0180)`."""
    return f"{gain.value:+.4f} ({100 * gain.confidence:g} % interval {gain.low:+.4f} to {gain.high:+.4f})"


def is_usable(comparison: Comparison) -> bool:
    """Whether there are rows, and an interval of numbers."""
    gain = comparison.gain
    return comparison.rows > 0 and all(math.isfinite(v) for v in (gain.value, gain.low, gain.high))


def decide_promotion(comparison: Comparison | None, config: RolloutConfig) -> Verdict:
    """Promote when there is no champion, or the lower end of the paired interval is above the margin.

    comparison: challenger against champion; a positive gain means that the challenger is
    better. Holds when the challenger is worse, or cannot reach the margin; else inconclusive.
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
    if gain.high < 0:
        return Verdict("hold", (figures, "worse: the whole interval is below zero"), evidence)
    if gain.high <= margin:
        return Verdict("hold", (figures, f"even the upper end is not above the margin {margin:g}"), evidence)
    return Verdict(
        "inconclusive", (figures, f"the lower end {gain.low:+.4f} is not above the margin {margin:g}"), evidence
    )
