"""Batches: what is computed together, what never is, and that no request notices the others."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from homeostat.serving.batching import MAX_QUEUED, Departed, QueueFull, departed
from homeostat.serving.blackbox import SIZE, BlackBox, Guard, Killers, fingerprint
from homeostat.serving.dataplane import InferenceFailed, InferRequest
from homeostat.tensors import pack
from tests.bundles import graph_bytes, make_bundle

WIDTH = 4


def picking() -> bytes:
    """x [n] int64 -> output [n] = 10 times it; a number that is not 0 to 9 makes ONNX Runtime fail."""
    table = numpy_helper.from_array(np.arange(10, dtype=np.float32) * 10, "table")
    return graph_bytes(
        [helper.make_node("Gather", ["table", "x"], ["output"])],
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n"])],
        [table],
    )


class Gate:
    """Holds the first run of a version until it is opened, and notes the rows of each run."""

    def __init__(self, session) -> None:
        self.runs: list[int] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self._run = session._run
        session._run = self

    def __call__(self, names, tensors, options=None):
        self.runs.append(len(next(iter(tensors.values()))))
        self.entered.set()
        assert self.opened.wait(10)
        return self._run(names, tensors, options)


@pytest.fixture
def serve(plane, monkeypatch):
    """Serve versions whose every call counts as slow."""
    monkeypatch.setattr("homeostat.serving.served.INLINE_SECONDS", 0.0)
    monkeypatch.setattr("homeostat.serving.served.BATCH_GAIN", 1e9)

    def start(*, invariant=True, version=1, **options):
        ref = make_bundle(plane.home, version, **options)
        plane.repository._memory.add(ref, batch_invariant=invariant)
        plane.store.promote(ref)
        plane.repository.poll()
        served = plane.repository.models["toy"].live
        return served, Gate(served.session)

    yield start
    plane.plane.close()


def request(number, rows=1):
    return InferRequest({"x": np.full((rows, WIDTH), number, np.float32)})


async def ask(plane, gate, served, first, others):
    """Ask the first, and once it runs all others; open the gate when they wait. Returns answers or errors."""
    calls = [asyncio.ensure_future(plane.plane.infer(served, first))]
    await asyncio.to_thread(gate.entered.wait, 10)
    calls += [asyncio.ensure_future(plane.plane.infer(served, one)) for one in others]
    while plane.plane.queued < len(others):
        await asyncio.sleep(0.001)
    gate.opened.set()
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)


def output(response):
    return response.outputs["output"].ravel().tolist()


def test_what_comes_while_one_is_computed_is_computed_together(plane, serve):
    served, gate = serve()
    found = asyncio.run(ask(plane, gate, served, request(0), [request(n) for n in range(1, 9)]))
    assert gate.runs == [1, 8]
    assert [output(one) for one in found] == [[4.0 * n] for n in range(9)]
    text = plane.metrics.render().decode()
    assert 'homeostat_batch_rows_bucket{le="1.0",model="toy",version="1"} 1.0' in text
    assert 'homeostat_batch_rows_sum{model="toy",version="1"} 9.0' in text


def test_batches_are_bounded_in_rows_and_large_requests_go_alone(plane, serve):
    served, gate = serve(max_batch_rows=4, batch_wait_ms=0.0)
    sizes = [1, 2, 3, 4, 1, 1, 7, 1, 3]
    others = [request(place, rows) for place, rows in enumerate(sizes)]
    found = asyncio.run(ask(plane, gate, served, request(9), others))
    assert gate.runs == [1, 3, 3, 4, 2, 7, 4]
    assert [output(one) for one in found[1:]] == [[4.0 * place] * rows for place, rows in enumerate(sizes)]


@pytest.mark.parametrize("options", [{"invariant": False}, {"max_batch_rows": 1}])
def test_a_version_that_is_not_invariant_or_not_to_be_batched_is_not(plane, serve, options):
    served, gate = serve(**options)
    found = asyncio.run(ask(plane, gate, served, request(0), [request(n) for n in range(1, 5)]))
    assert (served.batch_rows, gate.runs) == (1, [1] * 5)
    assert [output(one) for one in found] == [[4.0 * n] for n in range(5)]
    assert "homeostat_batch_rows_sum" not in plane.metrics.render().decode()


def test_a_version_that_gains_nothing_by_batches_is_not_batched(plane, serve, monkeypatch):
    monkeypatch.setattr("homeostat.serving.served.time_rows", lambda *_: (0.01, 0.009))
    monkeypatch.setattr("homeostat.serving.served.BATCH_GAIN", 0.8)
    assert serve()[0].batch_rows == 1
    monkeypatch.setattr("homeostat.serving.served.time_rows", lambda *_: (0.01, 0.001))
    served, _ = serve(version=2)
    assert (served.batch_rows, served.batch_wait_seconds) == (64, 0.002)
    monkeypatch.setattr("homeostat.serving.served.time_rows", lambda *_: (0.001, 0.0001))
    assert serve(version=3)[0].batch_wait_seconds == 0.001  # waiting for longer than a call never pays


def test_one_that_fails_does_not_fail_its_neighbors(plane, serve):
    served, gate = serve(onnx_bytes=picking(), batch_wait_ms=0.0)
    numbers = [1, 2, 77, 3, -99, 4]
    others = [InferRequest({"x": np.array([number], np.int64)}) for number in numbers]
    found = asyncio.run(ask(plane, gate, served, InferRequest({"x": np.array([0], np.int64)}), others))
    assert gate.runs == [1, 6, 1, 1, 1, 1, 1, 1]
    failed = [place for place, one in enumerate(found[1:]) if isinstance(one, InferenceFailed)]
    assert failed == [2, 4]
    assert [output(one) for one in found if not isinstance(one, Exception)] == [[0.0], [10.0], [20.0], [30.0], [40.0]]
    assert served.metrics.statuses == {200: 5, 500: 2}


def test_a_client_that_has_left_is_not_computed(plane, serve):
    served, gate = serve()

    async def leave():
        departed.set(lambda: gate.opened.is_set())
        left = asyncio.ensure_future(plane.plane.infer(served, request(5)))
        departed.set(lambda: False)
        while not plane.plane.queued:
            await asyncio.sleep(0)
        return await left

    async def ask_all():
        first = asyncio.ensure_future(plane.plane.infer(served, request(0)))
        await asyncio.to_thread(gate.entered.wait, 10)
        left = asyncio.ensure_future(leave())
        stays = asyncio.ensure_future(plane.plane.infer(served, request(6)))
        while plane.plane.queued < 2:
            await asyncio.sleep(0.001)
        gate.opened.set()
        return await asyncio.gather(first, left, stays, return_exceptions=True)

    first, left, stays = asyncio.run(ask_all())
    assert isinstance(left, Departed)
    assert (output(first), output(stays), gate.runs) == ([0.0], [24.0], [1, 1])
    assert served.metrics.statuses == {200: 2, 499: 1}


def test_one_that_is_cancelled_takes_nobody_with_it(plane, serve):
    served, gate = serve()

    async def ask_all():
        first = asyncio.ensure_future(plane.plane.infer(served, request(0)))
        await asyncio.to_thread(gate.entered.wait, 10)
        calls = [asyncio.ensure_future(plane.plane.infer(served, request(n))) for n in (1, 2, 3)]
        while plane.plane.queued < 3:
            await asyncio.sleep(0.001)
        calls[0].cancel()
        await asyncio.sleep(0)
        gate.entered.clear()
        gate.opened.set()
        await asyncio.to_thread(gate.entered.wait, 10)
        calls[1].cancel()  # perhaps it is being computed
        return await asyncio.gather(first, *calls, return_exceptions=True)

    found = asyncio.run(ask_all())
    assert gate.runs == [1, 2]
    assert (output(found[0]), output(found[3])) == ([0.0], [12.0])
    assert isinstance(found[1], asyncio.CancelledError)


def test_a_batch_is_of_one_version_and_versions_take_turns(plane, serve):
    one, first = serve(batch_wait_ms=0.0)
    two, second = serve(version=2, batch_wait_ms=0.0)
    second.opened.set()

    async def ask_all():
        calls = [asyncio.ensure_future(plane.plane.infer(one, request(0)))]
        await asyncio.to_thread(first.entered.wait, 10)
        for number in range(1, 5):
            calls.append(asyncio.ensure_future(plane.plane.infer(one, request(number))))
            calls.append(asyncio.ensure_future(plane.plane.infer(two, request(number))))
        while plane.plane.queued < 8:
            await asyncio.sleep(0.001)
        first.opened.set()
        return await asyncio.gather(*calls)

    found = asyncio.run(ask_all())
    assert (first.runs, second.runs) == ([1, 4], [4])
    assert [output(answer) for answer in found[1::2]] == [[4.0 * n] for n in range(1, 5)]
    assert [output(answer) for answer in found[2::2]] == [[8.0 * n] for n in range(1, 5)]


def test_a_full_queue_is_a_503_and_what_waits_is_answered(plane, serve):
    served, gate = serve(max_batch_rows=16)

    async def ask_all():
        calls = [asyncio.ensure_future(plane.plane.infer(served, request(0)))]
        await asyncio.to_thread(gate.entered.wait, 10)
        calls += [asyncio.ensure_future(plane.plane.infer(served, request(1))) for _ in range(MAX_QUEUED + 5)]
        while plane.plane.queued < MAX_QUEUED:
            await asyncio.sleep(0.001)
        gate.opened.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(ask_all())
    assert sum(isinstance(one, QueueFull) for one in found) == 5
    assert served.metrics.statuses == {200: MAX_QUEUED + 1, 503: 5}
    assert sum(gate.runs) == MAX_QUEUED + 1
    assert plane.plane.queued == 0


def test_a_lone_request_never_waits_and_a_batch_waits_for_the_clients_of_the_one_before(plane, serve):
    served, gate = serve()
    served = replace(served, batch_wait_seconds=5.0)

    async def ask_all():
        start = time.monotonic()
        gate.opened.set()
        for number in range(3):
            await plane.plane.infer(served, request(number))
        assert time.monotonic() - start < 2.5
        gate.opened.clear()
        gate.entered.clear()
        first = asyncio.ensure_future(plane.plane.infer(served, request(0)))
        await asyncio.to_thread(gate.entered.wait, 10)
        other = asyncio.ensure_future(plane.plane.infer(served, request(1)))
        while not plane.plane.queued:
            await asyncio.sleep(0.001)
        gate.opened.set()
        await first  # its client comes back, and the other one has waited for it
        await asyncio.gather(plane.plane.infer(served, request(2)), other)
        assert time.monotonic() - start < 2.5

    asyncio.run(ask_all())
    assert gate.runs == [1, 1, 1, 1, 2]


def test_a_wait_ends_when_nobody_comes_back(plane, serve):
    served, gate = serve()
    served = replace(served, batch_wait_seconds=0.2)
    start = time.monotonic()
    found = asyncio.run(ask(plane, gate, served, request(0), [request(1)]))
    assert [output(one) for one in found] == [[0.0], [4.0]]
    assert 0.2 <= time.monotonic() - start < 5


def test_a_death_in_a_batch_makes_suspects_which_are_computed_alone_until_cleared(plane, serve, tmp_path):
    with (tmp_path / "box").open("w+b") as file:
        file.truncate(SIZE)
        box, killers = BlackBox(file.fileno()), Killers(tmp_path / "killers.json")
    plane.plane.guard = Guard(box, killers)
    plane.plane._batcher._guard = plane.plane.guard
    served, gate = serve()
    seen = []
    inner = gate._run

    def look(names, tensors, options=None):
        seen.append((sorted(box.inside()), sorted(box.together())))
        return inner(names, tensors, options)

    gate._run = look
    prints = [fingerprint(served.ref.manifest_sha256, pack(request(n).tensors)) for n in range(4)]
    asyncio.run(ask(plane, gate, served, request(0), [request(1), request(2)]))
    assert seen == [([prints[0]], []), ([], sorted(prints[1:3]))]
    Killers(killers.path).note([], prints[1:3])  # as a supervisor would after a death at the second look
    killers.read()
    assert (killers.refused, killers.suspects) == (frozenset(), {prints[1], prints[2]})
    gate.opened.clear()
    gate.entered.clear()
    gate.runs.clear()
    asyncio.run(ask(plane, gate, served, request(0), [request(n) for n in (1, 2, 3, 0)]))
    assert gate.runs == [1, 1, 1, 2]
    assert killers.suspects == frozenset()
    killers.read()
    killers.note([prints[1]])
    killers.note([prints[1]])
    killers.read()
    assert killers.refused == {prints[1]}
    box.close()
