"""Traces: a span for each request in the trace that its client named, and what decoding and inference took in it."""

from __future__ import annotations

import builtins
import time
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from homeostat.errors import ConfigError
from homeostat.serving import tracing
from homeostat.serving.access.authorization import Access
from homeostat.serving.observer import Observer
from homeostat.serving.protos import message
from homeostat.serving.rest.observed import Observed
from homeostat.serving.tracing import Tracing, connect
from homeostat.settings import Settings
from tests.bundles import make_bundle
from tests.conftest import free_port
from tests.grpc_client import INFERENCE, PREDICTION, GrpcClient, grpc_server

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}]}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


class Traced:
    """An observed plane, and the spans that it made."""

    def __init__(self, plane, sampler=None) -> None:
        self.memory = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.memory))
        self.observer = Observer(None, Tracing(provider))
        self.plane = replace(plane, app=Observed(plane.app, self.observer))

    def spans(self):
        return {span.name: span for span in self.memory.get_finished_spans()}


@pytest.fixture
def traced(plane):
    plane.store.promote(make_bundle(plane.home))
    plane.repository.poll()
    return Traced(plane)


def test_a_request_is_a_span_with_three_parts(traced) -> None:
    before = time.time_ns()
    answer = traced.plane.call(
        "POST", "/v2/models/toy/infer", json={**BODY, "id": "a"}, headers={"traceparent": PARENT}
    )
    spans = traced.spans()
    assert spans.keys() == {"infer toy", "decode", "infer", "encode"}
    whole = spans["infer toy"]
    assert (whole.kind, whole.status.status_code) == (SpanKind.SERVER, StatusCode.UNSET)
    assert (f"{whole.context.trace_id:032x}", f"{whole.parent.span_id:016x}") == (TRACE, SPAN)
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{whole.context.span_id:016x}-01"
    assert whole.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v2/models/toy/infer",
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "user_agent.original": whole.attributes["user_agent.original"],
        "homeostat.model": "toy",
        "homeostat.version": "1",
        "homeostat.arm": "champion",
        "homeostat.protocol": "v2-rest",
        "homeostat.request_id": "a",
    }
    parts = [spans[name] for name in ("decode", "infer", "encode")]
    assert {part.parent.span_id for part in parts} == {whole.context.span_id}
    times = [whole.start_time, *(moment for part in parts for moment in (part.start_time, part.end_time))]
    assert times == sorted(times)
    assert before - 5_000_000 <= whole.start_time <= parts[-1].end_time == whole.end_time <= time.time_ns() + 5_000_000


def test_without_a_parent_it_begins_a_trace(traced) -> None:
    answer = traced.plane.call("GET", "/v2/health/live", headers={"traceparent": "nonsense"})
    (span,) = traced.spans().values()
    assert (span.name, span.parent) == ("GET", None)
    assert f"{span.context.trace_id:032x}" in answer.headers["traceresponse"]


def test_a_refusal_is_no_error_of_the_server_and_a_fault_is(traced) -> None:
    traced.plane.call("POST", "/v2/models/toy/infer", json={})
    (refused,) = traced.spans().values()
    assert (refused.status.status_code, refused.attributes["http.response.status_code"]) == (StatusCode.UNSET, 400)
    traced.memory.clear()

    def fail(names, tensors):
        raise RuntimeError("broken")

    traced.plane.repository.models["toy"].live.session._run = fail
    traced.plane.call("POST", "/v2/models/toy/infer", json=BODY)
    (fault,) = traced.spans().values()
    assert (fault.status.status_code, fault.attributes["error.type"]) == (StatusCode.ERROR, "500")


def test_what_is_not_sampled_costs_no_parts_and_is_still_named(plane) -> None:
    plane.store.promote(make_bundle(plane.home))
    plane.repository.poll()
    traced = Traced(plane, ParentBased(TraceIdRatioBased(0.0)))
    answer = traced.plane.infer(BODY)
    assert int(answer.headers["traceresponse"][-2:], 16) & 1 == 0  # the flag `sampled`
    assert traced.spans() == {}
    sampled = traced.plane.call("POST", "/v2/models/toy/infer", json=BODY, headers={"traceparent": PARENT})
    assert sampled.headers["traceresponse"].endswith("-01")
    assert len(traced.spans()) == 4


def test_calls_over_grpc_are_traced_alike(traced) -> None:
    port = free_port()
    access = Access(Settings(home=traced.plane.home), open_metrics=True)
    raw = {"raw_input_contents": [bytes(16)], "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32"}]}
    v2 = message("inference.ModelInferRequest")(model_name="toy", **raw)
    tensor = {"dtype": 1, "tensor_shape": {"dim": [{"size": 1}, {"size": 4}]}, "tensor_content": bytes(16)}
    predict = message("tensorflow.serving.PredictRequest")(model_spec={"name": "toy"}, inputs={"x": tensor})
    metadata = (("traceparent", PARENT), ("x-request-id", "tf-1"))
    with grpc_server(traced.plane.plane, access, port, observer=traced.observer):
        client = GrpcClient(port)
        _, trailing = client.send(INFERENCE, "ModelInfer", v2.SerializeToString(), metadata=metadata)
        _, both = client.send(PREDICTION, "Predict", predict.SerializeToString(), metadata=metadata)
        client.close()
    spans = {span.name: span for span in traced.memory.get_finished_spans() if span.kind == SpanKind.SERVER}
    first = spans["inference.GRPCInferenceService/ModelInfer"]
    assert trailing["traceresponse"] == f"00-{TRACE}-{first.context.span_id:016x}-01"
    assert (first.attributes["rpc.method"], first.attributes["rpc.system"]) == ("ModelInfer", "grpc")
    assert (both["x-request-id"], both["traceresponse"][3:35]) == ("tf-1", TRACE)
    assert spans["tensorflow.serving.PredictionService/Predict"].attributes["homeostat.request_id"] == "tf-1"


def test_a_missing_extra_is_named(monkeypatch) -> None:
    load = builtins.__import__

    def absent(name, *rest):
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(f"No module named {name!r}", name=name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install 'homeostat\[serve,otel\]'"):
        connect()


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "homeostat"),
        ({"OTEL_SERVICE_NAME": "digits"}, "digits"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=flowers"}, "flowers"),
    ],
)
def test_the_service_is_named_as_the_standard_says(monkeypatch, environment, name) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    provider = connect()
    try:
        assert provider.resource.attributes["service.name"] == name
        assert provider.resource.attributes["service.version"]
    finally:
        provider.shutdown()


def test_a_collector_that_is_away_does_not_keep_the_server_from_ending(plane, monkeypatch, caplog) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.5)
    one = Tracing(connect())
    traced = replace(plane, app=Observed(plane.app, Observer(None, one)))
    assert traced.call("GET", "/v2").status_code == 200
    started = time.monotonic()
    one.close()
    assert time.monotonic() - started < 5
    assert "did not take the last spans" in caplog.text
