"""prepare: what is on disk is what was split, and traffic never leaks between parts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import COLUMNS, People, make_config, make_dataset

from homeostat.config import ProjectConfig, RetrainConfig
from homeostat.data.checks import PARTS
from homeostat.data.prepare import prepare
from homeostat.data.splits import assign_parts, content_keys, part_of_key
from homeostat.dataset import Dataset
from homeostat.errors import ConfigError, DataInvalid
from homeostat.records import DatasetRecord

CONFIG = make_config()


def load(record: DatasetRecord) -> dict[str, Dataset]:
    return {part: Dataset.load(artifact) for part, artifact in record.parts.items()}


def named(n: int = 200, **overrides) -> Dataset:
    return make_dataset(n, ids=[f"p{i}" for i in range(n)], **overrides)


def test_the_parts_are_the_split(tmp_path: Path):
    data = named(classes=["a", "b", "c"])
    record = prepare(People(data), CONFIG, tmp_path, None)
    rows = assign_parts(data, CONFIG.data, "classification", 1)
    for part, found in load(record).items():
        assert found.sha256() == data.take(rows[part]).sha256()
        assert Path(record.parts[part].path) == tmp_path / "parts" / f"{part}.npz"
    assert record.rows == {"train": 110, "validation": 30, "calibration": 20, "test": 40}
    assert record.sources == {"project": 200, "traffic": 0}


def test_the_digest_is_of_the_content(tmp_path: Path):
    first = prepare(People(), CONFIG, tmp_path / "a", None)
    assert prepare(People(), CONFIG, tmp_path / "b", None).sha256 == first.sha256
    assert prepare(People(), make_config(seed=2), tmp_path / "c", None).sha256 != first.sha256
    changed = make_dataset()
    changed.inputs["body"][0, 0] += 0.5
    assert prepare(People(changed), CONFIG, tmp_path / "d", None).sha256 != first.sha256


def test_bad_data_write_nothing(tmp_path: Path):
    with pytest.raises(DataInvalid, match="only one class"):
        prepare(People(make_dataset(target=np.zeros(200, int))), CONFIG, tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_load_data_must_return_a_dataset(tmp_path: Path):
    with pytest.raises(DataInvalid, match=r"load_data of people:People returned dict, not a Dataset"):
        prepare(People({"x": 1}), CONFIG, tmp_path, None)


def test_traffic_of_a_known_entity_goes_where_the_entity_is(tmp_path: Path):
    own = named()
    moved = {"body": own.inputs["body"] + 0.1, "sex": own.inputs["sex"]}
    record = prepare(People(own), CONFIG, tmp_path, Dataset.from_arrays(moved, own.target.astype(float), ids=own.ids))
    parts = load(record)
    assert record.sources == {"project": 200, "traffic": 200}
    assert record.traffic == {"train": 110, "validation": 30, "calibration": 20, "test": 40}
    ids = [set(parts[part].ids) for part in PARTS]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 200
    assert parts["train"].target.dtype == own.target.dtype
    assert (parts["test"].ids[:40] == parts["test"].ids[40:]).all()


def test_new_entities_go_by_their_hash_whatever_else_arrives(tmp_path: Path):
    fresh = make_dataset(60, seed=9, ids=[f"new{i}" for i in range(60)])
    alone = load(prepare(People(named()), CONFIG, tmp_path / "a", fresh.take(np.arange(10))))
    more = load(prepare(People(named()), CONFIG, tmp_path / "b", fresh))
    for i in range(60):
        part = part_of_key(f"new{i}", CONFIG.data, 1)
        assert f"new{i}" in more[part].ids
        assert i >= 10 or f"new{i}" in alone[part].ids


def test_exact_duplicates_are_dropped(tmp_path: Path):
    own, fresh = named(), make_dataset(30, seed=9)
    again = Dataset.from_arrays(
        {name: np.concatenate([own.inputs[name], fresh.inputs[name], fresh.inputs[name]]) for name in own.inputs},
        np.concatenate([own.target, fresh.target, fresh.target]),
    )
    assert prepare(People(own), CONFIG, tmp_path, again).sources == {"project": 200, "traffic": 30}


def test_known_content_with_a_new_label_goes_where_the_content_is(tmp_path: Path):
    own = make_dataset()
    relabeled = Dataset.from_arrays(dict(own.inputs), (own.target + 1) % 3)
    record = prepare(People(own), CONFIG, tmp_path, relabeled)
    assert record.sources["traffic"] == 200
    for data in load(record).values():
        half = len(data) // 2
        assert (data.inputs["body"][:half] == data.inputs["body"][half:]).all()


def test_id_and_content_of_two_parts_are_dropped(tmp_path: Path):
    own = named()
    rows = assign_parts(own, CONFIG.data, "classification", 1)
    test, train = rows["test"][:1], rows["train"][:1]
    crossed = Dataset.from_arrays(dict(own.take(test).inputs), (own.target[test] + 1) % 3, ids=own.ids[train])
    assert prepare(People(own), CONFIG, tmp_path, crossed).sources["traffic"] == 0


def test_traffic_without_ids_or_time_or_slices(tmp_path: Path):
    time = np.datetime64("2026-01-01") + np.arange(200).astype("timedelta64[h]")
    own = named(slices={"region": ["north"] * 200}, time=time)
    record = prepare(People(own), make_config(split="time"), tmp_path, make_dataset(20, seed=5))
    parts = load(record)
    assert record.sources == {"project": 200, "traffic": 20}
    last = np.concatenate(
        [parts[part].take(np.arange(record.rows[part] - record.traffic[part], record.rows[part])).ids for part in PARTS]
    )
    assert (last == "").all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"body": np.ones((5, 3))}, "input 'sex' is missing in the traffic"),
        ({"body": np.ones((5, 3)), "sex": np.ones((5, 1), int), "z": np.ones(5)}, "input 'z' is not in load_data"),
        ({"body": np.ones((5, 3)), "sex": np.ones((5, 1), "int32")}, r"input 'sex': traffic has int32 \[1\]"),
        ({"body": np.ones((5, 2)), "sex": np.ones((5, 1), int)}, r"input 'body': traffic has float32 \[2\] in a row"),
    ],
)
def test_traffic_that_does_not_fit(tmp_path: Path, inputs, message):
    with pytest.raises(DataInvalid, match=message):
        prepare(People(), CONFIG, tmp_path, Dataset.from_arrays(inputs, np.zeros(5)))


@pytest.mark.parametrize(("label", "message"), [(np.nan, "labels: NaN or Inf in 5"), (0.5, "labels: not whole")])
def test_labels_that_do_not_fit(tmp_path: Path, label, message):
    with pytest.raises(DataInvalid, match=message):
        prepare(People(), CONFIG, tmp_path, Dataset.from_arrays(dict(make_dataset(5).inputs), np.full(5, label)))


def test_columns_survive(tmp_path: Path):
    record = prepare(People(), CONFIG, tmp_path, make_dataset(20, seed=5, columns={}))
    assert load(record)["train"].columns["body"] == COLUMNS


def places(record: DatasetRecord) -> dict[str, str]:
    """Return id -> part; an id in two parts fails."""
    pairs = {(name, part) for part, data in load(record).items() for name in data.ids.tolist()}
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 60), st.integers(0, 100), st.sampled_from(["stratified", "random"]), st.randoms())
def test_growth_and_another_seed_move_no_known_row(tmp_path_factory, grown, seed, kind, random):
    folder = tmp_path_factory.mktemp("split")
    split = folder / "splits" / "people.npz"
    first = places(prepare(People(named()), make_config(split=kind), folder / "a", None, split))
    order = list(range(200 + grown)) + random.sample(range(200), 20)  # 20 entities come again
    random.shuffle(order)
    more = make_dataset(len(order), seed=3, ids=[f"p{i}" for i in order])
    second = places(prepare(People(more), make_config(seed=seed, split=kind), folder / "b", None, split))
    assert set(second) == {f"p{i}" for i in range(200 + grown)}
    assert {name: second[name] for name in first} == first
    assert all(second[f"p{i}"] == part_of_key(f"p{i}", CONFIG.data, 1) for i in range(200, 200 + grown))
    third = places(prepare(People(named()), make_config(seed=7), folder / "c", None, split))
    assert third == first
    with np.load(split, allow_pickle=False) as arrays:
        assert dict(zip(arrays["key"].tolist(), arrays["part"].tolist(), strict=True)) == second


def test_rows_without_ids_are_known_by_their_content(tmp_path: Path):
    split, more = tmp_path / "people.npz", make_dataset().join(make_dataset(40, seed=4))
    first = load(prepare(People(), CONFIG, tmp_path / "a", None, split))
    second = load(prepare(People(more), make_config(seed=2), tmp_path / "b", None, split))
    assert sum(map(len, second.values())) == 240
    for part in PARTS:
        assert set(content_keys(first[part])) <= set(content_keys(second[part]))


def test_another_seed_moves_no_traffic(tmp_path: Path):
    split, fresh = tmp_path / "people.npz", make_dataset(60, seed=9, ids=[f"new{i}" for i in range(60)])
    first = prepare(People(named()), CONFIG, tmp_path / "a", fresh, split)
    assert places(prepare(People(named()), make_config(seed=2), tmp_path / "b", fresh, split)) == places(first)


def test_a_split_by_time_keeps_no_file(tmp_path: Path):
    split = tmp_path / "people.npz"
    time = np.datetime64("2026-01-01") + np.arange(200).astype("timedelta64[h]")
    prepare(People(named(time=time)), make_config(split="time"), tmp_path, None, split)
    assert not split.exists()


def test_a_kept_split_that_leaves_a_part_empty(tmp_path: Path):
    split = tmp_path / "people.npz"
    np.savez(split, key=np.array([f"p{i}" for i in range(200)]), part=np.full(200, "train"))
    with pytest.raises(DataInvalid, match=r"no row is left for validation, .*people\.npz; delete that file"):
        prepare(People(named()), CONFIG, tmp_path / "a", None, split)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", "pickle", "part"])
def test_a_kept_split_that_is_damaged(tmp_path: Path, content):
    split = tmp_path / "people.npz"
    if isinstance(content, bytes):
        split.write_bytes(content)
    else:
        np.savez(split, key=np.array(["p1"], object if content == "pickle" else str), part=np.array(["exam"]))
    before = split.read_bytes()
    with pytest.raises(DataInvalid, match=r"people\.npz cannot be read"):
        prepare(People(named()), CONFIG, tmp_path / "a", None, split)
    assert split.read_bytes() == before


def test_equal_inputs_of_distinct_entities_all_count_and_stand_together(tmp_path: Path):
    same = make_dataset(1, seed=8).take(np.zeros(1000, int))
    labels = np.repeat([0, 1], [900, 100])
    traffic = Dataset.from_arrays(dict(same.inputs), labels, ids=[f"new{i}" for i in range(1000)])
    record = prepare(People(named()), CONFIG, tmp_path, traffic.join(traffic))
    assert sorted(record.traffic.values()) == [0, 0, 0, 1000]
    part = max(record.traffic, key=record.traffic.__getitem__)
    assert np.bincount(load(record)[part].target[-1000:]).tolist() == [900, 100]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=80))
def test_neither_an_entity_nor_a_content_stands_in_two_parts(tmp_path_factory, pairs):
    own, pool = named(), make_dataset(41, seed=6)
    known = own.take(np.arange(20))
    content = {name: np.concatenate([known.inputs[name], pool.inputs[name][20:]]) for name in own.inputs}
    rows = np.array([c for _, c in pairs])
    ids = [f"p{i}" if i < 20 else f"new{i}" if i < 40 else "" for i, _ in pairs]
    traffic = Dataset.from_arrays({name: v[rows] for name, v in content.items()}, pool.target[rows], ids=ids)
    parts = load(prepare(People(own), CONFIG, tmp_path_factory.mktemp("traffic"), traffic))
    for keys in ([set(data.ids) - {""} for data in parts.values()], [set(content_keys(d)) for d in parts.values()]):
        assert sum(map(len, keys)) == len(set.union(*keys))


def test_a_content_that_own_rows_hold_in_several_parts_links_nothing(tmp_path: Path):
    own = named(inputs={"body": np.ones((200, 3)), "sex": np.ones((200, 1), int)})
    traffic = Dataset.from_arrays(dict(own.inputs), (own.target + 1) % 3, ids=own.ids)
    record = prepare(People(own), CONFIG, tmp_path, traffic)
    assert record.traffic == {"train": 110, "validation": 30, "calibration": 20, "test": 40}
    assert len(places(record)) == 200


def days(n: int = 200) -> np.ndarray:
    """One row a day."""
    return np.datetime64("2026-01-01", "ns") + np.arange(n) * np.timedelta64(1, "D")


def recent(days: float, **data: str) -> ProjectConfig:
    return make_config(**data).model_copy(update={"retrain": RetrainConfig(history_days=days)})


def no_traffic() -> Dataset:
    return make_dataset(4).take(np.empty(0, np.int64))


def test_a_retraining_leaves_old_rows_out_and_each_row_keeps_its_part(tmp_path: Path):
    data, split = named(time=days()), tmp_path / "split.npz"
    config = recent(99.5)
    first = load(prepare(People(data), config, tmp_path / "first", None, split))
    assert sum(len(part) for part in first.values()) == 200
    again = prepare(People(data), config, tmp_path / "again", no_traffic(), split)
    assert again.sources == {"project": 100, "traffic": 0}
    assert sum(again.rows.values()) == 100
    for part, rows in load(again).items():
        assert rows.time.min() >= days()[100]
        assert set(rows.ids) == {one for one in first[part].ids if int(one[1:]) >= 100}
    third = prepare(People(data), make_config(), tmp_path / "third", no_traffic(), split)
    assert {part: set(rows.ids) for part, rows in load(third).items()} == {p: set(r.ids) for p, r in first.items()}


def test_a_split_by_time_is_of_the_recent_rows(tmp_path: Path):
    config = recent(99.5, split="time")
    parts = load(prepare(People(named(time=days())), config, tmp_path, no_traffic()))
    assert sum(len(part) for part in parts.values()) == 100
    assert parts["train"].time.min() == days()[100]
    assert parts["train"].time.max() < parts["test"].time.min()


def test_recent_rows_need_a_time_and_must_be_there(tmp_path: Path):
    config = recent(1)
    with pytest.raises(ConfigError, match="history_days = 1 needs the time of each row"):
        prepare(People(), config, tmp_path, no_traffic())
    with pytest.raises(DataInvalid, match=r"last retrain.history_days = 1 days is left for .*farther back"):
        prepare(People(named(time=days())), config, tmp_path, no_traffic())
    assert not (tmp_path / "parts").exists()
