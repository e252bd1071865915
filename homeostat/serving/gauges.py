"""What /metrics reads from the running server when asked: models, queue, connections, capture, and what it is."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

import onnxruntime
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from homeostat import __version__
from homeostat.serving.accesslog import AccessLog
from homeostat.serving.batching import MAX_QUEUED
from homeostat.serving.dataplane import DataPlane
from homeostat.serving.rest.connections import Connections


class Gauges(Collector):
    """Reads the parts of one server."""

    def __init__(
        self,
        plane: DataPlane,
        connections: Connections | None = None,
        requests: Callable[[], int] = int,
        access_log: AccessLog | None = None,
    ) -> None:
        """requests: returns the HTTP requests that are being read or answered."""
        self._plane, self._connections, self._requests = plane, connections or Connections(), requests
        self._access_log = access_log

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, for prometheus_client."""
        build = {"version": __version__, "python": platform.python_version(), "onnxruntime": onnxruntime.__version__}
        yield InfoMetricFamily("homeostat_build", "Versions of the server and of what it runs on.", value=build)
        yield from self._models()
        yield from self._load()
        yield from self._capture()

    def _models(self) -> Iterator[Metric]:
        live = GaugeMetricFamily("homeostat_live_version", "Version that answers; 0 for none.", labels=("model",))
        generation = GaugeMetricFamily(
            "homeostat_generation", "Generation of the rollout row that is served.", labels=("model",)
        )
        problem = GaugeMetricFamily("homeostat_problem", "1 while a version is refused.", labels=("model",))
        repository = self._plane.repository
        for state in list(repository.models.values()):
            live.add_metric((state.name,), state.live.ref.version if state.live else 0)
            generation.add_metric((state.name,), state.generation)
            problem.add_metric((state.name,), float(bool(state.problems)))
        yield from (live, generation, problem)
        yield _gauge("ready", "1 while each model that has a champion can answer.", float(repository.ready()[0]))
        yield _gauge("control_store_up", "1 while the rollout rows can be read.", float(not repository.problem))

    def _load(self) -> Iterator[Metric]:
        flight = GaugeMetricFamily(
            "homeostat_requests_in_flight", "Requests of any kind that are being answered.", labels=("transport",)
        )
        flight.add_metric(("rest",), self._requests())
        flight.add_metric(("grpc",), self._plane.metrics.calls)
        yield flight
        http = self._connections
        yield _gauge("connections", "Open HTTP connections.", len(http.all))
        yield _gauge("connections_limit", "HTTP connections at once; above it idle ones make room.", http.limit)
        yield _counter("connections_cut", "HTTP connections closed for breaking a limit, or to make room.", http.cut)
        yield _gauge("requests_waiting", "HTTP requests that have come whole and have no answer yet.", http.waiting)
        yield _gauge("requests_waiting_limit", "Requests that may wait; more are answered 503.", http.max_waiting)
        yield _gauge("bodies_held_bytes", "Bytes of large HTTP bodies without an answer.", http.total_held)
        yield _gauge("queue_length", "Requests that wait for the inference thread.", self._plane.queued)
        yield _gauge("queue_limit", "Requests that may wait; more are answered 503.", MAX_QUEUED)
        explanations = CounterMetricFamily(
            "homeostat_explanations", "Requests for explanations by what became of them.", labels=("outcome",)
        )
        for outcome, count in self._plane.explainer.counts.items():
            explanations.add_metric((outcome,), count)
        yield explanations

        lost = self._access_log.dropped if self._access_log else 0
        yield _counter("access_log_dropped", "Lines that the access log lost.", lost)

    def _capture(self) -> Iterator[Metric]:
        recorder = self._plane.recorder
        records, size = recorder.backlog
        yield _counter("captured", "Records offered to capture.", recorder.captured)
        yield _counter("capture_written", "Records committed to the traffic file.", recorder.written)
        yield _counter("capture_duplicates", "Requests whose id their model had already.", recorder.duplicates)
        yield _counter("dropped", "Records that capture lost.", recorder.dropped)
        yield _counter("capture_restarts", "Starts of a new capture writer after one died.", recorder.restarts)
        yield _gauge("capture_backlog_records", "Records that are not yet committed.", records)
        yield _gauge("capture_backlog_bytes", "Bytes of the records that are not yet committed.", size)
        yield _gauge("capture_backlog_limit_bytes", "Bytes that may wait; more are dropped.", recorder.limit_bytes)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"homeostat_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"homeostat_{name}", text, value=value)
