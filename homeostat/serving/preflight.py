"""Load a bundle's graph in a throw-away process first, with limits on memory, processor time and wall time."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass

from homeostat.errors import BundleInvalid

WALL_SECONDS = 60.0
CPU_SECONDS = 30
MEMORY_BYTES = 2 * 1024**3
"""Address space, beside four times the graph."""

_HEAD = struct.Struct("<QQQI")


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
) -> Report:
    """Load, warm up and reproduce the golden rows in a subprocess; raises BundleInvalid that says how it failed.

    The very bytes given go through a pipe: the subprocess opens no file of the bundle.
    """
    head = _HEAD.pack(len(onnx), len(golden), memory_bytes + 4 * len(onnx), cpu_seconds)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "homeostat.serving.preflight"],
            input=b"".join((head, onnx, golden)),
            capture_output=True,
            timeout=wall_seconds,
            check=False,
            start_new_session=True,  # Ctrl-C on the server is not a verdict on the bundle
        )
    except subprocess.TimeoutExpired as error:
        raise BundleInvalid(f"{where}: preflight took over {wall_seconds:g} s; the graph is not served") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = f" (over {cpu_seconds} s of processor time)" if name == "SIGXCPU" else ""
        raise BundleInvalid(f"{where}: the graph killed its preflight process with {name}{why}; it is not served")
    try:
        found = json.loads(done.stdout)
        if done.returncode == 0:
            return Report(**found)
        raise BundleInvalid(f"{where}: preflight refused it: {found['error']}")
    except (ValueError, KeyError, TypeError) as error:
        tail = done.stderr[-500:].decode("utf-8", "replace")
        raise BundleInvalid(f"{where}: preflight ended with code {done.returncode} and no report: {tail}") from error


def main() -> int:
    """Read the limits, the graph and the golden rows from stdin, and report on stdout as JSON."""
    import resource

    stdin = sys.stdin.buffer
    onnx_bytes, golden_bytes, memory, cpu = _HEAD.unpack(stdin.read(_HEAD.size))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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
