"""The metric without labels, its back-test, and what else may get worse: calibration, latency, failed answers."""

import dataclasses

import numpy as np
import pytest

from homeostat.config import ProjectConfig
from homeostat.monitoring.changes import calibration_change, error_change, latency_changes
from homeostat.monitoring.estimate import estimate_metric, fit_estimator
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows
from homeostat.project import Project

CLASSES = ProjectConfig(name="toy", project="toy:Toy", task="classification")
NUMBERS = ProjectConfig(name="toy", project="toy:Toy", task="regression")


class Toy(Project):
    """Two classes, or a number."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError


def rows_of(inputs, outputs, labels):
    n = len(labels)
    return TrafficRows(
        inputs={"x": inputs},
        outputs={"output": outputs},
        labels=labels,
        entity_ids=np.full(n, ""),
        request_ids=np.arange(n).astype(str),
        versions=np.full(n, 1),
        times=np.arange(n, dtype=float),
        milliseconds=np.ones(n),
        arms=np.full(n, "champion"),
        places=np.zeros(n, int),
        label_times=np.zeros(n),
    )


def classified(n, seed, *, spread=2.0, skill=1.0):
    """Rows whose chance of class 1 is a sigmoid of x; skill 0: labels do not follow it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(scale=spread, size=(n, 1))
    chance = 1 / (1 + np.exp(-x[:, 0]))
    labels = (rng.random(n) < np.where(rng.random(n) < skill, chance, 0.5)).astype(float)
    return rows_of(x, np.column_stack([1 - chance, chance]), labels)


def measured(n, seed, *, low=0.0, high=1.0):
    """Rows whose error grows with x."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, high, size=(n, 1))
    return rows_of(x, np.zeros((n, 1)), x[:, 0] * rng.choice([-1.0, 1.0], n))


def reference_of(rows):
    return Reference(rows.inputs, rows.outputs, {"x": ("x",)}, rows.labels)


def spreads(seed):
    return np.random.default_rng(seed).uniform(0.5, 3.0)


def test_a_classifier_estimate_that_beats_no_change():
    estimator = fit_estimator(Toy(), CLASSES, reference_of(classified(3000, 0)), 1)
    past = [classified(400, seed, spread=spreads(seed)) for seed in range(1, 10)]
    harder = classified(4000, 20, spread=0.5)
    found = estimate_metric(estimator, CLASSES, harder, past)
    right = np.mean((harder.outputs["output"][:, 1] >= 0.5) == harder.labels)
    assert found.metric == "accuracy"
    assert found.value == pytest.approx(right, abs=0.03)
    assert found.shown, found.reason
    assert found.error < found.constant_error / 2


def test_an_estimate_abstains_where_the_concept_changes():
    estimator = fit_estimator(Toy(), CLASSES, reference_of(classified(3000, 0)), 1)
    past = [classified(400, seed, skill=0.3) for seed in range(1, 10)]
    found = estimate_metric(estimator, CLASSES, classified(400, 20), past)
    assert not found.shown
    assert found.error > 0.1
    assert "past windows it was" in found.reason


def test_a_regression_error_model():
    estimator = fit_estimator(Toy(), NUMBERS, reference_of(measured(2000, 0)), 1)
    past = [measured(200, seed, high=spreads(seed) / 3) for seed in range(1, 10)]
    found = estimate_metric(estimator, NUMBERS, measured(1000, 20, low=0.6), past)
    assert found.metric == "rmse"
    assert found.value == pytest.approx(np.sqrt(np.mean(np.linspace(0.6, 1, 500) ** 2)), abs=0.03)
    assert found.shown, found.reason
    mae = NUMBERS.model_copy(update={"metric": "mae"})
    found = estimate_metric(fit_estimator(Toy(), mae, reference_of(measured(2000, 0)), 1), mae, past[0], past)
    assert found.metric == "mae"
    assert found.shown


def test_it_abstains_with_a_reason():
    few = estimate_metric(None, CLASSES, classified(10, 1), [])
    assert (few.shown, few.reason) == (
        False,
        "the reference has fewer than 200 usable rows: deploy a version with more",
    )
    assert fit_estimator(Toy(), CLASSES, reference_of(classified(100, 0)), 1) is None
    estimator = fit_estimator(Toy(), CLASSES, reference_of(classified(500, 0)), 1)
    past = [classified(400, 1), classified(10, 2), TrafficRows()]
    young = estimate_metric(estimator, CLASSES, classified(100, 3), past)
    assert (young.shown, young.reason) == (False, "1 past mature windows with 30 labels, 5 are needed")
    lost = dataclasses.replace(past[1], outputs={"output": np.full((10, 2), np.nan)})
    assert "no finite answer" in estimate_metric(estimator, CLASSES, lost, past).reason
    assert "no finite answer" in estimate_metric(estimator, CLASSES, TrafficRows(), past).reason


def test_calibration_that_holds_and_that_does_not():
    expected = reference_of(classified(2000, 0))
    same = [calibration_change(expected, classified(300, seed), 0.05, seed) for seed in range(1, 6)]
    assert sum(change.changed for change in same) <= 1
    worse = calibration_change(expected, classified(300, 9, skill=0.4), 0.05, 1)
    assert worse.changed
    assert worse.now > worse.before + 0.1
    assert worse.p_value == pytest.approx(0.001)
    assert "are needed" in calibration_change(expected, classified(50, 1), 0.05, 1).reason


def test_latency_and_failed_answers():
    rng = np.random.default_rng(1)
    before, now = rng.lognormal(1, 0.4, 3000), rng.lognormal(1, 0.4, 1000)
    assert not any(change.changed for change in latency_changes(before, now, 0.01))
    assert [change.changed for change in latency_changes(before, 2 * now, 0.01)] == [True, True]
    tail = np.where(np.arange(1000) % 20, now, 5 * now)
    assert [change.changed for change in latency_changes(before, tail, 0.01)] == [False, True]
    assert not any(change.changed for change in latency_changes(before / 100, now / 50, 0.01))  # under a millisecond
    assert [change.p_value for change in latency_changes(before, now[:9], 0.01)] == [None, None]
    rows, broken = classified(500, 1), classified(500, 2)
    broken.outputs["output"][:50] = np.nan
    assert error_change(rows, broken, 0.01).changed
    assert not error_change(broken, rows, 0.01).changed
    assert error_change(rows, TrafficRows(), 0.01).p_value is None
