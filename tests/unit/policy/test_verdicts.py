"""Evidence in, verdict out."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.config import RetrainConfig, RolloutConfig
from homeostat.policy.promotion import decide_promotion
from homeostat.policy.retraining import decide_retrain
from homeostat.policy.rollback import decide_rollback
from homeostat.records import Comparison, Harm, Interval

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def comparison(low: float, high: float, rows: int = 100) -> Comparison:
    value = (low + high) / 2
    return Comparison("accuracy", 3, rows, 0.9 + value, 0.9, Interval(value, low, high))


@pytest.mark.parametrize(
    ("low", "high", "margin", "kind", "reason"),
    [
        (0.011, 0.03, 0.01, "promote", "above the margin 0.01"),
        (0.01, 0.03, 0.01, "inconclusive", "lower end +0.0100 is not above the margin 0.01"),
        (0.001, 0.009, 0.01, "hold", "even the upper end"),
        (0.0, 0.0, 0.0, "hold", "even the upper end"),
        (-0.01, 0.02, 0.0, "inconclusive", "lower end -0.0100"),
        (-0.03, -0.01, 0.0, "hold", "worse"),
        (math.nan, math.nan, 0.0, "inconclusive", "not a number"),
        (-math.inf, math.inf, 0.0, "inconclusive", "not a number"),
    ],
)
def test_promotion(low, high, margin, kind, reason):
    verdict = decide_promotion(comparison(low, high), RolloutConfig(margin=margin))
    assert verdict.kind == kind
    assert reason in verdict.reasons[-1]
    assert "champion v3 on the same 100 rows" in verdict.reasons[0]
    assert verdict.evidence["comparison"]["rows"] == 100


def test_the_first_version_is_promoted_and_no_rows_decide_nothing():
    assert decide_promotion(None, RolloutConfig()).kind == "promote"
    assert decide_promotion(comparison(0.1, 0.2, rows=0), RolloutConfig()).kind == "inconclusive"


@pytest.mark.parametrize(
    ("low", "high", "rows", "kind"),
    [
        (-0.05, -0.021, 50, "roll back"),
        (-0.05, -0.02, 50, "inconclusive"),
        (-0.05, -0.021, 49, "inconclusive"),
        (-0.02, 0.01, 50, "hold"),
        (-0.021, 0.01, 50, "inconclusive"),
        (0.01, 0.02, 50, "hold"),
        (math.nan, math.nan, 50, "inconclusive"),
    ],
)
def test_rollback(low, high, rows, kind):
    config = RolloutConfig(rollback_margin=0.02, rollback_min_labels=50)
    verdict = decide_rollback(comparison(low, high, rows), config)
    assert verdict.kind == kind
    assert f"{rows} labelled rows" in verdict.reasons[0]


def test_rollback_without_a_comparison():
    assert decide_rollback(None, RolloutConfig()).kind == "inconclusive"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_no_evidence_both_promotes_and_rolls_back(low, width, margin, rollback_margin):
    config = RolloutConfig(margin=margin, rollback_margin=rollback_margin)
    evidence = comparison(low, low + width)
    kinds = decide_promotion(evidence, config).kind, decide_rollback(evidence, config).kind
    assert kinds != ("promote", "roll back")
    if kinds[0] == "promote":
        assert kinds[1] == "hold"
    if kinds[1] == "roll back":
        assert kinds[0] == "hold"


@pytest.mark.parametrize(
    ("trigger", "minutes", "labelled", "kind", "reasons"),
    [
        ("manual", 0, 0, "retrain", ["by hand"]),
        ("schedule", 60, 0, "retrain", ["schedule"]),
        ("schedule", 59, 0, "hold", ["1.0 of 60 minutes"]),
        ("drift", None, 10, "retrain", ["drift"]),
        ("drift", 61, 9, "hold", ["9 labelled rows"]),
        ("drift", 1, 9, "hold", ["59.0 of 60", "9 labelled rows"]),
        ("schedule", -600, 0, "hold", ["60.0 of 60"]),
    ],
)
def test_retraining(trigger, minutes, labelled, kind, reasons):
    last = None if minutes is None else NOW - timedelta(minutes=minutes)
    config = RetrainConfig(cooldown_minutes=60, min_labelled_rows=10)
    verdict = decide_retrain(trigger, last, NOW, labelled, config)
    assert verdict.kind == kind
    assert len(verdict.reasons) == len(reasons)
    assert all(expected in found for expected, found in zip(reasons, verdict.reasons, strict=True))
    json.dumps(verdict.evidence)


def harm(loss: float, high: float, *, harmed: bool = False) -> Harm:
    return Harm("all", 500, Interval(loss, 0.0, high), tolerated=0.1, log_e=0.0, threshold=9.9, harmed=harmed)


@pytest.mark.parametrize(
    ("trigger", "found", "kind", "reason"),
    [
        ("drift", harm(0.1, 0.15), "hold", "no harm: loss 0.1000 (at most 0.1500) on labels, 0.1000 and 0.05 more"),
        ("drift", harm(0.1, 0.151), "retrain", "drift was found"),  # not shown to be harmless
        ("drift", harm(0.1, math.nan), "retrain", "drift was found"),
        ("drift", harm(0.1, 0.15, harmed=True), "retrain", "drift was found"),
        ("harm", harm(0.1, 0.15), "retrain", "labels show harm"),
        ("schedule", harm(0.1, 0.15), "retrain", "schedule"),
    ],
)
def test_drift_without_harm_does_not_retrain(trigger, found, kind, reason):
    verdict = decide_retrain(trigger, None, NOW, 500, RetrainConfig(harmless_margin=0.05), found)
    assert (verdict.kind, len(verdict.reasons)) == (kind, 1)
    assert reason in verdict.reasons[0]
    assert verdict.evidence["harm"]["labels"] == 500
