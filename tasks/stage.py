"""What every stage shares: a time limit, retries for errors that may pass, JSON results, a cache key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from prefect.serializers import JSONSerializer

from homeostat.config import ProjectConfig
from homeostat.control.store import ControlStore
from homeostat.errors import ConfigError, HomeostatError, NotFound, RegistryUnavailable
from homeostat.project import Project, find_project, load_project
from homeostat.records import RunRef
from homeostat.registry import Registry
from homeostat.settings import Settings, load_settings

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Workplace:
    """What a stage works with: the project, its configuration, and where things are."""

    project: Project
    config: ProjectConfig
    settings: Settings
    registry: Registry


def open_project(name: str) -> Workplace:
    """Read the environment and the project's files; raises ConfigError that says what is wrong where."""
    settings = load_settings()
    path = find_project(name, settings.root)
    project, config = load_project(path, settings.root)
    if path.parent.name != config.name:
        raise ConfigError(
            f"{path}: name = {config.name!r} in the folder {path.parent.name!r}: a project's folder has its name, "
            "or two projects would share one model; rename one of them"
        )
    return Workplace(project, config, settings, Registry(settings.mlflow_url))


def mirror_aliases(at: Workplace, store: ControlStore) -> None:
    """Make MLflow's aliases show the rollout row; the row has moved, so that MLflow cannot is a warning."""
    try:
        at.registry.mirror(store.row(at.config.name), store.head())
    except (RegistryUnavailable, NotFound) as error:
        get_run_logger().warning("the change holds, but MLflow's aliases are behind: %s; `homeostat reconcile`", error)


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, HomeostatError) and error.transient


@cache
def _code_sha256(root: Path) -> str:
    digest = hashlib.sha256()
    for folder in ("homeostat", "tasks", "flows", "projects"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".toml"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _note(run: RunRef, name: str) -> Path:
    return Path(run.workspace) / "again" / f"{name}.txt"


def ask_again(run: RunRef, name: str, why: str) -> None:
    """Let a re-run of the pipeline go through a finished stage once more; `why` is part of its cache key."""
    note = _note(run, name)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(why)


def _cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    run = parameters.get("run")
    if not isinstance(run, RunRef):
        return None
    rest = repr(sorted((name, repr(value)) for name, value in parameters.items()))
    note = _note(run, context.task.name)
    again = note.read_text() if note.is_file() else ""
    key = f"{context.task.name}|{_code_sha256(load_settings().root)}|{rest}|{again}"
    return f"{run.pipeline_id}-{context.task.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def stage(*, minutes: float, once: bool = True) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a task that takes at most this long.

    A stage whose first parameter is `run` is finished once for a pipeline: its record is kept
    under the pipeline's id, its arguments and the code, so that a re-run after a crash goes on
    behind it. once: False for a stage that each re-run must go through. Only errors of the tree
    that are transient are retried.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return task(
            timeout_seconds=minutes * 60,
            retries=2,
            retry_delay_seconds=[2, 10],
            retry_condition_fn=_may_pass,
            persist_result=once,
            result_serializer=JSONSerializer(),
            cache_key_fn=_cache_key if once else None,
        )(function)

    return decorate
