"""Requests at a rate, and their labels when they are due: an open loop, as many clients are together."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from homeostat.dataset import Dataset
from homeostat.errors import ServerUnavailable
from homeostat.simulation.requests import infer_request

AT_ONCE = 64
"""Requests in flight; when the server is slower than the rate, the next one waits."""
LABELS_AT_ONCE = 100
TICK = 0.1


@dataclass(frozen=True)
class Plan:
    """What is sent, row by row.

    rows: of each request, its number in `before` or, from `faulty_from` requests on, in `after`, which has the
    same rows with the faults. delays: seconds from an answer to its label, negative for one that never comes.
    """

    model: str
    before: Dataset
    after: Dataset
    faulty_from: int
    rows: tuple[int, ...]
    delays: tuple[float, ...]
    rate: float
    users: int

    def data(self, number: int) -> Dataset:
        """Return the rows that a request is of."""
        return self.after if number >= self.faulty_from else self.before


def make_plan(
    model: str,
    before: Dataset,
    after: Dataset,
    *,
    count: int,
    fault_after: float,
    rate: float,
    label_delay: float,
    coverage: float,
    users: int,
    rng: np.random.Generator,
) -> Plan:
    """Draw the order of the rows, each once before any comes again, and the delays of their labels.

    fault_after: share of the requests that come before the faults. label_delay: mean seconds, exponential.
    coverage: share of the requests that get a label at all.
    """
    passes = [rng.permutation(len(before)) for _ in range(-(-count // len(before)))]
    rows = np.concatenate(passes)[:count]
    delays = np.where(rng.random(count) < coverage, rng.exponential(label_delay, count), -1.0)
    return Plan(
        model, before, after, round(fault_after * count), tuple(rows.tolist()), tuple(delays.tolist()), rate, users
    )


@dataclass
class Sent:
    """What became of the requests and the labels."""

    sent: int = 0
    answered: int = 0
    labels: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """What became of requests and labels that were not taken, such as `400 ...` or `ConnectError` -> how many."""
    milliseconds: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return the figures; the latency is in milliseconds, as a client sees it."""
        p50, p99 = np.quantile(self.milliseconds, (0.5, 0.99)) if self.milliseconds else (float("nan"),) * 2
        return {
            "sent": self.sent,
            "answered": self.answered,
            "labels": self.labels,
            "refused": dict(self.refused),
            "versions": dict(self.versions),
            "p50_ms": None if np.isnan(p50) else round(float(p50), 2),
            "p99_ms": None if np.isnan(p99) else round(float(p99), 2),
        }


class Sender:
    """Sends a plan to a server. `sent` holds what has become of it so far, also after Ctrl-C."""

    def __init__(self, plan: Plan, url: str, key: str = "") -> None:
        """Do not send yet. key: an API key of the server, if it asks for one."""
        self._plan, self._url, self._key = plan, url.rstrip("/"), key
        self.on_progress: Callable[[Sent], None] = lambda _: None
        self._due: list[tuple[float, str, float | int]] = []
        self.sent = Sent()

    async def send(self) -> Sent:
        """Send all requests at the plan's rate, then the labels that are not due yet; raises ServerUnavailable."""
        headers = {"X-API-Key": self._key} if self._key else {}
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(
            base_url=self._url, headers=headers, timeout=30, trust_env=False, limits=limits
        ) as client:
            await self._check(client)
            places = asyncio.Semaphore(AT_ONCE)
            done = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                labels = tasks.create_task(self._label(client, done))
                began = asyncio.get_running_loop().time()
                async with asyncio.TaskGroup() as requests:
                    for number in range(len(self._plan.rows)):
                        wait = began + number / self._plan.rate - asyncio.get_running_loop().time()
                        await asyncio.sleep(max(0.0, wait))
                        await places.acquire()
                        requests.create_task(self._ask(client, number, places))
                done.set()
                await labels
        return self.sent

    async def _check(self, client: httpx.AsyncClient) -> None:
        try:
            answer = await client.get(f"/v2/models/{self._plan.model}")
        except httpx.TransportError as error:
            raise ServerUnavailable(
                f"no model server answers at {self._url}: {error}; start it (`homeostat serve` or `make up`)"
            ) from error
        if not answer.is_success:
            raise ServerUnavailable(f"{self._url}: {self._plan.model}: {answer.status_code} {_said(answer)}")

    async def _ask(self, client: httpx.AsyncClient, number: int, places: asyncio.Semaphore) -> None:
        plan, row = self._plan, self._plan.rows[number]
        data = plan.data(number)
        entity = str(data.ids[row]) if data.ids is not None else f"user-{row % plan.users}"
        inputs = {name: values[row : row + 1] for name, values in data.inputs.items()}
        body, headers = infer_request(inputs, entity)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answer = await client.post(f"/v2/models/{plan.model}/infer", content=body, headers=headers)
        except httpx.TransportError as error:
            self.sent.refused[type(error).__name__] += 1
            return
        finally:
            places.release()
            self.sent.sent += 1
            self.on_progress(self.sent)
        self.sent.milliseconds.append(1e3 * (loop.time() - began))
        if not answer.is_success:
            self.sent.refused[f"{answer.status_code} {_said(answer)}"] += 1
            return
        found = answer.json()
        self.sent.answered += 1
        self.sent.versions[str(found.get("model_version", ""))] += 1
        if plan.delays[number] >= 0:
            heapq.heappush(self._due, (loop.time() + plan.delays[number], found["id"], data.target[row].item()))

    async def _label(self, client: httpx.AsyncClient, done: asyncio.Event) -> None:
        """Send what is due, until the requests are done and nothing is left."""
        loop = asyncio.get_running_loop()
        while self._due or not done.is_set():
            items: list[dict[str, Any]] = []
            while self._due and self._due[0][0] <= loop.time() and len(items) < LABELS_AT_ONCE:
                _, identity, label = heapq.heappop(self._due)
                items.append({"id": identity, "labels": [label]})
            if not items:
                await asyncio.sleep(TICK)
                continue
            try:
                answer = await client.post("/v1/feedback", json={"items": items})
            except httpx.TransportError as error:
                self.sent.refused[f"labels: {type(error).__name__}"] += len(items)
                continue
            if answer.is_success:
                self.sent.labels += len(items)
            else:
                self.sent.refused[f"labels: {answer.status_code} {_said(answer)}"] += len(items)
            self.on_progress(self.sent)


def _said(answer: httpx.Response) -> str:
    try:
        found = answer.json()
    except ValueError:
        return answer.text[:120]
    return str(found.get("error", found) if isinstance(found, dict) else found)[:120]
