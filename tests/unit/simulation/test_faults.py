"""Faults: each does what its name says to its column alone, and the plan sends each row once before any again."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter

import numpy as np
import pytest

from homeostat.commands.simulate import simulate
from homeostat.dataset import Dataset
from homeostat.errors import ConfigError
from homeostat.simulation.faults import Fault, add_faults, column_names, read_fault
from homeostat.simulation.requests import infer_request
from homeostat.simulation.sending import make_plan
from tests.conftest import ROOT

N = 2_000


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(1)
    return Dataset.from_arrays(
        {
            "body": rng.normal(50, 10, (N, 2)).astype(np.float32),
            "sex": rng.integers(1, 3, (N, 1)),
            "image": rng.random((N, 4, 4, 1)).astype(np.float32),
        },
        rng.integers(0, 3, N),
        columns={"body": ("age", "bmi")},
    )


def add(data: Dataset, text: str, classes: int = 3) -> Dataset:
    return add_faults(data, [read_fault(text)], classes, np.random.default_rng(2))


def test_columns_by_the_names_that_reports_use(data: Dataset) -> None:
    assert column_names(data) == ["age", "bmi", "sex", "image"]


@pytest.mark.parametrize(
    ("text", "name"), [("shift:age:0.5", "body"), ("unit:bmi:2.54", "body"), ("shift:image:1", "image")]
)
def test_nothing_else_is_touched(data: Dataset, text: str, name: str) -> None:
    found = add(data, text)
    for other in data.inputs:
        assert found.inputs[other].dtype == data.inputs[other].dtype
        assert (found.inputs[other] is data.inputs[other]) == (other != name)
    assert np.array_equal(found.target, data.target)


def test_amounts(data: Dataset) -> None:
    age, bmi = data.inputs["body"].T
    assert np.allclose(add(data, "shift:age:0.5").inputs["body"][:, 0], age + 0.5 * age.std(), atol=1e-3)
    assert np.allclose(add(data, "unit:bmi:2.54").inputs["body"][:, 1], 2.54 * bmi, rtol=1e-5)
    assert np.mean(add(data, "zero:age:0.1").inputs["body"][:, 0] == 0) == pytest.approx(0.1, abs=0.03)
    assert np.isnan(add(data, "nan:age:0.2").inputs["body"]).mean(axis=0) == pytest.approx([0.2, 0.0], abs=0.03)
    assert np.isnan(add(data, "absent:age").inputs["body"]).mean(axis=0).tolist() == [1.0, 0.0]
    assert list(add(data, "absent:sex").inputs) == ["body", "image"]
    assert list(add(data, "absent:image").inputs) == ["body", "sex"]
    assert set(add(data, "unit:sex:1.4").inputs["sex"].ravel().tolist()) == {1, 3}


def test_a_shuffled_column_keeps_its_values_and_loses_the_rest(data: Dataset) -> None:
    found = add(data, "shuffle:age:1").inputs["body"]
    before = data.inputs["body"]
    assert np.array_equal(np.sort(found[:, 0]), np.sort(before[:, 0]))
    assert np.mean(found[:, 0] == before[:, 0]) < 0.05
    assert np.array_equal(found[:, 1], before[:, 1])


def test_labels_of_classes(data: Dataset) -> None:
    changed = add(data, "concept:age:1").target != data.target
    age = data.inputs["body"][:, 0]
    assert np.array_equal(changed, age > np.median(age)), "always another class, and above the middle alone"
    poisoned = add(data, "poison:0.2").target
    assert np.mean(poisoned != data.target) == pytest.approx(0.2, abs=0.03)
    assert set(poisoned.tolist()) == {0, 1, 2}


def test_labels_of_a_regression() -> None:
    data = Dataset.from_arrays({"x": np.arange(10, dtype=np.float32)}, np.full(10, 100.0))
    assert add(data, "concept:x:0.3", 0).target.tolist() == [100.0] * 5 + [130.0] * 5


def test_faults_add_up(data: Dataset) -> None:
    wanted = [Fault("unit", "age", 2.0), Fault("unit", "age", 3.0)]
    found = add_faults(data, wanted, 3, np.random.default_rng(0)).inputs["body"][:, 0]
    assert np.allclose(found, 6 * data.inputs["body"][:, 0], rtol=1e-5)


NONE = [
    "",
    "shift",
    "shift:age",
    "shift:age:",
    "shift:age:x",
    "shift:age:nan",
    "shift::1",
    "grow:age:1",
    "poison:age:1",
]
NO_SHARE = ["nan:age:1.1", "nan:age:-1", "poison:2", "poison", "absent:", "absent", "absent:age:1"]


@pytest.mark.parametrize("text", [*NONE, *NO_SHARE])
def test_faults_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="fault"):
        read_fault(text)


def test_a_column_that_is_not_there(data: Dataset) -> None:
    with pytest.raises(ConfigError, match="no column 'weight'; the rows have: age, bmi, sex, image"):
        add(data, "shift:weight:1")
    with pytest.raises(ConfigError, match="sex holds whole numbers"):
        add(data, "nan:sex:0.1")


def test_the_plan(data: Dataset) -> None:
    plan = make_plan(
        "toy",
        data,
        data,
        count=2 * N + 10,
        fault_after=0.5,
        rate=10.0,
        label_delay=5.0,
        coverage=0.8,
        users=10,
        rng=np.random.default_rng(3),
    )
    assert set(Counter(plan.rows[: 2 * N]).values()) == {2}
    assert len(plan.rows) == len(plan.delays) == 2 * N + 10
    assert plan.faulty_from == N + 5
    delays = np.array(plan.delays)
    assert np.mean(delays >= 0) == pytest.approx(0.8, abs=0.03)
    assert delays[delays >= 0].mean() == pytest.approx(5.0, rel=0.1)


def test_a_request_is_binary(data: Dataset) -> None:
    body, headers = infer_request({name: values[:1] for name, values in data.inputs.items()}, "user-1")
    head = json.loads(body[: int(headers["inference-header-content-length"])])
    assert [(one["name"], one["datatype"], one["shape"]) for one in head["inputs"]] == [
        ("body", "FP32", [1, 2]),
        ("sex", "INT64", [1, 1]),
        ("image", "FP32", [1, 4, 4, 1]),
    ]
    assert np.frombuffer(body[-16 * 4 :], "<f4").tolist() == data.inputs["image"][0].ravel().tolist()


def test_the_commands_of_the_docs() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text()
    lines = [shlex.split(line, comments=True) for line in re.findall(r"^homeostat simulate .*", page, flags=re.M)]
    assert len(lines) == 4
    for words in lines:
        given = simulate.make_context("simulate", words[2:]).params
        assert given["project"] == "diabetes"
        for text in given["faults"]:
            assert read_fault(text).column in ("bmi", "s5")
