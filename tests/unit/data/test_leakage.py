"""Leakage: what is found, what stops the flow, and what honest data must not be accused of."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from people import People, make_config

from homeostat.data.leakage import check_leakage, find_leakage, leakage_metrics
from homeostat.data.prepare import prepare
from homeostat.data.splits import assign_parts
from homeostat.dataset import Dataset
from homeostat.errors import DataInvalid
from homeostat.project import load_project
from homeostat.records import Leakage

ROOT = Path(__file__).resolve().parents[3]
START = np.datetime64("2026-01-01T00:00:00")


def draw(n: int = 400, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return x [n, 4] and classes [n] that its first two columns tell with errors."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    score = x[:, 0] + x[:, 1] + rng.normal(size=n)
    return x, np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]))


def look(x: np.ndarray, y: np.ndarray, task: str = "classification", *, leakage=None, split="stratified", **more):
    """Split a dataset with named columns and look for leakage."""
    config = make_config(task, leakage=leakage or {}, split=split)
    names = {"x": [f"c{i}" for i in range(x.shape[1])]} if x.ndim == 2 else {}
    data = Dataset.from_arrays({"x": x}, y, columns=names, **more)
    parts = {part: data.take(rows) for part, rows in assign_parts(data, config.data, task, 1).items()}
    return find_leakage(config, parts)


def found(result: Leakage) -> list[tuple[str, str]]:
    return [(leak.check, leak.where) for leak in result.leaks]


def with_column(x: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.column_stack([x, column])


@pytest.mark.parametrize("name", ["digits", "diabetes", "breast_cancer"])
def test_the_examples_leak_nothing(name: str):
    project, config = load_project(ROOT / "projects" / name / "project.toml", ROOT)
    data = project.load_data()
    parts = {p: data.take(rows) for p, rows in assign_parts(data, config.data, config.task, 1).items()}
    result = find_leakage(config, parts)
    assert result.leaks == ()
    assert result.columns == result.of_columns == sum(v[0].size for v in data.inputs.values())
    assert 0.05 < result.strongest_score < 0.9


@pytest.mark.parametrize(
    ("recode", "words"),
    [
        (lambda y: y, "is equal to the target"),
        (lambda y: 7.5 - 2 * y, "recoded"),
        (lambda y: np.array([4, -1, 9])[y], "recoded"),
        (lambda y: np.where(np.arange(len(y)) % 3 == 0, np.nan, y), "in which it has a value"),
    ],
)
def test_a_class_in_the_inputs_is_certain(recode, words):
    x, y = draw(classes=3)
    result = look(with_column(x, recode(y)), y)
    (leak,) = result.leaks  # named once, as a copy and not as a predictor too
    assert (leak.check, leak.where, leak.blocks) == ("target", "column 'c4'", True)
    assert words in leak.finding
    assert 'data.leakage.target = "warn"' in leak.remedy


@pytest.mark.parametrize("left_out", [0, 1])
def test_one_hot_classes_in_the_inputs(left_out: int):
    x, y = draw(classes=4)
    result = look(with_column(x, np.eye(4)[y][:, left_out:]), y)
    assert found(result) == [("target", f"column 'c{4 + i}'") for i in range(4 - left_out)]
    assert look(with_column(x, np.eye(4)[y][:, 2:]), y, leakage={"predictor": "off"}).leaks == ()


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (lambda y: y, "is equal to the target"),
        (lambda y: 1.8 * y + 32, "linear map"),
        (lambda y: -y / 1000, "linear map"),
        (np.exp, "rises or falls"),
        (lambda y: -(y**3), "rises or falls"),
        (lambda y: np.where(y > 1, np.nan, y), "in which it has a value"),
    ],
)
def test_a_number_in_the_inputs_is_certain(transform, words):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 4))
    y = x[:, 0] + rng.normal(size=400)
    result = look(with_column(x, transform(y)), y, "regression")
    assert found(result) == [("target", "column 'c4'")]
    assert words in result.leaks[0].finding


def test_a_column_that_is_only_almost_the_target_is_a_suspicion():
    x, y = draw(2000)
    flipped = np.where(np.random.default_rng(1).random(len(y)) < 0.005, 1 - y, y)
    result = look(with_column(x, flipped), y)
    assert [(leak.check, leak.where, leak.blocks) for leak in result.leaks] == [("predictor", "column 'c4'", False)]
    assert result.strongest == "column 'c4'"
    assert result.strongest_score == result.leaks[0].value > 0.97
    noisy = np.random.default_rng(2).normal(0, 0.02, 2000)
    target = x[:, 0] + x[:, 1]
    assert found(look(with_column(x, target + noisy), target, "regression")) == [("predictor", "column 'c4'")]


def test_what_is_missing_only_in_one_class_gives_it_away():
    x, y = draw()
    closed_after = np.where(y == 1, np.random.default_rng(1).normal(size=len(y)), np.nan)
    assert found(look(with_column(x, closed_after), y)) == [("predictor", "column 'c4'")]


def test_a_rare_class_is_not_predicted_by_a_constant():
    rng = np.random.default_rng(0)
    y = (np.arange(1000) % 50 == 0).astype(int)
    result = look(with_column(rng.normal(size=(1000, 2)), np.ones(1000)), y)
    assert result.leaks == ()
    assert result.strongest_score < 0.5


def test_an_entity_is_no_proof_of_itself():
    """A number of the customer tells the customer's label on other rows of the same customer, and of nobody else."""
    rng = np.random.default_rng(0)
    customer = np.repeat(np.arange(60), 20)
    y = rng.integers(0, 2, 60)[customer]
    x = np.column_stack([rng.normal(size=(1200, 2)), rng.permutation(60)[customer]])
    assert look(x, y, ids=customer.astype(str)).leaks == ()
    assert found(look(x, y, split="random")) == [("predictor", "column 'c2'")]


def test_duplicates_across_parts_are_counted_with_their_labels():
    x, y = draw(400)
    twice, labels = np.concatenate([x, x[:100]]), np.concatenate([y, 1 - y[:50], y[50:100]])
    result = look(twice, labels, ids=[f"e{i}" for i in range(500)])
    parts = {where.split()[0] for _, where in found(result)}
    assert parts <= {"test", "validation", "calibration"}
    assert {check for check, _ in found(result)} == {"duplicates"}
    assert not any(leak.blocks for leak in result.leaks)
    assert 0.1 < result.duplicates["test"] < 0.35
    leak = next(leak for leak in result.leaks if leak.where == "test part")
    rows, same = int(leak.finding.split()[0]), int(leak.finding.split(", ")[1].split()[0])
    assert 0 < same < rows == round(result.duplicates["test"] * 100)
    quiet = look(twice, labels, ids=[f"e{i}" for i in range(500)], leakage={"duplicates_share": 0.5})
    assert quiet.leaks == ()
    assert quiet.duplicates == result.duplicates
    without_ids = look(twice, labels)  # the split holds equal rows together
    assert without_ids.leaks == ()
    assert set(without_ids.duplicates.values()) == {0.0}


def test_images_that_come_twice_are_found():
    image = np.random.default_rng(0).integers(0, 17, (200, 8, 8, 1)).astype(np.float32)
    y = np.arange(200) % 2
    both, ids = np.concatenate([image, image]), [f"e{i}" for i in range(400)]
    result = look(both, np.concatenate([y, y]), ids=ids)
    assert found(result) == [("duplicates", f"{part} part") for part in ("validation", "calibration", "test")]
    assert result.duplicates["test"] > 0.3


def test_an_entity_in_two_parts_stops():
    x, y = draw()
    config = make_config()
    data = Dataset.from_arrays({"x": x}, y, ids=[f"e{i // 2}" for i in range(400)])
    cut = {"train": (0, 219), "validation": (219, 280), "calibration": (280, 320), "test": (320, 400)}
    parts = {part: data.take(np.arange(*ends)) for part, ends in cut.items()}
    (leak,) = find_leakage(config, parts).leaks
    assert (leak.check, leak.where, leak.blocks) == ("entities", "train and validation part", True)
    assert "1 entities stand in both, such as e109" in leak.finding


def hours(n: int) -> np.ndarray:
    return START + np.arange(n).astype("timedelta64[h]")


def test_training_rows_after_the_test_begins():
    x, y = draw(1000)
    assert look(x, y, split="time", time=hours(1000)).leaks == ()
    ids = [f"e{i % 500}" for i in range(900)] + [f"new{i}" for i in range(100)]
    last = np.concatenate([hours(900), START + np.timedelta64(700, "h") + np.arange(100).astype("timedelta64[h]")])
    (leak,) = look(x, y, split="time", time=last, ids=ids).leaks
    assert (leak.check, leak.where, leak.blocks) == ("time_order", "train part", False)
    assert leak.value > 0.05
    assert "later than the oldest test row (2026-01-" in leak.finding
    (strict,) = look(x, y, split="time", time=last, ids=ids, leakage={"time_order": "block"}).leaks
    assert strict.blocks


def test_live_traffic_is_no_time_travel(tmp_path: Path):
    x, y = draw(400)
    own = Dataset.from_arrays({"x": x}, y, time=hours(400), ids=[f"e{i}" for i in range(400)])
    more, labels = draw(200, seed=5)
    fresh = Dataset.from_arrays({"x": more}, labels, time=hours(200) + np.timedelta64(900, "h"), ids=["t"] * 200)
    config = make_config(split="time")
    record = prepare(People(own), config, tmp_path, fresh)
    assert sum(record.traffic.values()) == 200
    assert check_leakage(config, record, tmp_path).leaks == ()


@pytest.mark.parametrize(
    ("unit", "origin"), [("D", "1970-01-01"), ("D", "2020-01-01"), ("s", "1970-01-01"), ("ms", "1970-01-01")]
)
def test_a_moment_after_the_row_is_found(unit: str, origin: str):
    x, y = draw(1000)
    when = START + (np.arange(1000) * 9).astype("timedelta64[h]")
    wait = np.random.default_rng(0).integers(-40, 40, 1000).astype("timedelta64[D]")

    def column(moment: np.ndarray) -> np.ndarray:
        return (moment - np.datetime64(origin, "s")) / np.timedelta64(1, unit)

    (leak,) = look(with_column(x, column(when + wait)), y, split="time", time=when).leaks
    assert (leak.check, leak.where, leak.blocks) == ("later_columns", "column 'c4'", False)
    assert 0.3 < leak.value < 0.6
    before = column(when - abs(wait))
    assert look(with_column(x, before), y, split="time", time=when).leaks == ()
    assert look(with_column(x, column(when)), y, split="time", time=when).leaks == ()  # float32 rounds it, no more


def test_a_column_is_no_moment_by_its_size_alone():
    x, y = draw(1000)
    salary = np.random.default_rng(0).uniform(20_400, 20_800, 1000)  # as days since 1970: this year
    assert look(with_column(x, salary), y, split="time", time=hours(1000)).leaks == ()


def test_what_was_not_looked_for_is_said():
    x, y = draw()
    assert look(x, y).notes == ("time travel was not looked for: load_data gives no time",)
    assert look(x, y, time=hours(400)).notes == ('order in time was not looked at: data.split is "stratified"',)
    checks = ("target", "predictor", "duplicates", "entities", "time_order", "later_columns")
    nothing = look(with_column(x, y), y, leakage=dict.fromkeys(checks, "off"))
    assert (nothing.leaks, nothing.columns, nothing.duplicates) == ((), 0, {})
    assert [note for note in nothing.notes if note.endswith("is off")] == [f"{check} is off" for check in checks]
    wide = look(np.random.default_rng(0).normal(size=(200, 30, 30)), np.arange(200) % 2)
    assert "512 of 900 columns, drawn by chance, were held against the target" in wide.notes
    assert (wide.columns, wide.of_columns) == (512, 900)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("rows", [1, 2, 7, 50])
def test_odd_data_are_no_crash_and_no_accusation(task: str, rows: int):
    """Constant, all-NaN, half-NaN, infinite and enormous columns; one class; hardly any rows."""
    rng = np.random.default_rng(rows)
    kinds = [np.ones(rows), np.full(rows, np.nan), np.where(np.arange(rows) % 2, np.nan, 1.0)]
    kinds += [np.full(rows, np.inf), rng.normal(size=rows) * 1e38, rng.normal(size=rows)]
    x = np.column_stack(kinds)
    numbers = rng.integers(0, 2, rows) if task == "classification" else rng.normal(size=rows)
    one = np.zeros(rows, np.int64) if task == "classification" else np.full(rows, 3.0)
    for y in (numbers, one):
        data = Dataset.from_arrays({"x": x, "flat": np.arange(rows)}, y, ids=["same"] * rows)
        other = Dataset.from_arrays({"x": x[:1] - 5, "flat": np.array([-1])}, y[:1], ids=["other"])
        parts = {"train": data} | dict.fromkeys(("validation", "calibration", "test"), other)
        result = find_leakage(make_config(task, leakage={"entities": "off"}), parts)
        assert not result.leaks
        assert set(result.duplicates.values()) == {0.0}
        assert np.isfinite(list(leakage_metrics(result).values())).all()


def test_chance_is_no_copy():
    """Ten rows are too few to call a column that equals their labels a copy."""
    rng = np.random.default_rng(0)
    y = np.arange(10) % 2
    x = rng.integers(0, 2, (10, 20)).astype(np.float32)
    x[:, 0] = y
    data = Dataset.from_arrays({"x": x}, y)
    parts = dict.fromkeys(("train", "validation", "calibration", "test"), data)
    result = find_leakage(make_config(leakage={"duplicates": "off"}), parts)
    assert "target" not in {leak.check for leak in result.leaks}


def test_a_leak_stops_the_flow_and_is_written(tmp_path: Path):
    x, y = draw()
    data = Dataset.from_arrays({"x": with_column(x, y)}, y, columns={"x": ["a", "b", "c", "d", "churned"]})
    config = make_config()
    record = prepare(People(data), config, tmp_path, None)
    with pytest.raises(DataInvalid, match="nothing is trained") as caught:
        check_leakage(config, record, tmp_path)
    (breach,) = caught.value.breaches
    assert breach.startswith("column 'churned': is equal to the target; leave it out of the inputs, or allow it by ")
    written = json.loads((tmp_path / "validation" / "leakage.json").read_text())
    assert written["leaks"][0]["where"] == "column 'churned'"


def test_a_leak_that_is_allowed_is_logged_and_returned(tmp_path: Path, caplog):
    x, y = draw()
    config = make_config(leakage={"target": "warn"})
    record = prepare(People(Dataset.from_arrays({"x": with_column(x, y)}, y)), config, tmp_path, None)
    with caplog.at_level(logging.WARNING):
        result = check_leakage(config, record, tmp_path)
    assert "target of people: input 'x' at [4]: is equal to the target" in caplog.text
    assert json.loads((tmp_path / "validation" / "leakage.json").read_text()) == json.loads(json.dumps(asdict(result)))
    assert leakage_metrics(result)["leaks"] == 1


def test_a_hundred_thousand_rows_take_a_moment():
    x = np.random.default_rng(0).normal(size=(100_000, 30))
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    config = make_config()
    data = Dataset.from_arrays({"x": x}, y)
    parts = {
        p: data.take(np.arange(i, 100_000, 4)) for i, p in enumerate(("train", "validation", "calibration", "test"))
    }
    began = time.process_time()
    assert find_leakage(config, parts).leaks == ()
    assert time.process_time() - began < 6  # 1.3 s here; twice the work would not pass unseen on a slow machine
