"""Runs: one for each pipeline and one for each model's monitoring, with their metrics and artifacts."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from homeostat.errors import RegistryError, RegistryUnavailable
from homeostat.records import RunRef
from homeostat.registry.connection import Connection

logger = logging.getLogger(__name__)

PIPELINE = "homeostat.pipeline_id"
MONITORING = "homeostat.monitoring"
FAILURE = "failure"
BATCH_LIMIT = 1000
"""Metrics that MLflow takes in one call."""


class Tracking(Connection):
    """Runs, metrics and artifacts."""

    def run_url(self, run_id: str) -> str:
        """Return where MLflow's pages show a run; the run id itself when there is no server."""
        if not self.url.startswith(("http://", "https://")):
            return run_id
        with self._calls() as client:
            experiment = client.get_run(run_id).info.experiment_id
        return f"{self.url.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"

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
        if FAILURE in runs[0].data.tags:
            client.delete_tag(runs[0].info.run_id, FAILURE)
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
                client.set_tag(run.info.run_id, FAILURE, message[:5000])
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


class EpochLogger:
    """Collects metrics of epochs and sends them together, every few seconds and at the end.

    Use it as a context manager; call it as `on_epoch(epoch, metrics)`.
    """

    def __init__(self, registry: Tracking, run: RunRef, every_seconds: float = 2.0) -> None:
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
