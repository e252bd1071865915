"""Flow runs, started through their deployments and followed to their end."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from typing import Any
from uuid import UUID

from rich.console import Console

from homeostat.errors import HomeostatError, ServingError
from homeostat.settings import Settings

POLL_SECONDS = 0.25


class FlowRunFailed(HomeostatError):
    """A flow run ended otherwise than completed."""


class FlowRuns:
    """The Prefect server, as far as the story needs it."""

    def __init__(self, prefect_url: str, console: Console) -> None:
        os.environ |= {"PREFECT_API_URL": f"{prefect_url}/api", "DO_NOT_TRACK": "1"}
        from prefect.client.orchestration import get_client  # 2 s, while the stack is already up

        self._client = get_client(sync_client=True)
        self._url, self._console = prefect_url, console

    def run(self, deployment: str, parameters: dict[str, Any]) -> UUID:
        """Start a deployment, wait for its end, and return the flow run's id; raises FlowRunFailed."""
        found = self._client.read_deployment_by_name(deployment)
        started = self._client.create_flow_run_from_deployment(found.id, parameters=parameters)
        self._wait(started.id, deployment)
        return started.id

    def wait_started_by_event(self, deployment: str, after: datetime, seconds: float = 60) -> UUID:
        """Wait until an automation has started this deployment, then for its end."""
        from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
        from prefect.client.schemas.sorting import FlowRunSort

        found = self._client.read_deployment_by_name(deployment)
        only = DeploymentFilter(id=DeploymentFilterId(any_=[found.id]))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            runs = self._client.read_flow_runs(deployment_filter=only, sort=FlowRunSort.START_TIME_DESC, limit=5)
            new = [run for run in runs if run.created is not None and run.created > after]
            if new:
                self._wait(new[0].id, deployment)
                return new[0].id
            time.sleep(POLL_SECONDS)
        raise ServingError(f"no automation has started {deployment} within {seconds:g} s of the event")

    def _wait(self, run_id: UUID, name: str) -> None:
        with self._console.status(name) as status:
            while True:
                run = self._client.read_flow_run(run_id)
                if run.state is not None and run.state.is_final():
                    break
                stages = [task.name.rsplit("-", 1)[0] for task in self._task_runs(run_id) if task.end_time is None]
                status.update(f"{name}: {', '.join(stages) or (run.state_name or 'waiting').lower()}")
                time.sleep(POLL_SECONDS)
        if not run.state.is_completed():
            raise FlowRunFailed(f"{name} {run.state_name}: {run.state.message}; see {self._url}/runs/flow-run/{run_id}")

    def _task_runs(self, run_id: UUID) -> list[Any]:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        return list(self._client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))))

    def child_of(self, run_id: UUID) -> UUID:
        """Return the id of the subflow run of a flow run; raises FlowRunFailed when there is none."""
        children = self.children_of(run_id)
        if not children:
            raise FlowRunFailed(f"the policy held the retraining: see {self._url}/runs/flow-run/{run_id}")
        return children[0]

    def children_of(self, run_id: UUID) -> list[UUID]:
        """Return the ids of the subflow runs of a flow run."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

        only = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
        return [child.id for child in self._client.read_flow_runs(flow_run_filter=only)]

    def seconds(self, run_id: UUID) -> float:
        """Return how long a flow run took, from when it was asked for."""
        run = self._client.read_flow_run(run_id)
        if run.end_time is None or run.created is None:
            raise FlowRunFailed(f"flow run {run_id} has no end")
        return (run.end_time - run.created).total_seconds()

    def life_of(self, run_id: UUID, settings: Settings) -> dict[str, Any]:
        """Return what the pipeline's last stage wrote, with the seconds of each stage."""
        life: dict[str, Any] = json.loads((settings.home / "pipelines" / str(run_id) / "life.json").read_text())
        tasks = sorted((t for t in self._task_runs(run_id) if t.start_time and t.end_time), key=lambda t: t.start_time)
        flow_run = self._client.read_flow_run(run_id)
        figures: dict[str, str] = life["figures"]
        stages = [("worker start", (tasks[0].start_time - flow_run.created).total_seconds(), "process and imports")]
        for task in tasks:
            name = task.name.rsplit("-", 1)[0]
            if name in figures:
                stages.append((name, (task.end_time - task.start_time).total_seconds(), figures[name]))
        life["stages"] = stages
        return life

    def monitoring_of(self, run_id: UUID, settings: Settings) -> dict[str, Any]:
        """Return what the flow run's observe stage wrote."""
        found: dict[str, Any] = json.loads((settings.home / "windows" / str(run_id) / "monitoring.json").read_text())
        return found
