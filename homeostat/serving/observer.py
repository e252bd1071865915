"""What watches each request once an access log or traces are asked for."""

from __future__ import annotations

import time

from homeostat.serving.accesslog import AccessLog
from homeostat.serving.exchange import Exchange, current
from homeostat.serving.tracing import Tracing


class Observer:
    """Begins and ends exchanges. Without anything to observe there is none, and nothing is called."""

    def __init__(self, log: AccessLog | None, tracing: Tracing | None = None) -> None:
        self._log, self._tracing = log, tracing

    def begin(self, exchange: Exchange) -> None:
        """Let what answers this request note what it does; the context belongs to the request's task."""
        current.set(exchange)
        if self._tracing is not None:
            self._tracing.begin(exchange)

    def end(self, exchange: Exchange) -> None:
        """Tell of a request that has been answered, or whose client has left."""
        exchange.end = time.perf_counter()
        exchange.status = exchange.status or 499
        if self._tracing is not None:
            self._tracing.end(exchange)
        if self._log is not None:
            self._log.put(exchange)
