"""The access log: a JSON line for each request on stdout, in the field names of the Elastic Common Schema."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from datetime import UTC, datetime
from typing import Any

import orjson

from homeostat.serving.exchange import Exchange
from homeostat.serving.jsonlog import ECS_VERSION, SERVICE

log = logging.getLogger(__name__)

BUFFER_LINES = 100_000
"""Lines that wait, about 60 MB; what comes on top is dropped and counted."""
FLUSH_SECONDS = 0.1
CLOSE_SECONDS = 2.0
FIXED: dict[str, Any] = {
    "log.level": "info",
    "ecs.version": ECS_VERSION,
    "event.dataset": "homeostat.access",
    "event.kind": "event",
    "event.category": ["web"],
    "event.type": ["access"],
    **SERVICE,
}


def line(exchange: Exchange) -> bytes:
    """Return one exchange as a line; what is not known is left out."""
    time = datetime.fromtimestamp(exchange.started, UTC).isoformat(timespec="milliseconds")
    found = {
        "@timestamp": time.replace("+00:00", "Z"),
        "message": f"{exchange.method} {exchange.path} {exchange.status}",
        **FIXED,
        "event.outcome": "success" if exchange.status < 400 else "failure",
        "event.duration": int(exchange.seconds * 1e9),
        "http.version": exchange.http_version,
        "http.request.method": exchange.method,
        "http.response.status_code": exchange.status,
        "url.path": exchange.path,
        "network.protocol": "grpc" if exchange.transport == "grpc" else "http",
    }
    if exchange.address:
        found["client.address"] = found["client.ip"] = exchange.address
    perhaps = {
        "user_agent.original": exchange.user_agent,
        "user.id": exchange.client,
        "http.request.id": exchange.request_id,
        "trace.id": exchange.trace_id,
        "span.id": exchange.span_id,
        "labels.model": exchange.model,
        "labels.version": exchange.version,
        "labels.arm": exchange.arm,
        "labels.protocol": exchange.protocol,
    }
    found.update({name: value for name, value in perhaps.items() if value})
    return orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE)


class AccessLog:
    """Takes exchanges on the hot path and writes them in a thread, so that a reader that is slow holds nobody up."""

    def __init__(self, descriptor: int = 1) -> None:
        """descriptor: of the file to write to; stdout."""
        self.dropped = 0
        """Lines that were lost: too many waited, or the file could not be written."""
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._closing = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._write_always, name="access-log", daemon=True)

    def start(self) -> None:
        """Write, in a thread."""
        self._thread.start()

    def put(self, exchange: Exchange) -> None:
        """Take an exchange that has ended. Never waits."""
        if len(self._waiting) >= BUFFER_LINES:
            self.dropped += 1
        else:
            self._waiting.append(line(exchange))

    def close(self) -> None:
        """Write what waits; what a stuck reader does not take within CLOSE_SECONDS is dropped and counted."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        self.dropped += len(self._waiting)
        if self.dropped:
            log.error("access log: %d lines were lost", self.dropped)

    def _write_always(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        """Write what waits, at most PIPE_BUF bytes of whole lines at once: the lines of several workers do not mix."""
        while self._waiting:
            lines = [self._waiting.popleft()]
            size = len(lines[0])
            while self._waiting and size + len(self._waiting[0]) <= select.PIPE_BUF:
                lines.append(self._waiting.popleft())
                size += len(lines[-1])
            view = memoryview(b"".join(lines))
            try:
                while view:
                    view = view[os.write(self._descriptor, view) :]
                self._failing = False
            except OSError as error:
                self.dropped += len(lines)
                if not self._failing:
                    log.error("access log: %s; lines are lost until it can be written again", error)
                self._failing = True
