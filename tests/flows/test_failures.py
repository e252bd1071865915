"""What goes wrong in the middle: MLflow away at each stage, Ctrl-C at each stage, bad data, a failed gate."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest

from flows.lifecycle import lifecycle
from flows.monitor import monitor
from flows.rollback import rollback
from homeostat import rollout
from homeostat.bundle import load_public_key, open_bundle
from homeostat.control.store import ControlStore
from homeostat.errors import (
    ConfigError,
    Conflict,
    DataInvalid,
    ExportMismatch,
    GateFailed,
    NotFound,
    RegistryUnavailable,
    ServerUnavailable,
    TrainingFailed,
)
from homeostat.project import find_project, load_project
from homeostat.records import Verdict
from homeostat.registry import Registry
from homeostat.scaffold import init_project
from tests.conftest import ROOT, ServerProcess, forget_projects, make_settings, set_environment

pytestmark = pytest.mark.flows
NAME = "seedling"
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A small project of its own whose version 1 is champion and answers."""
    folder = tmp_path_factory.mktemp("failures")
    root = folder / "checkout"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    shutil.copy(ROOT / "prefect.yaml", root)
    (root / "projects").mkdir()
    init_project(NAME, root, "classification")
    toml = root / "projects" / NAME / "project.toml"
    text = toml.read_text()
    assert "\nepochs = " in text
    toml.write_text("\n".join("epochs = 8" if line.startswith("epochs = ") else line for line in text.splitlines()))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        forget_projects()
        server = ServerProcess(make_settings(folder / "home", root))
        set_environment(patch, server.settings, server.url)
        patch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(folder / "storage"))
        assert lifecycle(NAME).role == "champion"
        yield server
        server.stop()
    forget_projects()


def versions(place: ServerProcess) -> int:
    """How many versions MLflow has."""
    from mlflow import MlflowClient

    return len(MlflowClient(place.settings.mlflow_url).search_model_versions(f"name='{NAME}'"))


def mlflow_status(place: ServerProcess, pipeline_id: str) -> str:
    """Whether MLflow says that a pipeline's run is RUNNING, FAILED or FINISHED."""
    from mlflow import MlflowClient

    client = MlflowClient(place.settings.mlflow_url)
    experiment = client.get_experiment_by_name(NAME)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`homeostat.pipeline_id` = '{pipeline_id}'")
    return str(run.info.status)


def state(place: ServerProcess) -> tuple[object, ...]:
    """All that a failure must not change."""
    store = ControlStore(place.settings.control_url)
    store.verify()
    ready = httpx.get(f"{place.url}/v2/models/{NAME}/ready", trust_env=False).json()
    aliases = Registry(place.settings.mlflow_url).aliases(NAME)
    return store.row(NAME), ready["version"], ready["sha256"], aliases, versions(place)


def served_in(found: tuple[object, ...]) -> tuple[object, ...]:
    """The champion of a state, and what the server answers with."""
    row, version, sha256, *_ = found
    return row.champion, version, sha256  # type: ignore[attr-defined]


def served(place: ServerProcess) -> tuple[object, ...]:
    """What even a stage behind the registration must not change."""
    return served_in(state(place))


def hurry(monkeypatch: pytest.MonkeyPatch, stage: str) -> object:
    """Return a stage's module, its retries made immediate."""
    module = importlib.import_module(f"tasks.{stage}")
    monkeypatch.setattr(getattr(module, stage), "retry_delay_seconds", 0)
    return module


@contextmanager
def mlflow_away(*stages: str) -> Iterator[None]:
    """Let MLflow not answer while these stages run."""
    with pytest.MonkeyPatch.context() as patch:
        for stage in stages:
            module = hurry(patch, stage)
            original = module.open_project  # type: ignore[attr-defined]
            patch.setattr(module, "open_project", lambda n, o=original: replace(o(n), registry=Registry(NOWHERE)))
        yield


def test_mlflow_away_at_each_stage_fails_cleanly_and_the_pipeline_goes_on(
    champion: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    before = state(champion)
    for stage in ("start", "prepare", "validate", "train", "compress", "evaluate", "register"):
        with mlflow_away(stage), pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:9"):
            lifecycle(NAME, pipeline_id="outage")
        assert state(champion) == before, stage
    for stages in (("deploy", "finish"), ("observe",)):
        with mlflow_away(*stages), pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:9"):
            lifecycle(NAME, pipeline_id="outage")
        assert served(champion) == served_in(before), stages
    assert "MLflow's aliases are behind" in caplog.text  # deploy goes on: the row is the truth
    assert mlflow_status(champion, "outage") == "FAILED"
    after = lifecycle(NAME, pipeline_id="outage")
    assert after.version == before[-1] + 1 == versions(champion)  # type: ignore[operator]
    assert served(champion) == served_in(before)
    assert mlflow_status(champion, "outage") == "FINISHED"


def test_mlflow_away_fails_monitor_and_the_server_goes_on(champion: ServerProcess) -> None:
    before = state(champion)
    with mlflow_away("observe"), pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:9"):
        monitor(NAME)
    assert state(champion) == before


def test_ctrl_c_at_each_stage_loses_nothing_and_the_pipeline_goes_on(champion: ServerProcess) -> None:
    before = state(champion)
    calls = {
        "prepare": "homeostat.data.prepare.prepare",
        "validate": "homeostat.data.suite.validate",
        "train": "homeostat.training.fit.train",
        "compress": "homeostat.compression.search.compress",
        "export": "homeostat.export.export.export",
        "evaluate": "homeostat.evaluation.evaluate.evaluate",
        "register": "tasks.register.build",  # MLflow has the version, and the control store not yet
        "deploy": "homeostat.rollout.wait_until_ready",  # it is challenger, and nothing is decided yet
        "finish": "tasks.finish.summarize",
    }
    for stage, target in calls.items():
        module_name, _, function = target.rpartition(".")
        module = importlib.import_module(module_name)
        original = getattr(module, function)

        def interrupted(*args: object, original: object = original, **kwargs: object) -> object:
            original(*args, **kwargs)  # type: ignore[operator]
            signal.raise_signal(signal.SIGINT)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, function, interrupted)
            with pytest.raises(KeyboardInterrupt):
                lifecycle(NAME, pipeline_id="interrupted")
        if stage in {"register", "deploy", "finish"}:
            assert served(champion) == served_in(before), stage
        else:
            assert state(champion) == before, stage
    after = lifecycle(NAME, pipeline_id="interrupted")
    assert after.version == before[-1] + 1 == versions(champion)  # type: ignore[operator]
    history = ControlStore(champion.settings.control_url).history(NAME)
    assert [entry.action for entry in history if entry.version == after.version] == ["challenger", "hold"]
    assert len(list((champion.settings.home / "bundles" / NAME).glob(f"v{after.version}-*"))) == 1
    assert mlflow_status(champion, "interrupted") == "FINISHED"


def test_a_finished_stage_is_not_run_again(champion: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lifecycle(NAME, pipeline_id="twice")

    def never(*args: object, **kwargs: object) -> object:
        raise AssertionError("a finished stage ran again")

    monkeypatch.setattr("homeostat.training.fit.train", never)
    monkeypatch.setattr("homeostat.compression.search.compress", never)
    assert mlflow_status(champion, "twice") == "FINISHED"
    assert lifecycle(NAME, pipeline_id="twice") == first
    assert mlflow_status(champion, "twice") == "FINISHED"
    with pytest.raises(AssertionError):
        lifecycle(NAME, pipeline_id="another")


def test_a_server_that_is_down_stops_the_deployment_before_anything_moves(
    champion: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ControlStore(champion.settings.control_url).row(NAME)
    hurry(monkeypatch, "deploy")
    monkeypatch.setenv("HOMEOSTAT_SERVER_URL", NOWHERE)
    with pytest.raises(ServerUnavailable, match="homeostat serve"):
        lifecycle(NAME, pipeline_id="late")
    assert ControlStore(champion.settings.control_url).row(NAME) == before


def test_a_champion_that_came_meanwhile_is_what_the_pipeline_is_compared_with_when_it_goes_on(
    champion: ServerProcess,
) -> None:
    _, config = load_project(find_project(NAME, champion.settings.root), champion.settings.root)
    store, registry = ControlStore(champion.settings.control_url), Registry(champion.settings.mlflow_url)
    module = importlib.import_module("tasks.deploy")
    original = module.open_project
    rival = lifecycle(NAME, pipeline_id="twice").version

    def overtaken(name: str) -> object:
        rollout.promote(store, NAME, rival, config, champion.url, "test", "it came first")
        return original(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_project", overtaken)
        with pytest.raises(Conflict, match=rf"is v{rival}, but .* compared with v1; .* with its pipeline_id"):
            lifecycle(NAME, pipeline_id="late")
    late = versions(champion)
    for _ in range(2):
        after = lifecycle(NAME, pipeline_id="late")
        assert (after.version, versions(champion)) == (late, late)
        assert store.row(NAME).champion.version == rival  # type: ignore[union-attr]
    life = json.loads((champion.settings.home / "pipelines" / "late" / "life.json").read_text())
    assert f"; v{rival} " in life["figures"]["evaluate"]
    known = registry._open().get_model_version(NAME, str(late))
    assert known.tags["parent_version"] == str(rival)
    assert f"champion v{rival}" in known.description
    bundle = open_bundle(store.bundle(NAME, late), load_public_key(champion.settings.home))
    assert bundle.manifest.lineage.parent_version == rival
    assert rollback(NAME).version == 1


def test_a_project_in_a_folder_of_another_name_is_refused(champion: ServerProcess) -> None:
    before = state(champion)
    projects = champion.settings.root / "projects"
    shutil.copytree(projects / NAME, projects / "copycat")
    try:
        with pytest.raises(ConfigError, match="copycat"):
            lifecycle("copycat")
    finally:
        shutil.rmtree(projects / "copycat")
    assert state(champion) == before


def test_a_rollback_of_a_version_that_is_no_longer_champion_is_a_conflict(champion: ServerProcess) -> None:
    before = state(champion)
    _, config = load_project(find_project(NAME, champion.settings.root), champion.settings.root)
    store = ControlStore(champion.settings.control_url)
    with pytest.raises(Conflict, match="v77"):
        rollout.roll_back(store, NAME, config, champion.url, "test", Verdict("roll back", ("late",)), bad_version=77)
    assert state(champion) == before


def test_a_rollback_needs_no_mlflow(champion: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.promote import promote

    newest = lifecycle(NAME, pipeline_id="twice").version
    store = ControlStore(champion.settings.control_url)
    store.release(NAME, newest, actor="test", reason="another test may have rolled it back")
    with pytest.raises(NotFound, match="no version waits for approval"):
        promote(NAME, newest, only_waiting=True)
    promote(NAME, newest)
    monkeypatch.setenv("HOMEOSTAT_MLFLOW_URL", NOWHERE)
    assert rollback(NAME).version == 1
    assert httpx.get(f"{champion.url}/v2/models/{NAME}/ready", trust_env=False).json()["version"] in (1, "1")


def test_bad_data_stops_before_training(champion: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(champion)
    import projects.seedling.project as module

    project = next(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__)
    original = project.load_data

    def one_class(self: object) -> object:
        data = original(self)
        return replace(data, target=data.target * 0)

    def half_nan(self: object) -> object:
        data = original(self)
        inputs = {name: values.copy() for name, values in data.inputs.items()}
        for values in inputs.values():
            if values.dtype.kind == "f":
                values[:, 0] = float("nan")
        return replace(data, inputs=inputs)

    def leaking(self: object) -> object:
        data = original(self)
        inputs = {name: values.copy() for name, values in data.inputs.items()}
        inputs["x"][:, 0] = data.target
        return replace(data, inputs=inputs)

    monkeypatch.setattr("homeostat.training.fit.train", lambda *_: pytest.fail("trained on bad data"))
    for bad, words in ((one_class, "class"), (half_nan, "NaN"), (leaking, "is equal to the target")):
        monkeypatch.setattr(project, "load_data", bad)
        with pytest.raises(DataInvalid, match=words):
            lifecycle(NAME)
    assert state(champion) == before


def test_nan_loss_failed_parity_and_a_missed_bar_register_nothing(
    champion: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(champion)
    toml = champion.settings.root / "projects" / NAME / "project.toml"
    text = toml.read_text()
    try:
        toml.write_text(
            text.replace("[train]", '[train]\noptimizer = "sgd"\n').replace(
                "learning_rate = ", "learning_rate = 1e30 # "
            )
        )
        with pytest.raises(TrainingFailed, match="loss is"):
            lifecycle(NAME)
    finally:
        toml.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        from homeostat.export import export as module

        original = module.answer
        patch.setattr(module, "answer", lambda model, inputs: 1 - original(model, inputs))
        with pytest.raises(ExportMismatch):
            lifecycle(NAME, pipeline_id="parity")
    with pytest.MonkeyPatch.context() as patch:
        toml.write_text(text.split("[gate]")[0] + "[gate]\nmin_metric = 0.9999\n")
        try:
            with pytest.raises(GateFailed, match="min_metric"):
                lifecycle(NAME, pipeline_id="bar")
        finally:
            toml.write_text(text)
    assert state(champion) == before
