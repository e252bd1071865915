"""A steady load in a process of its own: so many requests a second whatever the server does, each one written down."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np
import orjson

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
TIMEOUT_SECONDS = 10.0
"""An answer that takes longer is lost."""
MAX_SECONDS = 3600.0
LOST = 0

Records = np.ndarray
"""One row for each request: of this dtype."""
FIELDS = np.dtype(
    [
        ("row", np.int32),
        ("due", np.float64),  # when it was to be sent; later than planned only where the load itself was late
        ("received", np.float64),  # time.monotonic(), which all processes of a machine share
        ("status", np.int16),  # 0 when no answer came
        ("version", np.int32),
        ("value", np.float64),  # the number that was answered, or the class
    ]
)


@dataclass(frozen=True)
class Plan:
    """What is sent where, and how often."""

    port: int
    model: str
    bodies: Sequence[bytes]
    """Sent in turn."""
    rate: float
    """Requests a second, of all connections together."""
    connections: int = 8
    labels: Sequence[float] = ()
    """One for each body, sent as soon as the answer is there; none are sent when empty."""
    core: int | None = None


def rows_as_bodies(rows: np.ndarray) -> list[bytes]:
    """Open Inference Protocol JSON of each row [n, k]."""
    one = {"name": "x", "shape": [1, rows.shape[1]], "datatype": "FP32"}
    return [orjson.dumps({"inputs": [{**one, "data": [float(value) for value in row]}]}) for row in rows]


class _Client:
    """One connection, which sends at its own times and connects anew after it has lost one."""

    def __init__(self, plan: Plan, number: int, start: float, stop: asyncio.Event) -> None:
        self._plan, self._number, self._start, self._stop = plan, number, start, stop
        self._paths = [f"/v2/models/{plan.model}/infer", "/v1/feedback"]
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter
        self.records: list[tuple[int, float, float, int, int, float]] = []

    async def run(self) -> None:
        plan, place = self._plan, self._number
        while not self._stop.is_set():
            due = self._start + place / plan.rate
            if time.monotonic() < due:
                await asyncio.sleep(due - time.monotonic())
                due = time.monotonic()  # the timer's own lateness is not the server's
            row = place % len(plan.bodies)
            self.records.append(await self._ask(row, due))
            place += plan.connections
        self._drop()

    async def _ask(self, row: int, due: float) -> tuple[int, float, float, int, int, float]:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status, body = await self._send(self._paths[0], self._plan.bodies[row])
                received = time.monotonic()
                if status != 200:
                    return row, due, received, status, 0, 0.0
                answer = orjson.loads(body)
                if self._plan.labels:
                    label = {"id": answer["id"], "labels": [self._plan.labels[row]]}
                    await self._send(self._paths[1], orjson.dumps(label))
        except (OSError, EOFError, TimeoutError):
            self._drop()
            return row, due, time.monotonic(), LOST, 0, 0.0
        data = answer["outputs"][0]["data"]
        value = float(data[0]) if len(data) == 1 else float(np.argmax(data))
        return row, due, received, status, int(answer["model_version"]), value

    async def _send(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._plan.port)
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(answer)
        content = await self._reader.readexactly(int(length[1]) if length else 0)
        return int(answer[9:12]), content

    def _drop(self) -> None:
        if self._reader is not None:
            self._writer.close()
            self._reader = None


def _run(plan: Plan, pipe: Connection) -> None:
    if plan.core is not None:
        os.sched_setaffinity(0, {plan.core})
    gc.disable()  # a collection would look like a slow answer

    async def load() -> list[tuple[int, float, float, int, int, float]]:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), stop.set)  # told to stop, or whoever would is gone
        loop.call_later(MAX_SECONDS, stop.set)
        start = time.monotonic()
        clients = [_Client(plan, number, start, stop) for number in range(plan.connections)]
        await asyncio.gather(*(client.run() for client in clients))
        return [record for client in clients for record in client.records]

    records = np.array(asyncio.run(load()), FIELDS)
    pipe.send(records[np.argsort(records["due"])])


class SteadyLoad:
    """The load, from entering to leaving; then `records` is there."""

    def __init__(self, plan: Plan) -> None:
        self.records: Records = np.empty(0, FIELDS)
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_run, args=(plan, theirs), daemon=True)
        self._theirs = theirs

    def __enter__(self) -> SteadyLoad:
        self._process.start()
        self._theirs.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._pipe.send("stop")
            self.records = self._pipe.recv()
        finally:
            self._pipe.close()
            self._process.join(TIMEOUT_SECONDS)


def milliseconds(records: Records, *quantiles: float) -> list[float]:
    """Quantiles of the time from when a request was due to its answer."""
    if not len(records):
        return [float("nan") for _ in quantiles]
    return [float(one) * 1000 for one in np.quantile(records["received"] - records["due"], quantiles)]
