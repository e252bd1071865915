"""OpenTelemetry traces of requests: a span for each, and in it what decoding, inference and encoding took."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from homeostat import __version__
from homeostat.errors import ConfigError
from homeostat.serving.exchange import Exchange

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

CLOSE_SECONDS = 3.0
"""How long the last spans may take to leave."""


def connect() -> TracerProvider:
    """Return what sends spans over OTLP/HTTP in a thread, as the standard's OTEL_* variables say.

    Raises ConfigError when OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"HOMEOSTAT_TRACES is set, and {error.name} is not installed: pip install 'homeostat[serve,otel]'"
        ) from error
    attributes = {"service.version": __version__}
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        attributes["service.name"] = "homeostat"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """Makes spans of exchanges. Sending them is the provider's work; when it falls behind, it drops spans."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("homeostat.serving", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._kind, self._error = SpanKind.SERVER, Status(StatusCode.ERROR)

    def begin(self, exchange: Exchange) -> None:
        """Start the span of a request, in the trace that the client named, if it named one."""
        parent = self._extract({"traceparent": exchange.traceparent}) if exchange.traceparent else None
        span = self._tracer.start_span(
            exchange.method, context=parent, kind=self._kind, start_time=int(exchange.started * 1e9)
        )
        found = span.get_span_context()
        exchange.span = span
        exchange.trace_id, exchange.span_id = f"{found.trace_id:032x}", f"{found.span_id:016x}"
        exchange.traceresponse = f"00-{exchange.trace_id}-{exchange.span_id}-{found.trace_flags:02x}"

    def end(self, exchange: Exchange) -> None:
        """End the span, with what the request turned out to be."""
        span = exchange.span
        if span.is_recording():
            span.update_name(_name(exchange))
            span.set_attributes(_attributes(exchange))
            if exchange.status >= 500:
                span.set_status(self._error)
            self._add_children(exchange)
        span.end(_nanoseconds(exchange, exchange.end))

    def close(self) -> None:
        """Send what waits, as far as the collector takes it in time."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)  # it tries for 30 s
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            log.error("traces: the collector did not take the last spans within %g s", CLOSE_SECONDS)

    def _add_children(self, exchange: Exchange) -> None:
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(exchange.span)
        for name, start, end in (
            ("decode", exchange.decode_start, exchange.infer_start),
            ("infer", exchange.infer_start, exchange.infer_end),
            ("encode", exchange.infer_end, exchange.end),
        ):
            if start:
                child = self._tracer.start_span(name, context=context, start_time=_nanoseconds(exchange, start))
                child.end(_nanoseconds(exchange, end))


def _nanoseconds(exchange: Exchange, moment: float) -> int:
    """Return the Unix time of a time.perf_counter, in nanoseconds."""
    return int((exchange.started + moment - exchange.start) * 1e9)


def _name(exchange: Exchange) -> str:
    """Return a name of which there are few: the path alone would be as many as clients can think of."""
    if exchange.transport == "grpc":
        return exchange.path.lstrip("/")
    return f"infer {exchange.model}" if exchange.infer_end else exchange.method


def _attributes(exchange: Exchange) -> dict[str, Any]:
    """Return the attributes in the names of OpenTelemetry's semantic conventions, what is ours under homeostat."""
    found: dict[str, Any] = {
        "http.request.method": exchange.method,
        "http.response.status_code": exchange.status,
        "url.path": exchange.path,
        "network.protocol.version": exchange.http_version,
        "client.address": exchange.address,
        "user_agent.original": exchange.user_agent,
        "homeostat.model": exchange.model,
        "homeostat.version": exchange.version,
        "homeostat.arm": exchange.arm,
        "homeostat.protocol": exchange.protocol,
        "homeostat.request_id": exchange.request_id,
        "homeostat.client": exchange.client,
        "error.type": str(exchange.status) if exchange.status >= 500 else "",
    }
    if exchange.transport == "grpc":
        _, service, method = exchange.path.split("/")
        found.update({"rpc.system": "grpc", "rpc.service": service, "rpc.method": method})
    return {name: value for name, value in found.items() if value != ""}
