"""Versions that are faulty on purpose: what their graphs answer, and that they can be served."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from homeostat.bundle import load_public_key, open_bundle
from homeostat.commands.push_faulty import KINDS, STRATEGIES
from homeostat.config import ProjectConfig, Strategy
from homeostat.control.store import ControlStore
from homeostat.dataset import Dataset
from homeostat.errors import BundleInvalid, ControlUnavailable, NotFound
from homeostat.graph import check_graph
from homeostat.inference import predict
from homeostat.monitoring.reference import make_reference
from homeostat.registry import Registry
from homeostat.settings import load_settings
from homeostat.simulation.versions import FAULTS, SHARE, faulty_graph, push_version
from tests.bundles import linear, make_bundle
from tests.unit.monitoring.test_monitor import GOOD, NAMES, Toy

CONFIG = ProjectConfig(name="toy", project="a:B", task="classification")


def rows(count: int = 400) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)


def refuse(ref: object) -> None:
    raise ControlUnavailable("the control store does not answer")


@pytest.fixture
def live(tmp_path: Path):
    """A bundle of three classes, with a reference."""
    x = rows()
    data = Dataset.from_arrays({"x": x}, x.argmax(axis=1), columns={"x": NAMES})
    reference = make_reference(Toy(), CONFIG, data, GOOD, 1)
    ref = make_bundle(tmp_path, 1, onnx_bytes=GOOD, task="classification", reference=reference)
    return open_bundle(ref, load_public_key(tmp_path))


def test_what_they_answer(live):
    x = {"x": rows()}
    right = predict(live.onnx, x)["output"]
    graphs = {fault: faulty_graph(live, fault, f"mark {fault}") for fault in FAULTS}
    assert len(set(graphs.values())) == len(FAULTS)
    answers = {}
    for fault, graph in graphs.items():
        check_graph(graph, fault)
        answers[fault] = predict(graph, x)["output"]
    wrong = {fault: np.mean(answers[fault].argmax(axis=1) != right.argmax(axis=1)) for fault in FAULTS}
    assert wrong["bad"] == 1
    assert wrong["subtle"] == pytest.approx(SHARE, abs=0.01)
    assert (answers["slow"] == right).all()
    assert (answers["corrupted"] == right).all()
    assert faulty_graph(live, "bad", "another") != graphs["bad"]  # its digest is not in quarantine yet


def test_the_command_offers_what_there_is():
    assert tuple(KINDS) == FAULTS
    assert {*STRATEGIES, "direct"} == set(get_args(Strategy))


def test_a_faulty_version_of_a_faulty_one(live):
    once = replace(live, onnx=faulty_graph(live, "subtle", "first"))
    x = {"x": rows()}
    right, wrong = predict(live.onnx, x)["output"], predict(faulty_graph(once, "bad", "second"), x)["output"]
    moved = (np.roll(right, 1, axis=1) == wrong).all(axis=1)
    assert np.mean(moved) == pytest.approx(1 - SHARE, abs=0.01)


def test_slow_is_slow(live):
    x = {"x": rows(1)}

    def seconds(graph: bytes) -> float:
        from homeostat.inference import predict_all, session

        loaded = session(graph)
        predict_all(loaded, x)
        started = time.perf_counter()
        for _ in range(5):
            predict_all(loaded, x)
        return time.perf_counter() - started

    assert seconds(faulty_graph(live, "slow", "m")) > 3 * seconds(live.onnx)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_one_number_a_row(tmp_path: Path, task):
    ref = make_bundle(tmp_path, 1, onnx_bytes=linear(), task=task)
    live = open_bundle(ref, load_public_key(tmp_path))
    x = {"x": np.random.default_rng(0).random((5, 4)).astype(np.float32)}
    right, bad = predict(live.onnx, x)["output"], predict(faulty_graph(live, "bad", "m"), x)["output"]
    np.testing.assert_allclose(bad, right * 1.5 if task == "regression" else 1 - right, rtol=1e-5)


def test_a_pushed_version_is_in_both_registries_and_a_corrupted_one_is_refused(tmp_path: Path, monkeypatch, live):
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path))
    monkeypatch.setenv("HOMEOSTAT_MLFLOW_URL", f"sqlite:///{tmp_path}/mlflow.db")
    settings = load_settings()
    store = ControlStore(settings.control_url)
    with pytest.raises(NotFound, match="no champion"):
        push_version(CONFIG, settings, store, "bad")
    row = store.set_challenger("toy", live.ref, expected_generation=0, actor="t", reason="t")
    store.promote("toy", 1, expected_generation=row.generation, actor="t", reason="t")
    registry = Registry(settings.mlflow_url)
    run = registry.start_run("toy", "first")
    assert registry.register_graph(run, "toy", live.onnx, "the first", {"x": rows(4)}) == 1
    subtle = push_version(CONFIG, settings, store, "subtle")
    assert (subtle.version, store.bundle("toy", 2)) == (2, subtle)
    opened = open_bundle(subtle, load_public_key(settings.home))
    assert (opened.manifest.lineage.parent_version, opened.reference) == (1, live.reference)
    corrupted = push_version(CONFIG, settings, store, "corrupted")
    assert corrupted.version == 3
    with pytest.raises(BundleInvalid):
        open_bundle(corrupted, load_public_key(settings.home))
    assert store.row("toy").champion.version == 1
    monkeypatch.setattr(store, "register_bundle", refuse)
    with pytest.raises(ControlUnavailable):
        push_version(CONFIG, settings, store, "bad")
    runs = MlflowClient(settings.mlflow_url).search_runs(["1"])
    assert sorted(one.info.status for one in runs) == ["FAILED", "FINISHED", "FINISHED", "RUNNING"]  # the first is open
