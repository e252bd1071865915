"""Calls of a gRPC server: those whose message is still coming make room, and so many at most are answered at once."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from homeostat.errors import RequestInvalid

MAX_CALLS = 1024
"""Calls that are answered at once."""
MAX_COMING = 32
"""Messages that may be under way for longer than a second: together as much as HTTP bodies may hold."""
MESSAGE_SECONDS = 60.0
"""How long a message may take, from the head of its call."""
SWEEP_SECONDS = 1.0


class Calls:
    """Counts calls, and ends those whose message does not come; only the event loop does, so no lock is needed.

    A call of grpc.aio counts from its head on, and waits for its message as long as the client
    likes: a thousand of them would keep everybody else out.
    """

    def __init__(
        self, *, max_calls: int = MAX_CALLS, max_coming: int = MAX_COMING, message_seconds: float = MESSAGE_SECONDS
    ) -> None:
        self._max_calls, self._max_coming, self._message_seconds = max_calls, max_coming, message_seconds
        self.answered = 0
        """Calls whose message has come and that have no answer yet."""
        self._coming: dict[asyncio.Task[Any], float] = {}
        """Since when each message is awaited, the oldest first."""
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def receive(self, context: Any) -> bytes:
        """Return the message of a call.

        Raises RequestInvalid: 408 when it does not come in time, 429 when too many are answered already, 400 when
        there is none.
        """
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._coming[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(SWEEP_SECONDS, self._sweep, loop)
        try:
            data = await context.read()
        except asyncio.CancelledError:
            if task not in self._late:
                raise  # the client has left
            task.uncancel()
            raise RequestInvalid("the message did not come in time", status=408) from None
        finally:
            del self._coming[task]
            self._late.discard(task)
        if data is grpc.aio.EOF:
            raise RequestInvalid("the call ended without a message")
        if self.answered >= self._max_calls:
            raise RequestInvalid(f"{self._max_calls} calls are being answered; try again in a second", status=429)
        return data  # type: ignore[no-any-return]  # bytes: no deserializer is set

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """End calls that have waited for too long: the oldest where there are many, those that are not new."""
        now = loop.time()
        spare = len(self._coming) - self._max_coming
        for place, (task, since) in enumerate(self._coming.items()):
            if now - since < (SWEEP_SECONDS if place < spare else self._message_seconds):
                break  # the others are younger
            self._late.add(task)
            task.cancel()
        self._timer = loop.call_later(SWEEP_SECONDS, self._sweep, loop) if self._coming else None
