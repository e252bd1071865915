"""A thread with a bounded queue, for a version that is not trusted yet: it may hang or raise, and holds nobody up."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Lane:
    """Runs calls one after the other in a daemon thread; a call that hangs does not keep the process from ending."""

    def __init__(self, name: str, size: int) -> None:
        """size: calls that may wait; more are refused."""
        self.dropped = 0
        """Calls refused because too many waited."""
        self._size = size
        self._busy_since: float | None = None
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._waiting = queue.SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any] | None:
        """Queue a call; None when too many wait or the lane is closed. Never waits."""
        if self._closing or self._waiting.qsize() >= self._size:
            self.dropped += 1
            return None
        future: Future[Any] = Future()
        self._waiting.put((future, call, arguments))
        return future

    def busy_seconds(self) -> float:
        """Return how long the call of now has been running; 0 when none is."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Take no more calls, and fail those that wait; the one of now may still end."""
        self._closing = True
        self._waiting.put(None)

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            future, call, arguments = waiting
            if not future.set_running_or_notify_cancel():
                continue
            if self._closing:
                future.set_exception(TimeoutError("the rollout has ended"))
                continue
            self._busy_since = time.monotonic()
            try:
                future.set_result(call(*arguments))
            except Exception as error:  # noqa: BLE001  it belongs to whoever asked
                future.set_exception(error)
            finally:
                self._busy_since = None
