"""Capture: frames, the writer process, and what is counted when it cannot keep up or dies."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time

import numpy as np
import pytest

from homeostat.monitoring import snapshot
from homeostat.serving.capture import writer
from homeostat.serving.capture.recorder import DEATHS, Recorder
from homeostat.serving.capture.writer import LABELS, REQUEST, connect, frame, frames, store
from homeostat.tensors import pack, unpack

INPUTS = pack({"x": np.arange(4, dtype="<f4").reshape(1, 4)})


FIRST_SCHEMA = """
CREATE TABLE IF NOT EXISTS request (
  request_id TEXT PRIMARY KEY, time REAL, model TEXT, version INTEGER, sha256 TEXT, entity_id TEXT,
  rows INTEGER, inputs BLOB, outputs BLOB, milliseconds REAL
);
CREATE INDEX IF NOT EXISTS request_time ON request (model, time);
CREATE TABLE IF NOT EXISTS label (request_id TEXT PRIMARY KEY, time REAL, labels TEXT);
"""


def request(name: str, when: float = 1.0, model: str = "toy", arm: str = "champion") -> bytes:
    about = [name, when, model, 3, "sha", "e", 1, 0.5, arm, "key-1", None, None]
    return frame(REQUEST, json.dumps(about).encode(), INPUTS, b"out")


def labels(name: str, *values: float, when: float = 1.0, model: str = "") -> bytes:
    return frame(LABELS, json.dumps([[name, model, when, list(values)]]).encode())


def write(database: sqlite3.Connection, *data: bytes) -> int:
    return store(database, list(frames(bytearray(b"".join(data)))))


def table(path, name):
    with sqlite3.connect(path) as database:
        return database.execute(f"SELECT * FROM {name} ORDER BY 1, rowid").fetchall()


def counts(recorder):
    return recorder.captured, recorder.written, recorder.duplicates, recorder.dropped


@pytest.fixture
def recorder(tmp_path):
    made = Recorder(tmp_path / "traffic" / "traffic.db")
    made.start()
    yield made
    if made._thread.is_alive():
        made.close()


def wait_until(holds, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "not within the time allowed"
        time.sleep(0.01)


def test_frames_come_back_whatever_the_cuts():
    data = request("a") + labels("a", 1) + request("b")
    expected = list(frames(bytearray(data)))
    assert [kind for kind, *_ in expected] == [REQUEST, LABELS, REQUEST]
    buffer, found = bytearray(), []
    for at in range(0, len(data), 7):
        buffer += data[at : at + 7]
        found += frames(buffer)
    assert (found, buffer) == (expected, bytearray())
    assert list(frames(bytearray(data[:-1]))) == expected[:2]
    with pytest.raises(ValueError, match="frame"):
        list(frames(bytearray(b"\xff" * 40)))


def test_a_request_is_kept_once_for_each_model_and_a_second_use_of_its_id_is_counted(tmp_path):
    database = connect(str(tmp_path / "t.db"))
    assert write(database, request("a"), request("b"), request("a", when=9.0), request("a", model="other")) == 1
    assert write(database, request("a", when=2.0), request("a", when=3.0, model="other"), request("c")) == 2
    rows = table(tmp_path / "t.db", "request")
    assert [(row[0], row[2], row[1]) for row in rows] == [
        ("a", "toy", 1.0),
        ("a", "other", 1.0),
        ("b", "toy", 1.0),
        ("c", "toy", 1.0),
    ]
    assert rows[0] == ("a", 1.0, "toy", 3, "sha", "e", 1, INPUTS, b"out", 0.5, "champion", "key-1", None, None), (
        "the first of an id stays"
    )
    np.testing.assert_array_equal(unpack(rows[0][7])["x"], [[0, 1, 2, 3]])
    assert (tmp_path / "t.db").stat().st_mode & 0o077 == 0


def test_what_is_sent_again_after_a_crash_is_no_second_use(tmp_path):
    database = connect(str(tmp_path / "t.db"))
    sent = request("a", when=1795637846.123457), request("b"), labels("a", 1)
    assert [write(database, *sent) for _ in range(3)] == [0, 0, 0]
    assert len(table(tmp_path / "t.db", "request")) == 2


def test_the_last_labels_of_an_id_count_with_and_without_a_model(tmp_path):
    database = connect(str(tmp_path / "t.db"))
    write(database, labels("a", 1, when=9.0), labels("a", 5, model="toy"), labels("a", 2, when=2.0), labels("b", 7))
    assert [row[1:] for row in table(tmp_path / "t.db", "label")] == [
        ("a", "toy", 1.0, "[5]"),
        ("a", "", 2.0, "[2]"),
        ("b", "", 1.0, "[7]"),
    ]


def first_schema(path, *, complete: bool = True) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(FIRST_SCHEMA)
        for number in range(300):
            row = (f"r{number}", float(number), "toy", 3, "sha", "e", 1, INPUTS, b"out", 0.5)
            database.execute("INSERT INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        database.execute("INSERT INTO label VALUES ('r1', 1.0, '[2.0]')")
        if not complete:
            database.execute("DROP TABLE label")
            database.execute("DROP INDEX request_time")
    database.close()


@pytest.mark.parametrize("complete", [True, False])
def test_the_first_schema_is_brought_up_to_date(tmp_path, complete, caplog):
    path = tmp_path / "t.db"
    first_schema(path, complete=complete)
    before = table(path, "request")
    database = connect(str(path))
    assert f"{path}: 300 requests and {int(complete)} labels brought from schema 0 to 3" in caplog.text
    assert table(path, "request") == [(*row, "champion", None, None, None) for row in before]
    assert [row[1:] for row in table(path, "label")] == [("r1", "", 1.0, "[2.0]")] * complete
    assert write(database, request("r1", 9.0), request("r1", 9.0, "other"), labels("r1", 3)) == 1
    database.close()
    caplog.clear()
    connect(str(path)).close()
    assert caplog.text == "", "a second opening finds nothing to do"


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "t.db"
    first_schema(path)
    before = table(path, "request"), table(path, "label")
    broken = (*writer.TAKE_OVER[0], "INSERT INTO nowhere VALUES (1)")
    with monkeypatch.context() as patched:
        patched.setitem(writer.TAKE_OVER, 0, broken)
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            connect(str(path))
    assert (table(path, "request"), table(path, "label")) == before
    connect(str(path)).close()
    assert [row[:10] for row in table(path, "request")] == before[0]


SECOND_SCHEMA = """
CREATE TABLE request (
  request_id TEXT NOT NULL, time REAL, model TEXT NOT NULL, version INTEGER, sha256 TEXT, entity_id TEXT,
  rows INTEGER, inputs BLOB, outputs BLOB, milliseconds REAL, PRIMARY KEY (model, request_id)
);
CREATE INDEX request_time ON request (model, time);
CREATE TABLE label (
  sequence INTEGER PRIMARY KEY, request_id TEXT NOT NULL, model TEXT NOT NULL, time REAL, labels TEXT,
  UNIQUE (request_id, model)
);
PRAGMA user_version = 2;
"""


def test_the_second_schema_is_brought_up_to_date(tmp_path, caplog):
    path = tmp_path / "t.db"
    with sqlite3.connect(path) as old:
        old.executescript(SECOND_SCHEMA)
        for number in range(300):
            row = (f"r{number}", float(number), "toy", 3, "sha", "e", 1, INPUTS, b"out", 0.5)
            old.execute("INSERT INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        old.execute("INSERT INTO label VALUES (7, 'r1', '', 1.0, '[2.0]'), (9, 'r1', 'toy', 2.0, '[3.0]')")
    old.close()
    before, labelled = table(path, "request"), table(path, "label")
    database = connect(str(path))
    assert f"{path}: 300 requests and 2 labels brought from schema 2 to 3" in caplog.text
    assert table(path, "request") == [(*row, "champion", None, None, None) for row in before]
    assert table(path, "label") == labelled, "the order of arrival stays"
    assert write(database, request("r1", 9.0), request("r1", 9.0, "other"), request("r1", 9.0, arm="shadow")) == 1
    found = database.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    assert sorted(name for (name,) in found) == ["label", "part", "request", "request_id", "request_time", "rolled"]


def test_a_shadow_answers_the_same_request_beside_another_arm(tmp_path):
    database = connect(str(tmp_path / "t.db"))
    assert write(database, request("a"), request("a", arm="shadow"), request("a", 2.0, arm="canary")) == 1
    assert write(database, request("a", arm="shadow"), request("a", 5.0, arm="shadow")) == 1
    assert [row[10] for row in table(tmp_path / "t.db", "request")] == ["champion", "shadow"]


def test_a_file_of_a_later_schema_is_refused(tmp_path):
    path = str(tmp_path / "t.db")
    database = connect(path)
    database.execute("PRAGMA user_version = 4")
    database.close()
    with pytest.raises(ValueError, match=r"has schema 4.*HOMEOSTAT_TRAFFIC"):
        connect(path)


def test_a_commit_is_synced(tmp_path):
    database = connect(str(tmp_path / "t.db"))
    found = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]


def test_reader_and_writer_agree_on_the_schema():
    assert snapshot.SCHEMA_VERSION == writer.SCHEMA_VERSION


def test_everything_is_written_by_the_end(recorder):
    for number in range(5000):
        assert recorder.put(request(f"{number:05}"))
    recorder.put(labels("00001", 1, 2))
    recorder.close()
    assert len(table(recorder.path, "request")) == 5000
    assert table(recorder.path, "label") == [(1, "00001", "", 1.0, "[1, 2]")]
    assert counts(recorder) == (5001, 5001, 0, 0)
    assert recorder._writer.returncode == 0


def test_a_killed_writer_is_replaced_and_nothing_is_lost_or_double(recorder):
    for number in range(400):
        recorder.put(request(f"{number:05}"))
        if number % 100 == 50:
            wait_until(lambda least=number - 49: recorder.written >= least)  # a writer that got something done
            before = recorder.restarts
            os.kill(recorder.pid, signal.SIGKILL)
            wait_until(lambda before=before: recorder.restarts > before)
    recorder.close()
    assert [row[0] for row in table(recorder.path, "request")] == [f"{n:05}" for n in range(400)]
    assert (*counts(recorder), recorder.restarts) == (400, 400, 0, 0, 4)


def test_second_uses_are_counted_apart_while_writers_die(recorder):
    for number in range(300):
        recorder.put(request(f"{number % 100:05}", when=float(number)))
        if number % 100 == 50:
            before = recorder.restarts
            os.kill(recorder.pid, signal.SIGKILL)
            wait_until(lambda before=before: recorder.restarts > before)
            done = recorder.captured
            wait_until(lambda done=done: recorder.written + recorder.duplicates >= done)
    recorder.close()
    assert [row[1] for row in table(recorder.path, "request")] == [float(n) for n in range(100)]
    assert (*counts(recorder), recorder.restarts) == (300, 100, 200, 0, 3)


def test_a_full_buffer_counts_its_drops(tmp_path):
    recorder = Recorder(tmp_path / "t.db", buffer_bytes=len(request("0")) * 3)
    taken = [recorder.put(request(str(number))) for number in range(5)]
    assert taken == [True] * 3 + [False] * 2
    assert (recorder.captured, recorder.dropped) == (5, 2)
    recorder.start()
    recorder.close()
    assert [row[0] for row in table(recorder.path, "request")] == ["0", "1", "2"]
    assert counts(recorder) == (5, 3, 0, 2)


def test_a_writer_that_cannot_write_is_given_up_with_a_count(tmp_path):
    (tmp_path / "t.db").write_text("this is no database" * 100)
    recorder = Recorder(tmp_path / "t.db")
    recorder.start()
    recorder.put(request("a"))
    wait_until(lambda: recorder.dropped == 1, 20)
    recorder.close(0.5)
    assert counts(recorder) == (1, 0, 0, 1)
    assert recorder.restarts >= 2


def test_a_file_that_cannot_be_written_for_a_while_loses_nothing(tmp_path):
    (tmp_path / "t.db").mkdir()
    recorder = Recorder(tmp_path / "t.db")
    recorder.start()
    recorder.put(request("a"))
    wait_until(lambda: recorder.restarts > DEATHS, 20)
    recorder.put(request("b"))
    assert (recorder.dropped, recorder.written) == (0, 0)
    (tmp_path / "t.db").rmdir()
    wait_until(lambda: recorder.written == 2, 20)
    recorder.close()
    assert counts(recorder) == (2, 2, 0, 0)


@pytest.mark.parametrize(("days", "told"), [(-400, "0"), (-0.4, "90"), (0, "90"), (0.4, "90"), (400, "0")])
def test_a_clock_that_has_jumped_deletes_nothing(tmp_path, monkeypatch, caplog, days, told):
    database = connect(str(tmp_path / "t.db"))
    roller = writer.Roller(database, "t.db", "90", "0", 3600)
    now = time.time
    monkeypatch.setattr(writer.time, "time", lambda: now() + days * 86400)
    assert roller.arguments() == ["t.db", told, "0"]
    assert ("the clock has jumped" in caplog.text) == (told == "0")
    database.close()


def test_the_writer_ignores_signals_and_ends_with_its_input(recorder):
    recorder.put(request("a"))
    wait_until(lambda: recorder.written == 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(recorder.pid, number)
    recorder.put(request("b"))
    wait_until(lambda: recorder.written == 2)
    recorder.close()
    assert recorder.restarts == 0
