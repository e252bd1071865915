"""Rows sent to the model server as a client would send them: one request a row, then its label."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np

from homeostat.dataset import Array, Dataset
from homeostat.errors import ServerUnavailable
from homeostat.evaluation.metrics import decisions
from homeostat.records import Task

_DATATYPES = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "uint8": "UINT8"}
_FEEDBACK_BATCH = 100
CLIENTS = 4


@dataclass(frozen=True)
class Answered:
    """One answer. at: unix seconds. loss: 1 for a wrong class, else 0; in regression the absolute error."""

    at: float
    version: int
    loss: float
    milliseconds: float


@dataclass
class Sent:
    """What became of the requests: their answers, and the texts of those that failed."""

    answers: list[Answered] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.answers) + len(self.errors)

    def quantile(self, share: float) -> float:
        """Return a quantile of the latency in milliseconds, as the client saw it."""
        return float(np.quantile([one.milliseconds for one in self.answers], share)) if self.answers else float("nan")

    def of(self, version: int) -> list[Answered]:
        """Return one version's answers."""
        return [one for one in self.answers if one.version == version]

    def add(self, other: Sent) -> None:
        """Take another's requests in."""
        self.answers += other.answers
        self.errors += other.errors


def infer_body(inputs: dict[str, Array], entity_id: str = "") -> dict[str, Any]:
    """Return an Open Inference Protocol v2 request for these rows."""
    body: dict[str, Any] = {
        "inputs": [
            {"name": n, "shape": list(v.shape), "datatype": _DATATYPES[v.dtype.name], "data": v.ravel().tolist()}
            for n, v in inputs.items()
        ]
    }
    if entity_id:
        body["parameters"] = {"entity_id": entity_id}
    return body


class Traffic:
    """A client of one model; a context manager that closes its connections."""

    def __init__(self, server_url: str, model: str, task: Task) -> None:
        self._url, self._model, self._task = server_url, model, task
        self._client = httpx.Client(base_url=server_url, timeout=10, trust_env=False)

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send(self, data: Dataset, sent: Sent, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Send every row, four at a time, then the labels of those that were answered."""
        labels: list[dict[str, Any]] = []
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done, label in enumerate(pool.map(lambda row: self._ask(data, row, sent), range(len(data))), start=1):
                on_progress(done)
                if label is not None:
                    labels.append(label)
        for start in range(0, len(labels), _FEEDBACK_BATCH):
            self._label(labels[start : start + _FEEDBACK_BATCH])

    @contextmanager
    def clients(self, data: Dataset, every: float = 0.0) -> Iterator[Sent]:
        """Send rows at random and each one's label at once, from four clients, while the block runs.

        every: seconds that a client waits between two requests. Each request is about an entity
        of its own, so that it draws its arm anew and counts for itself. Yields what becomes of them.
        """
        sent, stop = Sent(), Event()
        rows = replace(data, ids=None)

        def ask(client: int) -> None:
            rng = np.random.default_rng(client)
            while not stop.wait(every):
                label = self._ask(rows, int(rng.integers(len(rows))), sent)
                if label is not None:
                    try:
                        self._label([label])
                    except (httpx.HTTPError, ServerUnavailable) as error:
                        sent.errors.append(f"{type(error).__name__}: {error}")

        with ThreadPoolExecutor(CLIENTS) as pool:
            asking = [pool.submit(ask, client) for client in range(CLIENTS)]
            try:
                yield sent
            finally:
                stop.set()
        for one in asking:
            one.result()

    def _ask(self, data: Dataset, row: int, sent: Sent) -> dict[str, Any] | None:
        """Send one row, keep what became of it, and return its label; None when there was no answer."""
        inputs = {name: values[row : row + 1] for name, values in data.inputs.items()}
        entity = "" if data.ids is None else str(data.ids[row])
        started = time.perf_counter()
        try:
            response = self._client.post(f"/v2/models/{self._model}/infer", json=infer_body(inputs, entity))
        except httpx.TransportError as error:
            sent.errors.append(f"{type(error).__name__}: {error}")
            return None
        milliseconds = (time.perf_counter() - started) * 1000
        if not response.is_success:
            sent.errors.append(f"{response.status_code}: {response.text[:200]}")
            return None
        answer, label = response.json(), data.target[row].item()
        decided = decisions(np.asarray([answer["outputs"][0]["data"]]), self._task)[0]
        loss = abs(decided - label) if self._task == "regression" else decided != label
        sent.answers.append(Answered(time.time(), int(answer["model_version"]), float(loss), milliseconds))
        return {"id": answer["id"], "labels": [label]}

    def _label(self, items: list[dict[str, Any]]) -> None:
        answer = self._client.post("/v1/feedback", json={"items": items})
        if not answer.is_success:
            raise ServerUnavailable(f"{self._url}/v1/feedback: {answer.status_code} {answer.text[:200]}")


def count_labels(traffic: Path) -> int:
    """Return how many requests have labels in the capture; 0 when there is no capture yet."""
    if not traffic.is_file():
        return 0
    with closing(sqlite3.connect(f"file:{traffic}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'label'").fetchone()[0]
        return int(database.execute("SELECT count(*) FROM label").fetchone()[0]) if tables else 0


def wait_captured(traffic: Path, labels: int, seconds: float = 15) -> None:
    """Wait until the server has written this many labels; raises ServerUnavailable when it does not."""
    deadline = time.monotonic() + seconds
    while (found := count_labels(traffic)) < labels:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    else:
        return
    raise ServerUnavailable(f"{traffic}: {found} labels after {seconds:g} s where {labels} were sent")
