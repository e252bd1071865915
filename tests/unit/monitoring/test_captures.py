"""Windows over several servers' captures, SQLite and Parquet: each request once, and nothing lost in silence."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from homeostat.archive import archive_folder
from homeostat.errors import DataInvalid
from homeostat.monitoring.snapshot import Wanted, open_snapshot
from homeostat.monitoring.traffic import read_rows
from homeostat.monitoring.window import count_labelled, labelled_traffic, read_window
from homeostat.serving.capture import rolling
from homeostat.serving.capture.rolling import roll
from tests.unit.monitoring.conftest import NOW, Capture

DAY_AGO = NOW - timedelta(days=1)


def one(value: float, rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.full((rows, 2), value, np.float32), np.full((rows, 3), value / 10, np.float32)


def read(traffic: Path, **options):
    return read_rows(traffic, "toy", DAY_AGO, NOW, options.pop("max_rows", 1000), **options)


@pytest.fixture
def captures(tmp_path: Path):
    servers = []
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        servers.append(Capture(tmp_path / name / "traffic.db"))
    yield servers
    for server in servers:
        server.connection.close()


def parts(capture: Capture) -> list[Path]:
    return sorted(archive_folder(capture.path).rglob("*.parquet"))


def rolled(capture: Capture, monkeypatch, rows: int = 4) -> list[Path]:
    """Roll what is captured into files of `rows` requests, in their order."""
    monkeypatch.setattr(rolling, "PART_ROWS", rows)
    roll(capture.path, 0, 0)
    return sorted(parts(capture), key=lambda path: pq.ParquetFile(path).read(["time"])["time"][0].as_py())


def test_servers_are_one_window_and_a_request_counts_once(captures, tmp_path):
    north, south = captures
    north.answer(*one(1.0), minutes_ago=30, request_id="a")
    south.answer(*one(2.0), minutes_ago=20, request_id="b")
    south.answer(*one(9.0), minutes_ago=10, request_id="a")  # sent again, to the other server
    roll(south.path, 0, 0)
    every = tmp_path / "*" / "traffic.db"
    rows = read(every)
    assert rows.request_ids.tolist() == ["a", "b"]
    assert rows.inputs["x"][:, 0].tolist() == [1, 2]
    assert rows.notes == ("1 requests stand in two captures: counted once",)
    assert read(north.path).notes == ()
    nothing = read(tmp_path / "nowhere" / "*.db")
    assert (len(nothing), nothing.notes) == (0, (f"no captured traffic at {tmp_path}/nowhere/*.db",))


def test_a_label_counts_whichever_server_it_was_sent_to(captures, tmp_path):
    north, south = captures
    north.answer(*one(1.0), request_id="a")
    south.answer(*one(2.0), request_id="b")
    roll(north.path, 0, 0)
    south.label("a", [1])
    every = tmp_path / "*" / "traffic.db"
    assert read(every).labels.tolist() == pytest.approx([1, np.nan], nan_ok=True)
    assert not read(north.path).labelled.any()
    assert read(every, labelled_only=True).request_ids.tolist() == ["a"]
    assert count_labelled(every, "toy", DAY_AGO) == 1
    north.connection.execute(
        "INSERT INTO label (request_id, model, time, labels) VALUES ('a', '', ?, '[0]')", (NOW.timestamp() - 60,)
    )
    assert read(every).labels[0] == 1, "the one that came last"


def test_one_damaged_capture_of_several_is_named(captures, tmp_path):
    captures[0].answer(*one(1.0), request_id="a")
    (tmp_path / "west").mkdir()
    (tmp_path / "west" / "traffic.db").write_bytes(b"no database" * 100)
    rows = read(tmp_path / "*" / "traffic.db")
    assert rows.request_ids.tolist() == ["a"]
    assert "west/traffic.db is damaged" in rows.unreadable[0]
    with pytest.raises(DataInvalid, match="damaged"):
        read(tmp_path / "west" / "traffic.db")


def test_by_count(capture):
    for minute in range(10):
        capture.answer(*one(float(minute), rows=2), minutes_ago=60 - minute)
    assert read(capture.path, newest=5).inputs["x"][:, 0].tolist() == [7, 7, 8, 8, 9, 9]
    assert len(read(capture.path, newest=500)) == 20
    window, rows = read_window(capture.path, "toy", DAY_AGO, NOW, 100, capture.path.parent, newest=4)
    assert (window.rows, window.found, len(rows)) == (4, 4, 4)


def test_a_version_change_in_the_window_is_said(capture):
    capture.answer(*one(1.0), version=2)
    capture.answer(*one(2.0), version=3)
    capture.answer(*one(3.0), version=3)
    roll(capture.path, 0, 0)
    capture.answer(*one(4.0), version=2)
    rows = read(capture.path, version=3)
    assert rows.inputs["x"][:, 0].tolist() == [2, 3]
    assert rows.notes == ("2 requests of the window were answered by another version than v3: left out",)
    assert read(capture.path).notes == ()
    assert rows.take(rows.labelled).notes == rows.notes


def test_a_clock_that_goes_back_is_said(capture):
    for minutes in (30, 29.999, 10, 25, 5):
        capture.answer(*one(1.0), minutes_ago=minutes)
    rows = read(capture.path)
    assert rows.notes == ("a server's clock went back by 900 s: times of this window are not to be trusted",)
    assert np.all(np.diff(rows.times) >= 0)


@pytest.mark.parametrize("damage", ["half", "zeros", "older"])
def test_a_file_that_cannot_be_read_costs_no_other(capture, monkeypatch, damage):
    for minute in range(12):
        capture.label(capture.answer(*one(float(minute)), minutes_ago=60 - minute), [1])
    files = rolled(capture, monkeypatch)
    whole = files[1].read_bytes()
    if damage == "half":
        files[1].write_bytes(whole[: len(whole) // 2])
    elif damage == "zeros":
        files[1].write_bytes(bytes(len(whole)))
    else:
        pq.write_table(pq.ParquetFile(files[1]).read().drop_columns(["time"]), files[1])
    rows = read(capture.path)
    assert rows.inputs["x"][:, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    (why,) = rows.unreadable
    assert files[1].name in why
    assert "4 requests: " in why
    assert ("without time" if damage == "older" else "damaged or half written") in why
    assert count_labelled(capture.path, "toy", DAY_AGO) == 8


def test_nothing_that_can_be_read_is_an_empty_window_with_a_reason(capture, monkeypatch):
    capture.answer(*one(1.0))
    (path,) = rolled(capture, monkeypatch)
    path.write_bytes(b"PAR1")
    rows = read(capture.path)
    assert (len(rows), rows.found) == (0, 0)
    assert "1 requests: damaged or half written" in rows.unreadable[0]
    path.unlink()
    assert read(capture.path).unreadable == ()


def test_a_damaged_page_is_named_when_its_requests_are_fetched(capture, monkeypatch):
    for minute in range(4):
        capture.answer(*one(float(minute)), minutes_ago=60 - minute)
    (path,) = rolled(capture, monkeypatch)
    column = pq.ParquetFile(path).metadata.row_group(0).column(5)
    assert column.path_in_schema == "inputs"
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    rows = read(capture.path)
    assert (len(rows), rows.found) == (0, 4)
    assert "4 requests: damaged" in rows.unreadable[0]


def test_an_older_file_without_newer_columns_is_read(capture, monkeypatch):
    for minute in range(8):
        capture.answer(*one(float(minute)), minutes_ago=60 - minute, slices={"site": "north"})
    files = rolled(capture, monkeypatch)
    for path in files[:1], files:  # one beside a newer one, then all
        for file in path:
            table = pq.ParquetFile(file).read()
            pq.write_table(table.drop_columns([n for n in ("slices", "masking") if n in table.column_names]), file)
        rows = read(capture.path)
        assert (len(rows), rows.unreadable, rows.masking) == (8, (), None)
    assert rows.slices == {}


def test_entries_stand_in_the_order_of_time_then_id(capture, monkeypatch):
    for name, minutes in (("c", 5), ("a", 5), ("z", 6), ("b", 5)):
        capture.answer(*one(1.0), minutes_ago=minutes, request_id=name)
    roll(capture.path, 0, 0)
    capture.answer(*one(1.0), minutes_ago=5, request_id="aa")
    with open_snapshot(capture.path) as snapshot:
        index = snapshot.index(Wanted("toy", 0.0))
        assert [entry.request_id for entry in index] == ["z", "a", "aa", "b", "c"]
        assert index[0].part.startswith("model=toy/version=3/")
        assert index[2].part == ""
        assert [record[0] for record in snapshot.fetch("toy", index.take(np.array([0, 2])))] == ["z", "aa"]


def test_learning_takes_all_servers(captures, tmp_path):
    from homeostat.dataset import Dataset

    for place, server in enumerate(captures):
        server.label(server.answer(*one(1.0), request_id=f"r{place}"), [place])
    template = Dataset.from_arrays(np.zeros((2, 2)), np.array([0, 1]))
    found = labelled_traffic(tmp_path / "*" / "traffic.db", "toy", DAY_AGO, template)
    assert found is not None
    assert found.target.tolist() == [0, 1]


def test_rows_of_the_index_are_plain_numbers(capture):
    capture.answer(*one(1.0))
    capture.connection.execute("UPDATE request SET rows = 'two'")
    with open_snapshot(capture.path) as snapshot:
        (entry,) = snapshot.index(Wanted("toy", 0.0))
    assert entry.rows == 0
