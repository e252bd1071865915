"""Captured requests on their way to Parquet: each once at any moment, within an age and a size."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from click.testing import CliRunner

from homeostat.archive import COLUMNS, archive_folder
from homeostat.cli import main
from homeostat.monitoring.snapshot import Wanted, open_snapshot
from homeostat.monitoring.traffic import read_rows
from homeostat.monitoring.window import count_labelled
from homeostat.serving.capture import rolling
from homeostat.serving.capture.recorder import Recorder, Retention
from homeostat.serving.capture.rolling import Rolled, delete, roll
from homeostat.serving.capture.writer import LABELS, REQUEST, connect, frame, frames, live_bytes, store
from homeostat.tensors import pack

DAY = 86_400.0
START = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
OUTPUTS = pack({"output": np.zeros((1, 1), "<f4")})


def request(name: str, when: float = START, model: str = "toy", version: int = 3, arm: str = "champion") -> bytes:
    about = [name, when, model, version, "sha", "e", 1, 0.5, arm, "key-1", '{"site": "north"}', None]
    return frame(REQUEST, json.dumps(about).encode(), pack({"x": np.full((1, 2), when % 97, "<f4")}), OUTPUTS)


def label(name: str, value: float, model: str = "", when: float = START) -> bytes:
    return frame(LABELS, json.dumps([[name, model, when, [value]]]).encode())


def write(path: Path, *data: bytes) -> int:
    database = connect(str(path))
    try:
        return store(database, list(frames(bytearray(b"".join(data)))))
    finally:
        database.close()


def ids(path: Path, model: str = "toy") -> list[str]:
    with open_snapshot(path) as snapshot:
        index = snapshot.index(Wanted(model, 0))
        assert [entry.request_id for entry in index] == [row[0] for row in snapshot.fetch(model, index)]
        return [entry.request_id for entry in index]


def in_sqlite(path: Path, table: str = "request") -> int:
    database = sqlite3.connect(path)
    (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
    database.close()
    return count


def files(path: Path) -> list[str]:
    folder = archive_folder(path)
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.db"


@pytest.fixture
def days(path: Path) -> Path:
    """Ten requests on each of three days, two versions of one model and another model."""
    for day in range(3):
        when = START + day * DAY
        write(path, *(request(f"d{day}-{n}", when + n, version=3 + n % 2) for n in range(10)))
        write(path, request("d0-0", when, "other"))
    return path


def test_requests_move_and_read_the_same(days):
    write(days, label("d0-1", 1.0), label("d1-1", 5.0, "toy"), label("d1-1", 6.0), label("d0-0", 7.0, "other"))
    start, end = (datetime.fromtimestamp(START + d * DAY, UTC) for d in (0, 3))
    before = read_rows(days, "toy", start, end, 100)
    labelled = read_rows(days, "toy", start, end, 100, version=4, labelled_only=True)
    assert roll(days, 0, 0) == Rolled(requests=31, files=7)
    assert in_sqlite(days) == 0
    for rows, again in (
        (before, read_rows(days, "toy", start, end, 100)),
        (labelled, read_rows(days, "toy", start, end, 100, version=4, labelled_only=True)),
    ):
        np.testing.assert_equal(vars(again), vars(rows))
    assert labelled.labels.tolist() == [1.0, 6.0]
    assert count_labelled(days, "toy", start) == 2
    write(days, label("d2-2", 9.0), request("new", START + 2 * DAY + 60))
    assert count_labelled(days, "toy", start) == 3, "a label that comes late"
    assert ids(days)[-1] == "new"
    assert len(read_rows(days, "toy", start, end, 12, seed=1)) == 12
    assert roll(days, 0, 0) == Rolled(requests=1, files=1)
    assert roll(days, 0, 0) == Rolled()


def test_other_tools_read_the_folder(days):
    roll(days, 0, 0)
    table = ds.dataset(archive_folder(days), partitioning="hive", exclude_invalid_files=True).to_table()
    assert set(table.column_names) == {*COLUMNS, "model", "version", "date"}
    assert table.filter(pa.compute.equal(table["version"], 4)).num_rows == 15
    assert set(table["date"].to_pylist()) == {"2026-03-01", "2026-03-02", "2026-03-03"}
    assert table["slices"].to_pylist()[0] == b'{"site": "north"}'
    assert all((archive_folder(days) / name).stat().st_mode & 0o077 == 0 for name in files(days))


def test_a_second_use_of_an_id_is_known_after_the_first_has_moved(days):
    roll(days, 0, 0)
    again = request("d0-3", START + 3, version=4)
    assert write(days, again) == 0, "the same, sent again because a writer died: no second use"
    assert write(days, request("d0-3", START + 50), again, request("d0-3", START + 3, "other")) == 1
    assert write(days, request("d0-3", START, arm="shadow")) == 0
    assert ids(days).count("d0-3") == 1
    assert in_sqlite(days) == 2


def test_midnight_belongs_to_the_new_day(path):
    times = [START - 1e-6, START - 1e-4, START, START + DAY - 1e-6, START + DAY]
    write(path, *(request(f"r{n}", when) for n, when in enumerate(times)))
    assert roll(path, 0, 0) == Rolled(requests=5, files=3)
    assert {name.split("/")[2] for name in files(path) if "date" in name} == {
        "date=2026-02-28",
        "date=2026-03-01",
        "date=2026-03-02",
    }


def test_a_large_day_is_several_files(path, monkeypatch):
    write(path, *(request(f"r{n:02}", START + n) for n in range(25)))
    monkeypatch.setattr(rolling, "PART_ROWS", 10)
    assert roll(path, 0, 0) == Rolled(requests=25, files=3)
    write(path, *(request(f"s{n:02}", START + n) for n in range(25)))
    monkeypatch.setattr(rolling, "PART_BYTES", 500)
    assert roll(path, 0, 0).files > 3
    assert len(ids(path)) == 50


def test_names_that_are_no_folders_are_quoted(path):
    write(path, request("a", model="../../up"))
    roll(path, 0, 0)
    assert ids(path, "../../up") == ["a"]
    assert any(name.startswith("model=..%2F..%2Fup/version=3/") for name in files(path))


CRASH = """
import os, shutil, signal, sys
from pathlib import Path
import pandas, pyarrow.parquet  # pandas: pyarrow imports it at the first array
from homeostat.serving.capture import rolling

template, base = Path(sys.argv[1]), Path(sys.argv[2])
max_days = float(sys.argv[3])
connect, left = rolling.connect, 0

def step(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def traced(path):
    database = connect(path)
    database.set_trace_callback(step)
    return database

def hook(event, arguments):
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and str(base) in str(arguments[0]):
        step()

count = 0
while True:
    count += 1
    home = base / str(count)
    shutil.copytree(template, home)
    pid = os.fork()
    if pid == 0:
        left = count
        rolling.connect = traced
        sys.addaudithook(hook)
        rolling.roll(home / "traffic.db", max_days, 0, now=float(sys.argv[4]))
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0:
        break
print(count)
"""


def crash_everywhere(template: Path, base: Path, max_days: float, now: float) -> int:
    arguments = [str(template), str(base), str(max_days), str(now)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CRASH, *arguments], capture_output=True, check=True, text=True
    )
    return int(done.stdout)


def test_killed_at_any_moment_of_a_roll_nothing_is_lost_or_double(tmp_path):
    template = tmp_path / "template"
    template.mkdir()
    path = template / "traffic.db"
    write(path, *(request(f"a{n}", START + n) for n in range(5)))
    roll(path, 0, 0)
    expected = [*(f"a{n}" for n in range(5)), *(f"b{n}" for n in range(8))]
    write(path, *(request(f"b{n}", START + 60 + n, version=3 + n % 2) for n in range(8)))
    steps = crash_everywhere(template, tmp_path / "crash", 0, START)
    assert steps > 20
    for step in range(1, steps + 1):
        crashed = tmp_path / "crash" / str(step) / "traffic.db"
        assert ids(crashed) == expected, f"killed at step {step}"
        assert write(crashed, request("b3", START + 63, version=4), request("b3", 1.0)) == 1, step
        roll(crashed, 0, 0)
        assert ids(crashed) == expected, f"killed at step {step}, and rolled again"
        assert in_sqlite(crashed) == 0
        assert not [name for name in files(crashed) if name.endswith(".tmp")]
        assert len(files(crashed)) == 4, "three files and the lock"


def test_killed_at_any_moment_of_an_expiry_whole_days_go_or_stay(tmp_path):
    template = tmp_path / "template"
    template.mkdir()
    path = template / "traffic.db"
    for day in range(2):
        write(path, *(request(f"d{day}-{n}", START + day * DAY + n) for n in range(4)))
    roll(path, 0, 0)
    old, new = ([f"d{day}-{n}" for n in range(4)] for day in range(2))
    now = START + 2.5 * DAY
    steps = crash_everywhere(template, tmp_path / "crash", 1.0, now)
    for step in range(1, steps + 1):
        crashed = tmp_path / "crash" / str(step) / "traffic.db"
        assert ids(crashed) in (old + new, new), f"killed at step {step}"
        roll(crashed, 1.0, 0, now)
        assert ids(crashed) == new
        assert (len(files(crashed)), in_sqlite(crashed, "rolled"), in_sqlite(crashed, "part")) == (2, 4, 1)


def test_what_is_too_old_goes_by_whole_days_and_with_its_labels(days):
    early = START + DAY / 2
    write(days, label("d0-1", 1.0), label("nobody", 1.0), label("d1-1", 1.0), label("later", 1.0, when=START + 9 * DAY))
    roll(days, 0, 0)
    write(days, request("late", early))
    done = roll(days, 2.0, 0, now=early + 2 * DAY)
    assert done == Rolled(requests=1, files=1, labels=1), "a day goes when all of it is too old"
    done = roll(days, 2.0, 0, now=START + 3 * DAY + 1)
    assert done == Rolled(expired=12, labels=1)
    assert ids(days) == [f"d{day}-{n}" for day in (1, 2) for n in range(10)]
    assert not (archive_folder(days) / "model=toy" / "version=3" / "date=2026-03-01").exists()
    assert write(days, request("d0-1", START + 9 * DAY)) == 0, "its id is free again"


def test_the_oldest_days_go_when_all_is_too_much(days):
    roll(days, 0, 0)
    size = sum((archive_folder(days) / name).stat().st_size for name in files(days))
    database = connect(str(days))
    live = live_bytes(database)
    database.close()
    assert roll(days, 0, size + live) == Rolled()
    assert roll(days, 0, size + live - 1) == Rolled(expired=11)
    assert ids(days)[0] == "d1-0"
    assert roll(days, 0, 1).expired == 20
    assert files(days) == [".lock"]


def test_without_pyarrow_the_limits_hold_for_sqlite(days, monkeypatch):
    monkeypatch.setattr(rolling.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(rolling, "DELETED_ROWS", 4)
    assert roll(days, 2.0, 0, now=START + 3 * DAY + 20) == Rolled(expired=21)
    size = days.stat().st_size
    write(days, *(request(f"n{n}", START + 4 * DAY + n) for n in range(2000)))
    assert len(ids(days)) == 2010
    assert roll(days, 0, size + 100_000).expired > 100
    assert "n1999" in ids(days)
    with sqlite3.connect(days) as database:
        assert live_bytes(database) < size + 100_000
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    assert days.stat().st_size < size + 200_000, "the space is given back"


def test_files_outlive_their_sqlite_file(days):
    write(days, request("shadow", arm="shadow"))
    roll(days, 0, 0)
    expected = ids(days)
    for name in days.parent.glob("traffic.db*"):
        name.unlink()
    write(days, request("d0-3", START + 3, version=4))  # came again meanwhile
    assert roll(days, 0, 0) == Rolled(adopted=7)
    assert ids(days) == expected
    assert write(days, request("d0-4", 1.0), request("shadow", 1.0, arm="shadow")) == 2


def test_a_file_that_is_damaged_is_left_alone_and_named(days, caplog):
    roll(days, 0, 0)
    strange = archive_folder(days) / "model=toy" / "version=3" / "date=2026-03-01" / "strange.parquet"
    strange.write_bytes(b"nothing of the kind")
    assert roll(days, 0, 0) == Rolled()
    assert "strange.parquet is left alone" in caplog.text
    assert len(ids(days)) == 30


def test_one_process_rolls_at_a_time(days):
    with rolling.open_archive(days) as database:
        assert database is not None
        assert roll(days, 0, 0) is None
        assert delete(days, "toy", START) is None
    assert roll(days, 0, 0).requests == 31


def test_a_roll_that_fails_leaves_everything_where_it_is(days, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    expected = ids(days)
    with monkeypatch.context() as patched:
        patched.setattr("pyarrow.parquet.write_table", full)
        assert rolling.main(str(days), "0", "0") == 1
    assert (ids(days), files(days)) == (expected, [".lock"])
    assert roll(days, 0, 0).requests == 31


def test_a_models_days_can_be_deleted(days):
    roll(days, 0, 0)
    write(days, request("again", START + 5), request("kept", START + DAY))
    assert delete(days, "toy", START + DAY + 7200) == 11, "whole days before it"
    assert ids(days)[0] == "d1-0"
    assert ids(days, "other") == ["d0-0"]


def test_the_command_shows_moves_and_deletes(days, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_TRAFFIC", str(days))
    monkeypatch.setenv("HOMEOSTAT_TRAFFIC_DAYS", "0")
    call = CliRunner().invoke
    assert "31 requests moved to 7 Parquet files" in call(main, ["traffic", "roll"]).output
    write(days, request("new", START + 3 * DAY))
    shown = call(main, ["traffic", "status"]).output
    assert "toy v3: 16 requests, 15 of them in 3 Parquet files, since 2026-03-01" in shown
    found = json.loads(call(main, ["traffic", "status", "--json"]).output)
    assert [(m["model"], m["version"], m["requests"]) for m in found["models"]] == [
        ("other", 3, 1),
        ("toy", 3, 16),
        ("toy", 4, 15),
    ]
    assert found["bytes"] > 10_000
    command = ["traffic", "delete", "toy", "--before", "2026-03-02"]
    assert call(main, command, input="n\n").exit_code == 1
    assert len(ids(days)) == 31
    assert "10 requests deleted" in call(main, [*command, "--yes"]).output
    assert "is no date" in call(main, [*command[:-1], "soon", "--yes"]).output
    with rolling.open_archive(days):
        assert "try again" in call(main, ["traffic", "roll"]).output
    assert len(ids(days)) == 21


def test_the_writer_has_it_rolled_while_it_writes(path):
    recorder = Recorder(path, retention=Retention(0, 0, roll_seconds=0.5))
    recorder.start()
    sent, deadline = 0, time.monotonic() + 30
    while not files(path) or sent < 200 or in_sqlite(path, "part WHERE NOT pending") < 2:
        assert time.monotonic() < deadline, files(path)
        recorder.put(request(f"{sent:06}", START + sent))
        recorder.put(request(f"{sent // 2:06}", START + 10**6))
        sent += 1
        time.sleep(0.005)
        if sent % 300 == 150:
            before = recorder.restarts
            os.kill(recorder.pid, signal.SIGKILL)
            while recorder.restarts == before:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    recorder.close()
    assert ids(path) == [f"{n:06}" for n in range(sent)]
    assert (recorder.captured, recorder.written, recorder.duplicates, recorder.dropped) == (2 * sent, sent, sent, 0)


def test_nothing_of_the_server_or_its_writer_imports_pyarrow():
    code = (
        "import sys, homeostat.serving.server, homeostat.serving.capture.writer, homeostat.serving.capture.rolling;"
        "sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
