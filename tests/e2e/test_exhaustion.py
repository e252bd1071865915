"""What runs out, or is not what it was, while a real server answers: files, disk, the right time."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homeostat.monitoring.snapshot import Wanted, open_snapshot
from tests.bundles import make_bundle
from tests.e2e.test_server import Server, children

pytestmark = pytest.mark.e2e

DAY = 86400
TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}
WHY: dict[str, Any] = {"actor": "t", "reason": "t", "evidence": {}}


class Client:
    """One connection, and the ids that it got answers for."""

    def __init__(self, server: Server, name: str = "r") -> None:
        self._name = name
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        self.answered: list[str] = []

    def ask(self, times: int = 1) -> str:
        """Ask so many times; return the version of the last answer."""
        version = ""
        for _ in range(times):
            name = f"{self._name}-{len(self.answered)}"
            self._connection.request("POST", "/v2/models/toy/infer", json.dumps({"id": name, "inputs": [TENSOR]}))
            answer = self._connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text
            self.answered.append(name)
            version = json.loads(text)["model_version"]
        return version

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home")
    made.promote(1)
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.wait(20)


def stop(server: Server) -> str:
    """Stop the server; return what it has counted."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    return server.line("stopped") or ""


def limit(process: int, kind: int, soft: int) -> None:
    resource.prlimit(process, kind, (soft, resource.prlimit(process, kind)[1]))


def unlimit(process: int, kind: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process, kind, resource.getrlimit(kind))


def next_file(process: int) -> int:
    """The number that the next file would have: as a limit, it lets no more be opened."""
    used = {int(one.name) for one in Path(f"/proc/{process}/fd").iterdir()}
    return next(number for number in range(len(used) + 1) if number not in used)


def is_live(server: Server, version: int) -> bool:
    """Whether all workers answer with a version."""
    status, answer = server.get("/v2/models/toy/ready")
    return status == 200 and answer["version"] == str(version)


def test_no_file_can_be_opened(served):
    """What is open goes on; nothing is lost, and all is as before when files can be opened again."""
    client, (worker,), (writer,) = Client(served), served.workers(), served.writers()
    client.ask(10)
    two = make_bundle(served.home, 2)
    limit(worker, resource.RLIMIT_NOFILE, next_file(worker))
    os.kill(writer, signal.SIGKILL)
    generation = served.control.generation("toy")
    row = served.control.set_challenger("toy", two, expected_generation=generation, **WHY)
    served.control.promote("toy", 2, expected_generation=row.generation, **WHY)
    served.wait(lambda: served.line("the control store cannot be read"))
    deadline = time.monotonic() + 4  # longer than three starts of a writer take
    while time.monotonic() < deadline:
        assert client.ask(10) == "1"
        with contextlib.suppress(OSError, http.client.HTTPException):
            served.call("GET", "/v2/health/live")  # a connection that cannot be taken ends at once
        time.sleep(0.05)
    assert served.writers() == []
    unlimit(worker, resource.RLIMIT_NOFILE)
    served.wait(lambda: served.get("/v2/models/toy/ready")[1].get("version") == "2")
    served.wait(served.writers)
    assert client.ask(10) == "2"
    client.close()
    assert served.workers() == [worker]
    count = len(client.answered)
    assert stop(served) == f"stopped; {count} captured = {count} written + 0 duplicates + 0 dropped"
    assert sorted(row[0] for row in served.captured()) == sorted(client.answered)


def test_the_disk_is_full(served):
    """Answers go on, and what could not be written is written when there is room again."""
    client, (worker,), (writer,) = Client(served), served.workers(), served.writers()
    client.ask(10)
    for process in (worker, writer):
        limit(process, resource.RLIMIT_FSIZE, 16 * 1024)
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        client.ask(20)
        time.sleep(0.05)
    assert len(served.captured()) < len(client.answered)
    unlimit(worker, resource.RLIMIT_FSIZE)
    for child in children(worker):  # a writer that was started meanwhile
        unlimit(child, resource.RLIMIT_FSIZE)
    served.wait(lambda: len(served.captured()) == len(client.answered))
    client.ask(10)
    client.close()
    count = len(client.answered)
    assert stop(served) == f"stopped; {count} captured = {count} written + 0 duplicates + 0 dropped"
    lines = [json.loads(line) for line in served.log.read_text().splitlines()]  # all of them are JSON
    assert any("cannot be written now" in line["message"] for line in lines)


def test_the_clock_jumps(tmp_path):
    """Far ahead and far back: answers, readiness and capture go on, and no limit in seconds is met by it."""
    clock = tmp_path / "clock"

    def jump(days: float) -> None:
        with clock.open("r+b") as file:  # the server has it mapped
            file.write(struct.pack("<d", days * DAY))

    clock.write_bytes(struct.pack("<d", 0.0))
    served = Server(
        tmp_path / "home",
        HOMEOSTAT_WORKERS="2",
        TEST_CLOCK=str(clock),
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parent / "clock"), os.environ.get("PYTHONPATH", "")]),
    )
    try:
        served.promote(1)
        served.wait(lambda: len(served.workers()) == 2 and len(served.writers()) == 2)
        workers, writers = served.workers(), served.writers()
        clients = [Client(served, name) for name in "abcd"]
        for version, days in enumerate((400, -400, 0), start=2):
            jump(days)
            for number, client in enumerate(clients):
                client.answered.extend(f"gap-{number}-{version}" for _ in range(0))
                client.ask(25)
            served.promote(version)
            for client in clients:
                assert client.ask() == str(version), "both workers answer with it once it is said to be ready"
            assert served.get("/v2/health/ready")[0] == 200
        for client in clients:
            client.close()
        assert (served.workers(), sorted(served.writers())) == (workers, sorted(writers))
        stop(served)
    finally:
        if served.process.poll() is None:
            served.process.kill()
            served.process.wait()
    with open_snapshot(served.home / "traffic.db") as snapshot:
        found = snapshot.index(Wanted("toy", 0))
    assert sorted(entry.request_id for entry in found) == sorted(name for one in clients for name in one.answered)
    times = [entry.time for entry in found]
    assert max(times) > time.time() + 399 * DAY
    assert min(times) < time.time() - 399 * DAY
