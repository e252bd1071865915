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
MAX_SECONDS = 2 * 3600.0
LOST = 0
CLOSES = re.compile(rb"connection: close", re.IGNORECASE)

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
        ("place", np.int64),  # which request of the load it was; its id is made of it
        ("tries", np.int8),  # 2 where the first one got no answer
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
    name: str = ""
    """Each request says who it is: this, a dash and its place. None does when empty."""
    retry: bool = False
    """Whether a request whose connection ended without an answer is sent once more."""

    def body(self, place: int) -> bytes:
        """What is sent at this place."""
        body = self.bodies[place % len(self.bodies)]
        return b'{"id":"%s-%d",%s' % (self.name.encode(), place, body[1:]) if self.name else body


Record = tuple[int, float, float, int, int, float, int, int]


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
        self.records: list[Record] = []

    async def run(self) -> None:
        plan, place = self._plan, self._number
        while not self._stop.is_set():
            due = self._start + place / plan.rate
            if time.monotonic() < due:
                await asyncio.sleep(due - time.monotonic())
                due = time.monotonic()  # the timer's own lateness is not the server's
            self.records.append(await self._ask(place, due))
            place += plan.connections
        self._drop()

    async def _ask(self, place: int, due: float) -> Record:
        row, body = place % len(self._plan.bodies), self._plan.body(place)
        tries = 0
        while True:
            tries += 1
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    status, version, value, received = await self._answer(row, body)
                return row, due, received, status, version, value, place, tries
            except (OSError, EOFError) as error:
                self._drop()
                if tries > self._plan.retry or isinstance(error, TimeoutError):
                    return row, due, time.monotonic(), LOST, 0, 0.0, place, tries

    async def _answer(self, row: int, body: bytes) -> tuple[int, int, float, float]:
        """Send one request, and its label; return status, version and value of the answer, and when it came."""
        status, content = await self._send(self._paths[0], body)
        received = time.monotonic()
        if status != 200:
            return status, 0, 0.0, received
        answer = orjson.loads(content)
        if self._plan.labels:
            label = {"id": answer["id"], "labels": [self._plan.labels[row]]}
            await self._send(self._paths[1], orjson.dumps(label))
        data = answer["outputs"][0]["data"]
        value = float(data[0]) if len(data) == 1 else float(np.argmax(data))
        return status, int(answer["model_version"]), value, received

    async def _send(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._reader is not None and self._reader.at_eof():  # the server has closed it since the last answer
            self._drop()
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._plan.port)
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(answer)
        content = await self._reader.readexactly(int(length[1]) if length else 0)
        if CLOSES.search(answer):
            self._drop()
        return int(answer[9:12]), content

    def _drop(self) -> None:
        if self._reader is not None:
            self._writer.close()
            self._reader = None


def _run(plan: Plan, pipe: Connection) -> None:
    if plan.core is not None:
        os.sched_setaffinity(0, {plan.core})
    gc.disable()  # a collection would look like a slow answer

    async def load() -> list[Record]:
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
