"""Bootstrap intervals: coverage, pairs, entities, and the cases without any spread."""

import numpy as np
import pytest

from homeostat.evaluation.evaluate import intervals
from homeostat.evaluation.metrics import read_answers
from homeostat.evaluation.paired import bootstrap_ends, gain_interval
from homeostat.evaluation.weighted import BUILT_IN


def mean_ends(values, resamples=1000, seed=0, ids=None):
    low, high = bootstrap_ends(
        lambda counts: (counts @ values / counts.sum(axis=1))[None, :],
        len(values),
        resamples=resamples,
        confidence=0.95,
        seed=seed,
        ids=ids,
    )
    return float(low[0]), float(high[0])


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        low, high = mean_ends((rng.random(100) < 0.8).astype(float), resamples=300, seed=seed)
        covered += low <= 0.8 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_paired_gain_of_equal_models_is_seldom_called_real(configure):
    rng, config = np.random.default_rng(2), configure("classification", bootstrap=300)
    alarms = 0
    for seed in range(200):
        target = rng.integers(0, 2, 200)
        right = rng.random((2, 200)) < 0.8
        first, second = (np.eye(2)[np.where(r, target, 1 - target)] for r in right)
        pair = [read_answers("classification", target, outputs) for outputs in (first, second)]
        gain = gain_interval(BUILT_IN["classification"]["accuracy"], *pair, config.gate, seed, None)
        alarms += gain.low > 0
    assert alarms / 200 <= 0.06  # 0.025 by design


def test_pairs_make_a_narrower_interval_than_two_independent_ones(configure):
    rng, gate = np.random.default_rng(3), configure("regression").gate
    target, common = rng.normal(size=(2, 300))
    better, worse = (
        read_answers("regression", target, (target + common + rng.normal(0, 0.1, 300))[:, None] + shift)
        for shift in (0, 0.2)
    )
    rmse = BUILT_IN["regression"]["rmse"]
    gain = gain_interval(rmse, better, worse, gate, 0, None)
    apart = [bootstrap_ends(lambda c, a=a: rmse(a, c)[None], 300, resamples=1000, confidence=0.95, seed=0)
             for a in (better, worse)]  # fmt: skip
    assert gain.high - gain.low < 0.6 * sum(float(high[0] - low[0]) for low, high in apart)


def test_the_seed_decides():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_ends(values, seed=4) == mean_ends(values, seed=4) != mean_ends(values, seed=5)


def test_rows_of_one_entity_are_drawn_together():
    of_entity = np.random.default_rng(0).normal(size=40)
    values, ids = np.repeat(of_entity, 25), np.repeat([f"e{i}" for i in range(40)], 25)
    low, high = mean_ends(values, ids=ids)
    alone, whole = mean_ends(values), mean_ends(of_entity)
    assert high - low > 3 * (alone[1] - alone[0])  # copies are not evidence
    assert high - low == pytest.approx(whole[1] - whole[0], rel=0.1)


def test_no_spread_no_width_and_too_few_rows_no_interval():
    assert mean_ends(np.full(30, 0.25)) == (0.25, 0.25)
    assert np.isnan(mean_ends(np.array([1.0]))).all()
    assert np.isnan(mean_ends(np.array([1.0, 2.0]), ids=np.array(["a", "a"]))).all()


def test_a_perfect_model_has_intervals_without_width(project, configure):
    target = np.resize([0, 1, 2], 30)
    found = intervals(project, configure("classification"), target, np.eye(3)[target], 1)
    for name in ("accuracy", "f1_macro", "roc_auc"):
        assert (found[name].low, found[name].value, found[name].high) == (1, 1, 1)
    exact = intervals(project, configure("regression"), np.arange(9.0), np.arange(9.0)[:, None], 1)
    assert (exact["rmse"].low, exact["rmse"].high, exact["r2"].low, exact["r2"].high) == (0, 0, 1, 1)


def test_a_rare_class_leaves_the_interval_finite(project, configure):
    target = np.r_[1, np.zeros(19, int)]  # one resample in three has no positive
    outputs = np.linspace(0.9, 0.1, 20)[:, None]
    auc = intervals(project, configure("classification"), target, outputs, 1)["roc_auc"]
    assert (auc.low, auc.value, auc.high) == (1, 1, 1)


def test_own_metrics_get_an_interval_even_if_some_resamples_leave_them_undefined(project, configure):
    def recall(target, outputs):
        if not (target == 1).any():
            raise ValueError("no positive")
        return float((outputs[target == 1] >= 0.5).mean())

    project.metrics = lambda: {"recall": recall}
    target = np.r_[[1, 1], np.zeros(18, int)]
    outputs = np.r_[[0.9, 0.2], np.zeros(18)][:, None]
    found = intervals(project, configure("classification", bootstrap=300), target, outputs, 1)["recall"]
    assert (found.low, found.value, found.high) == (0, 0.5, 1)


def test_confidence_is_the_configs(project, configure):
    rng = np.random.default_rng(0)
    target, outputs = rng.normal(size=100), rng.normal(size=(100, 1))
    wide, narrow = (
        intervals(project, configure("regression", confidence=c), target, outputs, 1)["rmse"] for c in (0.99, 0.5)
    )
    assert (wide.confidence, narrow.confidence) == (0.99, 0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
