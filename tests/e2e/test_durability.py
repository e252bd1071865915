"""What capture loses when processes are killed under load, counted against the client's own list."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from homeostat.monitoring.snapshot import Wanted, open_snapshot
from tests.e2e.test_server import Server

pytestmark = pytest.mark.e2e

CLIENTS = 4
SECONDS_AT_RISK = 2.0
"""Far more than the 0.05 s between two flushes: the machine may be busy."""


@dataclass
class Client:
    """One connection: what it sent, and when each answer came; every tenth id is used twice, every seventh labelled."""

    port: int
    name: str
    sent: int = 0
    answered: dict[str, float] = field(default_factory=dict)
    repeated: int = 0
    labelled: dict[str, float] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            while not stop.is_set():
                name = f"{self.name}-{self.sent}"
                self.sent += 1
                self._post(connection, "/v2/models/toy/infer", 200, {"id": name, "inputs": [INPUT]})
                self.answered[name] = time.monotonic()
                if self.sent % 10 == 0:
                    self._post(connection, "/v2/models/toy/infer", 200, {"id": name, "inputs": [INPUT]})
                    self.repeated += 1
                if self.sent % 7 == 0:
                    self._post(connection, "/v1/feedback", 202, {"id": name, "model": "toy", "labels": [1.0]})
                    self.labelled[name] = time.monotonic()
        except (OSError, http.client.HTTPException):
            stop.wait()  # killed, as asked
        finally:
            connection.close()

    def _post(self, connection: http.client.HTTPConnection, path: str, status: int, body: object) -> None:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == status, text


INPUT = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}


class Load:
    """The clients and their threads."""

    def __init__(self, port: int) -> None:
        self.clients = [Client(port, f"c{number}") for number in range(CLIENTS)]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=client.run, args=(self._stop,)) for client in self.clients]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(15)

    def answered(self) -> dict[str, float]:
        return {name: when for client in self.clients for name, when in client.answered.items()}

    def labelled(self) -> dict[str, float]:
        return {name: when for client in self.clients for name, when in client.labelled.items()}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home")
    made.promote(1)
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.wait(20)


def metric(served: Server, name: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^homeostat_{name} (\S+)$", text, re.M)
    assert found, text
    return int(float(found[1]))


def test_kill_9_of_the_writer_under_load_loses_and_doubles_nothing(served):
    load = Load(served.port)
    try:
        for kill in range(3):
            more = metric(served, "capture_written_total") + 100
            served.wait(lambda more=more: metric(served, "capture_written_total") >= more)
            (writer,) = served.writers()
            os.kill(writer, signal.SIGKILL)
            served.wait(lambda kill=kill: metric(served, "capture_restarts_total") == kill + 1)
        more = metric(served, "capture_written_total") + 100
        served.wait(lambda: metric(served, "capture_written_total") >= more)
    finally:
        load.end()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(20) == 0
    answered, labelled = load.answered(), load.labelled()
    repeated = sum(client.repeated for client in load.clients)
    assert repeated > 0
    assert sorted(row[0] for row in served.captured()) == sorted(answered)
    assert sorted(row[1] for row in served.captured("label")) == sorted(labelled)
    written = len(answered) + len(labelled)
    assert served.line("stopped") == (
        f"stopped; {written + repeated} captured = {written} written + {repeated} duplicates + 0 dropped"
    )


def test_kill_9_of_whatever_moves_requests_to_parquet_loses_and_doubles_nothing(served):
    traffic, load = served.home / "traffic.db", Load(served.port)
    command = [sys.executable, "-m", "homeostat.serving.capture.rolling", str(traffic), "0", "0"]
    try:
        for kill in range(12):
            more = metric(served, "capture_written_total") + 50
            served.wait(lambda more=more: metric(served, "capture_written_total") >= more)
            process = subprocess.Popen(command, env=served.environment, stderr=subprocess.DEVNULL)
            try:
                process.wait(0.3 + 0.06 * kill)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if kill % 4 == 3:
                (writer,) = served.writers()
                os.kill(writer, signal.SIGKILL)
                served.wait(lambda kill=kill: metric(served, "capture_restarts_total") == kill // 4 + 1)
    finally:
        load.end()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(20) == 0
    assert subprocess.run(command, env=served.environment, check=False).returncode == 0
    answered, labelled = load.answered(), load.labelled()
    with open_snapshot(traffic) as snapshot:
        index = snapshot.index(Wanted("toy", 0))
        assert sorted(entry.request_id for entry in index) == sorted(answered)
        assert sum(record[-1] is not None for record in snapshot.fetch("toy", index)) == len(labelled)
    assert served.captured() == [], "all of it is in Parquet"
    written, repeated = len(answered) + len(labelled), sum(client.repeated for client in load.clients)
    assert served.line("stopped") == (
        f"stopped; {written + repeated} captured = {written} written + {repeated} duplicates + 0 dropped"
    )


def test_kill_9_of_the_server_under_load_loses_its_last_moment_at_most(served):
    load = Load(served.port)
    try:
        served.wait(lambda: metric(served, "capture_written_total") >= 1000)
        (writer,) = served.writers()
        killed = time.monotonic()
        served.kill()
    finally:
        load.end()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{writer}").exists():
        assert time.monotonic() < deadline, "the writer is still there"
        time.sleep(0.02)
    with sqlite3.connect(served.home / "traffic.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for kept, told in (
        ({row[0] for row in served.captured()}, load.answered()),
        ({row[1] for row in served.captured("label")}, load.labelled()),
    ):
        lost = {name: killed - when for name, when in told.items() if name not in kept}
        assert max(lost.values(), default=0) < SECONDS_AT_RISK
        assert len(kept) > 100
        extra = kept - told.keys()
        assert extra <= {f"{client.name}-{client.sent - 1}" for client in load.clients}, "its answer was under way"
