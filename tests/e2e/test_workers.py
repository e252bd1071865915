"""Workers and their supervisor: a request that kills, hangs, kill -9 of each process, and what clients see of it."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import graph_bytes, make_bundle
from tests.e2e.test_server import Server

pytestmark = pytest.mark.e2e

SMALLEST = -(2**31)


def quotient() -> bytes:
    """a, b [n, 1] int32 -> quotient [n, 1] = a / (b + 10): a signal ends the process for b = -11 and the smallest a."""
    return graph_bytes(
        [helper.make_node("Add", ["b", "ten"], ["c"]), helper.make_node("Div", ["a", "c"], ["quotient"])],
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["n", 1]) for name in ("a", "b")],
        [helper.make_tensor_value_info("quotient", TensorProto.INT32, ["n", 1])],
        [numpy_helper.from_array(np.full((1, 1), 10, np.int32), "ten")],
    )


def body(a: int, b: int) -> str:
    inputs = [{"name": n, "shape": [1, 1], "datatype": "INT32", "data": [v]} for n, v in (("a", a), ("b", b))]
    return json.dumps({"inputs": inputs})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home", HOMEOSTAT_WORKERS="2")
    row = made.control.set_challenger(
        "toy", make_bundle(made.home, onnx_bytes=quotient()), expected_generation=0, actor="t", reason="t", evidence={}
    )
    made.control.promote("toy", 1, expected_generation=row.generation, actor="t", reason="t", evidence={})
    made.wait(lambda: all_ready(made))
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        assert made.process.wait(20) == 0


def all_ready(server: Server) -> bool:
    """Whether both workers answer with version 1: it is chance which one takes a connection."""
    return len(server.workers()) == 2 and all(
        server.get("/v2/models/toy/ready")[1].get("version") == "1" for _ in range(20)
    )


def ask(server: Server, a: int, b: int) -> tuple[int, Any]:
    """Return the answer to a request on a connection of its own; status 0 when the connection ended without one."""
    try:
        return server.call("POST", "/v2/models/toy/infer", body(a, b))
    except (http.client.HTTPException, OSError):
        return 0, None


def test_a_request_that_kills_two_workers_is_refused_and_its_siblings_go_on(served):
    stop, seen = threading.Event(), []

    def others() -> None:
        while not stop.is_set():
            start = time.monotonic()
            status, answer = ask(served, 40, 0)
            seen.append((status, time.monotonic() - start))
            assert status == 0 or answer["outputs"][0]["data"] == [4]

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(2):
            workers = set(served.workers())
            assert ask(served, SMALLEST, -11) == (0, None)
            start = time.monotonic()
            served.wait(lambda before=workers: len(set(served.workers()) - before) == 1)
            served.wait(lambda: all_ready(served))
            assert time.monotonic() - start < 10
        status, answer = served.wait(lambda: (found := ask(served, SMALLEST, -11))[0] and found)
        assert status == 422
        assert "have ended the server's process 2 times" in answer["error"]
    finally:
        stop.set()
        thread.join()
    # one connection at a time: at most the one in each worker that died is lost with it
    assert sum(status != 200 for status, _ in seen) <= 2
    assert len(seen) > 10
    assert ask(served, SMALLEST, -12)[0] == 200, "other tensors are computed"
    assert ask(served, 1, -11)[0] == 200
    (killers,) = (json.loads(path.read_text()) for path in served.home.rglob("killers.json"))
    assert list(killers.values()) == [2]
    assert "SIGFPE" in served.log.read_text()


def counted(server: Server) -> int:
    with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(int(float(n)) for n in re.findall(r'^homeostat_requests_total{.*status="200".*} (\S+)$', text, re.M))


def test_metrics_are_of_all_workers_and_never_go_back(served):
    for _ in range(40):
        assert ask(served, 40, 0)[0] == 200
    served.wait(lambda: counted(served) == 40)  # the other worker tells once a second
    for worker in served.workers():
        time.sleep(1.2)
        os.kill(worker, signal.SIGKILL)
        served.wait(lambda: all_ready(served))
        served.wait(lambda: counted(served) == 40)
    for _ in range(10):
        assert ask(served, 40, 0)[0] == 200
    served.wait(lambda: counted(served) == 50)
    assert [counted(served) for _ in range(10)] == [50] * 10


def test_every_worker_has_a_version_that_is_said_to_be_ready(served):
    def is_ready(path: str, version: int) -> bool:
        status, answer = served.get(f"/v2/models/toy{path}/ready")
        return status == 200 and answer["version"] == str(version)

    for version in range(2, 5):
        ref = make_bundle(served.home, version, onnx_bytes=quotient())
        why: dict[str, Any] = {"actor": "t", "reason": "t", "evidence": {}}
        generation = served.control.generation("toy")
        row = served.control.set_challenger("toy", ref, expected_generation=generation, **why)
        served.wait(lambda version=version: is_ready(f"/versions/{version}", version))
        served.control.promote("toy", version, expected_generation=row.generation, **why)
        served.wait(lambda version=version: is_ready("", version))
        assert {ask(served, 40, 0)[1]["model_version"] for _ in range(20)} == {str(version)}


def test_what_was_refused_is_refused_after_a_restart(served):
    for _ in range(2):
        assert ask(served, SMALLEST, -11) == (0, None)
        served.wait(lambda: all_ready(served))
    served.process.terminate()
    assert served.process.wait(20) == 0
    served.start()
    served.wait(lambda: all_ready(served))
    assert ask(served, SMALLEST, -11)[0] == 422


def test_each_process_may_be_killed(served):
    for _ in range(3):
        for worker in served.workers():
            os.kill(worker, signal.SIGKILL)
        status, answer = ask(served, 40, 0)  # waits in the socket that the supervisor holds
        assert (status, answer["outputs"][0]["data"]) == (200, [4])
    served.wait(lambda: all_ready(served))
    workers = served.workers()
    served.process.kill()
    served.process.wait()
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its supervisor"
        time.sleep(0.02)


def drains(process: int) -> bool:
    """Whether SIGTERM would be handled by a process, and not just end it."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


class Load:
    """Clients that ask until told to stop; what was answered, and what no client should see."""

    def __init__(self, server: Server) -> None:
        self._server, self._stop = server, threading.Event()
        self.answered: list[str] = []
        self.broken: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in "abcd"]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
        for number in itertools.count():
            if self._stop.is_set():
                break
            request = json.dumps({"id": f"{name}-{number}"} | json.loads(body(40, 0)))
            try:
                connection.request("POST", "/v2/models/toy/infer", request)
                answer = connection.getresponse()
                text = answer.read().decode()  # http.client connects anew after an answer that closes
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.close()  # it had been closed before this request came
                time.sleep(0.01)
                continue
            except (http.client.HTTPException, OSError) as error:
                self.broken.append(repr(error))
                break
            if answer.status == 200:
                self.answered.append(f"{name}-{number}")
            else:
                self.broken.append(text)
        connection.close()

    def check(self, stopped: int) -> None:
        """Hold what was captured against what was answered, once so many workers have stopped."""
        assert self.broken == []
        assert len(self.answered) > 100
        captured = [row[0] for row in self._server.captured()]
        assert len(captured) == len(set(captured))
        assert set(self.answered) <= set(captured)
        lines = [line for line in self._server.log.read_text().splitlines() if "stopped;" in line]
        assert len(lines) == stopped
        assert all("0 duplicates + 0 dropped" in line for line in lines)


def test_sigterm_of_each_process_under_load_costs_no_answer_and_no_record(served):
    with Load(served) as load:
        for _ in range(2):
            for worker in served.workers():
                os.kill(worker, signal.SIGTERM)
                served.wait(lambda worker=worker: worker not in served.workers())
                served.wait(lambda: all_ready(served) and all(map(drains, served.workers())))
            writers = served.wait(lambda: len(found := served.writers()) == 2 and found)
            for writer in writers:
                os.kill(writer, signal.SIGTERM)  # the end of its input is what ends it
    assert sorted(served.writers()) == sorted(writers)
    served.process.terminate()
    assert served.process.wait(20) == 0
    load.check(stopped=2 + 4)


def test_kill_9_of_the_supervisor_under_load_costs_no_answer_and_no_record(served):
    with Load(served) as load:
        served.wait(lambda: len(load.answered) > 200)
        gone = [*served.workers(), *served.writers()]
        served.process.kill()
        served.process.wait()
        deadline = time.monotonic() + 15
        while any(Path(f"/proc/{pid}").exists() for pid in gone):
            assert time.monotonic() < deadline, "a worker outlives its supervisor"
            time.sleep(0.02)
    load.check(stopped=2)


def test_a_worker_that_hangs_is_replaced(served):
    worker = served.workers()[0]
    os.kill(worker, signal.SIGSTOP)
    served.wait(lambda: worker not in served.workers(), 60)
    served.wait(lambda: all_ready(served))
    assert "hangs and is killed" in served.log.read_text()
