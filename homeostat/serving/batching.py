"""The thread for calls that would hold the event loop up: a queue for each version, computed in batches while busy."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
from onnxruntime import RunOptions

from homeostat.dataset import Array
from homeostat.errors import RequestInvalid
from homeostat.serving.blackbox import Guard, fingerprint
from homeostat.serving.served import Served
from homeostat.serving.session import make_run_options

MAX_QUEUED = 64
"""Calls that wait for the thread; more are answered 503."""
CLOSE_SECONDS = 5.0

departed: ContextVar[Callable[[], bool]] = ContextVar("departed")
"""Returns whether the client that this task answers has left; unset where the task is cancelled then."""


class Departed(RequestInvalid):
    """The client left while its request waited: it is not computed."""

    def __init__(self) -> None:
        super().__init__("the client has left", status=499)


class QueueFull(RequestInvalid):
    """As many calls wait as may."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{MAX_QUEUED} requests wait for {model!r} already; try again in a second", status=503)


class _Call:
    """One request on its way through the thread."""

    __slots__ = ("alone", "future", "gone", "loop", "packed", "rows", "served", "suspect", "tensors")

    def __init__(
        self, served: Served, tensors: Mapping[str, Array], rows: int, packed: bytes, *, suspect: bool
    ) -> None:
        self.served, self.tensors, self.rows, self.packed = served, tensors, rows, packed
        self.alone = rows >= served.batch_rows or suspect
        """Never in a batch: too large, of a version that is not batched, or perhaps to blame for a failure."""
        self.suspect = suspect
        self.gone = departed.get(None)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Array]] = self.loop.create_future()

    def settle(self, found: list[Array] | Exception) -> None:
        """Hand the answer over, in the event loop, to whoever still waits for it."""
        if self.future.done():
            return
        if isinstance(found, Exception):
            self.future.set_exception(found)
        else:
            self.future.set_result(found)


class _Run(NamedTuple):
    """What the thread computes now."""

    calls: Sequence[_Call]
    options: RunOptions


class Batcher:
    """Runs calls in a thread of its own; while it computes a batch of a version, the version's next one gathers.

    A call that finds the thread idle starts at once. After a batch, while others wait or are
    expected back, the next one may wait for them (`served.batch_wait_seconds`). A batch that fails
    is computed again call by call, so that nobody suffers from a neighbor.
    """

    def __init__(self, guard: Guard, name: str = "infer") -> None:
        self._guard = guard
        self._changed = threading.Condition()
        self._queues: OrderedDict[str, deque[_Call]] = OrderedDict()
        """Manifest digest -> calls that wait; the version that has waited longest first. None is empty."""
        self._count = 0
        """Of all queues together."""
        self._wanted = 1
        """The thread is woken when so many calls wait."""
        self._expected: tuple[str, int] = ("", 0)
        """Version of the batch before, and how many of its calls may wait soon if its clients come back."""
        self._now: _Run | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    @property
    def queued(self) -> int:
        """Calls that wait for the thread."""
        return self._count

    def close(self, *, wait: bool = True) -> None:
        """End the thread; calls that wait are computed first."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if wait and self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    async def run(self, served: Served, tensors: Mapping[str, Array], rows: int, packed: bytes) -> list[Array]:
        """Return the outputs [n, ...]; raises what the graph raises, QueueFull, Departed, or what the guard does.

        When it is cancelled, and nobody else waits for its batch, the batch is ended.
        """
        suspect = self._guard.is_suspect(served.ref.manifest_sha256, packed)
        call = _Call(served, tensors, rows, packed, suspect=suspect)
        with self._changed:
            if self._count >= MAX_QUEUED:
                raise QueueFull(served.ref.model)
            if self._thread.ident is None:
                self._thread.start()
            self._put(call)
        try:
            return await call.future
        except asyncio.CancelledError:
            now = self._now
            if now is not None and call in now.calls and all(one.future.done() for one in now.calls):
                now.options.terminate = True
            raise

    def _put(self, call: _Call, *, first: bool = False) -> None:
        queue = self._queues.setdefault(call.served.ref.manifest_sha256, deque())
        (queue.appendleft if first else queue.append)(call)
        self._count += 1
        if self._count >= self._wanted:
            self._changed.notify()

    # -- in the thread

    def _work(self) -> None:
        while calls := self._gather():
            self._compute(calls)

    def _gather(self) -> list[_Call]:
        """Return the calls of the next batch, which are of one version; none when there is nothing more to do."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._count or self._closing)
                if not self._count:
                    return []
                self._await_others()
                calls = self._take()
                if calls:
                    return calls

    def _await_others(self) -> None:
        """Wait until the clients of the batch before have come back, for a moment, unless another version waits."""
        digest, expected = self._expected
        self._expected = "", 0
        queue = self._queues.get(digest)
        if queue is None or len(self._queues) > 1:
            return
        served = queue[0].served
        self._wanted = min(expected, served.batch_rows)
        until = time.monotonic() + served.batch_wait_seconds
        while self._count < self._wanted and not self._closing and len(self._queues) == 1:
            left = until - time.monotonic()
            if left <= 0:
                break
            self._changed.wait(left)
        self._wanted = 1

    def _take(self) -> list[_Call]:
        digest, queue = next(iter(self._queues.items()))
        calls: list[_Call] = []
        rows = 0
        while queue:
            one = queue[0]
            if one.future.done():
                pass
            elif one.gone is not None and one.gone():
                _settle([one], [Departed()])
            elif calls and (one.alone or rows + one.rows > one.served.batch_rows):
                break
            else:
                calls.append(one)
                rows += one.rows
            queue.popleft()
            self._count -= 1
            if calls and calls[0].alone:
                break
        if queue:
            self._queues.move_to_end(digest)
        else:
            del self._queues[digest]
        return calls

    def _compute(self, calls: list[_Call]) -> None:
        run = self._now = _Run(calls, make_run_options())
        try:
            if len(calls) == 1:
                found: list[list[Array] | Exception] = [self._run_one(run)]
            else:
                found = [*self._run_batch(run)]
        except Exception as error:  # noqa: BLE001  it belongs to whoever asked
            found = [error]
        finally:
            self._now = None
        if len(found) == len(calls):
            with self._changed:
                waiting = len(self._queues.get(calls[0].served.ref.manifest_sha256, ()))
                if waiting + len(calls) > 1 and not calls[0].alone:
                    self._expected = calls[0].served.ref.manifest_sha256, waiting + len(calls)
            _settle(calls, found)
            return
        with self._changed:  # one of them is at fault, or was there when a process died: each by itself
            for one in reversed(calls):
                one.alone = True
                self._put(one, first=True)

    def _run_one(self, run: _Run) -> list[Array]:
        (call,) = run.calls
        digest = call.served.ref.manifest_sha256
        slot = self._guard.enter(digest, call.packed)
        try:
            answers = call.served.session.run_until_told(call.tensors, run.options)
        finally:
            self._guard.leave(slot)
        if call.suspect:
            self._guard.clear(digest, call.packed)
        return answers

    def _run_batch(self, run: _Run) -> list[list[Array]]:
        """Return the outputs of each call; raises whatever goes wrong with any."""
        calls, served = run.calls, run.calls[0].served
        slot = self._guard.enter_batch([fingerprint(served.ref.manifest_sha256, one.packed) for one in calls])
        try:
            tensors = {name: np.concatenate([one.tensors[name] for one in calls]) for name in calls[0].tensors}
            outputs = served.session.run_until_told(tensors, run.options)
        finally:
            self._guard.leave(slot)
        ends = np.cumsum([one.rows for one in calls])
        if any(len(values) != ends[-1] for values in outputs):
            raise ValueError(f"{ends[-1]} rows went in, and outputs of {[len(values) for values in outputs]} came out")
        return [[values[end - one.rows : end] for values in outputs] for one, end in zip(calls, ends, strict=True)]


def _settle(calls: Sequence[_Call], found: Sequence[list[Array] | Exception]) -> None:
    """Hand answers over to the event loop that waits for them; one that has ended waits no more."""
    loops = {one.loop: None for one in calls}
    for loop in loops:
        own = [(one, answer) for one, answer in zip(calls, found, strict=True) if one.loop is loop]
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_deliver, own)


def _deliver(answers: Sequence[tuple[_Call, list[Array] | Exception]]) -> None:
    served = answers[0][0].served
    rows = sum(call.rows for call, answer in answers if not isinstance(answer, Exception))
    if rows and served.batch_rows > 1:
        served.metrics.batched(rows)
    for call, answer in answers:
        call.settle(answer)
