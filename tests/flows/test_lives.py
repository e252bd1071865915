"""Four projects live their whole lives: trained, served, drifted, retrained, promoted or held, rolled back."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from deployments.traffic import Sent, Traffic, wait_captured
from flows.lifecycle import lifecycle
from flows.monitor import monitor
from flows.promote import promote
from flows.retrain import retrain
from flows.rollback import rollback
from homeostat.control.store import ControlStore
from homeostat.data.splits import assign_parts
from homeostat.project import find_project, load_project
from homeostat.registry import Registry
from homeostat.scaffold import init_project
from tests.conftest import ROOT, ServerProcess, forget_projects, make_settings, set_environment

pytestmark = pytest.mark.flows


def ask_as_the_readme_does(url: str) -> None:
    """Send the README's two curl bodies, as they stand there."""
    infer, feedback = re.findall(r"-d '({.*?})'\n", (ROOT / "README.md").read_text(), re.S)
    answer = httpx.post(f"{url}/v2/models/diabetes/infer", content=infer, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert 25 < answer.json()["outputs"][0]["data"][0] < 346  # the range of the measure of progression
    assert httpx.post(f"{url}/v1/feedback", content=feedback, trust_env=False).is_success


def live(place: ServerProcess, name: str) -> None:
    settings = place.settings
    store = ControlStore(settings.control_url)
    project, config = load_project(find_project(name, settings.root), settings.root)
    data = project.load_data()

    first = lifecycle(name)
    assert (first.version, first.role) == (1, "champion")
    ready = httpx.get(f"{place.url}/v2/models/{name}/ready", trust_env=False).json()
    assert (int(ready["version"]), ready["sha256"]) == (1, first.sha256)
    aliases = Registry(settings.mlflow_url).aliases(name)
    assert aliases["champion"] == 1

    if name == "diabetes":
        ask_as_the_readme_does(place.url)
    sent = Sent()
    born = datetime.now(UTC)
    parts = assign_parts(data, config.data, config.task, config.train.seed)
    held_out = np.concatenate([parts["test"], parts["calibration"]])
    with Traffic(place.url, name, config.task) as traffic:
        traffic.send(data.take(held_out), sent)
    assert sent.errors == []
    wait_captured(settings.traffic_path, len(sent))
    calm = monitor(name, born)
    assert calm.window.rows == calm.window.labelled == len(held_out)
    assert config.primary in calm.quality
    assert calm.quality[config.primary].low <= calm.quality[config.primary].value

    rng = np.random.default_rng(0)
    module = sys.modules[type(project).__module__]
    base = data.take(rng.permutation(len(data))[:400])
    with Traffic(place.url, name, config.task) as traffic:
        traffic.send(replace(base, inputs=module.shift(dict(base.inputs), rng)), sent)
    assert sent.errors == []
    wait_captured(settings.traffic_path, len(sent))
    assert monitor(name, born).drifted

    second = retrain(name, "drift")
    assert second is not None
    assert second.version == 2
    story = json.loads(
        next(p for p in settings.home.glob("pipelines/*/life.json") if '"version": 2' in p.read_text()).read_text()
    )
    assert story["role"] == second.role
    if second.role == "challenger":
        assert store.history(name)[-1].reason or store.last(name, "hold")
        second = promote(name, 2, "to be rolled back")
    assert httpx.get(f"{place.url}/v2/models/{name}/ready", trust_env=False).json()["version"] in (2, "2")

    back = rollback(name, "the test says so")
    assert (back.version, back.sha256) == (1, first.sha256)
    assert store.row(name).champion.version == 1
    registry = Registry(settings.mlflow_url)
    assert registry.anchors() == [store.head()]
    assert store.verify(anchors=registry.anchors()) == store.head().sequence
    assert registry.aliases(name)["champion"] == 1
    client = MlflowClient(settings.mlflow_url)
    experiments = [one.experiment_id for one in client.search_experiments()]
    figures = [run.data.metrics for run in client.search_runs(experiments)]
    assert any(one.get("scorecard/promotions", 0) >= 1 and "scorecard/coverage" in one for one in figures)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_a_worked_example_lives(place: ServerProcess, name: str) -> None:
    live(place, name)


@pytest.mark.parametrize("task", ["classification"])
def test_a_scaffolded_project_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    shutil.copy(ROOT / "prefect.yaml", root)
    (root / "projects").mkdir()
    init_project("seedling", root, task)
    monkeypatch.syspath_prepend(str(root))
    forget_projects()
    settings = make_settings(tmp_path / "home", root)
    server = ServerProcess(settings)
    set_environment(monkeypatch, settings, server.url)
    try:
        live(server, "seedling")
    finally:
        server.stop()
        forget_projects()
