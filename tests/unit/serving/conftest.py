"""A data plane over in-memory rollout rows, and a client that calls the ASGI application without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeostat.bundle import load_public_key
from homeostat.keys import load_salt
from homeostat.records import BundleRef
from homeostat.serving.access.authorization import Access
from homeostat.serving.capture.recorder import Recorder
from homeostat.serving.dataplane import DataPlane
from homeostat.serving.metrics import Metrics
from homeostat.serving.repository import Repository
from homeostat.serving.rest.app import App
from homeostat.settings import Settings
from tests.bundles import Store, identity, make_bundle, rollout, sigmoid, softmax, two_inputs
from tests.conftest import free_port
from tests.grpc_client import GrpcClient, grpc_server


@dataclass
class Plane:
    """The parts of a server, without its process."""

    home: Path
    store: Store
    repository: Repository
    recorder: Recorder
    metrics: Metrics
    plane: DataPlane
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
    repository = Repository(
        lambda: store, lambda: load_public_key(home), home / "serving", metrics, salt=lambda: load_salt(home)
    )
    recorder = Recorder(home / "traffic.db")
    plane = DataPlane(repository, recorder, metrics)
    return Plane(home, store, repository, recorder, metrics, plane, App(plane, max_body=max_body))


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


def promote(plane: Plane, *refs: BundleRef, challenger: BundleRef | None = None) -> None:
    """Make the last of these versions champion and the one before it previous, without their preflight."""
    for ref in (*refs, challenger):
        if ref is not None:
            plane.repository._memory.add(ref, batch_invariant=True)
    previous = refs[-2] if len(refs) > 1 else None
    plane.store.put(rollout(refs[-1], len(refs), previous, challenger, refs[-1].model))


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Plane:
    """Models of every kind: `toy` v2 (with v1 before it and v3 as challenger), `pair`, `kinds`, `flowers`, `coin`."""
    home = tmp_path_factory.mktemp("zoo")
    made = make_plane(home, Store(), max_body=64 * 1024)
    one, two, three = (make_bundle(home, version, max_rows=8) for version in (1, 2, 3))
    promote(made, one, two, challenger=three)
    promote(made, make_bundle(home, model="pair", onnx_bytes=two_inputs()))
    promote(made, make_bundle(home, model="kinds", onnx_bytes=identity(), out_of_range="accept"))
    names = ("iris", "rose", "tulip")
    promote(made, make_bundle(home, model="flowers", onnx_bytes=softmax(), task="classification", classes=names))
    promote(made, make_bundle(home, model="coin", onnx_bytes=sigmoid(), task="classification"))
    made.repository.poll()
    assert not [state.problem for state in made.repository.models.values() if state.problem]
    return made


@pytest.fixture(scope="session")
def client(zoo: Plane) -> Iterator[GrpcClient]:
    """A gRPC client of the zoo."""
    port = free_port()
    with grpc_server(zoo.plane, Access(Settings(home=zoo.home), open_metrics=True), port, max_message=64 * 1024):
        made = GrpcClient(port)
        yield made
        made.close()
