"""`make run` and `make up`, as a person starts them: the whole story, Ctrl-C, a busy port; nothing is left running."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, free_port

pytestmark = pytest.mark.e2e


class Started:
    """A command in a session of its own; what it prints goes to a file, as with `make run > file`."""

    def __init__(self, module: str, home: Path, *words: str, **more: str) -> None:
        self.home, self.log = home, home / "output.log"
        variables = {
            "HOMEOSTAT_HOME": str(home / "var"),
            "HOMEOSTAT_MLFLOW_URL": f"sqlite:///{home}/mlflow.db",
            "HOMEOSTAT_PREFECT_PORT": str(free_port()),
            "HOMEOSTAT_MLFLOW_PORT": str(free_port()),
            "HOMEOSTAT_PORT": str(free_port()),
            "HOMEOSTAT_GRPC_PORT": str(free_port()),
            "HOMEOSTAT_GATEWAY_PORT": str(free_port()),
            "COLUMNS": "80",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=ROOT,
                env={**os.environ, **variables, **more},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while words not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"no {words!r} after {seconds} s in:\n{self.output()}"
            time.sleep(0.1)

    def ends(self, code: int, seconds: float) -> None:
        assert self.process.wait(seconds) == code, self.output()
        deadline = time.monotonic() + 10
        while left_running(self.home) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left_running(self.home) == []

    def stop(self) -> None:
        """End it as `kill` does, then kill what is left of it."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        left = processes_of(self.home)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, 10)
        self.process.wait(10)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start a command with this test's folder as its home; it is stopped with the test, also when that fails."""
    started: list[Started] = []

    def begin(module: str, *words: str, **more: str) -> Started:
        started.append(Started(module, tmp_path, *words, **more))
        return started[-1]

    yield begin
    for command in started:
        command.stop()


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process that was given this home, by its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(home) in process.environ().get("HOMEOSTAT_HOME", ""):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def left_running(home: Path) -> list[str]:
    """The command lines of what runs with this home."""
    found = []
    for process in processes_of(home):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.timeout(900)
def test_make_run_lives_a_life_and_leaves_a_record(start: Callable[..., Started], tmp_path: Path) -> None:
    life = start("deployments.life", "digits")
    life.ends(0, 850)
    assert max(len(line) for line in life.output().splitlines() if "/" not in line) <= 80
    record = json.loads((tmp_path / "var" / "run.json").read_text())
    assert set(record) == {
        *("project", "seconds", "stages", "versions", "champion", "requests", "drift", "faults", "urls")
    }
    names = [stage["name"] for stage in record["stages"]]
    for stage in ("prepare", "validate", "train", "compress", "export", "evaluate", "register", "deploy", "monitor"):
        assert stage in names
    assert names[names.index("shadow") :][:3] == ["shadow", "canary", "bake"]
    assert [version["version"] for version in record["versions"]] == [1, 2]
    assert all({"accuracy", "bytes", "sha256", "candidate"} <= set(version) for version in record["versions"])
    assert record["champion"] == 1
    assert record["requests"]["failed"] == 0
    assert record["requests"]["sent"] >= 4_000
    assert record["drift"]["before"]["drifted"] is False
    assert record["drift"]["harmless"]["conclusion"] == "drift"
    assert record["drift"]["after"]["conclusion"] == "harm"
    changed, bad, subtle = (record["faults"][name] for name in ("changed world", "bad version", "subtle version"))
    assert 0 < changed["detection_seconds"] < 120
    assert 0 < changed["recovery_seconds"] < 300
    assert (bad["version"], subtle["version"]) == (3, 4)
    assert 0 < bad["detection_seconds"] < 60
    assert subtle["caught_by"] == "labels"
    for fault in (bad, subtle):
        assert fault["wrong_answers"] > 0
        assert fault["rollback_seconds"] < 5
    page = (tmp_path / "var" / "run.html").read_text()
    assert len(page) < 1_000_000
    assert "digits: a model" in page


@pytest.mark.timeout(600)
def test_ctrl_c_stops_everything(start: Callable[..., Started]) -> None:
    life = start("deployments.life", "digits")
    life.wait_for("a model is born", 200)
    time.sleep(8)  # in the middle of the flow run; tests/flows interrupts each stage
    life.process.send_signal(signal.SIGINT)
    life.ends(130, 60)
    assert "Traceback" not in life.output()
    assert "nothing is left running" in life.output()
    again = start("deployments.life", "digits")
    again.wait_for("worker start", 200)  # the first figure of a flow run that has ended
    again.process.send_signal(signal.SIGINT)
    again.ends(130, 60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "the terminal is closed"])
@pytest.mark.timeout(300)
def test_make_up_runs_until_it_is_stopped(start: Callable[..., Started], number: signal.Signals) -> None:
    stack = start("deployments.stack")
    stack.wait_for("the stack is ready", 200)
    assert re.search(r"[1-9]\d* deployments registered", stack.output())
    stack.process.send_signal(number)
    stack.ends(0, 60)


def test_a_busy_port_is_named(start: Callable[..., Started]) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        stack = start("deployments.stack", HOMEOSTAT_MLFLOW_PORT=str(port))
        stack.ends(1, 60)
    assert f"port {port} (mlflow)" in stack.output()
    assert "HOMEOSTAT_MLFLOW_PORT" in stack.output()
    assert "Traceback" not in stack.output()
