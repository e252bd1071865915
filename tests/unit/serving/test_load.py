"""Load and unload: a refused bundle is tried again at once, by every worker; unload is refused to everybody."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from homeostat.client import Client, current
from homeostat.serving import operations
from homeostat.serving.repository import Repository
from tests.bundles import Store, make_bundle
from tests.unit.serving.conftest import Plane, make_plane

OPERATOR = Client("0123456789ab", frozenset({"operate"}))
LOAD = "/v2/repository/models/toy/load"


@pytest.fixture
def workers(tmp_path: Path):
    """Two workers of one HOME, which follow the same rows."""
    store = Store()
    made = make_plane(tmp_path, store), make_plane(tmp_path, store)
    yield made
    for one in made:
        if one.repository._thread.is_alive():
            one.repository.close()


def post(plane: Plane, path: str, client: Client | None = OPERATOR, content: bytes = b"{}") -> httpx.Response:
    async def send() -> httpx.Response:
        current.set(client)  # as the gate does
        async with httpx.AsyncClient(transport=httpx.ASGITransport(plane.app), base_url="http://test") as http:
            return await http.post(path, content=content)

    return asyncio.run(send())


def wait(found, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused_for_long(repository: Repository) -> bool:
    """Whether the next try is due in more than a test may take."""
    return any(due > time.monotonic() + 20 for _, due, _ in repository._refused.values())


def test_a_refused_bundle_that_was_repaired_is_loaded_by_every_worker(workers, tmp_path, monkeypatch):
    monkeypatch.setattr("homeostat.serving.repository.RETRY_SECONDS", (60.0,))
    one, two = workers
    ref = make_bundle(tmp_path)
    path = Path(ref.url.removeprefix("file://")) / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    one.store.promote(ref)
    for worker in workers:
        worker.repository.start()
    wait(lambda: all(refused_for_long(worker.repository) for worker in workers))
    answer = post(one, LOAD)
    assert (answer.status_code, "version 1 is refused" in answer.json()["error"]) == (409, True)
    path.write_bytes(whole)
    answer = post(one, LOAD)
    assert (answer.status_code, answer.json()) == (200, {})
    wait(lambda: two.repository.models["toy"].live is not None)
    assert post(one, LOAD).status_code == 200, "there is nothing to do"


def test_what_cannot_be_loaded(workers, monkeypatch):
    one, _ = workers
    one.repository.start()
    for path in ("/v2/repository/models/absent/load", "/v2/repository/models/%2e%2e/load"):
        assert post(one, path).status_code == 404
    assert not (one.home / "serving" / "retries").exists()
    answer = post(one, LOAD, content=b'{"parameters": {"config": "{}"}}')
    assert (answer.status_code, "none are taken" in answer.json()["error"]) == (400, True)
    one.repository.close()
    monkeypatch.setattr(operations.load, "__kwdefaults__", {"seconds": 0.05})
    answer = post(one, LOAD)
    assert (answer.status_code, "still loading" in answer.json()["error"]) == (503, True)


@pytest.mark.parametrize("action", ["load", "unload"])
def test_nobody_but_an_operator(workers, action):
    one, _ = workers
    path = f"/v2/repository/models/toy/{action}"
    for client, says in ((None, "homeostat key create"), (Client("a", frozenset({"infer"})), "'operate'")):
        answer = post(one, path, client)
        assert (answer.status_code, says in answer.json()["error"]) == (403, True)


def test_unload_is_refused_to_operators_too(workers):
    answer = post(workers[0], "/v2/repository/models/toy/unload")
    assert (answer.status_code, "homeostat rollback" in answer.json()["error"]) == (403, True)
