"""One real MLflow database for every test of this folder, and a model name of each test's own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from pieces import make_parts

from homeostat.registry import Registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One database for the session: making it takes seconds."""
    return Registry(f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db")


@pytest.fixture(autouse=True)
def lookups(registry: Registry) -> None:
    """MLflow looks `models:/` addresses up in its global database, which another test may have set."""
    mlflow.set_tracking_uri(registry.url)


@pytest.fixture
def client(registry: Registry):
    return registry._open()


@pytest.fixture
def model() -> Iterator[str]:
    """A model name of this test's own."""
    return f"m{uuid.uuid4().hex[:8]}"


@pytest.fixture
def parts(tmp_path: Path, model: str) -> dict:
    return make_parts(tmp_path, model)
