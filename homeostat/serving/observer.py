"""What watches each request once an access log or traces are asked for."""

from __future__ import annotations

import time

from homeostat.serving.accesslog import AccessLog
from homeostat.serving.exchange import Exchange, current


class Observer:
    """Begins and ends exchanges. Without anything to observe there is none, and nothing is called."""

    def __init__(self, log: AccessLog) -> None:
        self._log = log

    def begin(self, exchange: Exchange) -> None:
        """Let what answers this request note what it does; the context belongs to the request's task."""
        current.set(exchange)

    def end(self, exchange: Exchange) -> None:
        """Tell of a request that has been answered, or whose client has left."""
        exchange.end = time.perf_counter()
        exchange.status = exchange.status or 499
        self._log.put(exchange)
