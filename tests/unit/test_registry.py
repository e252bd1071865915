"""Registry against a real MLflow database: runs, versions, aliases; and what an unreachable one costs."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from homeostat.config import ProjectConfig
from homeostat.dataset import artifact_of
from homeostat.errors import DataInvalid, NotFound, RegistryError, RegistryUnavailable
from homeostat.records import (
    Artifact,
    BundleRef,
    Candidate,
    Compression,
    DatasetRecord,
    Evaluation,
    Export,
    Gate,
    Interval,
    Lineage,
    Rollout,
    RunRef,
    Validation,
)
from homeostat.registry import EpochLogger, Registry

EXAMPLE = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "code": np.array([[1], [2]], dtype=np.int64)}


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One database for the session: making it takes seconds."""
    return Registry(f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db")


@pytest.fixture
def client(registry: Registry):
    return registry._open()


@pytest.fixture
def model() -> Iterator[str]:
    """A model name of this test's own."""
    return f"m{uuid.uuid4().hex[:8]}"


def graph() -> bytes:
    weights = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Cast", ["code"], ["shift"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["scores", "shift"], ["output"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
        helper.make_tensor_value_info("code", TensorProto.INT64, ["n", 1]),
    ]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 2])]
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [weights]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    # an unknown field (number 15) in front: parsing and writing again moves it, and the bytes must stay
    return b"\x7a\x03abc" + made.SerializeToString()


def write(path: Path, data: bytes) -> Artifact:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return artifact_of(path)


@pytest.fixture
def parts(tmp_path: Path, model: str) -> dict:
    file = write(tmp_path / "file.json", b"{}")
    onnx_file = write(tmp_path / "model.onnx", graph())
    keras = write(tmp_path / "model.keras", b"keras")
    write(tmp_path / "saved" / "saved_model.pb", b"pb")
    candidate = Candidate("fp32", onnx_file, keras, {"accuracy": 0.9}, (), 0.0, True)
    return {
        "config": ProjectConfig(name=model, project="projects.digits.project:Digits", task="classification"),
        "dataset": DatasetRecord(model, "classification", "d" * 64, {"train": 10}, {}),
        "validation": Validation(file, write(tmp_path / "profile.json", b"[]"), file, str(tmp_path), 5, "inferred"),
        "compression": Compression((candidate,), "fp32", "only one", file, write(tmp_path / "plot.png", b"png")),
        "export": Export(onnx_file, keras, str(tmp_path / "saved"), "fp32", (Gate("parity", "0"),)),
        "evaluation": Evaluation("accuracy", {"accuracy": Interval(0.9, 0.8, 1.0)}, 100, (file,)),
        "lineage": Lineage("p1", "d" * 64, "e" * 64, "f" * 64, "a" * 40, False, 7),
        "card": "# card\n" + "long " * 2000,
        "example": EXAMPLE,
    }


def test_a_run_is_continued_by_its_pipeline_id(registry, client, model, tmp_path):
    run = registry.start_run(model, "p1", {"kind": "test"}, {"epochs": 3}, tmp_path)
    assert (run.project, run.pipeline_id, run.workspace) == (model, "p1", str(tmp_path))
    registry.log_metrics(run, {"loss": 0.5, "odd (name)": 1.0}, step=1)
    registry.end_run(run, "FAILED")
    again = registry.start_run(model, "p1", {}, {"epochs": 4, "batch": 2}, tmp_path)
    assert again == run
    assert registry.start_run(model, "p2").mlflow_run_id != run.mlflow_run_id
    found = client.get_run(run.mlflow_run_id)
    assert found.info.status == "RUNNING"
    assert found.data.params == {"epochs": "3", "batch": "2"}
    assert found.data.tags["kind"] == "test"
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
    import mlflow

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
    experiment = client.get_run(run.mlflow_run_id).info.experiment_id
    assert client.search_logged_models([experiment]) == []
    assert registry.register(run, **parts) == 1  # the same run may try again


def test_a_version_is_taken_back_when_the_stored_bytes_are_wrong(registry, client, model, parts, monkeypatch):
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


def test_an_artifact_that_changed_after_the_gates_is_refused(registry, client, model, parts):
    Path(parts["export"].onnx.path).write_bytes(b"changed")
    with pytest.raises(DataInvalid, match="recorded was"):
        registry.register(registry.start_run(model, "p1"), **parts)
    assert client.search_model_versions(f"name = '{model}'") == []


def test_aliases_mirror_the_row(registry, client, model, parts):
    for number in (1, 2):
        assert registry.register(registry.start_run(model, f"p{number}"), **parts) == number

    def ref(version: int) -> BundleRef:
        return BundleRef(model, version, "", "", "")

    row = Rollout(model, 1, ref(1), ref(2), None, "")
    repairs = [f"@champion of {model}: nothing -> v1", f"@challenger of {model}: nothing -> v2"]
    assert registry.project_aliases(row) == repairs
    assert registry.project_aliases(row) == []
    assert registry.aliases(model) == {"champion": 1, "challenger": 2}
    client.set_registered_model_alias(model, "champion", "2")
    client.set_registered_model_alias(model, "mine", "1")
    row = replace(row, challenger=None)
    assert registry.project_aliases(row) == [
        f"@champion of {model}: v2 -> v1",
        f"@challenger of {model}: v2 -> nothing",
    ]
    assert registry.aliases(model) == {"champion": 1, "mine": 1}
    with pytest.raises(NotFound, match=r"has no .* v9 for @champion"):
        registry.project_aliases(replace(row, champion=ref(9)))
    with pytest.raises(NotFound, match="no registered model 'nobody'"):
        registry.aliases("nobody")


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


def calls(registry: Registry, parts: dict) -> dict:
    run = RunRef("m", "p", "r", "")
    return {
        "start_run": lambda: registry.start_run("m", "p"),
        "log_metrics": lambda: registry.log_metrics(run, {"a": 1.0}),
        "log_file": lambda: registry.log_file(run, parts["export"].onnx.path),
        "log_folder": lambda: registry.log_folder(run, parts["export"].saved_model),
        "end_run": lambda: registry.end_run(run),
        "register": lambda: registry.register(run, **parts),
        "aliases": lambda: registry.aliases("m"),
        "log_monitoring": lambda: registry.log_monitoring("m", {}, [], 1),
    }


def test_nobody_listens(parts):
    registry = Registry("http://127.0.0.1:9")
    start = time.perf_counter()
    for call in calls(registry, parts).values():
        with pytest.raises(
            RegistryUnavailable, match=r"http://127.0.0.1:9 does not answer.*HOMEOSTAT_MLFLOW_URL"
        ) as caught:
            call()
        assert caught.value.transient
    assert time.perf_counter() - start < 2


def test_the_server_stops_between_two_calls(parts):
    registry = Registry("http://127.0.0.1:9")
    registry.ping = lambda timeout_seconds=3.0: None  # it answered then
    start = time.perf_counter()
    with pytest.raises(RegistryUnavailable):
        registry.start_run("m", "p")
    with pytest.raises(RegistryUnavailable):
        calls(registry, parts)["register"]()
    assert time.perf_counter() - start < 20


def test_without_mlflow_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RegistryError, match=r"needs mlflow: pip install 'homeostat\[train\]'"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db").aliases("m")


def test_a_server_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        registry = Registry(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(RegistryUnavailable, match="timed out"):
            registry.ping(0.2)
        assert time.perf_counter() - start < 1


def test_a_damaged_database_and_a_wrong_address(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(RegistryUnavailable, match="not a database"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db").start_run("m", "p")
    with pytest.raises(RegistryError, match="use http://"):
        Registry("mlruns").aliases("m")
    assert not Registry(f"sqlite:///{tmp_path}/none.db").exists()
    assert Registry("http://127.0.0.1:9").exists()


def test_the_graph_of_these_tests_is_a_model_that_writing_again_changes():
    proto = onnx.load_model_from_string(graph())
    onnx.checker.check_model(proto)
    assert proto.SerializeToString() != graph()
