"""A worker's post: the sockets and the black box that it shares with its supervisor."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homeostat.serving.blackbox import BlackBox

MAX_MESSAGE = 4096
MAX_DESCRIPTORS = 3
"""REST, gRPC, and the lock of HOME."""


@dataclass
class Post:
    """What a worker inherits. The first worker binds the sockets, and hands them to its supervisor."""

    control: socket.socket
    """To the supervisor; its end means that the supervisor is gone."""
    box: BlackBox
    index: int = 0
    """0 for the first of the workers; one that comes back has the index of its forerunner."""
    listening: list[socket.socket] = field(default_factory=list)
    """REST, and gRPC if it is served; empty for the first worker."""

    def announce(self, listening: list[socket.socket], workers: int, killers: Path, lock: int | None = None) -> None:
        """Tell the supervisor where to listen, how many workers to run, and where to note what kills them.

        lock: of HOME; it is the supervisor's from here on.
        """
        for one in listening[1:]:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # gRPC binds once more, in each worker
        message = json.dumps({"workers": workers, "killers": str(killers), "locked": lock is not None}).encode()
        descriptors = [one.fileno() for one in listening]
        socket.send_fds(self.control, [message + b"\n"], descriptors if lock is None else [*descriptors, lock])
        if lock is not None:
            os.close(lock)

    def ready(self) -> None:
        """Tell the supervisor that everything listens."""
        self.control.sendall(b'{"ready": true}\n')


def receive(control: socket.socket) -> tuple[list[dict[str, Any]], list[int]] | None:
    """Return what a worker says, and the descriptors that come with it; None when it is gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, MAX_DESCRIPTORS)
    except ConnectionResetError:
        return None
    if not data:
        return None
    return [json.loads(line) for line in data.splitlines()], descriptors
