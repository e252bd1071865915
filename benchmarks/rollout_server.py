"""`homeostat serve` in a process of its own, with a home and a control store of its own, for what rollouts cost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving_server import free_port
from homeostat.control.store import ControlStore

START_SECONDS, STOP_SECONDS, POLL_SECONDS = 60, 25, 0.02


def compiling() -> dict[str, str]:
    """The environment, in which Python keeps what it has compiled: else every start would compile it anew."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())  # a child is its thread's
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    except OSError:  # it, or one of its threads, has just ended
        return []


def command(process: int) -> list[str]:
    """What a process was started with; nothing when it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:
        return []


@dataclass
class Serving:
    """A running server, and where it keeps what it has."""

    home: Path
    port: int = field(default_factory=free_port)
    settings: Mapping[str, str] = field(default_factory=dict)
    """More of its environment."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Of the server and of commands; nothing listens where MLflow and Prefect should be."""
        return compiling() | {
            "HOMEOSTAT_HOME": str(self.home),
            "HOMEOSTAT_PORT": str(self.port),
            "HOMEOSTAT_GRPC_PORT": "0",
            "HOMEOSTAT_CONTROL_URL": "",
            "HOMEOSTAT_TRAFFIC": "",
            "HOMEOSTAT_MLFLOW_URL": "http://127.0.0.1:9",
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
            **self.settings,
        }

    @property
    def store(self) -> ControlStore:
        url = self.settings.get("HOMEOSTAT_CONTROL_URL", f"sqlite:///{self.home}/control.db")
        return ControlStore(url)

    def workers(self) -> list[int]:
        """The processes that answer."""
        return children(self.process.pid) if self.process else []

    def writers(self) -> list[int]:
        """Their capture writers."""
        found = [child for worker in self.workers() for child in children(worker)]
        return [child for child in found if "homeostat.serving.capture.writer" in command(child)]

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer; 0 when nothing listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return error.code, {}
        except OSError:
            return 0, {}

    def is_loaded(self, model: str, version: int) -> bool:
        return self.get(f"/v2/models/{model}/versions/{version}/ready")[0] == 200

    def live(self, model: str) -> str | None:
        """The version that answers."""
        return self.get(f"/v2/models/{model}/ready")[1].get("version")


def wait(found: Callable[[], object], what: str, seconds: float = START_SECONDS) -> float:
    """Wait until something is true; return when that was. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not {what} within {seconds:g} s")
        time.sleep(POLL_SECONDS)
    return time.monotonic()


def cores(*, pinned: bool = True) -> tuple[int | None, int | None]:
    """One core for the server and another one for the load, where there are two."""
    found = sorted(os.sched_getaffinity(0))
    return (found[0], found[1]) if pinned and len(found) > 1 else (None, None)


@contextlib.contextmanager
def home_in(folder: Path) -> Iterator[Path]:
    """A home of its own, gone afterwards with all that was captured."""
    folder.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="home-", dir=folder.resolve()))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def serving(home: Path, core: int | None = None, settings: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """Start `homeostat serve`, wait until it is ready for what its control store names, and stop it by its pid."""
    server = Serving(home, settings=settings or {})
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "homeostat.cli", "serve"],
            env=server.environment,
            stdout=log,
            stderr=log,
            cwd=home,
            preexec_fn=pin,
            start_new_session=True,
        )
    server.process = process
    try:
        wait(lambda: process.poll() is not None or server.get("/v2/health/ready")[0] == 200, "ready")
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {(home / 'server.log').read_text()[-500:]}")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
