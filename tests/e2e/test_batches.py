"""Batches in a real server: many clients, versions that change meanwhile, and a request that kills among others."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import graph_bytes
from tests.e2e.test_server import Server

pytestmark = pytest.mark.e2e

CLIENTS = 12
SMALLEST = -(2**31)


def quotient(version: int, products: int = 12, size: int = 400) -> bytes:
    """a, b [n, 1] int32 -> quotient [n, 1] = a / (b + 10) + version, after products that no row makes longer.

    A signal ends the process for b = -11 and the smallest a.
    """
    weights = {
        "ten": np.full((1, 1), 10, np.int32),
        "version": np.full((1, 1), version, np.int32),
        "nothing": np.zeros(1, np.float32),
        "shape": np.array([size, size], np.int64),
    }
    nodes = [
        helper.make_node("Shape", ["a"], ["sizes"]),  # known when it runs: nothing is computed at load
        helper.make_node("Cast", ["sizes"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["numbers"], ["least"], keepdims=1),
        helper.make_node("Mul", ["least", "nothing"], ["zero"]),
        helper.make_node("Expand", ["zero", "shape"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(products)),
        helper.make_node("ReduceMax", [f"m{products}"], ["end"], keepdims=1),
        helper.make_node("Cast", ["end"], ["late"], to=TensorProto.INT32),
        helper.make_node("Add", ["b", "ten"], ["c"]),
        helper.make_node("Div", ["a", "c"], ["d"]),
        helper.make_node("Add", ["d", "late"], ["e"]),
        helper.make_node("Add", ["e", "version"], ["quotient"]),
    ]
    return graph_bytes(
        nodes,
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["n", 1]) for name in ("a", "b")],
        [helper.make_tensor_value_info("quotient", TensorProto.INT32, ["n", 1])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )


def body(a: int, b: int = 0, rows: int = 1) -> str:
    one = {"shape": [rows, 1], "datatype": "INT32"}
    return json.dumps({"inputs": [{**one, "name": "a", "data": [a] * rows}, {**one, "name": "b", "data": [b] * rows}]})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home")
    made.promote(1, onnx_bytes=quotient(1))
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        assert made.process.wait(20) == 0


class Clients:
    """So many that ask over and over, each for numbers of its own and rows of its own, until left."""

    def __init__(self, server: Server) -> None:
        self.server, self.answered, self.lost = server, 0, 0
        self.wrong: list[Any] = []
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        rows = 1 + number % 3
        while not self._stop.is_set():
            try:
                status, answer = self.server.call("POST", "/v2/models/toy/infer", body(10 * number, rows=rows))
            except (http.client.HTTPException, OSError):
                status, answer = 0, None
            with self._lock:
                if status == 0:
                    self.lost += 1
                elif status != 200 or answer["outputs"][0]["data"] != [number + int(answer["model_version"])] * rows:
                    self.wrong.append((status, answer))
                else:
                    self.answered += 1


def batches(server: Server) -> tuple[float, float]:
    """Runs of the graph and their rows, so far."""
    with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    runs, rows = (
        sum(float(number) for number in re.findall(rf"^homeostat_batch_rows_{what}{{.*}} (\S+)$", text, re.M))
        for what in ("count", "sum")
    )
    return runs, rows


def test_versions_change_under_batches_and_each_client_gets_its_own_answer(served):
    with Clients(served) as clients:
        for version in (2, 3):
            served.wait(lambda: batches(served)[1] > 200)
            served.promote(version, onnx_bytes=quotient(version))
        before = clients.answered
        served.wait(lambda: clients.answered > before + 200)
    assert (clients.wrong, clients.lost) == ([], 0)
    runs, rows = batches(served)
    assert rows > 3 * runs  # a request has two rows, on average


def test_a_request_that_kills_is_found_among_its_neighbors(served):
    with Clients(served) as clients:
        served.wait(lambda: clients.answered > 20)

        def refused() -> bool:
            try:
                return served.call("POST", "/v2/models/toy/infer", body(SMALLEST, -11))[0] == 422
            except (http.client.HTTPException, OSError):
                return False

        served.wait(refused, 60)
        before = clients.answered
        served.wait(lambda: clients.answered > before + 100)
    assert clients.wrong == []
    (killers,) = (json.loads(path.read_text()) for path in served.home.rglob("killers.json"))
    assert sorted(killers.values())[-2:] in ([0, 2], [2])  # it alone; its neighbors were suspected at most
    deaths = served.log.read_text().count("SIGFPE")
    assert 2 <= deaths <= 3
