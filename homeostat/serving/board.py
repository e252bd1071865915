"""What several workers of one server tell one another: which versions each has, and what each has counted."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from homeostat.serving.repository import ModelState

log = logging.getLogger(__name__)

SECONDS = 1.0
"""Between two notices; of what changes in a model the others are told at once."""
FRESH_SECONDS = 5.0
"""A notice that is older is of a worker that has ended, or hangs."""
LOWEST = {
    "homeostat_generation",
    "homeostat_ready",
    "homeostat_control_store_up",
    "homeostat_live_version",
    "process_start_time_seconds",
}
"""Gauges of which the server's is the lowest of its workers'."""
HIGHEST = {"homeostat_problem", "process_open_fds", "process_max_fds"}
"""Gauges of which it is the highest. All others are sums, so that what is full can be held against its limit."""


class Board:
    """A file for each worker in one folder. Each writes its own, and reads all when it is asked."""

    def __init__(
        self, folder: Path, index: int, models: Callable[[], Iterable[ModelState]], metrics: Callable[[], bytes]
    ) -> None:
        self._folder, self._path = folder, folder / f"worker-{index}.notice"
        self._models, self._metrics = models, metrics
        self._before = ""
        """What this worker's forerunners have counted: counters must not go back."""
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="board", daemon=True)

    def start(self, *, first: bool) -> None:
        """Begin to publish; the first worker of a server takes the notices of earlier servers down."""
        if first:
            for path in self._folder.glob("*.notice"):
                path.unlink(missing_ok=True)
        notice = self._read(self._path)
        if notice is not None:
            self._before = _counters(notice["metrics"])
        self._thread.start()

    def close(self) -> None:
        """Publish a last time, and end."""
        self._closing.set()
        self._thread.join(5)
        self.publish()

    def publish(self) -> None:
        """Tell the others what is loaded here now, and what was counted."""
        models = {
            state.name: {
                "live": state.live.ref.manifest_sha256 if state.live else "",
                "loaded": [served.ref.manifest_sha256 for served in state.loaded()],
            }
            for state in self._models()
        }
        own = self._metrics().decode()
        text = render(merge([self._before, own])).decode() if self._before else own
        # a clock that all processes share, and that nobody sets
        notice = {"pid": os.getpid(), "monotonic": time.monotonic(), "models": models, "metrics": text}
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                temporary = self._path.with_suffix(".tmp")
                temporary.write_text(json.dumps(notice))
                temporary.replace(self._path)
            except OSError as error:
                log.error("%s cannot be written (%s); the other workers do not see this one", self._path, error)

    def missing(self, model: str, manifest_sha256: str, *, live: bool) -> int:
        """Return how many of the other workers do not have a version loaded, or do not answer with it."""
        count = 0
        for notice in self._others():
            found = notice["models"].get(model, {"live": "", "loaded": []})
            count += manifest_sha256 != found["live"] if live else manifest_sha256 not in found["loaded"]
        return count

    def render(self) -> bytes:
        """Return the metrics of all workers as those of one server."""
        self.publish()
        texts = [notice["metrics"] for path in sorted(self._folder.glob("*.notice")) if (notice := self._read(path))]
        return render(merge(texts))

    def _keep(self) -> None:
        while not self._closing.wait(SECONDS):
            self.publish()

    def _others(self) -> Iterator[dict[str, Any]]:
        now = time.monotonic()
        for path in self._folder.glob("*.notice"):
            if path != self._path and (notice := self._read(path)) and abs(now - notice["monotonic"]) < FRESH_SECONDS:
                yield notice

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            notice: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.error("%s cannot be read (%s)", path, error)
            return None
        return notice


def merge(texts: Iterable[str]) -> list[Metric]:
    """Return the families of several expositions as one: counters and histograms are summed, gauges as named above."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, family)
            found = values.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                found[key] = _choose(family, found[key], sample.value) if key in found else sample.value
    merged = []
    for name, family in families.items():
        one = Metric(name, family.documentation, family.type)
        for (sample_name, labels), value in values[name].items():
            one.add_sample(sample_name, dict(labels), value)
        merged.append(one)
    return merged


def _choose(family: Metric, before: float, value: float) -> float:
    if family.name in LOWEST:
        return min(before, value)
    if family.name in HIGHEST or family.name.endswith("_info"):
        return max(before, value)
    return before + value


def _counters(text: str) -> str:
    return render(one for one in merge([text]) if one.type in ("counter", "histogram")).decode()


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(families: Iterable[Metric]) -> bytes:
    """Return the Prometheus text format of families."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(list(families)))
    return generate_latest(registry)
