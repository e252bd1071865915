"""Deadlines, with a graph that really takes seconds: what is answered, and that the session goes on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import grpc
import pytest

from homeostat.serving.access.authorization import Access
from homeostat.serving.dataplane import InferRequest
from homeostat.serving.session import Session
from homeostat.settings import Settings
from tests.bundles import WIDTH, make_bundle, rows_of, slow
from tests.conftest import free_port
from tests.grpc_client import INFERENCE, GrpcClient, grpc_server

BODY = {"inputs": [{"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": [1.0] * WIDTH}]}
DEADLINE = 0.3
SECONDS = 10.0
"""What a call of the slow graph takes at least, if nothing ends it."""


@pytest.fixture(scope="module")
def graph():
    return Session(slow(products=6000, size=600))


@pytest.fixture
def hung(plane, monkeypatch, graph):
    """A plane whose graph takes SECONDS; `quick` is the session that its bundle really has."""
    monkeypatch.setattr("homeostat.serving.served.INLINE_SECONDS", 0.0)
    plane.store.promote(make_bundle(plane.home, deadline_seconds=DEADLINE))
    plane.repository.poll()
    state = plane.repository.models["toy"]
    plane.quick = state.live.session
    use(plane, graph)
    yield plane
    plane.plane.close()


def use(plane, session):
    state = plane.repository.models["toy"]
    plane.repository.models = {"toy": replace(state, live=replace(state.live, session=session))}


def test_a_graph_over_its_deadline_is_a_504_and_the_next_request_is_answered(hung):
    start = time.monotonic()
    answer = hung.infer(BODY)
    assert answer.status_code == 504
    assert "within 0.3 s (serve.deadline_seconds)" in answer.json()["error"]
    use(hung, hung.quick)
    assert hung.infer(BODY).json()["outputs"][0]["data"] == [4.0]
    assert time.monotonic() - start < SECONDS / 2  # the thread is free again
    assert hung.repository.models["toy"].live.metrics.statuses == {504: 1, 200: 1}


def test_what_waits_too_long_is_never_computed(hung):
    served = hung.repository.models["toy"].live

    async def ask_all():
        requests = (InferRequest(rows_of(served.contract, 1)) for _ in range(20))
        return await asyncio.gather(*(hung.plane.infer(served, one) for one in requests), return_exceptions=True)

    start = time.monotonic()
    found = asyncio.run(ask_all())
    assert {(type(one).__name__, one.status) for one in found} == {("DeadlineExceeded", 504)}
    assert time.monotonic() - start < SECONDS / 2
    use(hung, hung.quick)
    assert hung.infer(BODY).status_code == 200  # within its own deadline: nothing is before it


def test_over_grpc_it_is_deadline_exceeded(hung):
    port = free_port()
    with grpc_server(hung.plane, Access(Settings(home=hung.home), open_metrics=True), port, max_message=64 * 1024):
        client = GrpcClient(port)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "contents": {"fp32_contents": [1.0] * WIDTH}}
        with pytest.raises(grpc.RpcError) as error:
            client.call(INFERENCE, "ModelInfer", model_name="toy", inputs=[tensor])
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "serve.deadline_seconds" in error.value.details()
        client.close()


def test_a_client_that_leaves_ends_its_run(hung):
    served = replace(hung.repository.models["toy"].live, deadline_seconds=60.0)

    async def leave():
        call = asyncio.create_task(hung.plane.infer(served, InferRequest(rows_of(served.contract, 1))))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        start = time.monotonic()
        quick = replace(served, session=hung.quick)
        await hung.plane.infer(quick, InferRequest(rows_of(served.contract, 1)))
        return time.monotonic() - start

    assert asyncio.run(leave()) < SECONDS / 4
    assert hung.plane.queued == 0
