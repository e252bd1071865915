"""What /metrics says: plain counters that the hot path adds to, rendered by prometheus_client when asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Literal

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper ends of the duration histogram, in seconds."""
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper ends of the batch histogram, in rows."""
RETIRED = 16
"""Versions of a model whose counts are kept although they are no longer loaded: labels stay bounded."""
CONTENT_TYPE = CONTENT_TYPE_LATEST

Protocol = Literal["v2-rest", "v2-grpc", "tensorflow-rest", "tensorflow-grpc", "mlflow-rest"]
"""What a request came by."""
Arm = Literal["champion", "canary", "shadow"]
"""What a version was asked as: it answers, it answers a share, or its answer is only compared."""


class Series:
    """Counts of one version as one arm, by one protocol."""

    __slots__ = ("buckets", "inference_seconds", "seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = self.inference_seconds = 0.0


class VersionMetrics:
    """Counts of one version; only the event loop adds to them, so no lock is needed."""

    __slots__ = ("batch_buckets", "batch_rows", "model", "out_of_range", "rows", "series", "version")

    def __init__(self, model: str, version: int) -> None:
        self.model, self.version = model, str(version)
        self.series: dict[tuple[Arm, Protocol], Series] = {}
        self.rows = self.out_of_range = 0
        self.batch_rows = 0
        """Of these, the rows that were computed in the thread, by a version that is batched."""
        self.batch_buckets = [0] * (len(BATCH_BUCKETS) + 1)

    @property
    def statuses(self) -> dict[int, int]:
        """HTTP status -> requests, whatever arm and protocol they came by."""
        total: dict[int, int] = {}
        for one in list(self.series.values()):
            for status, count in list(one.statuses.items()):
                total[status] = total.get(status, 0) + count
        return total

    def answered(
        self, arm: Arm, protocol: Protocol, seconds: float, inference_seconds: float, rows: int, outside: int
    ) -> None:
        """Count one answered request.

        seconds: since its body had come. inference_seconds: of these, the check, the wait and the graph.
        """
        one = self._series(arm, protocol)
        one.statuses[200] = one.statuses.get(200, 0) + 1
        one.buckets[bisect_left(BUCKETS, seconds)] += 1
        one.seconds += seconds
        one.inference_seconds += inference_seconds
        self.rows += rows
        self.out_of_range += outside

    def refused(self, arm: Arm, protocol: Protocol, status: int) -> None:
        """Count one request that got an error."""
        one = self._series(arm, protocol)
        one.statuses[status] = one.statuses.get(status, 0) + 1

    def batched(self, rows: int) -> None:
        """Count one run of the graph with the rows of one request, or of several."""
        self.batch_buckets[bisect_left(BATCH_BUCKETS, rows)] += 1
        self.batch_rows += rows

    def _series(self, arm: Arm, protocol: Protocol) -> Series:
        one = self.series.get((arm, protocol))
        if one is None:
            one = self.series[arm, protocol] = Series()
        return one


class Metrics(Collector):
    """Everything the server counts."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, int], VersionMetrics] = {}
        self.refused: dict[int, int] = {}
        """Errors that belong to no version, by HTTP status."""
        self.swaps: dict[str, int] = {}
        self.calls = 0
        """gRPC calls that are being answered."""
        self._retired: dict[str, list[int]] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def add(self, collector: Collector) -> None:
        """Render what another collector says too."""
        self._registry.register(collector)

    def version(self, model: str, version: int) -> VersionMetrics:
        """Return the counts of a version, which outlive its session."""
        retired = self._retired.get(model, [])
        if version in retired:
            retired.remove(version)
        return self.versions.setdefault((model, version), VersionMetrics(model, version))

    def retire(self, model: str, version: int) -> None:
        """Forget a version that is no longer loaded once RETIRED others of its model are not either."""
        retired = self._retired.setdefault(model, [])
        if version not in retired:
            retired.append(version)
        while len(retired) > RETIRED:
            self.versions.pop((model, retired.pop(0)), None)

    def refuse(self, status: int) -> None:
        """Count an error that belongs to no version."""
        self.refused[status] = self.refused.get(status, 0) + 1

    def swapped(self, model: str) -> None:
        """Count a change of the live version."""
        self.swaps[model] = self.swaps.get(model, 0) + 1

    def render(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, for prometheus_client."""
        version, labels = ("model", "version"), ("model", "version", "arm", "protocol")
        requests = CounterMetricFamily(
            "homeostat_requests",
            "Requests by HTTP status, over gRPC too; model and version are empty where an error belongs to none.",
            labels=(*labels, "status"),
        )
        duration = HistogramMetricFamily(
            "homeostat_request_duration_seconds",
            "Time of an answered request from its last byte: decoding, checks, waiting and the graph.",
            labels=labels,
        )
        inference = CounterMetricFamily(
            "homeostat_inference_seconds",
            "Time of answered requests without decoding: checks, waiting and the graph.",
            labels=labels,
        )
        rows = CounterMetricFamily("homeostat_rows", "Rows answered.", labels=version)
        outside = CounterMetricFamily("homeostat_out_of_range", "Values outside the contract's range.", labels=version)
        batches = HistogramMetricFamily(
            "homeostat_batch_rows",
            "Rows that the graph was given at once, by versions that are batched; of one request, or of several.",
            labels=version,
        )
        names = [*(str(edge) for edge in BUCKETS), "+Inf"]
        batch_names = [*(f"{edge}.0" for edge in BATCH_BUCKETS), "+Inf"]
        for counts in list(self.versions.values()):
            for (arm, protocol), one in list(counts.series.items()):
                key = (counts.model, counts.version, arm, protocol)
                for status, count in list(one.statuses.items()):
                    requests.add_metric((*key, str(status)), count)
                duration.add_metric(key, list(zip(names, accumulate(one.buckets), strict=True)), one.seconds)
                inference.add_metric(key, one.inference_seconds)
            rows.add_metric((counts.model, counts.version), counts.rows)
            outside.add_metric((counts.model, counts.version), counts.out_of_range)
            if counts.batch_rows:
                found = list(zip(batch_names, accumulate(counts.batch_buckets), strict=True))
                batches.add_metric((counts.model, counts.version), found, counts.batch_rows)
        for status, count in list(self.refused.items()):
            requests.add_metric(("", "", "", "", str(status)), count)
        swaps = CounterMetricFamily("homeostat_swaps", "Changes of the live version.", labels=("model",))
        for model, count in list(self.swaps.items()):
            swaps.add_metric((model,), count)
        yield from (requests, duration, inference, rows, outside, batches, swaps)
