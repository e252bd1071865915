"""Fixtures that more than one kind of test uses: a home of its own, and a real model server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"  # the library also logs outside of flows

import httpx
import pytest

from deployments.places import Ports, environment
from homeostat.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent

# A shell has what it starts in the background ignore Ctrl-C, and so its children: tests of it could not pass.
signal.signal(signal.SIGINT, signal.default_int_handler)


def make_settings(home: Path, root: Path = ROOT) -> Settings:
    """Settings that keep every file of a test under `home`."""
    home.mkdir(parents=True, exist_ok=True)
    return load_settings(root=root, home=home, mlflow_url=f"sqlite:///{home}/mlflow.db")


def forget_projects() -> None:
    """Let `projects` be imported anew, from another checkout."""
    for name in [name for name in sys.modules if name == "projects" or name.startswith("projects.")]:
        del sys.modules[name]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """`homeostat serve` in a process of its own, on a free port."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ports = Ports(*(free_port() for _ in range(5)))
        self.url = self.ports.urls["server"]
        self.log = settings.home / "server.log"
        self.start()

    def start(self) -> None:
        shared = environment(self.ports, self.settings)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "homeostat.cli", "serve", "--port", str(self.ports.server)],
                env=shared,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/v2/health/live", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"no server after 20 s: {self.log.read_text()}")

    def stop(self, sig: int = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.process.wait(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A model server with an empty home."""
    started = ServerProcess(make_settings(tmp_path / "home"))
    yield started
    if started.process.poll() is None:
        started.stop()


def set_environment(monkeypatch: pytest.MonkeyPatch, settings: Settings, server_url: str) -> None:
    """Point the flows at these places."""
    monkeypatch.setenv("HOMEOSTAT_ROOT", str(settings.root))
    monkeypatch.setenv("HOMEOSTAT_HOME", str(settings.home))
    monkeypatch.setenv("HOMEOSTAT_MLFLOW_URL", settings.mlflow_url)
    monkeypatch.setenv("HOMEOSTAT_SERVER_URL", server_url)
