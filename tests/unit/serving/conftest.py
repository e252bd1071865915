"""A data plane over in-memory rollout rows, and a client that calls the ASGI application without a socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeostat.bundle import load_public_key
from homeostat.serving.app import App
from homeostat.serving.dataplane import DataPlane
from homeostat.serving.metrics import Metrics
from homeostat.serving.recorder import Recorder
from homeostat.serving.repository import Repository
from tests.bundles import Store, make_bundle, two_inputs


@dataclass
class Plane:
    """The parts of a server, without its process."""

    home: Path
    store: Store
    repository: Repository
    recorder: Recorder
    metrics: Metrics
    app: App

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **request)

        return asyncio.run(send())

    def infer(self, value: Any, path: str = "/v2/models/toy/infer") -> httpx.Response:
        return (
            self.call("POST", path, json=value)
            if not isinstance(value, bytes)
            else self.call("POST", path, content=value)
        )


def make_plane(home: Path, store: Store, max_body: int = 4096) -> Plane:
    metrics = Metrics()
    repository = Repository(lambda: store, lambda: load_public_key(home), home / "serving", metrics)
    recorder = Recorder(home / "traffic.db")
    return Plane(
        home, store, repository, recorder, metrics, App(DataPlane(repository, recorder, metrics), max_body=max_body)
    )


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    """An empty one."""
    return make_plane(tmp_path, Store())


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Plane:
    """One that serves `toy` v1 (x [n, 4] -> sum) and `pair` v1 (a [n, 2], b [n] -> both doubled)."""
    home = tmp_path_factory.mktemp("toy")
    made = make_plane(home, Store())
    made.store.promote(make_bundle(home, max_rows=8))
    made.store.promote(make_bundle(home, model="pair", onnx_bytes=two_inputs(), out_of_range="reject"))
    made.repository.poll()
    return made
