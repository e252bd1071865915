"""Load a bundle's graph in a throw-away process first, with limits on memory, processor time and wall time."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from homeostat.errors import BundleInvalid, PreflightFailed

WALL_SECONDS = 60.0
CPU_SECONDS = 30
MEMORY_BYTES = 2 * 1024**3
"""Address space, beside four times the graph."""

LOOK_SECONDS = 0.2
NICENESS = 10
"""The live version's requests come first, should there be no processor to spare."""

_HEAD = struct.Struct("<QQQII")


class Interrupted(Exception):
    """The preflight was ended before it had found anything."""


@dataclass(frozen=True)
class Report:
    """What the throw-away process found."""

    batch_invariant: bool
    seconds_one_row: float


def preflight(
    onnx: bytes,
    golden: bytes,
    where: str,
    *,
    wall_seconds: float = WALL_SECONDS,
    cpu_seconds: int = CPU_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
    interrupted: Callable[[], bool] = lambda: False,
) -> Report:
    """Load, warm up and reproduce the golden rows in a subprocess; raises PreflightFailed that says how it failed.

    `interrupted` is asked a few times a second; when it says so, Interrupted is raised. The very
    bytes given go through a pipe: the subprocess opens no file of the bundle.
    """
    head = _HEAD.pack(len(onnx), len(golden), memory_bytes + 4 * len(onnx), cpu_seconds, math.ceil(wall_seconds) + 1)
    process = subprocess.Popen(
        [sys.executable, "-m", "homeostat.serving.preflight"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C on the server is not a verdict on the bundle
    )
    with process:
        # communicate() sends nothing more once it has timed out (Python 3.11), and it is asked to look up often
        stdin, process.stdin = process.stdin, None
        feeder = threading.Thread(target=_feed, args=(stdin, (head, onnx, golden)), name="preflight", daemon=True)
        feeder.start()
        try:
            stdout, stderr = _communicate(process, where, wall_seconds, interrupted)
        finally:
            process.kill()  # which ends the feeder too: nobody reads
            feeder.join()
    code = process.returncode
    if code < 0:
        name = signal.Signals(-code).name
        why = f" (over {cpu_seconds} s of processor time)" if name == "SIGXCPU" else ""
        raise PreflightFailed(f"{where}: the graph killed its preflight process with {name}{why}; it is not served")
    try:
        found = json.loads(stdout)
        if code == 0:
            return Report(**found)
        raise PreflightFailed(f"{where}: preflight refused it: {found['error']}")
    except (ValueError, KeyError, TypeError) as error:
        tail = stderr[-500:].decode("utf-8", "replace")
        raise PreflightFailed(f"{where}: preflight ended with code {code} and no report: {tail}") from error


def _feed(stdin: IO[bytes] | None, parts: Sequence[bytes]) -> None:
    if stdin is None:
        raise ValueError("the process has no pipe to its stdin")
    with suppress(BrokenPipeError), stdin:  # it has ended, and its code says why
        for part in parts:
            stdin.write(part)


def _communicate(
    process: subprocess.Popen[bytes], where: str, wall_seconds: float, interrupted: Callable[[], bool]
) -> tuple[bytes, bytes]:
    deadline = time.monotonic() + wall_seconds
    while True:
        try:
            return process.communicate(timeout=max(0.0, min(LOOK_SECONDS, deadline - time.monotonic())))
        except subprocess.TimeoutExpired as error:
            if time.monotonic() >= deadline:
                text = f"{where}: preflight took over {wall_seconds:g} s; the graph is not served"
                raise PreflightFailed(text) from error
            if interrupted():
                raise Interrupted(f"{where}: its preflight was interrupted; it begins anew") from error


def main() -> int:
    """Read the limits, the graph and the golden rows from stdin, and report on stdout as JSON."""
    import resource

    os.nice(NICENESS)
    stdin = sys.stdin.buffer
    onnx_bytes, golden_bytes, memory, cpu, wall = _HEAD.unpack(stdin.read(_HEAD.size))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # SIGXCPU first: it says why
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(wall)  # should the server be gone by then
    onnx, golden = stdin.read(onnx_bytes), stdin.read(golden_bytes)
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not the report

    from homeostat.serving.session import Session, check_golden, time_rows

    try:
        session = Session(onnx)
        invariant = check_golden(session, golden)
        seconds, _ = time_rows(session, golden)
    except BundleInvalid as error:
        json.dump({"error": str(error)}, report)
        code = 1
    except Exception as error:  # noqa: BLE001  whatever it is, the graph is not served, and the text says why
        json.dump({"error": f"{type(error).__name__}: {error!s:.500}"}, report)
        code = 1
    else:
        json.dump({"batch_invariant": invariant, "seconds_one_row": seconds}, report)
        code = 0
    report.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
