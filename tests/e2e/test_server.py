"""The server in a process of its own: hot swap under load, capture, signals, and what is left behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from homeostat.control.store import ControlStore
from tests.bundles import make_bundle

pytestmark = pytest.mark.e2e

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}]})
SWAPS = 10
COMMAND = (sys.executable, "-m", "homeostat.serving")


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())  # a child is its thread's
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    except OSError:  # it, or one of its threads, has just ended
        return []


class Server:
    """`python -m homeostat.serving` on a free port, with a home of its own."""

    def __init__(self, home: Path, command: Sequence[str] = COMMAND, **environment: str) -> None:
        self.command = command
        self.home, self.log, self.out = home, home / "server.log", home / "server.out"
        home.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **os.environ,
            "HOMEOSTAT_HOME": str(home),
            "HOMEOSTAT_PORT": "0",
            "HOMEOSTAT_GRPC_PORT": "0",
            **environment,
        }
        self.control = ControlStore(f"sqlite:///{home}/control.db")
        self.start()

    def start(self) -> None:
        started = time.monotonic()
        with self.log.open("wb") as log, self.out.open("wb") as out:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=out, stderr=log, cwd=self.home)
        self.port = int(self.wait(lambda: self.line("listening on")).split(":")[2].split(",")[0])
        self.wait(lambda: self.get("/v2/health/live")[0] == 200)
        self.started_seconds = time.monotonic() - started

    def line(self, text: str) -> str | None:
        for line in self.log.read_text().splitlines():
            if text in line:
                return str(json.loads(line)["message"])
        return None

    def wait(self, found: Any, seconds: float = 20) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := found()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return value

    def get(self, path: str) -> tuple[int, Any]:
        return self.call("GET", path)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except ConnectionRefusedError:
            return 0, None
        finally:
            connection.close()

    def promote(self, version: int, *, model: str = "toy", wait: bool = True, **bundle: Any) -> None:
        expected = self.control.generation(model)
        ref = make_bundle(self.home, version, model, **bundle)
        said: dict[str, Any] = {"actor": "t", "reason": "t", "evidence": {}}
        row = self.control.set_challenger(model, ref, expected_generation=expected, **said)
        self.wait(lambda: self.get(f"/v2/models/{model}/versions/{version}/ready")[0] == 200)
        self.control.promote(model, version, expected_generation=row.generation, **said)
        if wait:
            self.wait(lambda: self.answers_with(version, model))

    def answers_with(self, version: int, model: str = "toy") -> bool:
        """Whether every worker does."""
        status, said = self.get(f"/v2/models/{model}/ready")
        return status == 200 and said["version"] == str(version)

    def workers(self) -> list[int]:
        return children(self.process.pid)

    def writers(self) -> list[int]:
        return [writer for worker in self.workers() for writer in children(worker)]

    def kill(self) -> None:
        """End it, and what answers for it, at once."""
        workers = self.workers()
        self.process.kill()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        self.process.wait()

    def captured(self, table: str = "request") -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.home / "traffic.db") as database:
            return database.execute(f"SELECT * FROM {table}").fetchall()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home")
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.wait(20)


def hammer(port: int, stop: threading.Event, seen: list[tuple[int, int]]) -> None:
    """Send requests on one connection, one after `stop` too, and note status and version of each answer.

    An error is status 0.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    last = False
    while not last:
        last = stop.is_set()
        try:
            connection.request("POST", "/v2/models/toy/infer", BODY)
            answer = connection.getresponse()
            value = json.loads(answer.read())
            right = answer.status == 200 and value["outputs"][0]["data"] == [4.0 * int(value["model_version"])]
            seen.append((answer.status if right else 0, int(value.get("model_version", 0))))
        except (OSError, http.client.HTTPException):
            seen.append((0, 0))
            return
    connection.close()


def test_swaps_under_load_lose_nothing_and_go_forward(served):
    served.promote(1)
    stop = threading.Event()
    seen: list[list[tuple[int, int]]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=hammer, args=(served.port, stop, one)) for one in seen]
    for thread in threads:
        thread.start()
    for version in range(2, 2 + SWAPS):
        served.promote(version)
    stop.set()
    for thread in threads:
        thread.join()
    for one in seen:
        assert {status for status, _ in one} == {200}
        versions = [version for _, version in one]
        assert versions == sorted(versions)
        assert versions[-1] == 1 + SWAPS
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(20) == 0
    assert len(served.captured()) == sum(map(len, seen)), "every answer is captured, none twice"
    assert "0 dropped" in (served.line("stopped") or "")


def test_capture_labels_and_a_clean_end(served):
    served.promote(1)
    status, answer = served.call("POST", "/v2/models/toy/infer", BODY)
    assert status == 200
    for labels in ([1.0], [2.0]):
        feedback = json.dumps({"id": answer["id"], "labels": labels})
        assert served.call("POST", "/v1/feedback", feedback) == (202, {"accepted": 1})
    served.wait(lambda: (served.home / "traffic.db").exists() and served.captured("label"))
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(20) == 0
    assert [row[0] for row in served.captured()] == [answer["id"]]
    assert [(row[1], row[4]) for row in served.captured("label")] == [(answer["id"], "[2.0]")]


def test_kill_9_leaves_no_writer_and_a_restart_serves_the_last_verified_version(served):
    served.promote(1)
    served.call("POST", "/v2/models/toy/infer", BODY)
    served.wait(lambda: len(served.captured()) == 1)
    writers = served.writers()
    assert writers
    served.kill()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in writers):
        assert time.monotonic() < deadline, "the capture writer is still there"
        time.sleep(0.02)
    for file in served.home.glob("control.db*"):
        file.unlink()
    served.environment["HOMEOSTAT_CONTROL_URL"] = "sqlite:////proc/absent/control.db"
    served.start()
    served.wait(lambda: served.get("/v2/models/toy/ready")[0] == 200)
    assert served.call("POST", "/v2/models/toy/infer", BODY)[1]["model_version"] == "1"
    served.wait(lambda: served.line("the control store cannot be read"))
    assert served.get("/v2/health/ready")[0] == 200


def test_a_slow_client_that_sends_too_much_is_told(served):
    served.promote(1)
    status, answer = served.call("POST", "/v2/models/toy/infer", b" " * (9 * 1024 * 1024))
    assert (status, "8388608 bytes" in answer["error"]) == (413, True)
    assert served.get("/v2/health/live")[0] == 200


def start_and_fail(home: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "homeostat.serving"],
        env={**os.environ, "HOMEOSTAT_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_busy_port_and_an_open_address_are_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, text = start_and_fail(tmp_path, HOMEOSTAT_PORT=port)
        assert (code, f"port {port}" in text, "HOMEOSTAT_PORT" in text) == (2, True, True)
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        code, text = start_and_fail(tmp_path, HOMEOSTAT_HOST=host)
        assert (code, "without authentication" in text, "homeostat key create" in text) == (2, True, True)
