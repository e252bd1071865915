"""Limits on HTTP connections: heads, framing, pieces, pipelining, time, and what all of them may hold together."""

from __future__ import annotations

import asyncio
import json
import resource

import pytest
import uvicorn
from uvicorn.server import ServerState

from homeostat.serving.rest import connection as limits
from homeostat.serving.rest.connection import Connection
from homeostat.serving.rest.connections import Connections, allow_connections

POST = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


class Wire(asyncio.Transport):
    """Notes what is written to it."""

    def __init__(self):
        super().__init__({"socket": None})
        self.written, self.closed, self.aborted = b"", False, False

    def write(self, data):
        assert not self.closed
        self.written += data

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = self.aborted = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def echo(scope, receive, send):
    """Read the body, then send its length."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    text = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


async def settle():
    for _ in range(200):
        await asyncio.sleep(0)


def connect(among: Connections, app=echo) -> tuple[Connection, Wire]:
    config = uvicorn.Config(app, loop="none", ws="none", lifespan="off", log_config=None)
    made, wire = Connection(among, config, ServerState(), {}, asyncio.get_running_loop()), Wire()
    made.connection_made(wire)
    return made, wire


def exchange(*pieces: bytes, among: Connections | None = None) -> tuple[Wire, Connections]:
    """Send pieces on one connection, end it, and return what came back."""
    among = among or Connections()

    async def talk() -> Wire:
        made, wire = connect(among)
        for piece in pieces:
            made.data_received(piece)
            await settle()
        made.connection_lost(None)
        await settle()
        return wire

    return asyncio.run(talk()), among


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([b"GET /", b"x" * limits.MAX_HEAD, b"x"], 431),
        ([b"GET / HTTP/1.1\r\n", *[b"a: " + b"x" * 1000 + b"\r\n"] * 40], 431),
        ([b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (limits.MAX_HEADERS + 1) + b"\r\n"], 431),
        ([b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (limits.MAX_HEADERS + 2)], 431),
        ([CHUNKED, *[b"1;" + b"x" * 1000 + b"\r\na\r\n"] * 60], 400),
        ([CHUNKED + b"0\r\n", *[b"a: b\r\n" * 20] * 10], 400),
        ([CHUNKED + b"0\r\na: ", *[b"x" * 1000] * 40], 400),
        ([CHUNKED + b"1\r\na\r\n" * (limits.MAX_PARTS + 1)], 400),
        ([b"\r\n" * limits.MAX_HEAD], 431),
    ],
    ids=["path", "head", "headers", "headers-open", "extensions", "trailers", "trailer", "pieces", "line-ends"],
)
def test_too_much_is_refused_and_leaves_nothing(pieces, status):
    wire, among = exchange(*pieces)
    assert wire.written.startswith(b"HTTP/1.1 %d " % status), wire.written
    assert json.loads(wire.written.partition(b"\r\n\r\n")[2])["error"]
    assert wire.closed
    assert (among.cut, among.waiting, among.total_held, len(among.all)) == (1, 0, 0, 0)


def test_a_long_body_in_small_chunks_is_taken():
    wire, among = exchange(CHUNKED, *[b"1\r\na\r\n" * 1000] * 10, b"0\r\n\r\n")
    assert wire.written.endswith(b"\r\n\r\n10000")
    assert (among.cut, among.waiting, among.total_held) == (0, 0, 0)


def test_a_flood_of_pipelined_requests_is_answered_up_to_the_limit():
    wire, among = exchange(b"GET / HTTP/1.1\r\n\r\n" * 1000)
    answers = wire.written.count(b"HTTP/1.1 200")
    assert (answers, wire.closed, among.cut) == (limits.MAX_PIPELINED + 1, True, 1)
    assert among.waiting == 0


def test_bodies_of_all_connections_have_room_together_and_give_it_back():
    among = Connections(max_held=100_000)

    async def talk():
        first, one = connect(among)
        first.data_received(POST % 90_000 + b"x" * 80_000)
        second, two = connect(among)
        second.data_received(POST % 90_000 + b"x" * 80_000)
        await settle()
        assert two.written.startswith(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n")
        second.connection_lost(None)
        assert among.total_held == 80_000
        first.data_received(b"x" * 10_000)
        await settle()
        assert one.written.endswith(b"90000")
        assert not one.closed
        assert among.total_held == 0

    asyncio.run(talk())


def test_the_oldest_connection_that_waits_makes_room_and_none_that_is_answered():
    among = Connections(2)

    async def talk():
        release = asyncio.Event()

        async def slow(scope, receive, send):
            await release.wait()
            await echo(scope, receive, send)

        busy, answered = connect(among, slow)
        busy.data_received(b"GET / HTTP/1.1\r\n\r\n")
        await settle()
        _, silent = connect(among)
        third, _ = connect(among, slow)
        assert (silent.aborted, answered.closed) == (True, False)
        third.data_received(b"GET / HTTP/1.1\r\n\r\n")
        await settle()
        for one in [one for one in among.all if one.transport.is_closing()]:
            one.connection_lost(None)
        _, last = connect(among)
        await settle()
        assert last.written.startswith(b"HTTP/1.1 503 ")
        assert last.closed
        assert among.waiting == 2
        release.set()
        await settle()
        assert answered.written.startswith(b"HTTP/1.1 200 ")
        assert among.waiting == 0

    asyncio.run(talk())


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (b"", limits.HEAD_SECONDS),
        (b"GET / HT", limits.HEAD_SECONDS),
        (b"GET / HTTP/1.1\r\n\r\nGET", limits.HEAD_SECONDS),
        (POST % 9 + b"x", limits.REQUEST_SECONDS),
        (b"GET / HTTP/1.1\r\n\r\n|\r\n", limits.REQUEST_SECONDS),
    ],
    ids=["nothing", "head", "second-head", "body", "line-ends"],
)
def test_what_does_not_come_in_time_is_ended(sent, seconds):
    async def talk():
        made, wire = connect(Connections())
        for piece in sent.split(b"|"):
            made.data_received(piece)
            await settle()
        made.sweep(made.since + seconds - 0.1)
        assert not wire.closed
        made.sweep(made.since + seconds + 0.1)
        assert wire.closed
        assert b"HTTP/1.1 408 " in wire.written
        made.connection_lost(None)

    asyncio.run(talk())


def test_a_client_that_does_not_read_is_dropped():
    async def talk():
        made, wire = connect(Connections())
        made.data_received(b"GET / HTTP/1.1\r\n\r\n")
        await settle()
        made.pause_writing()
        made.sweep(made.loop.time() + limits.STALLED_SECONDS - 0.1)
        assert not wire.closed
        made.sweep(made.loop.time() + limits.STALLED_SECONDS + 0.1)
        assert wire.aborted

    asyncio.run(talk())


def test_a_request_on_its_way_when_the_server_drains_is_answered_last(monkeypatch):
    monkeypatch.setattr(limits, "LINGER_SECONDS", 0.01)

    async def talk():
        (asked, one), (idle, two) = connect(Connections()), connect(Connections())
        asked.shutdown()
        idle.shutdown()
        asked.data_received(POST % 2 + b"hi")
        await settle()
        assert b"connection: close\r\n" in one.written
        assert (one.written[-1:], one.closed, two.closed) == (b"2", True, False)
        await asyncio.sleep(0.05)
        assert two.closed

    asyncio.run(talk())


def test_files_are_kept_for_what_is_no_connection(monkeypatch):
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 2048))
    monkeypatch.setattr(resource, "setrlimit", lambda _, value: given.append(value))
    assert allow_connections(500) == (500, 0)
    assert given == []
    assert allow_connections(4096) == (2048 - 256, 0)
    assert allow_connections(4096, grpc=True) == (2048 - 256 - 512, 512)
    assert given == [(2048, 2048)] * 2
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 300))
    assert allow_connections(4096, grpc=True) == (150, 75)
