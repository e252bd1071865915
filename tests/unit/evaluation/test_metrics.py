"""Decisions, directions and figures of one set of rows."""

import math

import numpy as np
import pytest

from homeostat.errors import ConfigError, DataInvalid
from homeostat.evaluation.metrics import (
    decisions,
    higher_is_better,
    measure,
    primary_of,
    probabilities,
    read_answers,
)
from homeostat.evaluation.weighted import weighted_metrics


def test_decisions_of_each_kind_of_output():
    assert decisions(np.array([[0.2, 0.8], [0.6, 0.4]]), "classification").tolist() == [1, 0]
    assert decisions(np.array([[0.5], [0.49]]), "classification").tolist() == [1, 0]
    assert decisions(np.array([0.7, 0.1]), "classification").tolist() == [1, 0]
    assert decisions({"output": np.array([[1.5], [-2.0]])}, "regression").tolist() == [1.5, -2.0]
    assert decisions({"output_0": np.eye(2), "output_1": np.zeros((2, 9))}, "classification").tolist() == [0, 1]
    assert decisions(np.array([[np.nan, 0.9], [0.1, 0.9]]), "classification").tolist() == [-1, 1]
    assert decisions(np.empty((0, 3)), "classification").shape == (0,)


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "roc_auc", "r2", "one_of_the_project"])
def test_larger_is_better(name):
    assert higher_is_better(name)


@pytest.mark.parametrize("name", ["rmse", "mae", "log_loss"])
def test_smaller_is_better(name):
    assert not higher_is_better(name)


def test_probabilities_are_made_whole():
    found = probabilities(np.array([[0.5, 0.25, 0.0], [0, 0, 0], [np.nan, 1, 0]]), classes=4)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(found[0], [2 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(found[1:], [[1 / 3, 1 / 3, 1 / 3, 0]] * 2)
    np.testing.assert_allclose(probabilities(np.array([[0.3]]), 2), [[0.7, 0.3]])


def test_binary_figures_by_hand(project, configure):
    target, outputs = np.array([1, 1, 0, 0]), np.array([[0.9], [0.4], [0.6], [0.1]])
    found = measure(project, configure("classification"), target, outputs)
    assert found == pytest.approx(
        {
            "accuracy": 0.5,
            "f1_macro": 0.5,
            "log_loss": -np.log([0.9, 0.4, 0.4, 0.9]).mean(),
            "roc_auc": 0.75,
        }
    )
    two_columns = np.hstack([1 - outputs, outputs])
    assert measure(project, configure("classification"), target, two_columns) == pytest.approx(found)


def test_regression_figures_by_hand(project, configure):
    found = measure(project, configure("regression"), np.array([1.0, 3.0]), {"output": np.array([[2.0], [3.0]])})
    assert found == pytest.approx({"rmse": math.sqrt(0.5), "mae": 0.5, "r2": 0.5})


def test_what_rows_cannot_say_is_left_out_or_nan(project, configure):
    one_class = measure(project, configure("classification"), np.array([0, 0]), np.eye(3)[[0, 1]])
    assert set(one_class) == {"accuracy", "f1_macro", "log_loss"}
    lost = measure(project, configure("regression"), np.array([1.0, 2.0]), np.array([[np.nan], [1.0]]))
    assert all(math.isnan(v) for v in lost.values())
    unseen = measure(project, configure("classification"), np.array([0.0, 2.0]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert unseen["accuracy"] == 0.5
    assert unseen["log_loss"] > 10


def test_the_projects_own_metrics(project, configure):
    config = configure("classification", "hits")
    project.metrics = lambda: {"hits": lambda target, outputs: float((outputs.argmax(axis=1) == target).sum())}
    assert measure(project, config, np.array([0, 1, 1]), np.eye(2)[[0, 1, 0]])["hits"] == 2
    project.metrics = lambda: {"flat": lambda target, outputs: float(outputs.ndim)}
    assert measure(project, config, np.array([0, 1]), np.array([[0.2], [0.9]]))["flat"] == 1
    project.metrics = lambda: {"rmse": lambda target, outputs: 0.0}
    with pytest.raises(ConfigError, match=r"metrics\(\) of Toy returns rmse"):
        measure(project, config, np.array([0, 1]), np.eye(2))
    project.metrics = lambda: {"bad": lambda target, outputs: 1 / 0}
    with pytest.raises(ConfigError, match=r"metrics\(\)\['bad'\] of Toy failed: ZeroDivisionError"):
        measure(project, config, np.array([0, 1]), np.eye(2))


def test_a_primary_metric_that_is_not_there(configure):
    with pytest.raises(ConfigError, match="'acuracy' of toy is not measured: use accuracy, log_loss"):
        primary_of(configure("classification", "acuracy"), {"accuracy": 1, "log_loss": 2})
    with pytest.raises(ConfigError, match="needs every class"):
        primary_of(configure("classification", "roc_auc"), {"accuracy": 1})


@pytest.mark.parametrize(("targets", "answers"), [(0, 0), (3, 2)])
def test_rows_that_do_not_fit(project, configure, targets, answers):
    with pytest.raises(DataInvalid, match=f"{targets} targets and {answers} answers"):
        measure(project, configure("classification"), np.zeros(targets, int), np.ones((answers, 2)) / 2)


@pytest.mark.parametrize(("task", "columns"), [("classification", k) for k in (1, 2, 4)] + [("regression", 1)])
@pytest.mark.parametrize("seed", range(3))
def test_many_resamples_at_once_agree_with_scikit_learn(project, configure, task, columns, seed):
    rng = np.random.default_rng(seed)
    n, config = 60, configure(task)
    if task == "classification":
        target = np.r_[np.arange(max(2, columns)), rng.integers(0, max(2, columns), n - max(2, columns))]
        outputs = rng.random((n, columns)).round(1) + 0.01  # rounded: with ties
        outputs /= outputs.sum(axis=1, keepdims=True) if columns > 1 else 1.2
    else:
        target, outputs = rng.normal(1e3, 1, n), rng.normal(1e3, 1, (n, 1))
    counts = np.stack([np.ones(n), 1 + rng.integers(0, 3, n)])
    answers = read_answers(task, target, outputs)
    for name, metric in weighted_metrics(project, task).items():
        found = metric(answers, counts)
        for i, drawn in enumerate(counts.astype(int)):
            expected = measure(project, config, np.repeat(target, drawn), np.repeat(outputs, drawn, axis=0))[name]
            assert found[i] == pytest.approx(expected, rel=1e-9), name
