"""Capture: frames, the writer process, and what is counted when it cannot keep up or dies."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time

import numpy as np
import pytest

from homeostat.serving.capture import LABELS, REQUEST, connect, frame, frames, store
from homeostat.serving.recorder import Recorder
from homeostat.tensors import pack, unpack

INPUTS = pack({"x": np.arange(4, dtype="<f4").reshape(1, 4)})


def request(name: str, when: float = 1.0) -> bytes:
    return frame(REQUEST, json.dumps([name, when, "toy", 3, "sha", "e", 1, 0.5]).encode(), INPUTS, b"out")


def labels(name: str, *values: float, when: float = 1.0) -> bytes:
    return frame(LABELS, json.dumps([[name, when, list(values)]]).encode())


def table(path, name):
    with sqlite3.connect(path) as database:
        return database.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()


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


def test_schema_and_corrections(tmp_path):
    database = connect(str(tmp_path / "t.db"))
    batch = request("a") + request("b") + request("a", when=9.0) + labels("a", 1) + labels("a", 2, when=2.0)
    store(database, list(frames(bytearray(batch))))
    rows = table(tmp_path / "t.db", "request")
    assert [row[0] for row in rows] == ["a", "b"]
    assert rows[0] == ("a", 1.0, "toy", 3, "sha", "e", 1, INPUTS, b"out", 0.5), "the first of an id stays"
    np.testing.assert_array_equal(unpack(rows[0][7])["x"], [[0, 1, 2, 3]])
    assert table(tmp_path / "t.db", "label") == [("a", 2.0, "[2]")]
    assert (tmp_path / "t.db").stat().st_mode & 0o077 == 0


def test_everything_is_written_by_the_end(recorder):
    for number in range(5000):
        assert recorder.put(request(f"{number:05}"))
    recorder.put(labels("00001", 1, 2))
    recorder.close()
    assert len(table(recorder.path, "request")) == 5000
    assert table(recorder.path, "label") == [("00001", 1.0, "[1, 2]")]
    assert (recorder.captured, recorder.written, recorder.dropped) == (5001, 5001, 0)
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
    assert (recorder.dropped, recorder.restarts) == (0, 4)


def test_a_full_buffer_counts_its_drops(tmp_path):
    recorder = Recorder(tmp_path / "t.db", buffer_bytes=len(request("0")) * 3)
    taken = [recorder.put(request(str(number))) for number in range(5)]
    assert taken == [True] * 3 + [False] * 2
    assert (recorder.captured, recorder.dropped) == (3, 2)
    recorder.start()
    recorder.close()
    assert [row[0] for row in table(recorder.path, "request")] == ["0", "1", "2"]


def test_a_writer_that_cannot_write_is_given_up_with_a_count(tmp_path):
    (tmp_path / "t.db").write_text("this is no database" * 100)
    recorder = Recorder(tmp_path / "t.db")
    recorder.start()
    recorder.put(request("a"))
    wait_until(lambda: recorder.dropped == 1, 20)
    recorder.close(0.5)
    assert (recorder.written, recorder.dropped) == (0, 1)
    assert recorder.restarts >= 2


def test_the_writer_ignores_signals_and_ends_with_its_input(recorder):
    recorder.put(request("a"))
    wait_until(lambda: recorder.written == 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(recorder.pid, number)
    recorder.put(request("b"))
    wait_until(lambda: recorder.written == 2)
    recorder.close()
    assert recorder.restarts == 0
