"""A promotion or a rollback that dies, or whose disk is full, at each of its side effects in turn.

`python -m tests.crashes HOME SERVER_URL promote|rollback|introduce kill|fail` prints a JSON line for each side
effect: what it was, what was found after it, and after it was asked for again. A side effect is a commit to the
control store's or MLflow's database, or a file of HOME that is opened for writing, renamed, made or removed.
Each attempt is a fork of a process that has imported everything, so that many take seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from homeostat.config import ProjectConfig, RolloutConfig
from homeostat.control.store import ControlStore
from homeostat.errors import Conflict, HomeostatError
from homeostat.reconciliation import reconcile
from homeostat.records import Comparison, Evaluation, Interval, Verdict
from homeostat.registry import Registry
from homeostat.rollout import introduce, promote, roll_back
from homeostat.settings import Settings
from tests.conftest import make_settings

MODEL = "toy"
CONFIG = ProjectConfig(name=MODEL, project="a.b:C", task="regression", rollout=RolloutConfig(timeout_seconds=20))
NO_SPACE = OSError(28, "No space left on device")
MOST = 200


class Hook:
    """Counts side effects; the n-th one kills the process, or fails."""

    def __init__(self, home: Path, nth: int, mode: str, told: Path) -> None:
        self._home, self._left, self._mode, self._told = str(home), nth, mode, told
        sys.addaudithook(self._audit)
        event.listen(Engine, "commit", lambda connection: self._effect(f"commit {connection.engine.url.database}"))

    def _audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open":
            mode, flags = arguments[1:]
            changes = any(c in mode for c in "wxa+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
        elif name == "os.mkdir":
            changes = not Path(arguments[0]).exists()
        else:
            changes = name in ("os.rename", "os.remove")
        if changes and str(arguments[0]).startswith(self._home):
            self._effect(f"{name} {arguments[0]}")

    def _effect(self, what: str) -> None:
        self._left -= 1
        if self._left:
            return
        self._told.write_text(what)
        if self._mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what.startswith("commit"):
            raise OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full"))
        raise NO_SPACE


def operation(what: str, settings: Settings, server_url: str) -> Callable[[], object]:
    """Return the whole of one decision, as a flow's task makes it; asked for again, it is done once."""
    store, registry = ControlStore(settings.control_url), Registry(settings.mlflow_url)

    def mirror() -> None:
        registry.mirror(store.row(MODEL), store.head())

    def take_over() -> None:
        promote(store, MODEL, 2, CONFIG, server_url, "crash", "asked for")
        mirror()

    def take_back() -> None:
        try:
            roll_back(store, MODEL, CONFIG, server_url, "crash", Verdict("roll back", ("worse",)), bad_version=2)
        except Conflict as conflict:  # as the flow that looks again: it is done already
            if "the champion is v1 now" not in str(conflict):
                raise
        mirror()

    def bring_in() -> None:
        gain = Comparison("mae", 1, 500, 1.0, 2.0, Interval(1.0, 0.5, 1.5))
        introduce(store, store.bundle(MODEL, 2), Evaluation("mae", {}, 500, (), gain), CONFIG, server_url, "crash")
        mirror()

    return {"promote": take_over, "rollback": take_back, "introduce": bring_in}[what]


@dataclass(frozen=True)
class Ended:
    """How a fork ended: minus the signal, 3 for an error of ours, 4 for another one; and what it returned or raised."""

    code: int
    said: Any


def forked(work: Callable[[], object]) -> Ended:
    """Run this in a fork: a connection that this process held would be shared with every later one."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code, said = 0, None
        try:
            said = work()
        except HomeostatError as error:
            code, said = 3, f"{type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001 - a test reads it
            code, said = 4, f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(said).encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), json.loads(text) if text else None)


def put_back(settings: Settings, what: str) -> int:
    """Make everything as it was before the decision, and return the ledger's last number."""
    store, registry = ControlStore(settings.control_url), Registry(settings.mlflow_url)
    wanted = 2 if what == "rollback" else 1
    store.release(MODEL, 2, actor="test", reason="again")
    for version in (1, 2) if wanted == 2 else (2, 1):
        generation = store.row(MODEL).generation
        store.promote(MODEL, version, expected_generation=generation, actor="test", reason="as it was")
    registry.mirror(store.row(MODEL), store.head())
    return store.head().sequence


def look(settings: Settings, server_url: str, after: int) -> dict[str, Any]:
    """Return what can be seen from outside: the row, what answers, the aliases, and the decisions since."""
    store, registry = ControlStore(settings.control_url), Registry(settings.mlflow_url)
    store.verify()
    champion = store.row(MODEL).champion
    assert champion is not None
    deadline = time.monotonic() + 10
    while True:
        ready = httpx.get(f"{server_url}/v2/models/{MODEL}/ready", trust_env=False).json()
        if (int(ready["version"]), ready["sha256"]) == (champion.version, champion.sha256):
            break
        if time.monotonic() > deadline:
            raise AssertionError(f"the row says {champion}, the server answers as {ready}")
        time.sleep(0.05)
    entries = [entry.action for entry in store.history(MODEL) if entry.sequence > after and entry.actor == "crash"]
    return {
        "champion": champion.version,
        "alias": registry.aliases(MODEL)["champion"],
        "anchored": registry.anchors() == [store.head()],
        "entries": entries,
    }


def main(home: str, server_url: str, what: str, mode: str) -> None:
    """Crash at each side effect in turn, until there is none left to crash at."""
    settings = make_settings(Path(home))
    told = settings.home / "effect.txt"
    Registry(f"sqlite:///{settings.home}/imports.db").anchors()  # MLflow is imported once, for all forks

    def sure(work: Callable[[], object]) -> Any:
        ended = forked(work)
        if ended.code:
            raise AssertionError(ended.said)
        return ended.said

    def seen(work: Callable[[], object], after: int) -> dict[str, Any]:
        began = time.monotonic()
        sure(work)
        return sure(lambda: look(settings, server_url, after)) | {"seconds": time.monotonic() - began}

    def crash(nth: int) -> None:
        work = operation(what, settings, server_url)
        Hook(settings.home, nth, mode, told)
        work()

    def repair() -> None:
        reconcile(ControlStore(settings.control_url), Registry(settings.mlflow_url), MODEL, "reconciler")

    for nth in range(1, MOST):
        after = sure(lambda: put_back(settings, what))
        told.unlink(missing_ok=True)
        crashed = forked(partial(crash, nth))
        effect = told.read_text() if told.is_file() else ""
        found = {"effect": effect, "code": crashed.code, "said": crashed.said, "reconciled": seen(repair, after)}
        found["again"] = seen(lambda: operation(what, settings, server_url)(), after)
        sys.stdout.write(json.dumps(found) + "\n")
        if not effect:
            return
    raise AssertionError(f"{what} has more than {MOST} side effects")


if __name__ == "__main__":
    main(*sys.argv[1:])
