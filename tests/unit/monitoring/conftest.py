"""Captured traffic as the server writes it, and frames to hold against each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from homeostat.config import ProjectConfig
from homeostat.serving.capture.writer import INSERT_REQUEST, REPLACE_LABEL, connect
from homeostat.tensors import pack

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Capture:
    """The server's side of the file: an open WAL writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = connect(str(path))
        self.count = 0

    def answer(
        self,
        inputs,
        outputs,
        *,
        version=3,
        minutes_ago=10.0,
        entity="",
        milliseconds=2.0,
        model="toy",
        request_id="",
        arm="champion",
        slices=None,
        masking=None,
    ) -> str:
        """Store one request of the given input rows and outputs."""
        request_id = request_id or f"r{self.count:05d}"
        self.count += 1
        time = (NOW - timedelta(minutes=minutes_ago)).timestamp()
        values = (request_id, time, model, version, "00", entity, len(inputs), pack({"x": inputs}))
        kept = None if slices is None else json.dumps(slices)
        about = pack({"output": outputs}), milliseconds, arm, "key-1", kept, masking
        self.connection.execute(INSERT_REQUEST, (*values, *about))
        return request_id

    def label(
        self, request_id: str, labels: object, *, text: str | None = None, model: str = "", minutes_ago: float = 0.0
    ) -> None:
        """Store a label; a later one replaces it."""
        text = json.dumps(labels) if text is None else text
        self.connection.execute(REPLACE_LABEL, (request_id, model, NOW.timestamp() - 60 * minutes_ago, text))


@pytest.fixture
def capture(tmp_path: Path) -> Iterator[Capture]:
    opened = Capture(tmp_path / "traffic.db")
    yield opened
    opened.connection.close()


@pytest.fixture
def config() -> ProjectConfig:
    return ProjectConfig(name="toy", project="toy:Toy", task="classification")


@pytest.fixture
def draw() -> Callable[[int, int], pd.DataFrame]:
    """Rows of 6 numbers and 2 categories; (rows, seed) -> frame."""

    def rows(count: int, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        columns: dict[str, np.ndarray] = {f"n{i}": rng.normal(size=count).astype(np.float32) for i in range(6)}
        columns["few"] = rng.choice(3, count, p=[0.6, 0.3, 0.1])
        columns["many"] = rng.integers(0, 12, count)
        return pd.DataFrame(columns)

    return rows
