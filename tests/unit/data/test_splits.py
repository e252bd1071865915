"""Splits: disjoint, complete, whole entities, deterministic, in proportion."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import make_dataset

from homeostat.config import DataConfig
from homeostat.data.checks import PARTS
from homeostat.data.splits import assign_parts, content_keys, part_of_key
from homeostat.dataset import Dataset
from homeostat.errors import ConfigError, DataInvalid

KINDS = ("stratified", "random", "time")


def split(data: Dataset, seed: int = 1, task: str = "classification", **config) -> dict[str, np.ndarray]:
    return assign_parts(data, DataConfig(**config), task, seed)


def part_of_row(parts: dict[str, np.ndarray], n: int) -> np.ndarray:
    out = np.full(n, -1)
    for i, part in enumerate(PARTS):
        out[parts[part]] = i
    return out


@st.composite
def datasets(draw) -> Dataset:
    n, seed = draw(st.integers(150, 400)), draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    grouped = draw(st.sampled_from(["ids", "duplicates", "alone"]))
    entity = rng.integers(0, n // 2, n)
    time = np.datetime64("2026-01-01") + rng.integers(0, draw(st.integers(200, 1000)), n).astype("timedelta64[h]")
    inputs = rng.normal(size=(n // 2, 3))[entity] if grouped == "duplicates" else rng.normal(size=(n, 3))
    return Dataset.from_arrays(
        inputs, rng.integers(0, 3, n), ids=[f"e{e}" for e in entity] if grouped == "ids" else None, time=time
    )


@settings(max_examples=40, deadline=None)
@given(datasets(), st.sampled_from(KINDS), st.integers(0, 100))
def test_disjoint_complete_whole_and_deterministic(data, kind, seed):
    parts = split(data, seed, split=kind)
    assert tuple(parts) == PARTS
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(data)))
    where = part_of_row(parts, len(data))
    keys = content_keys(data) if data.ids is None else data.ids
    for key in np.unique(keys):
        assert len(np.unique(where[keys == key])) == 1
    again = split(data, seed, split=kind)
    assert all((parts[part] == again[part]).all() for part in PARTS)


@settings(max_examples=20, deadline=None)
@given(st.integers(150, 900), st.integers(0, 50), st.sampled_from(["stratified", "random"]))
def test_sizes_are_within_one_entity(n, seed, kind):
    data = make_dataset(n, seed)
    parts = split(data, seed, split=kind)
    for part, share in (("validation", 0.15), ("calibration", 0.1), ("test", 0.2)):
        assert abs(len(parts[part]) - share * n) <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100))
def test_stratified_keeps_the_shares_of_the_classes(seed):
    target = np.random.default_rng(seed).choice(3, 600, p=[0.8, 0.15, 0.05])
    parts = split(make_dataset(600, target=target), seed)
    for rows in parts.values():
        for label in range(3):
            assert abs((target[rows] == label).sum() - (target == label).mean() * len(rows)) < 3


def test_stratified_regression_covers_the_target():
    target = np.random.default_rng(0).lognormal(size=600)
    parts = split(make_dataset(600, target=target), task="regression")
    for rows in parts.values():
        assert abs((target[rows] > np.quantile(target, 0.9)).mean() - 0.1) < 0.03


def test_row_order_does_not_matter():
    data = make_dataset(300)
    order = np.random.default_rng(3).permutation(300)
    before = part_of_row(split(data), 300)
    assert (part_of_row(split(data.take(order)), 300) == before[order]).all()


def test_another_seed_gives_another_split():
    data = make_dataset(300)
    assert (part_of_row(split(data, 1), 300) != part_of_row(split(data, 2), 300)).any()


def test_time_runs_from_train_to_test():
    time = np.datetime64("2026-01-01") + np.random.default_rng(0).permutation(200).astype("timedelta64[D]")
    data = make_dataset(time=time)
    parts = split(data, split="time")
    for earlier, later in pairwise(PARTS):
        assert time[parts[earlier]].max() < time[parts[later]].min()
    assert [len(parts[part]) for part in PARTS] == [110, 30, 20, 40]


def test_equal_times_stay_together():
    time = np.datetime64("2026-01-01") + np.repeat(np.arange(20), 10).astype("timedelta64[D]")
    where = part_of_row(split(make_dataset(time=time), split="time"), 200)
    assert all(len(np.unique(where[time == moment])) == 1 for moment in np.unique(time))


def test_an_entity_stays_where_its_first_row_lies():
    time = np.datetime64("2026-01-01") + np.arange(200).astype("timedelta64[D]")
    ids = [f"e{i}" for i in range(199)] + ["e0"]
    assert 199 in split(make_dataset(time=time, ids=ids), split="time")["train"]


def test_time_without_time():
    with pytest.raises(ConfigError, match="load_data gives no time"):
        split(make_dataset(), split="time")


def test_one_moment_leaves_parts_empty():
    with pytest.raises(DataInvalid, match="no row is left for validation, calibration, test"):
        split(make_dataset(time=np.full(200, "2026-01-01", "datetime64[D]")), split="time")


def test_a_class_of_one_entity_cannot_be_stratified():
    with pytest.raises(DataInvalid, match="class 2 has 1 separate entities"):
        split(make_dataset(target=[0, 1] * 50 + [2] * 100, ids=[f"e{i}" for i in range(100)] + ["same"] * 100))


def test_a_part_smaller_than_the_classes_cannot_be_stratified():
    with pytest.raises(DataInvalid, match=r"calibration would hold 6 entities for 10 classes; raise data\.calibration"):
        split(make_dataset(60, target=np.arange(60) % 10))


def test_fewer_entities_than_parts():
    with pytest.raises(DataInvalid, match="3 separate entities"):
        split(make_dataset(60, ids=np.arange(60) % 3), split="random")


@pytest.mark.parametrize("kind", ["stratified", "random"])
def test_the_smallest_allowed_class_reaches_training(kind):
    target = np.array([0] * 196 + [1] * 4)
    assert (target[split(make_dataset(target=target), split=kind, test=0.2)["train"]] == 0).any()
    for seed in range(20):
        if kind == "stratified":
            assert (target[split(make_dataset(target=target), seed)["train"]] == 1).any()


def test_the_hash_keeps_the_shares():
    parts = np.array([part_of_key(f"row-{i}", DataConfig(), 1) for i in range(20_000)])
    for part, share in (("validation", 0.15), ("calibration", 0.1), ("test", 0.2), ("train", 0.55)):
        assert abs((parts == part).mean() - share) < 0.015
    assert part_of_key("row-1", DataConfig(), 1) == parts[1]
    assert any(part_of_key(f"row-{i}", DataConfig(), 2) != parts[i] for i in range(100))


def test_content_sees_every_input_and_dtype():
    a = content_keys(make_dataset(20))
    assert len(set(a)) == 20
    data = make_dataset(20)
    data.inputs["sex"][3] += 1
    assert (content_keys(data) != a).nonzero()[0].tolist() == [3]
    mixed = make_dataset(20, inputs={"y": np.zeros((20, 1)), "x": np.ones((20, 2, 2))}, columns={})
    assert set(content_keys(mixed)) != set(
        content_keys(make_dataset(20, inputs={"x": np.ones((20, 2, 2))}, columns={}))
    )
