"""What /metrics says: plain counters that the hot path adds to, rendered by prometheus_client when asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper ends of the latency histogram, in seconds."""
CONTENT_TYPE = CONTENT_TYPE_LATEST


class VersionMetrics:
    """Counts of one version; only the event loop adds to them, so no lock is needed."""

    __slots__ = ("buckets", "model", "out_of_range", "rows", "seconds", "statuses", "version")

    def __init__(self, model: str, version: int) -> None:
        self.model, self.version = model, str(version)
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0
        self.rows = self.out_of_range = 0

    def answered(self, seconds: float, rows: int, outside: int) -> None:
        """Count one answered request."""
        self.statuses[200] = self.statuses.get(200, 0) + 1
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds
        self.rows += rows
        self.out_of_range += outside

    def refused(self, status: int) -> None:
        """Count one request that got an error."""
        self.statuses[status] = self.statuses.get(status, 0) + 1


class Metrics(Collector):
    """Everything the server counts."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, int], VersionMetrics] = {}
        self.refused: dict[int, int] = {}
        """Errors that belong to no version, by HTTP status."""
        self.swaps: dict[str, int] = {}
        self.gauges: Callable[[], dict[str, float]] = dict
        """Set by the server: further figures, read when asked."""
        self.models: Callable[[], list[tuple[str, int, int, bool]]] = list
        """Set by the server: (model, live version, generation, has a problem)."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def version(self, model: str, version: int) -> VersionMetrics:
        """Return the counts of a version, which outlive its session."""
        return self.versions.setdefault((model, version), VersionMetrics(model, version))

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
        labels = ("model", "version")
        requests = CounterMetricFamily("homeostat_requests", "Inference requests.", labels=(*labels, "status"))
        latency = HistogramMetricFamily("homeostat_latency_seconds", "Time of an answered request.", labels=labels)
        rows = CounterMetricFamily("homeostat_rows", "Rows answered.", labels=labels)
        outside = CounterMetricFamily("homeostat_out_of_range", "Values outside the contract's range.", labels=labels)
        for one in list(self.versions.values()):
            key = (one.model, one.version)
            for status, count in list(one.statuses.items()):
                requests.add_metric((*key, str(status)), count)
            cumulative = list(accumulate(one.buckets))
            names = [*(str(edge) for edge in BUCKETS), "+Inf"]
            latency.add_metric(key, list(zip(names, cumulative, strict=True)), one.seconds)
            rows.add_metric(key, one.rows)
            outside.add_metric(key, one.out_of_range)
        for status, count in list(self.refused.items()):
            requests.add_metric(("", "", str(status)), count)
        swaps = CounterMetricFamily("homeostat_swaps", "Changes of the live version.", labels=("model",))
        for model, count in list(self.swaps.items()):
            swaps.add_metric((model,), count)
        live = GaugeMetricFamily("homeostat_live_version", "Version that answers.", labels=("model",))
        generation = GaugeMetricFamily("homeostat_generation", "Generation of the rollout row.", labels=("model",))
        problems = GaugeMetricFamily("homeostat_problem", "1 while a version is refused.", labels=("model",))
        for model, version, number, problem in self.models():
            live.add_metric((model,), version)
            generation.add_metric((model,), number)
            problems.add_metric((model,), float(problem))
        yield from (requests, latency, rows, outside, swaps, live, generation, problems)
        for name, value in self.gauges().items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(f"homeostat_{name.removesuffix('_total')}", name.removesuffix("_total").replace("_", " "))
            family.add_metric((), value)
            yield family
