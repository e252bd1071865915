"""One Prefect harness for every flow test, and a real model server beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from tests.conftest import ServerProcess, make_settings, set_environment


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=60):
        yield


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    """A home of its own, the environment that points to it, and its model server."""
    started = ServerProcess(make_settings(tmp_path / "home"))
    set_environment(monkeypatch, started.settings, started.url)
    monkeypatch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(tmp_path / "storage"))
    yield started
    if started.process.poll() is None:
        started.stop()
