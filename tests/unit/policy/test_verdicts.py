"""Evidence in, verdict out."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.config import RetrainConfig, RolloutConfig
from homeostat.errors import DataInvalid
from homeostat.policy.again import decide_again
from homeostat.policy.promotion import decide_promotion
from homeostat.policy.retraining import LONGEST_WAIT, Situation, decide_retrain, past_trainings
from homeostat.policy.rollback import decide_rollback
from homeostat.records import Comparison, Harm, Interval, LedgerEntry

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
    last = () if minutes is None else (NOW - timedelta(minutes=minutes),)
    config = RetrainConfig(cooldown_minutes=60, min_labelled_rows=10)
    verdict = decide_retrain(trigger, Situation(NOW, last, labelled_rows=labelled, looks=(True,)), config)
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
    situation = Situation(NOW, labelled_rows=500, looks=(True,), harm=found)
    verdict = decide_retrain(trigger, situation, RetrainConfig(harmless_margin=0.05))
    assert (verdict.kind, len(verdict.reasons)) == (kind, 1)
    assert reason in verdict.reasons[0]
    assert verdict.evidence["situation"]["harm"]["labels"] == 500


def ago(*hours: float) -> tuple[datetime, ...]:
    return tuple(NOW - timedelta(hours=hour) for hour in hours)


@pytest.mark.parametrize(
    ("situation", "settings", "reason"),
    [
        (
            Situation(NOW, ago(1.5), rejected=1),
            {},
            "90.0 minutes ago: 30.0 of 120 minutes of cooldown after 1 challengers",
        ),
        (Situation(NOW, ago(5), ended=NOW - timedelta(minutes=45)), {}, "was 45.0 minutes ago: 15.0 of 60 minutes"),
        (Situation(NOW, ago(100), rejected=30), {}, "of 10080 minutes of cooldown after 30 challengers in a row"),
        (Situation(NOW, ago(*range(160, 20, -10))), {}, "14 trainings in the last 7 days; retrain.max_per_week is 14"),
        (Situation(NOW), {"automatic": False}, "retrain.automatic is false"),
        (Situation(NOW, looks=(True, False, True)), {"drift_looks": 3, "drift_of": 3}, "2 of the last 3 looks found"),
        (Situation(NOW, looks=(True, True)), {"drift_looks": 2, "drift_of": 2, "automatic": False}, "automatic"),
    ],
)
def test_retraining_waits(situation, settings, reason):
    settings = {"cooldown_minutes": 60, **settings}
    verdict = decide_retrain("drift" if situation.looks else "schedule", situation, RetrainConfig(**settings))
    assert verdict.kind == "hold"
    assert len(verdict.reasons) == 1
    assert reason in verdict.reasons[0]
    assert decide_retrain("manual", situation, RetrainConfig(**settings)).kind == "retrain"


def test_drift_that_lasts_retrains():
    config = RetrainConfig(drift_looks=2, drift_of=3)
    assert decide_retrain("drift", Situation(NOW, looks=(True, False, False)), config).kind == "hold"
    assert decide_retrain("drift", Situation(NOW, looks=(False, True, False, True)), config).kind == "retrain"
    assert decide_retrain("harm", Situation(NOW, looks=(False,)), config).kind == "retrain", "harm need not last"
    with pytest.raises(ValueError, match="drift never retrains"):
        RetrainConfig(drift_looks=3, drift_of=2)


def test_harm_of_a_version_that_is_no_longer_live_does_not_retrain():
    verdict = decide_retrain("harm", Situation(NOW, harmed=False), RetrainConfig())
    assert (verdict.kind, verdict.reasons[0][:22]) == ("hold", "the newest look at the")
    assert decide_retrain("harm", Situation(NOW, harmed=True), RetrainConfig()).kind == "retrain"
    assert decide_retrain("harm", Situation(NOW), RetrainConfig()).kind == "retrain", (
        "evidence from before it was asked"
    )
    assert decide_retrain("webhook", Situation(NOW, harmed=False), RetrainConfig()).kind == "retrain"


@given(
    st.sampled_from(["manual", "schedule", "drift", "harm", "webhook"]),
    st.lists(st.floats(-10, 400), max_size=20),
    st.integers(0, 30),
    st.lists(st.booleans(), max_size=5),
    st.booleans(),
)
def test_the_same_evidence_gives_the_same_verdict(trigger, hours, rejected, looks, harmed):
    found = harm(0.1, math.nan if harmed else 0.2, harmed=harmed)
    situation = Situation(NOW, ago(*sorted(hours, reverse=True)), rejected, 20, tuple(looks), found)
    verdict = decide_retrain(trigger, situation, RetrainConfig(drift_looks=1, drift_of=3))
    again, _ = decide_again(json.loads(json.dumps(verdict.evidence)))
    assert (again.kind, again.reasons) == (verdict.kind, verdict.reasons)
    with pytest.raises(DataInvalid, match="no evidence of a verdict"):
        decide_again({"trigger": trigger, "retrain": {}})


def test_thirty_days_of_permanent_drift_and_harm_keep_the_budget():
    """Looks come every hour, all with drift; no challenger takes over, or each does."""
    for takes_over in (False, True):
        config, trainings, rejected, now = RetrainConfig(max_per_week=5), [], 0, NOW
        for _ in range(30 * 24):
            now += timedelta(hours=1)
            for trigger in ("drift", "harm", "schedule", "webhook"):  # all roads lead to one policy
                situation = Situation(now, tuple(trainings), rejected, 100, (True,))
                if decide_retrain(trigger, situation, config).kind == "retrain":
                    trainings.append(now)
                    rejected = 0 if takes_over else rejected + 1
        for end in trainings:
            assert sum(end - timedelta(days=7) < training <= end for training in trainings) <= 5
        assert len(set(trainings)) == len(trainings), "one training, whoever asks"
        assert len(trainings) == (25 if takes_over else 10)
        if not takes_over:
            assert trainings[-1] - trainings[-2] >= LONGEST_WAIT


def test_trainings_since_the_last_promotion_are_rejected_ones():
    def entry(sequence: int, action: str) -> LedgerEntry:
        time = (NOW + timedelta(hours=sequence)).isoformat()
        return LedgerEntry(sequence, time, "toy", action, "t", "t", 1, 1, None, {}, "", "")

    entries = [entry(i, a) for i, a in enumerate(("retrain", "promote", "drift", "retrain", "verdict", "retrain"), 1)]
    past = past_trainings(entries)
    assert (len(past.times), past.rejected, past.newest, past.ended) == (3, 2, 6, None)
    assert past_trainings([]) == ((), 0, 0, None)
    entries += [entry(i, a) for i, a in enumerate(("challenger", "hold", "drift", "rollback"), 7)]
    assert past_trainings(entries).ended == NOW + timedelta(hours=8)
