"""One server of the benchmark: installed for itself, started on a port of loopback, pinned, and ended by its pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil

from benchmarks.serving_load import Request, ask
from benchmarks.serving_models import Workload
from benchmarks.serving_protocols import Protocol
from homeostat.serving.session import Session

INSTALL_SECONDS, START_SECONDS, STOP_SECONDS = 600, 60, 20


class Skipped(Exception):
    """A rival that cannot be installed or started, or that answers something else, and why."""


@dataclass(frozen=True)
class Server:
    """How a server is started for one workload, and what it is asked."""

    name: str
    """Its first word names the virtual environment, which it shares with others of that word."""
    command: Callable[[Path, Workload, int], tuple[list[str], dict[str, str]]]
    """(folder of the benchmark, workload, port that is asked) -> command and environment."""
    protocol: Protocol
    packages: tuple[str, ...] = ()

    @property
    def environment(self) -> str:
        return self.name.split()[0]

    def request(self, workload: Workload, port: int) -> Request:
        return self.protocol.request(workload, port)


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    request: Request
    pid: int

    def cpu_seconds(self) -> float:
        """Of the process and all that it has started and that still runs."""
        total = 0.0
        for process in family(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


def family(pid: int) -> list[psutil.Process]:
    """A process and everything that it has started."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise Skipped("uv is not installed")
    return found


def environment_of(folder: Path, name: str, packages: tuple[str, ...]) -> Path:
    """Make a virtual environment of its own, once, and return its bin folder; raises Skipped."""
    place = folder / "venv" / name
    done = place / ".installed"
    if done.exists() and done.read_text() == repr(packages):
        return place / "bin"
    try:
        for command in (
            ["venv", "--quiet", "--clear", "--python", sys.executable, str(place)],
            ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(place / "bin" / "python"), *packages],
        ):
            subprocess.run([_uv(), *command], check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise Skipped(f"cannot be installed: {error.stderr.strip()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise Skipped(f"not installed within {INSTALL_SECONDS} s") from error
    done.write_text(repr(packages))
    return place / "bin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(request: Request) -> bool:
    """Whether a request is answered now."""
    return not _complaint(request)


def _complaint(request: Request) -> str:
    """Why a request is not answered, empty when it is."""
    try:
        ask(request)
    except urllib.error.HTTPError as error:
        return f"{error}: {error.read(300)!r}"
    except (OSError, grpc.RpcError) as error:
        return repr(error)[:300]
    return ""


def check_answer(server: Server, workload: Workload, request: Request) -> None:
    """Raise Skipped unless a server answers what the graph does."""
    if server.protocol.decode is None:
        return
    (expected,) = Session(workload.onnx()).run({"x": workload.rows()})
    body, headers = ask(request)
    found = server.protocol.decode(body, headers)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4, atol=1e-6):
        raise Skipped(f"answers {found.shape} {found.ravel()[:3]}, not {expected.shape} {expected.ravel()[:3]}")


@contextlib.contextmanager
def started(
    command: list[str], environment: dict[str, str], folder: Path, log: Path, core: int | None
) -> Iterator[int]:
    """Run a server in a session of its own; yield its pid; end it with all that it has started."""
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
            cwd=folder,
            preexec_fn=pin,
            start_new_session=True,
        )
    try:
        yield process.pid
    finally:
        begun = family(process.pid)  # some of it in sessions of their own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while not _has_ended(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        _, alive = psutil.wait_procs(begun[1:], timeout=2)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what came while it ended: its number is ours until the wait
        process.wait()


def _has_ended(pid: int) -> bool:
    """Whether a child has ended, which nobody has waited for yet."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextlib.contextmanager
def running(folder: Path, server: Server, workload: Workload, core: int | None) -> Iterator[Running]:
    """Start a server, wait until it answers, and answers what it should, and yield it; raises Skipped."""
    if server.packages:
        environment_of(folder, server.environment, server.packages)
    port = free_port()
    command, environment = server.command(folder, workload, port)
    request = server.request(workload, port)
    log = folder / f"{server.name.replace(' ', '-')}-{workload.name}.log"
    try:
        with started(command, environment, folder, log, core) as pid:
            deadline = time.monotonic() + START_SECONDS
            while complaint := _complaint(request):
                if _has_ended(pid):
                    raise Skipped(f"has ended; {log.name} ends with: {log.read_text(errors='replace').strip()[-300:]}")
                if time.monotonic() > deadline:
                    raise Skipped(f"no good answer after {START_SECONDS} s, see {log.name}: {complaint}")
                time.sleep(0.1)
            check_answer(server, workload, request)
            yield Running(request, pid)
    finally:
        for name in ("HOMEOSTAT_HOME", "BENCH_SCRATCH"):  # some hundred MB of captured requests, for example
            if name in environment:
                shutil.rmtree(environment[name], ignore_errors=True)
