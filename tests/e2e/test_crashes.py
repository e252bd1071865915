"""kill -9 and a full disk at each side effect of a promotion and of a rollback; twenty promotions at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homeostat.control.store import ControlStore
from homeostat.registry import Registry
from tests.bundles import linear, make_bundle
from tests.conftest import ROOT, ServerProcess
from tests.crashes import MODEL

pytestmark = pytest.mark.e2e

ENTRIES = {"promote": ["promote"], "rollback": ["rollback"], "introduce": ["challenger", "promote"]}
PROMOTE_BY_HAND = """
import sys, time, pathlib
from homeostat.cli import main
gate = pathlib.Path(sys.argv[2])
(gate / f"ready{sys.argv[1]}").touch()
while not (gate / "go").exists():
    time.sleep(0.001)
main(["promote", "toy", sys.argv[1]])
"""


@pytest.fixture
def two_versions(server: ServerProcess) -> ServerProcess:
    """A server with v1 live and v2 beside it, both in MLflow too."""
    settings = server.settings
    store, registry = ControlStore(settings.control_url), Registry(settings.mlflow_url)
    for version in (1, 2):
        run = registry.start_run(MODEL, f"pipeline {version}")
        example = {"x": np.ones((2, 4), np.float32)}
        assert registry.register_graph(run, MODEL, linear(float(version)), "a test", example) == version
        registry.end_run(run)
        store.register_bundle(make_bundle(settings.home, version))
    store.promote(MODEL, 1, expected_generation=0, actor="test", reason="first")
    registry.mirror(store.row(MODEL), store.head())
    return server


def crash(place: ServerProcess, what: str, mode: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crashes", str(place.settings.home), place.url, what, mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", list(ENTRIES))
@pytest.mark.parametrize("mode", ["kill", "fail"])
def test_a_crash_at_each_side_effect(two_versions: ServerProcess, what: str, mode: str) -> None:
    found = crash(two_versions, what, mode)
    wanted = 1 if what == "rollback" else 2
    effects = [one["effect"] for one in found]
    assert effects[-1] == ""  # the last one went through
    assert any("control.db" in effect for effect in effects)
    assert sum("mlflow.db" in effect for effect in effects) >= 2
    for one in found[:-1]:
        assert one["code"] == (-9 if mode == "kill" else 3), one  # 3: an error of ours
    for one in found:
        first, again = one["reconciled"], one["again"]
        assert first["alias"] == first["champion"], one
        assert (again["champion"], again["alias"]) == (wanted, wanted), one
        assert first["anchored"], one
        assert again["entries"] == ENTRIES[what], one  # each decision once
        assert max(first["seconds"], again["seconds"]) < 10, one


@pytest.mark.timeout(300)
def test_twenty_people_promote_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path))
    monkeypatch.setenv("HOMEOSTAT_MLFLOW_URL", f"sqlite:///{tmp_path}/mlflow.db")
    store = ControlStore(f"sqlite:///{tmp_path}/control.db", timeout_seconds=20)
    count = 20
    for version in range(1, count + 2):
        store.register_bundle(make_bundle(tmp_path, version))
    store.promote(MODEL, count + 1, expected_generation=0, actor="test", reason="first")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE_BY_HAND, str(version), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for version in range(1, count + 1)
    ]
    while sum(1 for _ in tmp_path.glob("ready*")) < count:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    told = [(racer.communicate(timeout=200)[0], racer.returncode) for racer in racers]
    won = [text for text, code in told if code == 0]
    lost = [text for text, code in told if code != 0]
    assert won, told[0]
    assert all("somebody changed it first" in text for text in lost), lost
    history = [entry for entry in store.history(MODEL) if entry.action == "promote"]
    assert len(history) == 1 + len(won)
    champion = store.row(MODEL).champion
    assert champion is not None
    assert champion.version == history[-1].version
    assert store.verify() == len(history)
