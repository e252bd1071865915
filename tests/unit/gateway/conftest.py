"""A gateway on a control store of its own, with a Prefect that remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from homeostat.control.deliveries import Deliveries
from homeostat.control.store import ControlStore
from homeostat.gateway.dispatcher import Dispatcher


class Clock:
    now = datetime(2026, 11, 27, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class AskedPrefect:
    """Starts one flow run for each key, as Prefect does; `failing` is raised instead, as long as it is set."""

    url = "http://prefect"

    def __init__(self) -> None:
        self.runs: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.events: list[Mapping[str, Any]] = []
        self.asked = 0
        self.failing: Exception | None = None

    def start(self, deployment: str, parameters: Mapping[str, Any], key: str, tags: Sequence[str]) -> str:
        self.asked += 1
        if self.failing is not None:
            raise self.failing
        self.runs.setdefault(key, (deployment, parameters))
        return f"run of {key}"

    def state(self, flow_run: str) -> dict[str, str]:
        if self.failing is not None:
            raise self.failing
        return {"name": "brave-run", "state": "Completed"}

    def emit(self, event: Mapping[str, Any]) -> None:
        if self.failing is not None:
            raise self.failing
        self.events.append(event)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/control.db"


@pytest.fixture
def deliveries(url: str) -> Deliveries:
    return Deliveries(url)


@pytest.fixture
def store(url: str) -> ControlStore:
    return ControlStore(url)


@pytest.fixture
def prefect() -> AskedPrefect:
    return AskedPrefect()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_dispatcher(deliveries: Deliveries, prefect: AskedPrefect, clock: Clock) -> Callable[[], Dispatcher]:
    return lambda: Dispatcher(deliveries, prefect, timedelta(hours=1), (), clock)  # type: ignore[arg-type]
