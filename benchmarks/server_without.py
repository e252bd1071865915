"""Our server in one process, with parts of it cut out: `python -m benchmarks.server_without validation metrics`.

No user has such switches; what a part costs can be seen without it alone.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from homeostat.serving.blackbox import SIZE, BlackBox, Guard
from homeostat.serving.metrics import VersionMetrics
from homeostat.serving.post import Post
from homeostat.serving.served import Served
from homeostat.serving.server import serve
from homeostat.settings import load_settings


def _count_rows(served: Served, tensors: dict[str, Any]) -> tuple[int, int]:
    """In place of holding them against the contract."""
    return len(next(iter(tensors.values()))), 0


def _replace(owner: type, name: str, part: Callable[..., Any]) -> None:
    getattr(owner, name)  # else a part that has another name by now would cost nothing
    setattr(owner, name, part)


def _no_validation() -> None:
    _replace(Served, "check", _count_rows)


def _no_metrics() -> None:
    _replace(VersionMetrics, "answered", lambda *_: None)


def _no_quarantine() -> None:
    _replace(Guard, "enter", lambda *_: 0)
    _replace(BlackBox, "leave", lambda *_: None)


PARTS: dict[str, Callable[[], None]] = {
    "validation": _no_validation,
    "metrics": _no_metrics,
    "quarantine": _no_quarantine,
}


def main(parts: list[str]) -> None:
    """Serve with the settings of the environment, as a worker does, until a signal."""
    for part in parts:
        PARTS[part]()
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(os.memfd_create("bench-blackbox"), "r+b") as file:
        file.truncate(SIZE)
        serve(load_settings(), Post(theirs, BlackBox(file.fileno())))


if __name__ == "__main__":
    main(sys.argv[1:])
