"""What the guards make of counts: judgements, what follows from them, and sums over processes."""

from __future__ import annotations

import json
import random
from typing import get_args

import pytest

from homeostat.config import GuardConfig, GuardName, RolloutConfig
from homeostat.guards import Evidence, active, decide, describe, judge, level, part, required
from homeostat.sequential import Judgement

CONFIG = RolloutConfig(strategy="canary", steps=(0.05, 0.5), min_requests=100, min_seconds=60, max_seconds=600)
SAID = {name: Judgement(name, "said") for name in ("pass", "fail", "inconclusive")}


def evidence(requests: int, *, bad: float = 0.0, guard: str = "errors", seed: int = 1, share: float = 0.05) -> Evidence:
    """Requests of both arms, of which the candidate's are bad with chance `bad`, and the control's never."""
    made, rng = Evidence(), random.Random(seed)
    for _ in range(requests):
        candidate = rng.random() < share
        made.count(guard, candidate=candidate, bad=candidate and rng.random() < bad, share=share)
        made.note(requests=candidate)
    return made


def follow(outcomes: dict[str, str], mode: str = "canary", config: RolloutConfig = CONFIG, **more: object) -> str:
    found = {name: SAID[outcomes.get(name, "pass")] for name in active(mode)}
    known = {"paused": False, "requests": 1000, "seconds": 100.0, "source_errors": 0} | more
    return decide(found, config, mode, **known).kind


@pytest.mark.parametrize("guard", active("canary"))
@pytest.mark.parametrize("more", [{}, {"paused": True}, {"requests": 0}, {"seconds": 0.0}, {"source_errors": 999}])
def test_one_failed_guard_aborts_whatever_the_others_say(guard, more):
    assert follow({guard: "fail"}, **more) == "abort"
    assert follow({guard: "fail"}, "bake", **more) == "abort"


@pytest.mark.parametrize(
    ("outcomes", "more", "kind"),
    [
        ({}, {}, "advance"),
        ({}, {"paused": True}, "wait"),
        ({}, {"requests": 99}, "wait"),
        ({}, {"seconds": 59.0}, "wait"),
        ({}, {"source_errors": 101}, "pause"),
        ({"errors": "inconclusive"}, {}, "wait"),
        ({"errors": "inconclusive"}, {"seconds": 601.0}, "pause"),
        ({}, {"requests": 0, "seconds": 601.0}, "pause"),
        ({"labels": "inconclusive", "contract": "inconclusive"}, {}, "advance"),  # not required
    ],
)
def test_what_follows(outcomes, more, kind):
    assert follow(outcomes, **more) == kind


def test_labels_can_be_required():
    strict = CONFIG.model_copy(update={"guards": GuardConfig(required=("errors", "labels"))})
    assert follow({"labels": "inconclusive"}, config=strict) == "wait"
    assert follow({"latency": "inconclusive"}, config=strict) == "advance"


def test_a_shadow_must_agree_and_a_canary_cannot():
    shadow = RolloutConfig(strategy="shadow", min_seconds=1)
    assert follow({"disagreement": "inconclusive"}, "shadow", shadow) == "wait"
    assert follow({"disagreement": "fail"}, "shadow", shadow) == "abort"
    assert "disagreement" not in active("canary")
    assert required("shadow", shadow) == ("errors", "latency", "disagreement")
    assert set(active("shadow")) == set(get_args(GuardName))


def test_a_bake_ends_with_its_time():
    assert follow({"errors": "inconclusive"}, "bake", seconds=3599.0, requests=0) == "wait"
    assert follow({"errors": "inconclusive"}, "bake", seconds=3600.0, requests=0) == "advance"


@pytest.mark.parametrize("mode", ["shadow", "canary", "bake"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_no_evidence_is_inconclusive_everywhere(mode, task):
    found = judge(Evidence(), CONFIG, mode, task)
    assert set(found) == set(active(mode))
    assert {judgement.outcome for judgement in found.values()} == {"inconclusive"}


@pytest.mark.parametrize("guard", ["errors", "contract", "labels"])
def test_a_bad_arm_fails_its_guard_and_no_other(guard):
    found = judge(evidence(4000, bad=0.3, guard=guard), CONFIG, "canary", "classification")
    assert {name for name, judgement in found.items() if judgement.outcome == "fail"} == {guard}


@pytest.mark.parametrize("guard", ["latency", "labels"])
def test_a_slower_arm_or_larger_errors_fail(guard):
    made, rng = Evidence(), random.Random(3)
    for q in (0.5, 0.9, 0.99):
        for _ in range(3000):
            candidate = rng.random() < 0.5
            made.count(part(guard, q), candidate=candidate, bad=rng.random() < (1 - q) * (1 + candidate), share=0.5)
    found = judge(made, CONFIG, "canary", "regression")
    assert [name for name, judgement in found.items() if judgement.outcome == "fail"] == [guard]


@pytest.mark.parametrize(("base", "labels"), [(0.02, 500), (0.05, 1000), (0.1, 3000)])
def test_five_points_more_errors_are_found_whether_the_champion_is_good_or_middling(base, labels):
    """The counts are the expected ones: so many labels of the candidate, at 5 % of the traffic."""
    made = Evidence()
    counts = {False: (base, 19 * labels), True: (base + 0.05, labels)}
    for candidate, (rate, trials) in counts.items():
        for bad, number in ((True, round(rate * trials)), (False, trials - round(rate * trials))):
            for _ in range(number):
                made.count("labels", candidate=candidate, bad=bad, share=0.05)
    assert judge(made, CONFIG, "canary", "classification")["labels"].outcome == "fail"


def test_pairs_that_are_bad_together_say_nothing():
    made = Evidence()
    for _ in range(500):
        made.count_pair("errors", control=True, candidate=True)
    assert made.tallies["errors"].total() == (0, 0)
    assert made.tallies["errors"].trials == (500, 500)
    for _ in range(20):
        made.count_pair("errors", control=False, candidate=True)
    shadow = CONFIG.model_copy(update={"strategy": "shadow"})
    assert judge(made, shadow, "shadow", "classification")["errors"].outcome == "fail"


def test_identical_arms_are_seldom_stopped_by_any_guard():
    """Of 60 rollouts of the champion itself, looked at 40 times each, with all guards."""
    stopped = 0
    for seed in range(60):
        rng, made = random.Random(seed), Evidence()
        for place in range(4000):
            candidate = rng.random() < 0.05
            for guard, rate in (("errors", 0.02), ("contract", 0.05), ("labels", 0.1)):
                made.count(guard, candidate=candidate, bad=rng.random() < rate, share=0.05)
            for q in (0.5, 0.9, 0.99):
                made.count(part("latency", q), candidate=candidate, bad=rng.random() < 1 - q, share=0.05)
            if place % 100 == 0:
                found = judge(made, CONFIG, "canary", "classification")
                if any(judgement.outcome == "fail" for judgement in found.values()):
                    stopped += 1
                    break
    assert stopped <= 60 * CONFIG.alpha


def test_alpha_is_shared_over_guards_and_phases():
    assert level(CONFIG, "canary") == pytest.approx(CONFIG.alpha / 4 / 2)
    both = CONFIG.model_copy(update={"strategy": "shadow+canary", "bake_seconds": 0.0})
    assert level(both, "shadow") == pytest.approx(CONFIG.alpha / 5 / 2)


def test_evidence_adds_up_and_survives_json():
    first, second = evidence(500, bad=0.5, seed=1), evidence(700, bad=0.2, seed=2)
    for value in (0.001, 0.1):
        first.observe(first.latency, value)
        second.observe(second.residual, value)
    second.note(source_errors=3)
    total = first + second
    assert (total.requests, total.source_errors) == (first.requests + second.requests, 3)
    assert total.tallies["errors"] == first.tallies["errors"] + second.tallies["errors"]
    assert (total.latency.total, total.residual.total) == (2, 2)
    copied = Evidence.from_json(json.loads(json.dumps(total.to_json())))
    assert copied.to_json() == total.to_json()
    with pytest.raises((KeyError, TypeError, ValueError)):
        Evidence.from_json({"tallies": {"errors": {"trials": [1], "bad": []}}})


def test_quantiles_are_used_once_they_are_known():
    made = Evidence()
    for _ in range(199):
        made.observe(made.latency, 0.01)
    assert made.thresholds(made.latency) == {}
    made.observe(made.latency, 0.01)
    assert made.thresholds(made.latency)[0.99] == pytest.approx(0.01, rel=0.02)


def test_judgements_are_json():
    found = judge(evidence(100), CONFIG, "canary", "classification")
    text = json.loads(json.dumps(describe(found)))
    assert set(text["errors"]) == {"outcome", "reason", "figures"}
