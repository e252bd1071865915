"""Latency of several graphs, interleaved call by call, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from homeostat.dataset import Array
from homeostat.inference import session
from homeostat.records import Latency

BATCHES = (1, 32)
WARM_UP = 10
MAX_SECONDS = 5.0
"""For one batch size, over all graphs; at least 20 calls of each are timed."""


def time_graphs(graphs: Mapping[str, bytes], inputs: Mapping[str, Array], runs: int) -> dict[str, tuple[Latency, ...]]:
    """Return p50 and p99 of one ONNX Runtime call (one intra-op thread) at batch 1 and 32, in microseconds.

    inputs: real rows; they are repeated where there are fewer than 32.
    """
    sessions = {name: session(data) for name, data in graphs.items()}
    found: dict[str, list[Latency]] = {name: [] for name in graphs}
    for batch in BATCHES:
        tensors = {name: np.resize(values, (batch, *values.shape[1:])) for name, values in inputs.items()}
        for loaded in sessions.values():
            for _ in range(WARM_UP):
                loaded.run(None, tensors)
        seconds: dict[str, list[float]] = {name: [] for name in graphs}
        began = time.perf_counter()
        for done in range(runs):
            for name, loaded in sessions.items():
                start = time.perf_counter()
                loaded.run(None, tensors)
                seconds[name].append(time.perf_counter() - start)
            if done >= 20 and time.perf_counter() - began > MAX_SECONDS:
                break
        for name, values in seconds.items():
            p50, p99 = np.quantile(values, (0.5, 0.99)) * 1e6
            found[name].append(Latency(batch, float(p50), float(p99)))
    return {name: tuple(latencies) for name, latencies in found.items()}
