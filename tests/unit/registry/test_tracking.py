"""Runs, metrics and artifacts against a real MLflow database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pieces import write

from homeostat.errors import RegistryError
from homeostat.registry import EpochLogger


def test_a_run_is_continued_by_its_pipeline_id(registry, client, model, tmp_path):
    run = registry.start_run(model, "p1", {"kind": "test"}, {"epochs": 3}, tmp_path)
    assert (run.project, run.pipeline_id, run.workspace) == (model, "p1", str(tmp_path))
    registry.log_metrics(run, {"loss": 0.5, "odd (name)": 1.0}, step=1)
    registry.fail_run(model, "p1", "half way")
    found = client.get_run(run.mlflow_run_id)
    assert (found.info.status, found.data.tags["failure"]) == ("FAILED", "half way")
    again = registry.start_run(model, "p1", {}, {"epochs": 4, "batch": 2}, tmp_path)
    assert again == run
    assert registry.start_run(model, "p2").mlflow_run_id != run.mlflow_run_id
    found = client.get_run(run.mlflow_run_id)
    assert found.info.status == "RUNNING"
    assert found.data.params == {"epochs": "3", "batch": "2"}
    assert found.data.tags["kind"] == "test"
    assert "failure" not in found.data.tags
    assert found.data.metrics == {"loss": 0.5, "odd _name_": 1.0}
    registry.end_run(run)
    assert client.get_run(run.mlflow_run_id).info.status == "FINISHED"
    assert registry.run_url(run.mlflow_run_id) == run.mlflow_run_id


def test_a_strange_pipeline_id_is_refused(registry, model):
    with pytest.raises(RegistryError, match="pipeline id"):
        registry.start_run(model, "x' or name = 'y")


def test_files_and_folders(registry, client, model, tmp_path):
    run = registry.start_run(model, "p1")
    write(tmp_path / "docs" / "index.html", b"<html>")
    registry.log_file(run, tmp_path / "docs" / "index.html", "one")
    registry.log_folder(run, tmp_path / "docs", "all")
    assert [f.path for f in client.list_artifacts(run.mlflow_run_id, "one")] == ["one/index.html"]
    assert [f.path for f in client.list_artifacts(run.mlflow_run_id, "all")] == ["all/index.html"]
    database = Path(registry.url.removeprefix("sqlite:///"))
    assert list(database.parent.rglob("one/index.html"))  # beside the database, wherever we stand
    with pytest.raises(RegistryError, match="is no file"):
        registry.log_file(run, tmp_path / "none")
    with pytest.raises(RegistryError, match="is no folder"):
        registry.log_folder(run, tmp_path / "none")


def test_epochs_are_sent_together(registry, client, model, monkeypatch):
    run = registry.start_run(model, "p1")
    calls = []
    send = client.log_batch
    monkeypatch.setattr(client, "log_batch", lambda *a, **k: (calls.append(len(k["metrics"])), send(*a, **k))[1])
    with EpochLogger(registry, run, every_seconds=3600) as on_epoch:
        for epoch in range(600):
            on_epoch(epoch, {"loss": 1 / (epoch + 1), "val_loss": float("nan")})
    assert calls == [1000, 200]
    history = client.get_metric_history(run.mlflow_run_id, "loss")
    assert [(m.step, m.value) for m in history[:2]] == [(0, 1.0), (1, 0.5)]
    assert len(history) == 600


def test_a_failure_while_epochs_are_logged_is_not_hidden(registry, model):
    run = replace(registry.start_run(model, "p1"), mlflow_run_id="none")

    def train() -> None:
        with EpochLogger(registry, run) as on_epoch:
            on_epoch(0, {"loss": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()


def test_monitoring_plots_over_time_in_one_run(registry, client, model, tmp_path):
    report = write(tmp_path / "drift.json", b"{}")
    one = registry.log_monitoring(model, {"drift_share": 0.1}, [Path(report.path)], 100)
    two = registry.log_monitoring(model, {"drift_share": 0.9}, [], 200)
    assert one == two
    history = client.get_metric_history(one, "drift_share")
    assert [(m.step, m.value) for m in history] == [(100, 0.1), (200, 0.9)]
    assert client.get_experiment(client.get_run(one).info.experiment_id).name == f"{model}-monitoring"
    assert [f.path for f in client.list_artifacts(one, "windows/100")] == ["windows/100/drift.json"]
    with pytest.raises(RegistryError, match="no such report"):
        registry.log_monitoring(model, {}, [tmp_path / "none.html"], 300)
