"""An answer leaves in one piece, also when the connection closes in the same turn of the event loop."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from homeostat.serving.rest.connection import Connection
from homeostat.serving.rest.connections import Connections

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"


async def answer(scope, receive, send):
    """Read the body, then send `ok`."""
    assert (await receive())["type"] == "http.request"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Wire(asyncio.Transport):
    """Notes what is written to it."""

    def __init__(self):
        super().__init__({"socket": None})
        self.written, self.closed = [], False

    def write(self, data):
        assert not self.closed
        self.written.append(data)

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


def exchange(*requests: bytes, then=None) -> Wire:
    """Send requests, each in one piece, and return what came back; `then` is called once an answer is held."""

    async def talk() -> Wire:
        config = uvicorn.Config(answer, http=Connection, loop="none", ws="none", lifespan="off", log_config=None)
        connection, wire = Connection(Connections(), config, ServerState(), {}, asyncio.get_running_loop()), Wire()
        connection.connection_made(wire)
        for request in requests:
            connection.data_received(request)
            for _ in range(100):
                if then and connection.transport._held:
                    then(connection)
                await asyncio.sleep(0)
        if not wire.closed:
            connection.connection_lost(None)
        return wire

    return asyncio.run(talk())


def test_head_and_body_leave_together():
    wire = exchange(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi")
    assert wire.written == [HEAD + b"\r\nok"]


def test_several_requests_on_one_connection():
    request = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi"
    wire = exchange(request, request)
    assert wire.written == [HEAD + b"\r\nok"] * 2


def test_a_head_without_body_is_sent():
    wire = exchange(b"HEAD / HTTP/1.1\r\n\r\n")
    assert wire.written == [HEAD + b"\r\n"]


def test_the_body_is_asked_for_before_it_comes():
    wire = exchange(b"POST / HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n", b"hi")
    assert b"".join(wire.written) == b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\nok"


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"])
def test_what_is_held_is_sent_before_closing(request_):
    wire = exchange(request_)
    assert (wire.written, wire.closed) == ([HEAD + b"connection: close\r\n\r\nok"], True)


def test_what_is_no_http_is_refused():
    wire = exchange(b"hello\r\n\r\n")
    assert (wire.written[0][:12], wire.closed) == (b"HTTP/1.1 400", True)


def test_a_client_that_closes_its_side_gets_its_answer():
    wire = exchange(b"GET / HTTP/1.1\r\n\r\n", then=lambda connection: connection.eof_received())
    assert wire.written == [HEAD + b"\r\nok"]


def test_nothing_is_written_to_a_client_that_has_gone():
    def leave(connection):
        connection.transport._transport.close()
        connection.connection_lost(ConnectionResetError())

    assert exchange(b"GET / HTTP/1.1\r\n\r\n", then=leave).written == []
