"""The HTTP connections of one server, what they may hold together, and how many requests wait on them."""

from __future__ import annotations

import heapq
import logging
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homeostat.serving.rest.connection import Connection

log = logging.getLogger(__name__)

MAX_HELD = 256 * 1024 * 1024
"""Bytes of all bodies, small ones aside, that have not been answered."""
MAX_WAITING = 512
"""Requests that have come whole and have no answer yet."""
RESERVED_FILES = 256
"""File descriptors that are for no connections: databases, pipes, bundles."""
GRPC_CONNECTIONS = 512
"""Connections of gRPC at once, at most half as many as of HTTP; more are closed as they come."""


def allow_connections(wanted: int, *, grpc: bool = False) -> tuple[int, int]:
    """Raise the soft limit of open files as far as it may go; return how many connections of HTTP and gRPC fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = RESERVED_FILES + (min(GRPC_CONNECTIONS, wanted // 2) if grpc else 0)
    needed = wanted + reserved
    if soft < needed and (hard == resource.RLIM_INFINITY or hard > soft):
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = min(wanted, soft - min(reserved, soft // 2))
    if allowed < wanted:
        log.warning("%d connections at most, for only %d files may be open (LimitNOFILE, ulimit -n)", allowed, soft)
    return allowed, min(GRPC_CONNECTIONS, allowed // 2) if grpc else 0


class Connections:
    """Counts connections, bytes and requests; only the event loop does, so no lock is needed."""

    def __init__(self, limit: int = 4096, *, max_held: int = MAX_HELD, max_waiting: int = MAX_WAITING) -> None:
        self.limit, self.max_held, self.max_waiting = limit, max_held, max_waiting
        self.all: set[Connection] = set()
        self.held: dict[Connection, int] = {}
        """Bytes of large bodies that have not been answered."""
        self.total_held = 0
        self.waiting = 0
        """Requests that have come whole and have no answer yet."""
        self.cut = 0
        """Connections that were closed for breaking a limit, or to make room."""

    def crowded(self) -> bool:
        """Return whether more requests wait than may."""
        return self.waiting > self.max_waiting

    def make_room(self) -> bool:
        """Close a sixteenth of the connections, of those that wait for their client; return whether there were any.

        First those that never asked anything, the oldest first.
        """
        idle = [one for one in self.all if one.waits() and not one.transport.is_closing()]
        victims = heapq.nsmallest(1 + self.limit // 16, idle, key=lambda one: (one.cycle is not None, one.since))
        for victim in victims:
            self.cut += 1
            victim.transport.abort()
        return bool(victims)

    def hold(self, connection: Connection, size: int) -> bool:
        """Note the size of a body that is coming; return whether there is room for it."""
        self.total_held += size - self.held.get(connection, 0)
        self.held[connection] = size
        return self.total_held <= self.max_held

    def release(self, connection: Connection) -> None:
        """Forget a body that is answered, or whose client has left."""
        self.total_held -= self.held.pop(connection, 0)

    def sweep(self, now: float) -> None:
        """Close what has taken too long; to be called about once a second."""
        for connection in list(self.all):
            connection.sweep(now)
