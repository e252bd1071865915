"""What hostile clients send to a real server: after each attack it answers, and its memory is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rollout_models import bundle, classifier, make_champion
from tests.e2e.test_server import BODY, Server

pytestmark = pytest.mark.e2e

INFER = "/v2/models/toy/infer"
HEAD = b"POST /v2/models/toy/infer HTTP/1.1\r\nhost: x\r\n"
GROWTH_BYTES = 120 * 1024 * 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all attacks: what one of them leaves behind, the next ones meet."""
    made = Server(tmp_path_factory.mktemp("attacks") / "home")
    made.promote(1)
    yield made
    made.process.send_signal(signal.SIGTERM)
    assert made.process.wait(20) == 0


def resident(server: Server) -> int:
    (worker,) = server.workers()
    pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.fixture
def served(shared: Server) -> Iterator[Server]:
    """The server, which is the same process and well after the attack."""
    before, worker = resident(shared), shared.workers()
    yield shared
    status, answer = shared.call("POST", INFER, BODY)
    assert (status, answer["outputs"][0]["data"]) == (200, [4.0])
    assert shared.workers() == worker, "a worker has died"
    assert resident(shared) < before + GROWTH_BYTES


def send(server: Server, *pieces: bytes, seconds: float = 10) -> bytes:
    """Send raw bytes on one connection, and return what comes back until it ends or falls silent."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as wire:
        with contextlib.suppress(ConnectionError):  # it may hang up before all is sent
            for piece in pieces:
                wire.sendall(piece)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while data := wire.recv(65536):
                answer += data
    return answer


def post(server: Server, body: bytes, headers: dict[str, str] | None = None, path: str = INFER) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 500 or answer.headers["retry-after"], text
        return answer.status
    finally:
        connection.close()


def tensor(**change: Any) -> bytes:
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]} | change
    return json.dumps({"inputs": [one]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        tensor(datatype="INT64"),
        tensor(datatype="BYTES", data=["a"] * 4),
        tensor(datatype="FP99"),
        tensor(shape=[4]),
        tensor(shape=[1, 1, 1, 4]),
        tensor(shape=[0, 4], data=[]),
        tensor(shape=[-1, 4]),
        tensor(shape=[2**62, 2**62]),
        tensor(shape=[1, "4"]),
        tensor(data=["1", "2", "3", "4"]),
        tensor(data=[1, None, 1, 1]),
        tensor(data=[[[[1]]]]),
        tensor(name="y"),
        tensor(name="x" * 65536),
        tensor(data=[1e999, 1, 1, 1]).replace(b"Infinity", b"1e999"),
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"inputs":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_what_is_no_request_is_refused(served, body):
    assert post(served, body) == 400


@pytest.mark.parametrize(
    "path", ["/v2/models/../../etc/passwd/infer", "/v2/models/a%00b/infer", "/v2/models/" + "a" * 20_000 + "/infer"]
)
def test_what_is_no_model_is_not_found(served, path):
    assert post(served, BODY.encode(), path=path) in (400, 404, 414, 431)
    answer = send(served, b"GET /v2/models/" + b"b" * 65536 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 404", b"HTTP/1.1 400"))


def test_a_gzip_bomb_is_not_inflated(served):
    bomb = gzip.compress(b" " * (512 * 1024 * 1024), 9)
    assert len(bomb) < 1024 * 1024
    before = time.monotonic()
    assert post(served, bomb, {"Content-Encoding": "gzip"}) == 413
    assert time.monotonic() - before < 5


def test_floods_of_chunks_and_heads_are_cut(served):
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    assert send(served, chunked, b"1\r\na\r\n" * 200_000).startswith(b"HTTP/1.1 400")
    assert send(served, HEAD, b"x: y\r\n" * 200_000).startswith(b"HTTP/1.1 431")
    assert send(served, HEAD, b"x: " + b"y" * 2_000_000).startswith(b"HTTP/1.1 431")
    assert send(served, b"\x16\x03\x01" + os.urandom(1000)).startswith(b"HTTP/1.1 400")


def test_a_client_that_leaves_takes_nothing_with_it(served):
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as wire:
            wire.sendall(HEAD + b"content-length: 8000000\r\n\r\n" + b"x" * 100_000)
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as wire:
            wire.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY.encode())


def test_a_thousand_slow_connections_keep_nobody_out(served):
    async def attack() -> list[float]:
        slow = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", served.port) for _ in range(1000)))
        for turn in range(3):
            for _, writer in slow:
                writer.write(HEAD if turn == 0 else b"x: y\r\n")
            took = []
            for _ in range(20):
                start = time.monotonic()
                status, _ = await asyncio.to_thread(served.call, "POST", INFER, BODY)
                assert status == 200
                took.append(time.monotonic() - start)
            await asyncio.sleep(0.5)
        for _, writer in slow:
            writer.close()
        return took

    assert max(asyncio.run(attack())) < 2


def test_overload_is_refused_with_a_time_to_come_back(served):
    """Far more at once than may wait: each is answered, or told when to try again."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY.encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        writer.close()
        return head

    async def storm() -> list[bytes]:
        wires = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", served.port) for _ in range(1500)))
        return await asyncio.gather(*(one(*wire) for wire in wires))

    heads = asyncio.run(storm())
    assert len(heads) == 1500
    for head in heads:
        assert head.startswith(b"HTTP/1.1 200") or (head.startswith(b"HTTP/1.1 503") and b"retry-after: " in head), head
    assert sum(head.startswith(b"HTTP/1.1 200") for head in heads) > 100


async def crowd(port: int, connections: int, rate: float, seconds: float) -> list[tuple[int, float]]:
    """Send so many requests a second (0: as fast as they are answered) to `bench`; return status and seconds of each.

    A request waits where all connections are taken; each 503 says when to try again.
    """
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.5, 0.5, 0.5, 0.5]}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = b"POST /v2/models/bench/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    start, sent, found = time.monotonic(), iter(range(10**6)), []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() - start < seconds:
            if rate:
                await asyncio.sleep(start + next(sent) / rate - time.monotonic())
            begun = time.monotonic()
            writer.write(request)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
            assert head.startswith(b"HTTP/1.1 200") or b"retry-after: " in head, head
            found.append((int(head[9:12]), time.monotonic() - begun))
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return found


def test_three_times_overload_for_seconds_costs_no_goodput(served):
    """A model that takes milliseconds, asked three times as often as it can answer."""
    make_champion(served.control, bundle(served.home, 1, classifier("time", products=14), "classification"))
    served.wait(lambda: served.get("/v2/models/bench/ready")[0] == 200)
    calm = asyncio.run(crowd(served.port, connections=8, rate=0, seconds=2))
    assert {status for status, _ in calm} == {200}
    capacity = len(calm) / 2
    found = asyncio.run(crowd(served.port, connections=1000, rate=3 * capacity, seconds=4))
    answered = [seconds for status, seconds in found if status == 200]
    assert {status for status, _ in found} == {200, 503}
    assert len(answered) / 4 > capacity / 2
    assert max(answered) < 10


def test_a_stop_under_load_answers_what_it_has_taken(tmp_path):
    server = Server(tmp_path / "home")
    server.promote(1)
    answered: list[int] = []
    broken: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        while True:
            try:
                connection.request("POST", INFER, BODY)
            except OSError:  # the server has hung up between two requests, or listens no more
                return
            try:
                answer = connection.getresponse()
                answered.append(answer.status)
                answer.read()
            except (http.client.RemoteDisconnected, ConnectionError):
                return  # it had hung up before this request came
            except http.client.HTTPException as error:
                broken.append(repr(error))
                return
            if answer.headers.get("connection") == "close":
                return

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(20)
    assert server.process.wait(20) == 0
    assert broken == []
    assert set(answered) == {200}
    assert len(server.captured()) >= len(answered)
