"""Reading captured traffic beside its writer."""

import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from homeostat.dataset import Dataset
from homeostat.errors import DataInvalid, Unavailable
from homeostat.monitoring.traffic import read_rows
from homeostat.monitoring.window import count_labelled, labelled_traffic, read_window

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)  # the capture fixture's
DAY_AGO = NOW - timedelta(days=1)


def one(value: float, rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.full((rows, 2), value, np.float32), np.full((rows, 3), value / 10, np.float32)


def read(capture, **options):
    return read_rows(capture.path, "toy", DAY_AGO, NOW, options.pop("max_rows", 1000), **options)


def test_rows_stand_with_their_labels_while_the_writer_is_open(capture):
    first = capture.answer(*one(1.0, rows=2), entity="e1", milliseconds=4.0)
    capture.answer(*one(2.0), minutes_ago=5)
    capture.label(first, [1, None])
    capture.connection.execute("BEGIN IMMEDIATE")  # a write that is still under way
    rows = read(capture)
    capture.connection.rollback()
    assert rows.inputs["x"].tolist() == [[1, 1], [1, 1], [2, 2]]
    assert rows.outputs["output"].shape == (3, 3)
    assert rows.labelled.tolist() == [True, False, False]
    assert rows.labels[0] == 1
    assert rows.entity_ids.tolist() == ["e1", "e1", ""]
    assert rows.request_milliseconds.tolist() == [4.0, 2.0]


def test_a_late_and_a_corrected_label_count(capture):
    request = capture.answer(*one(1.0))
    assert not read(capture).labelled.any()
    capture.label(request, [0])
    assert read(capture).labels.tolist() == [0]
    capture.label(request, [2])
    assert read(capture).labels.tolist() == [2]


def test_other_models_versions_and_times_stay_out(capture):
    kept = capture.answer(*one(1.0))
    capture.answer(*one(2.0), version=2)
    capture.answer(*one(3.0), model="other")
    capture.answer(*one(4.0), minutes_ago=60 * 25)
    capture.answer(*one(5.0), minutes_ago=-1)
    assert read(capture, version=3).request_ids.tolist() == [kept]


def test_a_file_that_is_not_there_or_has_no_tables_is_an_empty_window(tmp_path):
    path = tmp_path / "a b#c?.db"
    window, rows = read_window(path, "toy", DAY_AGO, NOW, 100, tmp_path)
    assert (window.rows, window.path, len(rows)) == (0, "", 0)
    sqlite3.connect(path).close()
    path.touch()
    assert len(read_rows(path, "toy", DAY_AGO, NOW, 100)) == 0
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (x)")
    connection.close()
    assert len(read_rows(path, "toy", DAY_AGO, NOW, 100)) == 0


def test_a_file_of_another_schema_says_who_brings_it_up_to_date(capture):
    capture.answer(*one(1.0))
    for version in (0, 2, 4):
        capture.connection.execute(f"PRAGMA user_version = {version}")
        with pytest.raises(Unavailable, match=f"schema {version}, not 3; .* when it starts"):
            read(capture)
        with pytest.raises(Unavailable, match=f"schema {version}"):
            count_labelled(capture.path, "toy", DAY_AGO)


def test_models_that_share_an_id_keep_their_requests_and_labels_apart(capture):
    template = Dataset.from_arrays({"x": np.zeros((2, 2))}, np.arange(2, dtype=np.float32))
    for model, value in (("toy", 1.0), ("other", 2.0)):
        capture.answer(*one(value), model=model, request_id="visit-17")
    capture.label("visit-17", [0.5])
    for model, value in (("toy", 1.0), ("other", 2.0)):
        rows = read_rows(capture.path, model, DAY_AGO, NOW, 100)
        assert (rows.inputs["x"][:, 0].tolist(), rows.labels.tolist()) == ([value], [0.5])
    capture.label("visit-17", [7.5], model="other")
    assert read(capture).labels.tolist() == [0.5], "a label that names a model is its alone"
    assert read_rows(capture.path, "other", DAY_AGO, NOW, 100).labels.tolist() == [7.5]
    assert labelled_traffic(capture.path, "other", DAY_AGO, template).target.tolist() == [7.5]
    assert count_labelled(capture.path, "toy", DAY_AGO) == 1
    capture.label("visit-17", [8.5])
    assert read_rows(capture.path, "other", DAY_AGO, NOW, 100).labels.tolist() == [8.5], "the newest counts"


def test_a_label_may_come_before_its_request(capture):
    capture.label("early", [1], model="toy")
    assert len(read(capture)) == 0
    capture.answer(*one(1.0), request_id="early")
    assert read(capture).labels.tolist() == [1]


def test_a_file_that_is_not_a_database_is_named(tmp_path):
    path = tmp_path / "traffic.db"
    path.write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(DataInvalid, match=r"traffic\.db is damaged"):
        read_rows(path, "toy", DAY_AGO, NOW, 100)


@pytest.mark.parametrize(
    "change",
    [
        "inputs = x'00'",
        "outputs = NULL",
        "inputs = substr(inputs, 1, length(inputs) - 1)",
        "rows = 7",
        "rows = 'many'",
        "milliseconds = 'soon'",
    ],
)
def test_a_damaged_request_is_named_and_the_others_are_read(capture, change):
    good, bad = capture.answer(*one(1.0)), capture.answer(*one(2.0))
    capture.connection.execute(f"UPDATE request SET {change} WHERE request_id = ?", (bad,))
    capture.connection.commit()
    rows = read(capture)
    assert rows.request_ids.tolist() == [good]
    assert len(rows.unreadable) == 1
    assert rows.unreadable[0].startswith(f"{bad}: ")


@pytest.mark.parametrize("text", ["", "[1", "[1, 2]", '["a"]', "{}", "[[1]]", "7"])
def test_a_damaged_label_is_named_and_its_row_stays(capture, text):
    request = capture.answer(*one(1.0))
    capture.label(request, None, text=text)
    rows = read(capture)
    assert rows.labelled.tolist() == [False]
    assert rows.unreadable[0].startswith(f"{request}: labels: ")


def test_requests_of_another_shape_are_left_out_and_named(capture):
    kept = [capture.answer(*one(float(i))) for i in range(3)]
    odd = capture.answer(np.zeros((1, 5), np.float32), np.zeros((1, 3), np.float32))
    rows = read(capture)
    assert rows.request_ids.tolist() == kept
    assert rows.unreadable[0].startswith(odd)


def test_a_large_window_is_sampled_over_its_whole_length_by_seed(capture):
    for i in range(300):
        capture.answer(*one(float(i), rows=1 + i % 3), minutes_ago=300 - i)
    rows = read(capture, max_rows=100, seed=1)
    again, other = read(capture, max_rows=100, seed=1), read(capture, max_rows=100, seed=2)
    assert (len(rows), rows.found) == (100, 600)
    assert rows.request_ids.tolist() == again.request_ids.tolist() != other.request_ids.tolist()
    assert np.all(np.diff(rows.times) >= 0)
    assert rows.times.min() < (NOW - timedelta(minutes=250)).timestamp()
    assert rows.times.max() > (NOW - timedelta(minutes=50)).timestamp()


def test_the_window_file_holds_rows_labels_and_frame_columns(capture, tmp_path):
    capture.label(capture.answer(*one(1.0, rows=2)), [0, 1])
    window, _ = read_window(
        capture.path,
        "toy",
        DAY_AGO,
        NOW,
        100,
        tmp_path / "work",
        to_frame=lambda inputs, outputs: pd.DataFrame({"a": inputs["x"][:, 0], "score": outputs["output"][:, 2]}),
    )
    table = pd.read_parquet(window.path)
    assert (window.rows, window.labelled, window.found) == (2, 2, 2)
    assert table["a"].tolist() == [1, 1]
    assert table["request.label"].tolist() == [0, 1]
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["window.parquet"]


def test_labelled_traffic_has_the_form_of_the_projects_data(capture):
    template = Dataset.from_arrays({"x": np.zeros((4, 2))}, np.array([0, 1, 2, 0], np.int32), classes=("a", "b", "c"))
    assert labelled_traffic(capture.path, "toy", DAY_AGO, template) is None
    capture.label(capture.answer(*one(1.0), entity="e1"), [2])
    capture.label(capture.answer(*one(2.0), version=9, minutes_ago=5), [1])
    capture.answer(*one(3.0))
    for impossible in (3, -1, 0.5):
        capture.label(capture.answer(*one(4.0)), [impossible])
    data = labelled_traffic(capture.path, "toy", DAY_AGO, template)
    data.check()
    assert data.target.tolist() == [2, 1]
    assert data.target.dtype == np.int32
    assert data.ids.tolist() == ["e1", ""]
    assert data.inputs["x"].dtype == np.float32
    assert data.inputs["x"][:, 0].tolist() == [1, 2]
    assert data.classes == ("a", "b", "c")


def test_what_a_shadow_answered_is_no_traffic(capture):
    capture.label(capture.answer(*one(1.0), arm="canary"), [1])
    capture.answer(*one(2.0), arm="shadow", request_id="r00000")
    assert read(capture).arms.tolist() == ["canary"]
    assert count_labelled(capture.path, "toy", DAY_AGO) == 1


def test_slices_stand_beside_the_rows(capture):
    capture.answer(*one(1.0, rows=2), slices={"site": "north", "age": ["x", "y"]})
    capture.answer(*one(2.0), minutes_ago=5)
    bad = capture.answer(*one(3.0), slices={"age": ["x", "y"]})
    rows = read(capture)
    assert {name: values.tolist() for name, values in rows.slices.items()} == {
        "site": ["north", "north", ""],
        "age": ["x", "y", ""],
    }
    assert rows.take(np.array([2])).slices["site"].tolist() == [""]
    assert [line.split(":")[0] for line in rows.unreadable] == [bad]


def test_masked_traffic_is_not_learned_from(capture):
    template = Dataset.from_arrays({"x": np.zeros((4, 2))}, np.array([0, 1, 2, 0], np.int32), classes=("a", "b", "c"))
    for number in range(3):
        masking = '{"x": {"x_0": "drop", "x_1": "keep"}}' if number else None
        capture.label(capture.answer(*one(1.0), masking=masking), [1])
    rows = read(capture)
    assert (len(rows), rows.masking is None, len(rows.unreadable)) == (2, False, 1), "two maskings do not mix"
    assert labelled_traffic(capture.path, "toy", DAY_AGO, template) is None
    assert count_labelled(capture.path, "toy", DAY_AGO) == 1


def test_labelled_traffic_of_other_inputs_is_not_learned_from(capture):
    capture.label(capture.answer(*one(1.0)), [1])
    template = Dataset.from_arrays({"x": np.zeros((4, 5))}, np.arange(4))
    assert labelled_traffic(capture.path, "toy", DAY_AGO, template) is None


def test_labelled_rows_are_counted_over_versions(capture, tmp_path):
    assert count_labelled(tmp_path / "none.db", "toy", DAY_AGO) == 0
    capture.label(capture.answer(*one(1.0, rows=3)), [0, None, 1])
    capture.label(capture.answer(*one(2.0), version=9), [1])
    capture.label(capture.answer(*one(3.0)), None, text="[1")
    capture.label(capture.answer(*one(3.0), minutes_ago=60 * 25), [1])
    capture.answer(*one(4.0))
    assert count_labelled(capture.path, "toy", DAY_AGO) == 3


def test_what_is_not_finite_in_the_projects_dtypes_is_left_out(capture, caplog):
    template = Dataset.from_arrays({"x": np.zeros((4, 2))}, np.arange(4, dtype=np.float32))
    for label in (1e39, -1e300, 2.5):
        capture.label(capture.answer(*one(1.0)), [label])
    for value in (np.inf, np.nan):
        capture.label(capture.answer(*one(value)), [1.5])
    data = labelled_traffic(capture.path, "toy", DAY_AGO, template)
    assert data.target.tolist() == [2.5]
    assert "2 labels are not finite float32" in caplog.text
    assert "2 labelled rows have inputs that are not finite" in caplog.text
    gaps = Dataset.from_arrays({"x": np.array([[np.nan, 0], [1, 1]])}, np.arange(2, dtype=np.float32))
    assert labelled_traffic(capture.path, "toy", DAY_AGO, gaps).target.tolist() == [2.5, 1.5]
    whole = Dataset.from_arrays({"x": np.zeros((4, 2), np.int32)}, np.arange(4, dtype=np.float64))
    assert labelled_traffic(capture.path, "toy", DAY_AGO, whole).inputs["x"].tolist() == [[1, 1]] * 3


def test_nothing_finite_is_no_traffic(capture):
    template = Dataset.from_arrays({"x": np.zeros((4, 2))}, np.arange(4, dtype=np.float32))
    capture.label(capture.answer(*one(1.0)), [1e39])
    assert labelled_traffic(capture.path, "toy", DAY_AGO, template) is None
