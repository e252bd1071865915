"""Rows sent to the model server as a client would send them: one request a row, then its label."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import numpy as np

from homeostat.dataset import Array, Dataset
from homeostat.errors import ServerUnavailable

_DATATYPES = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "uint8": "UINT8"}
_FEEDBACK_BATCH = 100


@dataclass
class Sent:
    """What became of the requests."""

    sent: int = 0
    failed: int = 0
    milliseconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Return a quantile of the latency in milliseconds, as the client saw it."""
        return float(np.quantile(self.milliseconds, share)) if self.milliseconds else float("nan")


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

    def __init__(self, server_url: str, model: str) -> None:
        self._url, self._model = server_url, model
        self._client = httpx.Client(base_url=server_url, timeout=10, trust_env=False)

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def infer(self, body: dict[str, Any]) -> httpx.Response:
        """Send one request."""
        return self._client.post(f"/v2/models/{self._model}/infer", json=body)

    def send(self, data: Dataset, sent: Sent, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Send every row with its label, four at a time; failures are counted, with their texts."""

        def one(row: int) -> tuple[str, float] | None:
            inputs = {name: values[row : row + 1] for name, values in data.inputs.items()}
            entity = "" if data.ids is None else str(data.ids[row])
            started = time.perf_counter()
            try:
                answer = self.infer(infer_body(inputs, entity))
            except httpx.TransportError as error:
                sent.errors.append(f"{type(error).__name__}: {error}")
                return None
            sent.milliseconds.append((time.perf_counter() - started) * 1000)
            if not answer.is_success:
                sent.errors.append(f"{answer.status_code}: {answer.text[:200]}")
                return None
            return answer.json()["id"], data.target[row].item()

        labels: list[dict[str, Any]] = []
        with ThreadPoolExecutor(4) as pool:
            for done, result in enumerate(pool.map(one, range(len(data))), start=1):
                sent.sent += 1
                on_progress(done)
                if result is None:
                    sent.failed += 1
                else:
                    labels.append({"id": result[0], "labels": [result[1]]})
        for start in range(0, len(labels), _FEEDBACK_BATCH):
            answer = self._client.post("/v1/feedback", json={"items": labels[start : start + _FEEDBACK_BATCH]})
            if not answer.is_success:
                raise ServerUnavailable(f"{self._url}/v1/feedback: {answer.status_code} {answer.text[:200]}")

    @contextmanager
    def probing(self, rows: Dataset, every: float = 0.005) -> Iterator[list[tuple[float, int]]]:
        """Ask for one row after the other while the block runs; yields (monotonic time, version that answered)."""
        bodies = [infer_body({name: v[i : i + 1] for name, v in rows.inputs.items()}) for i in range(len(rows))]
        answers: list[tuple[float, int]] = []
        stop = Event()

        def ask() -> None:
            while not stop.wait(every):
                answer = self.infer(bodies[len(answers) % len(bodies)])
                answer.raise_for_status()
                answers.append((time.monotonic(), int(answer.json()["model_version"])))

        thread = Thread(target=ask, daemon=True)
        thread.start()
        try:
            yield answers
        finally:
            stop.set()
            thread.join(10)


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
