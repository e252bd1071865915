"""A connection of uvicorn within limits, which sends an answer's head and body with one system call."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from homeostat.serving.batching import departed
from homeostat.serving.rest.app import MAX_BODY
from homeostat.serving.rest.connections import Connections

MAX_HEAD = 32 * 1024
"""Bytes of a request line and its headers, up to one reading of the socket more."""
MAX_HEADERS = 128
HEAD_SECONDS = 10.0
"""How long a head may take, from its first byte or from the connection."""
REQUEST_SECONDS = 60.0
"""How long a whole request may take, from its first byte."""
STALLED_SECONDS = 30.0
"""How long a client may leave its answer unread."""
LINGER_SECONDS = 0.25
"""How long a connection without a request stays open when the server drains: one may be on its way."""
MAX_PARTS = 16_384
"""Pieces (chunks, or readings of the socket) that one body may come in."""
FRAME = 16
"""Bytes that a piece of a body may have around it: a chunk's size, and line ends."""
MAX_PIPELINED = 64
SMALL_BODY = 16 * 1024
"""Bodies up to so many bytes are not counted among those that are held."""


class JoinedTransport(asyncio.Transport):
    """Holds what is written until the event loop's next turn, and sends it in one piece.

    uvicorn writes head and body apart, and uvloop sends each at once: with small answers the
    second system call, and the packet of its own, cost a third of what uvicorn costs.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send this, joined with what else is written before the loop's next turn."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(bytes(data))

    def flush(self) -> None:
        """Send what is held; nothing is left to be sent to a client that has gone."""
        if self._held:
            held, self._held = self._held, []
            if not self._transport.is_closing():
                self._transport.write(b"".join(held))

    def close(self) -> None:
        """Send what is held, and close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is still to be sent."""
        self._held = []
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is closing or closed."""
        return self._transport.is_closing()


class Connection(HttpToolsProtocol):  # type: ignore[misc]
    """HTTP/1.1 as uvicorn speaks it, over a joined transport, with a size and a time for everything.

    uvicorn takes heads of any size at any speed, and bodies as slowly as the client likes.
    """

    transport: JoinedTransport

    def __init__(self, connections: Connections, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._limits = connections
        self._problem: tuple[int, str] | None = None
        self._ended = self._draining = False
        """Ended: nothing more is parsed. Draining: the next answer is the last."""
        self._came = self._size = self._parts = 0
        """Of the request that is coming: its bytes, those of its body, and the body's pieces."""
        self._whole = 0
        """Requests that have come whole and have no answer yet."""
        self._stalled = float("inf")
        """Since when the client does not read."""
        self.since = self.loop.time()
        """When the connection was made, or its last request began."""

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to speak, if need be instead of a connection that only waits.

        Reading is paused and resumed on the transport itself.
        """
        super().connection_made(transport)
        self.transport = JoinedTransport(transport, self.loop)
        limits = self._limits
        if len(limits.all) >= limits.limit and not limits.make_room():
            self._end(503, "too many connections are being answered; try again in a second")
        limits.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the socket."""
        limits = self._limits
        limits.all.discard(self)
        limits.release(self)
        limits.waiting -= self._whole
        self._whole = 0
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Send what is held before the transport closes: the client may have closed its side alone."""
        self.transport.flush()

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._ended:
            return
        self._came += len(data)
        super().data_received(data)
        if self._came - self._size > MAX_HEAD or (self.headers is not None and len(self.headers) > MAX_HEADERS):
            self._check_framing()

    def pause_writing(self) -> None:
        """Note that the client does not read."""
        self._stalled = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it does."""
        self._stalled = float("inf")
        super().resume_writing()

    # -- httptools

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self.since = self.loop.time()
        self._came = self._size = self._parts = 0

    def on_headers_complete(self) -> None:
        """Hand the request on, if its head is within the limits."""
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, f"{len(self.headers)} headers, at most {MAX_HEADERS}")
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(429, f"{MAX_PIPELINED} requests wait on this connection; read their answers first")
        departed.set(self.transport.is_closing)  # the task that answers gets a copy of this context
        super().on_headers_complete()
        if self._draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._size += len(body)
        self._parts += 1
        if self._size > SMALL_BODY or self._parts > MAX_PARTS:
            self._check_body()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Count a request that waits for its answer."""
        super().on_message_complete()
        if not self.cycle.response_complete:
            self._whole += 1
            self._limits.waiting += 1

    def on_response_complete(self) -> None:
        """Go on to the next request; an answer that did not wait for the whole request was not counted."""
        if self._whole:
            self._whole -= 1
            self._limits.waiting -= 1
        if self._limits.held and not self.pipeline:
            self._limits.release(self)
        super().on_response_complete()

    def shutdown(self) -> None:
        """Answer what has come or is on its way, then close."""
        self._draining = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LINGER_SECONDS, self._leave)
        else:
            self.cycle.keep_alive = False

    def _leave(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    # -- limits

    def waits(self) -> bool:
        """Return whether it is the client's turn: no whole request is there that has no answer yet."""
        return self.cycle is None or self.cycle.response_complete or (self.cycle.more_body and not self._whole)

    def sweep(self, now: float) -> None:
        """Close the connection when its client has taken too long; idle ones are uvicorn's."""
        if now - self._stalled > STALLED_SECONDS:
            self._limits.cut += 1
            self.transport.abort()
        elif self.transport.is_closing():
            if now - self.since > REQUEST_SECONDS + STALLED_SECONDS:  # it does not take the last bytes
                self.transport.abort()
        elif self.cycle is not None and self.cycle.more_body:
            if now - self.since > REQUEST_SECONDS:
                self._end(408, f"the request did not come whole within {REQUEST_SECONDS:g} s")
        elif self._held_up():
            if now - self.since > HEAD_SECONDS:
                self._end(408, f"no request came within {HEAD_SECONDS:g} s")
        elif self.timeout_keep_alive_task is None and self.waits() and now - self.since > REQUEST_SECONDS:
            self._end(408, "what came between two requests was none")  # line ends alone stop uvicorn's clock

    def _held_up(self) -> bool:
        """Return whether a head is awaited: the first one, or the rest of one, with nothing to answer before it."""
        if self.scope is None:
            return True
        return "method" not in self.scope and (self.cycle is None or self.cycle.response_complete)

    def _check_framing(self) -> None:
        """End a connection whose head, or whose chunks' extensions and trailers, are too large."""
        if self.scope is None or "method" not in self.scope:  # the head has not come whole
            self._end(431, f"request line and headers: more than {MAX_HEAD} bytes, or {MAX_HEADERS} headers")
        elif self._came - self._size > MAX_HEAD + FRAME * self._parts or len(self.headers) > MAX_HEADERS:
            self._end(400, "body: too much between its chunks, or after them")

    def _check_body(self) -> None:
        """Refuse a body of too many pieces, or where all bodies together are too large."""
        if self._parts > MAX_PARTS:
            self._refuse(400, f"body: more than {MAX_PARTS} pieces; send larger chunks")
        if self.cycle.response_complete:  # what comes is thrown away
            return
        if not self._limits.hold(self, min(self._size, MAX_BODY)):  # the application keeps no more
            self._refuse(503, f"bodies fill {self._limits.max_held} bytes; try again in a second")

    def _refuse(self, status: int, message: str) -> None:
        """Stop the parser: httptools has data_received call send_400_response."""
        self._problem = status, message
        raise ValueError(message)

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not take."""
        status, message = self._problem or (400, f"not valid HTTP/1.1: {msg}")
        self._end(status, message)

    def _end(self, status: int, message: str) -> None:
        """Refuse and close; requests that have come whole are answered before."""
        if self._ended:
            return
        self._ended = True
        self._limits.cut += 1
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False
            return
        if not (self.pipeline or (cycle is not None and cycle.response_started and not cycle.response_complete)):
            body = orjson.dumps({"error": message})
            retry = b"retry-after: 1\r\n" if status in (429, 503) else b""
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(b"".join((STATUS_LINE[status], retry, head, body)))
        self.transport.close()
