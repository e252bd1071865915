"""Whether the live version gives way to its predecessor, from live labels."""

from __future__ import annotations

from dataclasses import asdict

from homeostat.config import RolloutConfig
from homeostat.policy.promotion import describe_gain, is_usable
from homeostat.records import Comparison, Verdict

RULE = (
    "roll back: the whole interval of the gain over the predecessor on live labels is below -rollout.rollback_margin. "
    "hold: the whole interval is at or above it. inconclusive: else, or too few labels."
)


def decide_rollback(comparison: Comparison | None, config: RolloutConfig) -> Verdict:
    """Roll back when the whole paired interval says that the live version loses more than the margin.

    comparison: the live version (as challenger) against its predecessor (as champion) on the
    same labelled live rows; a positive gain means that the live version is better. Its interval
    holds at all looks together, so that a look every hour takes no good version back.
    """
    if comparison is None:
        return Verdict("inconclusive", ("there is no predecessor, or there are no labels, to compare on",))
    gain, margin = comparison.gain, config.rollback_margin
    evidence = {
        "comparison": asdict(comparison),
        "rollback_margin": margin,
        "rollback_min_labels": config.rollback_min_labels,
    }
    figures = (
        f"live {comparison.metric} {comparison.challenger:.4f} against {comparison.champion:.4f} of predecessor "
        f"v{comparison.champion_version} on the same {comparison.rows} labelled rows: gain {describe_gain(gain)}"
    )
    if comparison.rows < config.rollback_min_labels:
        short = f"{comparison.rows} labelled rows are fewer than rollback_min_labels {config.rollback_min_labels}"
        return Verdict("inconclusive", (figures, short), evidence)
    if not is_usable(comparison):
        return Verdict("inconclusive", (figures, "the interval is not a number"), evidence)
    if gain.high < -margin:
        return Verdict("roll back", (figures, f"the whole interval is below -{margin:g}: worse than before"), evidence)
    if gain.low >= -margin:
        return Verdict("hold", (figures, f"the whole interval is at or above -{margin:g}: not worse"), evidence)
    return Verdict("inconclusive", (figures, f"the interval holds -{margin:g}"), evidence)
