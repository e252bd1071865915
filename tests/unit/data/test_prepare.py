"""prepare: what is on disk is what was split, and traffic never leaks between parts."""

from pathlib import Path

import numpy as np
import pytest
from people import COLUMNS, People, make_config, make_dataset

from homeostat.data.checks import PARTS
from homeostat.data.prepare import prepare
from homeostat.data.splits import assign_parts, part_of_key
from homeostat.dataset import Dataset
from homeostat.errors import DataInvalid
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
