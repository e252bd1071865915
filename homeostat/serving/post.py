"""A worker's post: the sockets and the black box that it shares with its supervisor."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homeostat.serving.blackbox import BlackBox

MAX_MESSAGE = 4096


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

    def announce(self, listening: list[socket.socket], workers: int, killers: Path) -> None:
        """Tell the supervisor where to listen, how many workers to run, and where to note what kills them."""
        for one in listening[1:]:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # gRPC binds once more, in each worker
        message = json.dumps({"workers": workers, "killers": str(killers)}).encode()
        socket.send_fds(self.control, [message + b"\n"], [one.fileno() for one in listening])

    def ready(self) -> None:
        """Tell the supervisor that everything listens."""
        self.control.sendall(b'{"ready": true}\n')


def receive(control: socket.socket) -> tuple[list[dict[str, Any]], list[socket.socket]] | None:
    """Return what a worker says, and the sockets that come with it; None when it is gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 2)
    except ConnectionResetError:
        return None
    if not data:
        return None
    return [json.loads(line) for line in data.splitlines()], [socket.socket(fileno=one) for one in descriptors]
