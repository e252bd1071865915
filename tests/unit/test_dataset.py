"""Dataset: what goes in, what is refused with its name, and what comes back from disk."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from homeostat.dataset import Dataset, artifact_of, read_artifact, write_artifact
from homeostat.errors import DataInvalid


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [30, 40, 50],
            "height": [1.6, 1.7, np.nan],
            "member": [True, False, True],
            "city": ["Bonn", "Riga", "Bonn"],
            "day": pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"]),
            "who": ["a", "b", "c"],
            "churned": [0, 1, 0],
        }
    )


def everything() -> Dataset:
    return Dataset.from_arrays(
        {"body": [[1.0, 2.0], [3.0, 4.0]], "image": np.ones((2, 4, 4, 1), np.uint8)},
        [0, 1],
        columns={"body": ["age", "height"]},
        time=["2026-01-01", "2026-01-02"],
        ids=["a", "b"],
        slices={"city": ["Bonn", "Riga"]},
        classes=["stays", "leaves"],
    )


def test_dtypes():
    data = Dataset.from_arrays({"f": [1.5], "i": [1], "b": [True], "u": np.ones(1, np.uint8)}, [True])
    assert [data.inputs[n].dtype.name for n in "fibu"] == ["float32", "int64", "int64", "uint8"]
    assert data.target.dtype == np.int64


@pytest.mark.parametrize(("given", "kept"), [(">f4", "float32"), ("longdouble", "float32"), (">i2", "int16")])
def test_every_machine_reads_the_dtype(given: str, kept: str):
    values = Dataset.from_arrays(np.array([[1], [2]], given), [0, 1]).inputs["x"]
    assert (values.dtype, values.dtype.isnative, values.tolist()) == (np.dtype(kept), True, [[1], [2]])


def test_what_a_mask_hides_does_not_come_back():
    hidden = np.ma.masked_array([[1.0], [-999.0]], mask=[[False], [True]])
    with pytest.raises(DataInvalid, match="input 'x' is a masked array"):
        Dataset.from_arrays(hidden, [0, 1])
    with pytest.raises(DataInvalid, match="target is a masked array"):
        Dataset.from_arrays([[1.0], [2.0]], np.ma.masked_array([0, 1], mask=[False, True]))
    assert len(Dataset.from_arrays(np.ma.masked_array([[1.0], [2.0]]), [0, 1])) == 2


def test_a_single_array_is_x():
    data = Dataset.from_arrays(np.ones((3, 2)), [0, 1, 0])
    assert list(data.inputs) == ["x"]
    assert len(data) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": {}, "target": [0]}, "at least one input"),
        ({"inputs": [["a"]], "target": [0]}, "input 'x' has dtype <U1; a model takes numbers"),
        ({"inputs": [[1.0]], "target": [0, 1]}, "input 'x' has shape (1, 1) where the target has 2 rows"),
        ({"inputs": [[1.0], [1.0, 2.0]], "target": [0, 1]}, "input 'x' cannot be made an array"),
        ({"inputs": np.empty((0, 2)), "target": np.empty(0)}, "there are no rows"),
        ({"inputs": [[1.0]], "target": [[0]]}, "target has shape (1, 1); it must be one value per row"),
        ({"inputs": [[1.0]], "target": ["cat"]}, "target has dtype <U3; map classes to integers"),
        ({"inputs": {"my input": [[1.0]]}, "target": [0]}, "'my input' cannot name an input"),
        ({"inputs": [[1.0]], "target": [0], "ids": ["a", "b"]}, "ids has shape (2,)"),
        ({"inputs": [[1.0]], "target": [0], "ids": [None]}, "ids: 1 of 1 rows have none"),
        ({"inputs": [[1.0]], "target": [0], "ids": [np.nan]}, "ids: 1 of 1 rows have none"),
        ({"inputs": [[1.0]], "target": [0], "time": ["soon"]}, "time must be datetime64"),
        ({"inputs": [[1.0]], "target": [0], "slices": {"city": []}}, "slice 'city' has shape (0,)"),
        ({"inputs": [[1.0]], "target": [0], "columns": {"y": ["a"]}}, "columns names an input 'y' that is not there"),
        ({"inputs": [[1.0]], "target": [0], "columns": {"x": ["a", "b"]}}, "cannot have 2 columns"),
    ],
)
def test_what_does_not_hold_together(arguments, message):
    with pytest.raises(DataInvalid, match=re.escape(message)):
        Dataset.from_arrays(**arguments)


def test_breaches_come_at_once():
    with pytest.raises(DataInvalid) as caught:
        Dataset.from_arrays([[1.0]], [0, 1], ids=["a"], columns={"y": ["a"]})
    assert len(caught.value.breaches) == 3


def test_from_frame_takes_every_column_that_has_no_other_part():
    data = Dataset.from_frame(frame(), target="churned", time="day", ids="who", slices=["city"], classes=["no", "yes"])
    assert data.columns == {"x": ("age", "height", "member")}
    assert data.inputs["x"].dtype == np.float32
    assert data.inputs["x"][0].tolist() == pytest.approx([30, 1.6, 1])
    assert data.ids is not None
    assert data.ids.tolist() == ["a", "b", "c"]
    assert data.time is not None
    assert data.time[0] == np.datetime64("2026-01-01")
    assert data.slices["city"].tolist() == ["Bonn", "Riga", "Bonn"]
    assert data.target.tolist() == [0, 1, 0]


def test_from_frame_with_several_inputs_keeps_integers():
    data = Dataset.from_frame(frame(), target="churned", inputs={"n": ["age", "member"], "h": ["height"]})
    assert data.inputs["n"].dtype == np.int64
    assert data.inputs["h"].shape == (3, 1)


def test_from_frame_with_nullable_columns():
    table = frame().astype({"age": "Int64", "member": "boolean"})
    assert Dataset.from_frame(table, target="churned", inputs={"x": ["age", "member"]}).inputs["x"].dtype == np.int64
    table.loc[1, "age"] = pd.NA
    data = Dataset.from_frame(table, target="churned", inputs={"x": ["age", "member"]})
    assert np.isnan(data.inputs["x"][1, 0])


def test_from_frame_with_a_time_zone():
    table = frame().assign(day=frame()["day"].dt.tz_localize("Europe/Berlin"))
    data = Dataset.from_frame(table, target="churned", inputs={"x": ["age"]}, time="day")
    assert data.time is not None
    assert data.time[1] == np.datetime64("2026-01-01T23:00")


def test_from_frame_with_numbered_and_sparse_columns():
    table = pd.DataFrame({0: [1, 2], 1: pd.arrays.SparseArray([0.0, 3.0]), "y": [0, 1]})
    data = Dataset.from_frame(table, target="y")
    assert data.columns == {"x": ("0", "1")}
    assert data.inputs["x"].tolist() == [[1, 0], [2, 3]]


def test_from_frame_with_inputs_that_are_none():
    with pytest.raises(DataInvalid, match="input 'x' has no columns"):
        Dataset.from_frame(frame()[["churned"]], target="churned")
    with pytest.raises(DataInvalid, match="input 'x' holds the target 'churned'"):
        Dataset.from_frame(frame(), target="churned", inputs={"x": ["age", "churned"]})


def test_from_frame_names_what_is_missing():
    with pytest.raises(DataInvalid, match=r"no such column: when, size; the frame has age, height"):
        Dataset.from_frame(frame(), target="churned", inputs={"x": ["age", "size"]}, time="when")


def test_from_frame_names_every_text_column():
    with pytest.raises(DataInvalid) as caught:
        Dataset.from_frame(frame(), target="churned")
    assert [line.split()[1] for line in caught.value.breaches] == ["'city'", "'day'", "'who'"]
    city, day, who = caught.value.breaches
    assert ".map({'Bonn': 0, 'Riga': 1, ...})" in city
    assert "days since a fixed day" in day
    assert ".map({'a': 0, 'b': 1, 'c': 2, ...})" in who


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (["1.5", "2"], "its text is numbers: pd.to_numeric"),
        (["pro", "basic"], ".map({'basic': 0, 'pro': 1, ...})"),
        (pd.to_datetime(["2026-01-01", "2026-02-01"]), "days since a fixed day"),
        (["pro", None], ".map({'pro': 0, ...})"),
    ],
)
def test_the_hint_for_a_column_that_is_no_number(values, hint):
    with pytest.raises(DataInvalid) as caught:
        Dataset.from_frame(pd.DataFrame({"plan": values, "y": [0, 1]}), target="y")
    assert hint in caught.value.breaches[0]


def test_from_frame_with_a_missing_target():
    with pytest.raises(DataInvalid, match="no such column: sold"):
        Dataset.from_frame(frame(), target="sold")


def test_from_frame_with_two_columns_of_one_name():
    table = frame()[["age", "age", "churned"]]
    with pytest.raises(DataInvalid, match="two columns named age"):
        Dataset.from_frame(table, target="churned")


def test_take_positions_and_mask():
    data = everything()
    assert data.take(np.array([1])).sha256() == data.take(np.array([False, True])).sha256()
    assert data.take(np.array([1, 0])).target.tolist() == [1, 0]
    assert data.take(np.array([1])).classes == ("stays", "leaves")


@pytest.mark.parametrize("data", [everything(), Dataset.from_arrays(np.ones((3, 2)), [0, 1, 0])], ids=["all", "few"])
def test_save_and_load(data: Dataset, tmp_path: Path):
    artifact = data.save(tmp_path / "deep" / "train.npz")
    found = Dataset.load(artifact)
    assert found.sha256() == data.sha256()
    assert (found.columns, found.classes, list(found.inputs)) == (data.columns, data.classes, list(data.inputs))
    assert found.save(tmp_path / "again.npz").sha256 == artifact.sha256
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["train.npz"]


def test_the_digest_sees_every_part():
    data = everything()
    digests = {
        data.sha256(),
        replace(data, target=np.array([1, 1])).sha256(),
        replace(data, ids=None).sha256(),
        replace(data, columns={"body": ("age", "weight")}).sha256(),
        replace(data, classes=()).sha256(),
        replace(data, inputs=data.inputs | {"body": data.inputs["body"].astype(np.float16)}).sha256(),
        replace(data, inputs=data.inputs | {"body": data.inputs["body"] + 1}).sha256(),
    }
    assert len(digests) == 7


def test_a_flipped_byte_is_found(tmp_path: Path):
    artifact = everything().save(tmp_path / "train.npz")
    content = bytearray(Path(artifact.path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(artifact.path).write_bytes(content)
    with pytest.raises(DataInvalid, match="recorded was"):
        Dataset.load(artifact)


def test_a_lost_file_is_named(tmp_path: Path):
    artifact = everything().save(tmp_path / "train.npz")
    Path(artifact.path).unlink()
    with pytest.raises(DataInvalid, match="is gone; run the pipeline again"):
        Dataset.load(artifact)


def test_artifacts(tmp_path: Path):
    artifact = write_artifact(tmp_path / "a" / "b.txt", b"hello")
    assert artifact_of(tmp_path / "a" / "b.txt") == artifact
    assert read_artifact(artifact) == b"hello"
    assert artifact.bytes == 5
