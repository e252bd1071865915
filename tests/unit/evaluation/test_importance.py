"""Permutation importance: the column that the answer rests on stands first, one that it ignores has none."""

import time

import numpy as np
import pandas as pd
import pytest

from homeostat.dataset import Dataset
from homeostat.evaluation.importance import permutation_importance, row_losses
from homeostat.monitoring.reference import load_reference, make_reference

WEIGHTS = [[0.0], [1.0], [3.0]]


@pytest.fixture
def rows():
    def make(n: int = 300, **options) -> Dataset:
        x = np.random.default_rng(0).normal(size=(n, 3))
        return Dataset.from_arrays(x, x @ [0, 1, 3], columns={"x": ("idle", "small", "large")}, **options)

    return make


def test_columns_weigh_as_the_model_uses_them(project, rows, graph):
    found = permutation_importance(project, "regression", rows(), graph(WEIGHTS, "Identity"), 1)
    assert list(found) == ["idle", "small", "large"]
    assert found["idle"] == 0
    assert found["small"] == pytest.approx(2 / np.sqrt(np.pi), rel=0.1)  # E|a - b| of two standard normals
    assert found["large"] == pytest.approx(3 * found["small"], rel=0.1)
    assert found == permutation_importance(project, "regression", rows(), graph(WEIGHTS, "Identity"), 1)


def test_a_classifier(project, classes, graph):
    weights = np.diag([4.0, 4.0, 0.0])
    found = permutation_importance(project, "classification", classes(), graph(weights), 1)
    assert found["x_2"] == 0
    assert 0.05 < found["x_0"] < 1
    assert 0.05 < found["x_1"] < 1


def test_only_columns_that_are_inputs_have_one(project, rows, graph, monkeypatch):
    def frame(inputs, columns):
        x = inputs["x"]
        return pd.DataFrame({"large": x[:, 2] * 2, "small": x[:, 1], "said": x[:, 0].astype(str)})

    monkeypatch.setattr(project, "to_frame", frame)
    assert list(permutation_importance(project, "regression", rows(), graph(WEIGHTS, "Identity"), 1)) == ["small"]


def test_images_and_few_rows_have_none(project, rows, graph):
    assert permutation_importance(project, "regression", rows(19), graph(WEIGHTS, "Identity"), 1) == {}
    wide = np.random.default_rng(0).normal(size=(40, 200))
    onnx = graph(np.ones((200, 1)), "Identity")
    assert permutation_importance(project, "regression", Dataset.from_arrays(wide, wide.sum(axis=1)), onnx, 1) == {}


def test_answers_that_are_nothing_have_a_loss():
    outputs = np.array([[np.nan, 1], [0.0, 1.0], [1.0, 0.0]])
    assert row_losses("classification", np.array([0, 1, 1]), outputs).tolist() == [0.25, 0, 1]
    assert row_losses("regression", np.array([2.0, 2.0]), np.array([[np.inf], [1.5]])).tolist() == [2, 0.5]


def test_many_rows_and_columns_are_bounded(project, graph):
    x = np.random.default_rng(0).normal(size=(20_000, 128))
    data = Dataset.from_arrays(x, x.sum(axis=1))
    start = time.perf_counter()
    assert len(permutation_importance(project, "regression", data, graph(np.ones((128, 1)), "Identity"), 1)) == 128
    assert time.perf_counter() - start < 4  # under 1 s on an idle core


def test_it_travels_with_the_reference(project, configure, rows, graph):
    onnx = graph(WEIGHTS, "Identity")
    made = make_reference(project, configure("regression"), rows(), onnx, 1)
    assert load_reference(made).importance == permutation_importance(project, "regression", rows(), onnx, 1)
