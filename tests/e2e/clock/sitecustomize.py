"""Lets a test set the clock of a process: seconds in the file that TEST_CLOCK names are added to the time."""

from __future__ import annotations

import mmap
import os
import struct
import time

_true_time, _true_time_ns = time.time, time.time_ns
with open(os.environ["TEST_CLOCK"], "rb") as _file:  # noqa: PTH123  starts with every process: imports nothing more
    _added = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)


def _seconds() -> float:
    (seconds,) = struct.unpack_from("<d", _added)
    return float(seconds)


def _time() -> float:
    return _true_time() + _seconds()


def _time_ns() -> int:
    return _true_time_ns() + int(_seconds() * 1e9)


time.time, time.time_ns = _time, _time_ns
