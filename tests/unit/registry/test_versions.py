"""Model versions against a real MLflow database: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
from pieces import EXAMPLE, graph

from homeostat.errors import DataInvalid, NotFound, RegistryError
from homeostat.records import RunRef
from homeostat.registry import Registry


def test_register_makes_one_whole_version(registry, client, model, parts, tmp_path):
    run = registry.start_run(model, "p1", workspace=tmp_path)
    number = registry.register(run, **parts)
    assert number == 1
    assert registry.register(run, **parts) == 1
    version = client.get_model_version(model, "1")
    assert (version.status, version.run_id) == ("READY", run.mlflow_run_id)
    assert len(version.description) <= 5000
    assert version.description.endswith("the whole card: model_card.md of the run\n")
    expected = {
        "sha256": parts["export"].onnx.sha256, "candidate": "fp32", "metric": "accuracy", "metric_value": "0.9",
        "metric_low": "0.8", "metric_high": "1", "task": "classification", "pipeline_id": "p1", "git_commit": "a" * 40,
        "git_dirty": "False", "parent_version": "7", "dataset_sha256": "d" * 64, "config_sha256": "e" * 64,
        "requirements_sha256": "f" * 64, "homeostat.pipeline_id": "p1",
        "bytes": str(parts["export"].onnx.bytes), "fp32_bytes": str(parts["export"].onnx.bytes),
    }  # fmt: skip
    assert version.tags == expected
    assert registry.register(registry.start_run(model, "p2"), **parts) == 2


def test_the_stored_model_is_the_gated_one_and_mlflow_can_read_it(registry, model, parts, tmp_path):
    before = Path(parts["export"].onnx.path).read_bytes()
    run = registry.start_run(model, "p1")
    registry.register(run, **parts)
    assert Path(parts["export"].onnx.path).read_bytes() == before
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model}/1", tracking_uri=registry.url))
    assert hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() == parts["export"].onnx.sha256
    assert not [path for path in folder.iterdir() if path.suffix == ".data"]
    info = mlflow.models.get_model_info(f"models:/{model}/1")
    inputs = [(spec.name, spec.type, spec.shape) for spec in info.signature.inputs.inputs]
    assert inputs == [("x", np.dtype("float32"), (-1, 3)), ("code", np.dtype("int64"), (-1, 1))]
    outputs = [(spec.name, spec.type, spec.shape) for spec in info.signature.outputs.inputs]
    assert outputs == [("output", np.dtype("float32"), (-1, 2))]
    example = json.loads((folder / "input_example.json").read_text())
    assert example["x"] == EXAMPLE["x"].tolist()
    answer = mlflow.pyfunc.load_model(f"models:/{model}/1").predict(EXAMPLE)
    np.testing.assert_allclose(answer["output"], [[4, 4], [14, 14]])
    stored = {f.path for f in registry._open().list_artifacts(run.mlflow_run_id)}
    assert stored >= {"onnx", "keras", "saved_model", "data", "compression", "evaluation", "model_card.md"}


def logged_models(client, run) -> list[str]:
    experiment = client.get_run(run.mlflow_run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run.mlflow_run_id}'")
    return [f"models:/{logged.model_id}" for logged in found]


@pytest.mark.parametrize(
    "step",
    ["log_text", "create_logged_model", "log_model_artifacts", "finalize_logged_model", "create_model_version"],
)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_registered_when_a_step_fails(registry, client, model, parts, monkeypatch, step, error):
    run = registry.start_run(model, "p1")

    def fail(*_args, **_keywords):
        raise error("half way")

    with monkeypatch.context() as broken:
        broken.setattr(client, step, fail)
        with pytest.raises(error, match="half way"):
            registry.register(run, **parts)
    with pytest.raises(NotFound):
        registry.aliases(model)
    assert logged_models(client, run) == []
    assert registry.register(run, **parts) == 1  # the same run may try again


def test_no_version_is_made_of_wrong_stored_bytes(registry, client, model, parts, monkeypatch):
    registry.register(registry.start_run(model, "p1"), **parts)
    run = registry.start_run(model, "p2")
    send = client.log_model_artifacts

    def corrupt(model_id, folder):
        (Path(folder) / "model.onnx").write_bytes(b"other bytes")
        send(model_id, folder)

    with monkeypatch.context() as broken:
        broken.setattr(client, "log_model_artifacts", corrupt)
        with pytest.raises(RegistryError, match=r"stored a model.onnx of sha256"):
            registry.register(run, **parts)
    assert [v.version for v in client.search_model_versions(f"name = '{model}'")] == [1]


def test_a_version_that_was_made_before_ctrl_c_is_kept_and_found_again(registry, client, model, parts, monkeypatch):
    run = registry.start_run(model, "p1")
    create = client.create_model_version

    def interrupted(*args, **keywords):
        create(*args, **keywords)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(client, "create_model_version", interrupted)
        with pytest.raises(KeyboardInterrupt):
            registry.register(run, **parts)
    assert registry.register(run, **parts) == 1
    assert logged_models(client, run) == [client.get_model_version(model, "1").source]


def test_card_and_lineage_of_a_version_follow_a_bundle_that_was_built_anew(registry, client, model, parts, monkeypatch):
    run = registry.start_run(model, "p1")
    assert registry.register(run, **parts) == 1
    before = client.get_model_version(model, "1")
    lineage = replace(parts["lineage"], parent_version=8, git_commit="b" * 40)

    def cut_off(*_args, **_keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        for step in ("log_text", "update_model_version", "set_model_version_tag"):
            broken.setattr(client, step, cut_off)
        registry.describe(run, model, 1, parts["lineage"], "the same lineage: nothing is written")
    assert client.get_model_version(model, "1") == before
    with monkeypatch.context() as broken:
        broken.setattr(client, "set_model_version_tag", cut_off)
        with pytest.raises(KeyboardInterrupt):
            registry.describe(run, model, 1, lineage, "# cut off")
    registry.describe(run, model, 1, lineage, "# new")
    after = client.get_model_version(model, "1")
    assert after.description == "# new"
    assert mlflow.artifacts.load_text(f"runs:/{run.mlflow_run_id}/model_card.md") == "# new"
    assert after.tags == before.tags | {"parent_version": "8", "git_commit": "b" * 40}


STEPS = [
    *("create_registered_model", "create_logged_model", "log_model_artifacts", "finalize_logged_model"),
    *("log_outputs", "create_model_version"),
]


def register_until_killed(url: str, run: RunRef, parts: dict, step: str) -> None:
    """Register, and be killed just behind one of MLflow's steps."""
    registry = Registry(url)
    client = registry._open()
    call = getattr(client, step)

    def killed(*args, **keywords):
        call(*args, **keywords)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(client, step, killed)
    registry.register(run, **parts)


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Processes that have imported MLflow when they begin."""
    context = multiprocessing.get_context("forkserver")
    stores = [f"mlflow.store.{kind}.sqlalchemy_store" for kind in ("tracking", "model_registry")]
    context.set_forkserver_preload(["mlflow.onnx", "homeostat.registry.versions", *stores])
    return context


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_in_the_middle_leaves_one_version_and_no_orphan(registry, client, model, parts, processes, step):
    run = registry.start_run(model, "p1")
    process = processes.Process(target=register_until_killed, args=(registry.url, run, parts, step))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    for _ in range(2):
        assert registry.register(run, **parts) == 1
        (version,) = client.search_model_versions(f"name = '{model}'")
        assert logged_models(client, run) == [version.source]
    stored = mlflow.artifacts.download_artifacts(f"models:/{model}/1", tracking_uri=registry.url)
    assert (Path(stored) / "model.onnx").read_bytes() == graph()


def test_an_artifact_that_changed_after_the_gates_is_refused(registry, client, model, parts):
    Path(parts["export"].onnx.path).write_bytes(b"changed")
    with pytest.raises(DataInvalid, match="recorded was"):
        registry.register(registry.start_run(model, "p1"), **parts)
    assert client.search_model_versions(f"name = '{model}'") == []


def test_the_graph_of_these_tests_is_a_model_that_writing_again_changes():
    proto = onnx.load_model_from_string(graph())
    onnx.checker.check_model(proto)
    assert proto.SerializeToString() != graph()
