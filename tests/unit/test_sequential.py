"""The anytime-valid tests: their guarantee enumerated, and the cases that trip judges of canaries, simulated."""

from __future__ import annotations

import json
import math
import random
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.sequential import (
    Judgement,
    Quantiles,
    Tally,
    judge_arms,
    judge_quantiles,
    judge_rate,
    log_e_no_worse,
    log_e_over,
    log_e_under,
    log_e_worse,
    log_mean,
    upper_bound,
)

ALPHA, PASS_ALPHA = 0.02, 0.05
SHARE = st.floats(0.01, 0.99)
LIMIT = st.floats(1.0, 3.0)
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def judge(tally: Tally, max_ratio: float = 1.5, max_rate: float | None = 0.01, **more: object) -> Judgement:
    levels = {"max_ratio": max_ratio, "max_rate": max_rate, "alpha": ALPHA, "pass_alpha": PASS_ALPHA}
    return judge_arms(tally, **(levels | more))


def events(control: int, candidate: int, share: float, trials: tuple[int, int] = (0, 0)) -> Tally:
    return Tally({share: (control, candidate)}, trials)


def expectation(n: int, p: float, log_e: object) -> float:
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) * math.exp(log_e(k)) for k in range(n + 1))


# -- the guarantee: whatever is true under the hypothesis, the expected evidence against it is at most 1 ------------


@QUICK
@given(n=st.integers(1, 12), share=SHARE, limit=LIMIT, part=st.floats(0.01, 1.0))
def test_evidence_against_a_candidate_within_its_limit_is_at_most_one_on_average(n, share, limit, part):
    ratio = limit * part
    p = share * ratio / (share * ratio + 1 - share)
    assert expectation(n, p, lambda k: log_e_worse(events(n - k, k, share), limit)) <= 1 + 1e-9


@QUICK
@given(n=st.integers(1, 12), share=SHARE, limit=LIMIT, times=st.floats(1.0, 50.0))
def test_evidence_for_a_candidate_over_its_limit_is_at_most_one_on_average(n, share, limit, times):
    ratio = limit * times
    p = share * ratio / (share * ratio + 1 - share)
    assert expectation(n, p, lambda k: log_e_no_worse(events(n - k, k, share), limit)) <= 1 + 1e-9


@QUICK
@given(n=st.integers(1, 12), limit=st.floats(0.001, 0.9), part=st.floats(0.0, 1.0))
def test_evidence_about_a_rate_is_at_most_one_on_average(n, limit, part):
    low, high = limit * part, limit + (1 - limit) * part
    assert expectation(n, low, lambda k: log_e_over(k, n, limit)) <= 1 + 1e-9
    assert expectation(n, high, lambda k: log_e_under(k, n, limit)) <= 1 + 1e-9


@QUICK
@given(first=st.integers(1, 5), second=st.integers(1, 5), limit=LIMIT)
def test_beginning_anew_at_each_share_keeps_the_guarantee(first, second, limit):
    p = {share: share * limit / (share * limit + 1 - share) for share in (0.1, 0.5)}
    total = 0.0
    for a in range(first + 1):
        for b in range(second + 1):
            chance = comb(first, a) * p[0.1] ** a * (1 - p[0.1]) ** (first - a)
            chance *= comb(second, b) * p[0.5] ** b * (1 - p[0.5]) ** (second - b)
            tally = Tally({0.1: (first - a, a), 0.5: (second - b, b)})
            total += chance * math.exp(log_e_worse(tally, limit, (0.1, 0.5, 0.9)))
    assert total <= 1 + 1e-9


# -- identical populations: looked at after every bad event, at most alpha of them fail -----------------------------


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_identical_arms_are_seldom_failed_however_often_one_looks(share):
    rng, failed, passed = random.Random(7), 0, 0
    for _ in range(200):
        tally = Tally()
        for _ in range(150):
            candidate = rng.random() < share
            tally.add(candidate=candidate, bad=True, share=share)
            outcome = judge(tally, max_ratio=1.0, max_rate=None).outcome
            failed += outcome == "fail"
            passed += outcome == "pass"
            if outcome != "inconclusive":
                break
    assert failed <= 200 * ALPHA
    assert passed <= 200 * PASS_ALPHA  # at the limit itself neither is true


def test_an_outage_of_both_arms_says_nothing_against_the_candidate():
    rng, failed = random.Random(3), 0
    for _ in range(50):
        tally = Tally()
        for minute in range(40):
            rate = 0.9 if 10 <= minute < 20 else 0.001  # whoever is asked fails
            for _ in range(20):
                tally.add(candidate=rng.random() < 0.1, bad=rng.random() < rate, share=0.1)
            failed += judge(tally).outcome == "fail"
    assert failed == 0


def test_identical_arms_pass_in_the_end():
    rng, tally = random.Random(11), Tally()
    for _ in range(4000):
        tally.add(candidate=rng.random() < 0.3, bad=rng.random() < 0.1, share=0.3)
    assert judge(tally, max_ratio=2.0).outcome == "pass"


# -- a bad candidate is found, also behind a long good step --------------------------------------------------------


def test_a_bad_candidate_is_found_within_a_few_events():
    rng, needed = random.Random(5), []
    for _ in range(100):
        tally = Tally()
        while judge(tally).outcome != "fail":
            # ten times as often bad, at a share of 5 %
            tally.add(candidate=rng.random() < 0.5 / 1.45, bad=True, share=0.05)
        needed.append(sum(tally.total()))
    assert sorted(needed)[50] <= 25
    assert max(needed) <= 120


def test_a_long_good_step_does_not_hide_a_bad_one_behind_it():
    good, steps = (300, 12), (0.05, 0.5)
    tally = Tally({0.05: good, 0.5: (10, 50)}, (10_000, 10_000))
    assert judge(tally, max_rate=None).outcome != "fail"
    assert judge(tally, max_rate=None, starts=steps).outcome == "fail"


# -- zero mean, missing data, almost no traffic ----------------------------------------------------------------------


def test_two_arms_without_a_bad_event_pass_by_the_rate_and_never_fail():
    outcomes = [judge(events(0, 0, 0.1, (9 * n, n))).outcome for n in (1, 100, 300, 600, 100_000)]
    assert outcomes == ["inconclusive", "inconclusive", "inconclusive", "pass", "pass"]
    assert judge(events(0, 0, 0.1, (9_000, 1_000)), max_rate=None).outcome == "inconclusive"


@pytest.mark.parametrize("control", [0, 1_000_000])
def test_missing_data_never_passes(control):
    tally = events(0, 0, 0.1, (control, 0))
    assert judge(tally).outcome == "inconclusive"
    assert judge_rate(tally, max_rate=0.05, alpha=ALPHA, pass_alpha=PASS_ALPHA).outcome == "inconclusive"
    assert judge_quantiles({}, alpha=ALPHA, pass_alpha=PASS_ALPHA).outcome == "inconclusive"
    parts = {0.5: events(5, 5, 0.5, (100, 100)), 0.99: tally}
    assert judge_quantiles(parts, alpha=ALPHA, pass_alpha=PASS_ALPHA).outcome == "inconclusive"


@pytest.mark.parametrize("trials", [1, 2, 5, 20])
@pytest.mark.parametrize("bad", [0, 1])
def test_almost_no_traffic_is_inconclusive(trials, bad):
    assert judge(events(0, bad, 0.05, (0, trials))).outcome == "inconclusive"
    assert judge(events(bad, 0, 0.05, (trials, trials))).outcome == "inconclusive"


def test_one_arm_alone_compares_nothing():
    assert log_e_worse(events(0, 1000, 1.0), 1.5) == log_e_no_worse(events(1000, 0, 0.0), 1.5) == 0.0


# -- rates ------------------------------------------------------------------------------------------------------------


def test_a_rate_is_failed_over_its_limit_and_passed_under_it():
    def outcome(bad: int, trials: int) -> str:
        return judge_rate(events(0, bad, 0.5, (0, trials)), max_rate=0.05, alpha=ALPHA, pass_alpha=PASS_ALPHA).outcome

    assert (outcome(0, 20), outcome(0, 300), outcome(10, 800)) == ("inconclusive", "pass", "pass")
    assert (outcome(15, 60), outcome(3, 60)) == ("fail", "inconclusive")


def test_the_upper_bound_covers_the_rate_at_all_times_together():
    rng, missed = random.Random(2), 0
    for _ in range(300):
        bad = 0
        for n in range(1, 201):
            bad += rng.random() < 0.1
            if log_e_under(bad, n, 0.1) >= -math.log(0.05):  # the bound is under the true rate exactly then
                assert upper_bound(bad, n, 0.05) <= 0.1
                missed += 1
                break
    assert missed <= 300 * 0.05
    assert upper_bound(0, 0, 0.05) == upper_bound(5, 5, 0.05) == 1.0
    assert upper_bound(0, 100, 0.05) > upper_bound(0, 1000, 0.05) > 0
    assert upper_bound(100, 1000, 0.05) == pytest.approx(0.13, abs=0.02)


# -- quantiles: ties, heavy tails ------------------------------------------------------------------------------------


def slow(candidate: list[float], control: list[float], ratio: float = 1.0, share: float = 0.5) -> Judgement:
    """Judge times as a server does: the control's quantiles are those known before each request."""
    known, tallies = Quantiles(), {q: Tally() for q in (0.5, 0.9, 0.99)}
    limits: dict[float, float] = {}
    for place, (theirs, ours) in enumerate(zip(candidate, control, strict=True)):
        if place % 100 == 0 and known.total >= 200:
            limits = {q: known.quantile(q) for q in tallies}
        for q, limit in limits.items():
            tallies[q].add(candidate=True, bad=theirs / ratio > limit, share=share)
            tallies[q].add(candidate=False, bad=ours > limit, share=share)
        known.add(ours)
    return judge_quantiles(tallies, alpha=ALPHA, pass_alpha=PASS_ALPHA)


def test_ties_are_not_slower():
    same = [0.003] * 3000
    assert slow(same, same).outcome == "pass"
    assert slow([0.003 * 1.3] * 3000, same).outcome == "fail"
    assert slow([0.003 * 1.3] * 3000, same, ratio=1.5).outcome == "pass"


@pytest.mark.parametrize("seed", range(20))
def test_heavy_tails_alone_fail_nobody(seed):
    rng = random.Random(seed)  # Pareto with shape 1.1: no variance, and hardly a mean
    control, candidate = ([0.001 * rng.paretovariate(1.1) for _ in range(2000)] for _ in range(2))
    assert slow(candidate, control, ratio=1.5).outcome != "fail"


@pytest.mark.parametrize("seed", range(5))
def test_a_slower_candidate_with_heavy_tails_is_found(seed):
    rng = random.Random(seed)
    control, candidate = ([0.001 * rng.paretovariate(1.1) for _ in range(2000)] for _ in range(2))
    assert slow([3 * seconds for seconds in candidate], control, ratio=1.5).outcome == "fail"


def test_a_tail_alone_that_is_slower_is_found():
    rng = random.Random(1)
    control = [rng.gauss(0.01, 0.001) for _ in range(6000)]
    stalls = [seconds * (20 if rng.random() < 0.1 else 1) for seconds in control]
    assert slow(stalls, control, ratio=1.5).outcome == "fail"


@QUICK
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_is_right_to_two_percent(values, q):
    histogram = Quantiles()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
    assert exact <= histogram.quantile(q) * (1 + 1e-9)
    assert histogram.quantile(q) <= exact * 1.021


def test_quantiles_add_up_and_take_anything():
    first, second = Quantiles(), Quantiles()
    for value in (0.0, -1.0, 1e-12, 1.0):
        first.add(value)
    for value in (math.nan, math.inf, 1e300, 2.0):
        second.add(value)
    total = first + second
    assert (total.total, total.counts) == (8, {0: 3, first._place(1.0): 1, second._place(2.0): 1, Quantiles.LAST: 3})
    assert total.quantile(0.1) < 1e-8
    assert math.isinf(total.quantile(1.0))
    with pytest.raises(ValueError, match="nothing"):
        Quantiles().quantile(0.5)


# -- counts ----------------------------------------------------------------------------------------------------------

ADDED = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from([0.1, 0.5]), st.booleans()), max_size=20)


@QUICK
@given(ADDED, ADDED)
def test_evidence_of_two_processes_is_the_sum_of_their_counts(ours, theirs):
    tallies = Tally(), Tally(), Tally()
    for tally, added in zip(tallies, (ours, theirs, ours + theirs), strict=True):
        for candidate, bad, share, trial in added:
            tally.add(candidate=candidate, bad=bad, share=share, trial=trial)
    assert tallies[0] + tallies[1] == tallies[2]
    assert Tally.from_json(json.loads(json.dumps(tallies[2].to_json()))) == tallies[2]


def test_the_mean_of_evidence_survives_any_size():
    assert log_mean([1000.0, 1000.0]) == 1000.0
    assert log_mean([-math.inf, -math.inf]) == -math.inf
    assert log_mean([0.0, -math.inf]) == pytest.approx(math.log(0.5))


def test_a_judgement_says_what_was_counted():
    found = judge(events(12, 3, 0.05, (760, 40)))
    assert found.reason == "3 of 40 against 12 of 760: too little to tell"
    assert {name: found.figures[name] for name in ("control", "candidate", "bad_control", "bad_candidate")} == {
        "control": 760.0,
        "candidate": 40.0,
        "bad_control": 12.0,
        "bad_candidate": 3.0,
    }
    assert judge(events(5, 50, 0.05, (760, 60))).reason == "50 of 60 against 5 of 760: more than 1.5 times as often"
