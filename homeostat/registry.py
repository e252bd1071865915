"""MLflow: runs, metrics, artifacts, model versions, and the aliases that mirror the rollout row."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.card import description, version_tags
from homeostat.config import ProjectConfig
from homeostat.dataset import Array, read_artifact
from homeostat.errors import NotFound, RegistryError, RegistryUnavailable
from homeostat.reach import ping_database, ping_http
from homeostat.records import Compression, DatasetRecord, Evaluation, Export, Lineage, Rollout, RunRef, Validation

logger = logging.getLogger(__name__)

ALIASES = ("champion", "challenger")
PIPELINE = "homeostat.pipeline_id"
MONITORING = "homeostat.monitoring"
BATCH_LIMIT = 1000
"""Metrics that MLflow takes in one call."""

# Read by MLflow at import or at each call: fail soon, and send nothing to anybody.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what MLflow says about its own code while it is imported and builds its tables."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The ``noload`` loader strategy is deprecated")
        warnings.filterwarnings("ignore", r".*Any type hint is inferred as AnyType")
        yield


class Registry:
    """One MLflow tracking server or database; nothing is imported or connected before the first call.

    Every method raises RegistryUnavailable when MLflow does not answer (a retry may pass), and
    RegistryError when it refuses what was asked.
    """

    def __init__(self, tracking_url: str) -> None:
        self.url = tracking_url
        self._client: Any = None

    # -- reaching it -----------------------------------------------------------------------------

    def ping(self, timeout_seconds: float = 3.0) -> None:
        """Raise RegistryUnavailable unless MLflow answers; does not import it."""
        try:
            if self.url.startswith(("http://", "https://")):
                ping_http(self.url, timeout_seconds)
            elif "://" in self.url:
                ping_database(self.url)
            else:
                raise RegistryError(f"MLflow URI {self.url!r}: use http://, https:// or a database URL")
        except OSError as error:
            raise self._unavailable(error) from error

    def exists(self) -> bool:
        """Whether there is anything to reach: False for a SQLite file that was never made."""
        path = self.url.removeprefix("sqlite:///")
        return path == self.url or Path(path).is_file()

    def _unavailable(self, error: object) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"MLflow at {self.url} does not answer: {error}; start it (`make up`) or set HOMEOSTAT_MLFLOW_URL"
        )

    def _open(self) -> Any:
        if self._client is None:
            self.ping()
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            try:
                with _quiet():
                    import mlflow

                    logging.getLogger("alembic").setLevel(logging.WARNING)
                    self._client = mlflow.MlflowClient(tracking_uri=self.url, registry_uri=self.url)
            except ModuleNotFoundError as error:
                raise RegistryError(
                    f"MLflow at {self.url} needs {error.name}: pip install 'homeostat[train]'"
                ) from error
        return self._client

    @contextmanager
    def _calls(self) -> Iterator[Any]:
        client = self._open()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import DBAPIError

        try:
            yield client
        except MlflowException as error:
            status = error.get_http_status_code()
            if status >= 500 or status == 429:
                raise self._unavailable(error) from error
            raise RegistryError(f"MLflow at {self.url} refuses: {error}") from error
        except (OSError, DBAPIError) as error:  # requests' errors are OSErrors
            raise self._unavailable(error) from error

    def _artifact_root(self, name: str) -> str | None:
        if not self.url.startswith("sqlite:///"):
            return None  # the server knows
        return (Path(self.url.removeprefix("sqlite:///")).resolve().parent / "artifacts" / name).as_uri()

    def _experiment(self, client: Any, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location=self._artifact_root(name)))
            except MlflowException as error:
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise RegistryError(f"MLflow at {self.url}: no experiment {name!r}: {error}") from error
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def run_url(self, run_id: str) -> str:
        """Return where MLflow's pages show a run; the run id itself when there is no server."""
        if not self.url.startswith(("http://", "https://")):
            return run_id
        with self._calls() as client:
            experiment = client.get_run(run_id).info.experiment_id
        return f"{self.url.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"

    # -- runs ------------------------------------------------------------------------------------

    def start_run(
        self,
        project: str,
        pipeline_id: str,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
        workspace: str | Path = "",
    ) -> RunRef:
        """Start the MLflow run of a pipeline run, or continue the one that it had before a crash."""
        if not re.fullmatch(r"[\w.:@/ -]{1,200}", pipeline_id):
            raise RegistryError(f"pipeline id {pipeline_id!r}: use letters, digits and . : @ / - _")
        with self._calls() as client:
            run = self._find_or_create(client, project, PIPELINE, pipeline_id, dict(tags or {}))
            new = {name: str(value)[:6000] for name, value in (params or {}).items() if name not in run.data.params}
            if new:
                from mlflow.entities import Param

                client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in new.items()])
        return RunRef(project, pipeline_id, run.info.run_id, str(workspace))

    def _find_or_create(self, client: Any, experiment: str, tag: str, value: str, tags: dict[str, str]) -> Any:
        experiment_id = self._experiment(client, experiment)
        runs = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
        if not runs:
            return client.create_run(experiment_id, tags=tags | {tag: value}, run_name=value)
        if runs[0].info.status != "RUNNING":
            client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0]

    def log_metrics(self, run: RunRef, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log values of one step in one call."""
        self.log_history(run, [(step, metrics)])

    def log_history(self, run: RunRef, history: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log values of many steps in as few calls as MLflow allows."""
        with self._calls() as client:
            self._log(client, run.mlflow_run_id, history)

    def _log(self, client: Any, run_id: str, history: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(re.sub(r"[^\w.\-/: ]", "_", name), float(value), now, step)
            for step, metrics in history
            for name, value in metrics.items()
        ]
        for start in range(0, len(batch), BATCH_LIMIT):
            client.log_batch(run_id, metrics=batch[start : start + BATCH_LIMIT])

    def log_file(self, run: RunRef, path: str | Path, artifact_path: str = "") -> None:
        """Upload one file into a folder of the run's artifacts; raises RegistryError when it is not there."""
        if not Path(path).is_file():
            raise RegistryError(f"{path} is no file; it cannot be logged to the run {run.pipeline_id}")
        with self._calls() as client:
            client.log_artifact(run.mlflow_run_id, str(path), artifact_path or None)

    def log_folder(self, run: RunRef, path: str | Path, artifact_path: str = "") -> None:
        """Upload what a folder holds into a folder of the run's artifacts."""
        if not Path(path).is_dir():
            raise RegistryError(f"{path} is no folder; it cannot be logged to the run {run.pipeline_id}")
        with self._calls() as client:
            client.log_artifacts(run.mlflow_run_id, str(path), artifact_path or None)

    def end_run(self, run: RunRef, status: str = "FINISHED") -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        with self._calls() as client:
            client.set_terminated(run.mlflow_run_id, status)

    def fail_run(self, project: str, pipeline_id: str, message: str) -> None:
        """Mark a pipeline's run as failed, with the reason as a tag; nothing happens when it has none."""
        with self._calls() as client:
            experiment = client.get_experiment_by_name(project)
            if experiment is None:
                return
            runs = client.search_runs([experiment.experiment_id], f"tags.`{PIPELINE}` = '{pipeline_id}'", max_results=1)
            for run in runs:
                client.set_tag(run.info.run_id, "failure", message[:5000])
                client.set_terminated(run.info.run_id, "FAILED")

    def log_monitoring(self, model: str, metrics: Mapping[str, float], files: Iterable[Path], step: int) -> str:
        """Add one window to the model's single monitoring run, so that its figures plot over time.

        step orders the windows (such as the unix seconds of the window's end). Returns the
        run's page, or its id when there is no server.
        """
        present = [Path(path) for path in files]
        missing = [str(path) for path in present if not path.is_file()]
        if missing:
            raise RegistryError(f"no such report: {', '.join(missing)}")
        with self._calls() as client:
            tags = {"homeostat.model": model}
            run_id = self._find_or_create(client, f"{model}-monitoring", MONITORING, model, tags).info.run_id
            for path in present:
                client.log_artifact(run_id, str(path), f"windows/{step}")
            self._log(client, run_id, [(step, metrics)])
        return self.run_url(run_id)

    # -- versions --------------------------------------------------------------------------------

    def register(
        self,
        run: RunRef,
        config: ProjectConfig,
        dataset: DatasetRecord,
        validation: Validation,
        compression: Compression,
        export: Export,
        evaluation: Evaluation,
        lineage: Lineage,
        card: str,
        example: Mapping[str, Array],
    ) -> int:
        """Make one model version of a pipeline run and return its number; again, return the same number.

        The version holds the gated ONNX bytes with signature and input example; SavedModel,
        .keras, contract, profile and card are artifacts of the run. example: input name ->
        a few rows [n, ...]. When anything fails, nothing stays registered.
        """
        onnx_bytes = read_artifact(export.onnx)
        tags = version_tags(dataset, compression, export, evaluation, lineage)
        with self._calls() as client:
            found = self._version_of(client, config.name, run.pipeline_id)
            if found is not None:
                had = client.get_model_version(config.name, str(found)).tags.get("sha256")
                if had != export.onnx.sha256:
                    raise RegistryError(
                        f"{config.name} v{found} of pipeline {run.pipeline_id} has sha256 {had!s:.12}, this one "
                        f"{export.onnx.sha256:.12}: code or project.toml have changed since; start a new pipeline"
                    )
                logger.info("%s: version %d of pipeline run %s is there", config.name, found, run.pipeline_id)
                return found
            self._log_parts(client, run.mlflow_run_id, validation, compression, export, evaluation, card)
            with self._undone(client, config.name) as made:
                self._log_model(client, run, config.name, onnx_bytes, tags, example, made)
                version = client.create_model_version(
                    config.name,
                    f"models:/{made.model_id}",
                    run_id=run.mlflow_run_id,
                    tags=tags | {PIPELINE: run.pipeline_id},
                    description=description(card),
                    await_creation_for=0,  # MLflow's own stores are ready at once
                    model_id=made.model_id,
                )
                made.version = str(version.version)
                self._check_stored(made.model_id, export.onnx.sha256)
        return int(version.version)

    def _version_of(self, client: Any, model: str, pipeline_id: str) -> int | None:
        versions = client.search_model_versions(f"name = '{model}' and tags.`{PIPELINE}` = '{pipeline_id}'")
        return max((int(version.version) for version in versions), default=None)

    def _log_parts(
        self,
        client: Any,
        run_id: str,
        validation: Validation,
        compression: Compression,
        export: Export,
        evaluation: Evaluation,
        card: str,
    ) -> None:
        files = {
            "onnx": [export.onnx],
            "keras": [export.keras],
            "data": [validation.contract, validation.profile],
            "compression": [compression.table, compression.plot],
            "evaluation": list(evaluation.plots),
        }
        for folder, artifacts in files.items():
            for artifact in artifacts:
                client.log_artifact(run_id, artifact.path, folder)
        client.log_artifacts(run_id, export.saved_model, "saved_model")
        client.log_text(run_id, card, "model_card.md")

    @contextmanager
    def _undone(self, client: Any, model: str) -> Iterator[_Made]:
        from mlflow.exceptions import MlflowException

        made = _Made()
        try:
            client.get_registered_model(model)
        except MlflowException as error:
            if error.get_http_status_code() != 404:
                raise
            client.create_registered_model(model)
            made.registered = True
        try:
            yield made
        except BaseException:
            try:
                if made.version:
                    client.delete_model_version(model, made.version)
                if made.registered and not client.search_model_versions(f"name = '{model}'", max_results=1):
                    client.delete_registered_model(model)
                if made.model_id:
                    client.delete_logged_model(made.model_id)
            except (MlflowException, OSError) as error:
                logger.error("%s: what was registered half way could not be taken back: %s", model, error)
            raise

    def _log_model(
        self,
        client: Any,
        run: RunRef,
        name: str,
        onnx_bytes: bytes,
        tags: dict[str, str],
        example: Mapping[str, Array],
        made: _Made,
    ) -> None:
        import mlflow
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        mlflow.set_tracking_uri(self.url)  # models:/ addresses are looked up in the global one
        experiment = client.get_run(run.mlflow_run_id).info.experiment_id
        logged = client.create_logged_model(
            experiment, name=name, source_run_id=run.mlflow_run_id, tags=tags, model_type="onnx"
        )
        made.model_id = str(logged.model_id)
        model = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=run.mlflow_run_id,
            model_id=logged.model_id,
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            _save_model(folder, model, onnx_bytes, example)
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run.mlflow_run_id, [LoggedModelOutput(logged.model_id, step=0)])

    def _check_stored(self, model_id: str, sha256: str) -> None:
        import mlflow

        with tempfile.TemporaryDirectory() as temporary:
            folder = mlflow.artifacts.download_artifacts(
                f"models:/{model_id}", dst_path=temporary, tracking_uri=self.url
            )
            found = hashlib.sha256((Path(folder) / "model.onnx").read_bytes()).hexdigest()
        if found != sha256:
            raise RegistryError(f"MLflow stored a model.onnx of sha256 {found[:12]}; the gated graph has {sha256[:12]}")

    # -- aliases ---------------------------------------------------------------------------------

    def aliases(self, model: str) -> dict[str, int]:
        """Return alias -> version of a model; raises NotFound when MLflow does not know the model."""
        from mlflow.exceptions import MlflowException

        with self._calls() as client:
            try:
                found = client.get_registered_model(model).aliases
            except MlflowException as error:
                if error.get_http_status_code() != 404:
                    raise
                raise NotFound(f"MLflow at {self.url} has no registered model {model!r}") from error
        return {str(alias): int(version) for alias, version in dict(found).items()}

    def project_aliases(self, rollout: Rollout) -> list[str]:
        """Make @champion and @challenger mirror the rollout row; return one line for each repair.

        Raises NotFound when MLflow does not know the model or the version; other aliases stay.
        """
        from mlflow.exceptions import MlflowException

        present = self.aliases(rollout.model)
        repairs = []
        with self._calls() as client:
            for alias in ALIASES:
                bundle = getattr(rollout, alias)
                wanted = bundle.version if bundle else None
                had = present.get(alias)
                if wanted == had:
                    continue
                try:
                    if wanted is None:
                        client.delete_registered_model_alias(rollout.model, alias)
                    else:
                        client.set_registered_model_alias(rollout.model, alias, str(wanted))
                except MlflowException as error:
                    if error.get_http_status_code() != 404:
                        raise
                    raise NotFound(f"MLflow at {self.url} has no {rollout.model} v{wanted} for @{alias}") from error
                names = [f"v{version}" if version else "nothing" for version in (had, wanted)]
                repairs.append(f"@{alias} of {rollout.model}: {names[0]} -> {names[1]}")
        return repairs


class EpochLogger:
    """Collects metrics of epochs and sends them together, every few seconds and at the end.

    Use it as a context manager; call it as `on_epoch(epoch, metrics)`.
    """

    def __init__(self, registry: Registry, run: RunRef, every_seconds: float = 2.0) -> None:
        self._registry, self._run, self._every = registry, run, every_seconds
        self._pending: list[tuple[int, dict[str, float]]] = []
        self._sent = time.monotonic()

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of an epoch; they are sent when the last sending is long enough ago."""
        self._pending.append((epoch, dict(metrics)))
        if time.monotonic() - self._sent >= self._every:
            self.flush()

    def flush(self) -> None:
        """Send what is kept."""
        if self._pending:
            self._registry.log_history(self._run, self._pending)
            self._pending = []
        self._sent = time.monotonic()

    def __enter__(self) -> EpochLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
            return
        try:
            self.flush()
        except (RegistryUnavailable, RegistryError) as error:  # must not hide what went wrong inside
            logger.warning("%d epochs were not logged: %s", len(self._pending), error)


@dataclass
class _Made:
    """What `register` has made so far, to be taken back when it fails."""

    registered: bool = False
    model_id: str = ""
    version: str = ""


def _save_model(folder: Path, model: Any, onnx_bytes: bytes, example: Mapping[str, Array]) -> None:
    import onnx

    with _quiet():
        import mlflow.onnx
        import mlflow.pyfunc

    proto = onnx.load_model_from_string(onnx_bytes)
    packages = ("mlflow", "numpy", "onnx", "onnxruntime")
    mlflow.onnx.save_model(
        proto,
        str(folder),
        mlflow_model=model,
        signature=_signature(proto, example),
        input_example=dict(example),
        pip_requirements=[f"{name}=={installed_version(name)}" for name in packages],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    # MLflow writes the graph anew; what passed the gates is these bytes
    (folder / "model.onnx").write_bytes(onnx_bytes)


def _signature(proto: Any, example: Mapping[str, Array]) -> Any:
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    inputs = [TensorSpec(rows.dtype, (-1, *rows.shape[1:]), name) for name, rows in example.items()]
    outputs = []
    for value in proto.graph.output:
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        shape = [dimension.dim_value or -1 for dimension in tensor.shape.dim]
        outputs.append(TensorSpec(dtype, tuple(shape), value.name))
    return ModelSignature(Schema(inputs), Schema(outputs))
