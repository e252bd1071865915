"""One request and its answer, as access log and traces tell of it; nothing is noted while both are off."""

from __future__ import annotations

import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

MAX_TEXT = 512
"""Characters of a path or a user agent that are noted."""
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
"""W3C Trace Context, version 00; later versions may append fields."""


@dataclass(slots=True)
class Exchange:
    """What is noted of one request. Never a body, a header with a key, or a query."""

    transport: str
    """`rest` or `grpc`."""
    method: str
    path: str
    address: str
    """Of the client, or what a trusted proxy says that it is."""
    http_version: str
    user_agent: str = ""
    traceparent: str = ""
    """As the client sent it."""
    started: float = field(default_factory=time.time)
    """Unix time, seconds."""
    start: float = field(default_factory=time.perf_counter)
    """As time.perf_counter says it, like every time below; 0 for what did not come to pass."""
    decode_start: float = 0.0
    infer_start: float = 0.0
    infer_end: float = 0.0
    end: float = 0.0
    status: int = 0
    """HTTP status, over gRPC too; 499 when the client left."""
    client: str = ""
    """Id of the key or token."""
    request_id: str = ""
    model: str = ""
    version: str = ""
    arm: str = ""
    protocol: str = ""
    trace_id: str = ""
    span_id: str = ""
    traceresponse: str = ""
    """Tells the client which span its request became; empty while there are no traces."""
    span: Any = None
    """OpenTelemetry's."""

    def __post_init__(self) -> None:
        """Cut what a client may make long, and take the trace that it belongs to."""
        self.path, self.user_agent = self.path[:MAX_TEXT], self.user_agent[:MAX_TEXT]
        found = TRACEPARENT.fullmatch(self.traceparent)
        if found is None or (self.traceparent.startswith("00") and found[3]):
            self.traceparent = ""
        else:
            self.trace_id = found[1]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
"""The exchange that this task answers; None while nobody asked for an access log or traces."""
