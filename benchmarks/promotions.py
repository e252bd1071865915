"""False promotions under unlimited looks, and labels until a better challenger is promoted, beside two usual rules.

Streams of 20,000 labels of two models of which one alone is right on one row in ten, or one in five, looked
at every 100 labels. The rivals: McNemar's exact test at each look, promoting at p < 0.05 when the
challenger is the better one; and two floats, promoting when its live accuracy is higher.
`python -m benchmarks.promotions --help`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from scipy.stats import binomtest

from homeostat.config import RolloutConfig
from homeostat.evaluation.betting import mean_sequence
from homeostat.monitoring.detector import mean_interval
from homeostat.policy.promotion import decide_trial
from homeostat.records import Comparison, Trial

LABELS, EVERY = 20_000, 100
NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
CONFIG = RolloutConfig()


@dataclass(frozen=True)
class Scene:
    """The challenger's gain in points of accuracy, and the share of rows on which the models differ."""

    points: float
    differ: float

    def gains(self, rng: np.random.Generator) -> np.ndarray:
        """Return the gain [LABELS] of each row: 1 where the challenger alone is right, -1 where the champion is."""
        more = (self.differ + self.points / 100) / 2
        return rng.choice([1.0, -1.0, 0.0], LABELS, p=[more, self.differ - more, 1 - self.differ])


def ours(gains: np.ndarray) -> bool:
    """The policy itself, on the interval that a look would make."""
    gain = mean_sequence(gains, 0.95)
    comparison = Comparison("accuracy", 1, len(gains), 0.9 + gain.value, 0.9, gain)
    return decide_trial(Trial(2, NOW, NOW, comparison), CONFIG).kind == "promote"


def mcnemar(gains: np.ndarray) -> bool:
    """McNemar's exact test, two-sided at 5 %."""
    won, lost = int((gains > 0).sum()), int((gains < 0).sum())
    return won > lost and binomtest(won, won + lost).pvalue < 0.05


def two_floats(gains: np.ndarray) -> bool:
    """The challenger's accuracy is higher."""
    return bool(gains.sum() > 0)


RULES: dict[str, Callable[[np.ndarray], bool]] = {
    "homeostat": ours,
    "McNemar at each look": mcnemar,
    "two floats": two_floats,
}


def first_promotion(rule: Callable[[np.ndarray], bool], gains: np.ndarray) -> float:
    """Return the labels after which a rule promotes; inf if it never does."""
    return next((float(n) for n in range(EVERY, LABELS + 1, EVERY) if rule(gains[:n])), math.inf)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    streams = parser.parse_args().streams
    print("| gain | rows that differ | rule | promoted | labels, median | p90 |\n|---:|---:|---|---|---:|---:|")
    for scene in [Scene(p, d) for d in (0.1, 0.2) for p in (0.0, 1.0, 2.0, -1.0)]:
        for name, rule in RULES.items():
            rng = np.random.default_rng([round(10 * scene.points) + 100, round(100 * scene.differ)])
            found = np.array([first_promotion(rule, scene.gains(rng)) for _ in range(streams)])
            promoted = np.isfinite(found)
            share = mean_interval(promoted.astype(np.float64))
            p50, p90 = np.quantile(found, (0.5, 0.9), method="higher")
            late = [f"{value:,.0f}" if math.isfinite(value) else "never" for value in (p50, p90)]
            print(
                f"| {scene.points:+g} | {scene.differ:.0%} | {name} | {promoted.sum()} of {streams} "
                f"({share.value:.1%}; {share.low:.1%} to {share.high:.1%}) | {late[0]} | {late[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
