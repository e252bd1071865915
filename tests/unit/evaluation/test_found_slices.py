"""Found slices: a planted one is named in words, none is where errors depend on nothing, and bad input is a reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from homeostat.dataset import Dataset, write_artifact
from homeostat.evaluation.evaluate import evaluate
from homeostat.evaluation.found_slices import errors, find_slices


def people(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 90, n),
            "bmi": rng.normal(25, 4, n).astype(np.float32),
            "site": rng.choice(["north", "south", "west"], n),
            "dose": np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n)),
        }
    )


def wrong(inside, seed: int, often: float = 0.4, rarely: float = 0.08) -> np.ndarray:
    return (np.random.default_rng(seed).random(len(inside)) < np.where(inside, often, rarely)).astype(float)


def find(where, n: int = 600, **rates):
    before, after = people(n, 1), people(n, 2)
    return find_slices(before, wrong(where(before), 3, **rates), after, wrong(where(after), 4, **rates))


def test_a_planted_slice_is_named_in_words():
    found = find(lambda frame: (frame["age"] >= 61) & (frame["bmi"] < 26))
    worst = found.slices[0]
    assert "age >= 6" in worst.words
    assert "bmi <= 2" in worst.words
    assert 0.3 < worst.error < 0.55
    assert worst.rest < 0.15
    assert worst.p_value < 1e-4
    assert 60 < worst.rows < 200
    assert found.tested >= 1


@pytest.mark.parametrize(("where", "words"), [(lambda f: f["site"] == "west", "site is west"),
                                              (lambda f: f["dose"].isna(), "dose is missing")])  # fmt: skip
def test_text_and_missing_values(where, words):
    assert words in find(where).slices[0].words


def test_errors_that_depend_on_nothing_name_none():
    """At a share of 5 %: 60 draws give at most 8 with probability 0.99."""
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        before, after = people(200, 10_000 + seed), people(200, 20_000 + seed)
        alike = (rng.random((2, 200)) < 0.2).astype(float)
        alarms += bool(find_slices(before, alike[0], after, alike[1]).slices)
    assert alarms <= 8


def test_a_regression_by_ranks():
    before, after = people(600, 1), people(600, 2)
    rng = np.random.default_rng(0)
    sizes = [rng.exponential(np.where(frame["age"] > 70, 3.0, 1.0)) for frame in (before, after)]
    worst = find_slices(before, sizes[0], after, sizes[1]).slices[0]
    assert worst.words.startswith("age >= 7")
    assert worst.error > 2 * worst.rest


def test_rows_of_one_entity_count_once():
    before, after = people(600, 1), people(40, 2)
    often = pd.concat([after] * 10)
    found = find_slices(
        before, wrong(before["age"] > 60, 3), often, wrong(often["age"] > 60, 4), ids=np.tile(np.arange(40), 10)
    )
    assert found.slices == ()
    assert found.reason == "not enough rows: 600 to propose slices, 40 to test them"


def test_bad_input_is_a_reason():
    frame, few = people(100, 1), people(59, 1)
    noise = wrong(np.zeros(100, bool), 0, rarely=0.3)
    assert find_slices(few, noise[:59], frame, noise).reason.startswith("not enough rows: 59")
    assert find_slices(frame.iloc[:0], noise[:0], frame, noise).reason.startswith("not enough rows: 0")
    assert "same error" in find_slices(frame, np.zeros(100), frame, noise).reason
    assert find_slices(frame, noise, frame, np.ones(100)).slices == ()
    nothing = pd.DataFrame({"a": np.full(100, np.nan), "b": np.ones(100), "c": [None] * 100, "d": np.full(100, np.inf)})
    assert find_slices(nothing, noise, nothing, noise).reason == "no part of the rows errs more than the rest"
    assert find_slices(pd.DataFrame(index=range(100)), noise, pd.DataFrame(index=range(100)), noise).slices == ()


def test_errors():
    assert errors("classification", np.array([1, 0]), np.array([[0.1, 0.9], [0.1, 0.9]])).tolist() == [0, 1]
    assert errors("regression", np.array([1.0]), np.array([[3.5]])).tolist() == [2.5]


def test_evaluate_writes_them_beside_the_declared_ones(project, configure, record, graph, tmp_path: Path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3))
    target = np.where((x[:, 1] > 1) & (rng.random(600) < 0.6), rng.integers(0, 3, 600), x.argmax(axis=1))
    data = Dataset.from_arrays(x, target, columns={"x": ("a", "b|c", "d")})
    onnx = write_artifact(tmp_path / "model.onnx", graph(np.eye(3) * 5))
    config = configure("classification", bootstrap=200)
    seen = evaluate(project, config, record(data, "classification"), onnx, None, tmp_path)
    assert seen.found_slices.slices[0].words.startswith("b|c > ")
    page = next(Path(plot.path) for plot in seen.plots if plot.path.endswith("found_slices.md")).read_text()
    assert "| b\\|c > " in page
    assert dataclasses.asdict(seen)["found_slices"]["tested"] >= 1
