"""What /metrics says: Prometheus' own parser and linter read it, labels are bounded, protocols are told apart."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from homeostat.serving.gauges import Gauges
from homeostat.serving.metrics import BUCKETS, RETIRED, Metrics
from homeostat.serving.rest.connections import Connections
from tests import promtool
from tests.bundles import make_bundle, rollout
from tests.grpc_client import INFERENCE, PREDICTION

ROW = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
BODY = {"inputs": [{**ROW, "data": [1, 1, 1, 1]}]}


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


@pytest.fixture
def answered(plane):
    """A plane with gauges that has answered, refused, and not found."""
    plane.metrics.add(Gauges(plane.plane, Connections(7), lambda: 2))
    plane.store.promote(make_bundle(plane.home))
    plane.repository.poll()
    assert plane.infer(BODY).status_code == 200
    assert plane.infer({"inputs": []}).status_code == 400
    assert plane.infer(BODY, "/v2/models/no/infer").status_code == 404
    assert plane.call("POST", "/v1/models/toy:predict", json={"instances": [[1, 1, 1, 1]]}).status_code == 200
    body = {"inputs": [[99, 1, 1, 1], [1, 1, 1, 1]]}
    assert plane.call("POST", "/invocations", json=body).status_code == 200
    return plane.call("GET", "/metrics").text


@promtool.needed
def test_promtool_finds_nothing(answered) -> None:
    assert promtool.check("check", "metrics", stdin=answered) == ""


def test_every_series_of_ours_has_help_and_a_conventional_name(answered) -> None:
    families = {family.name: family for family in text_string_to_metric_families(answered)}
    ours = {name: family for name, family in families.items() if name.startswith("homeostat_")}
    assert len(ours) >= 20
    for name, family in ours.items():
        assert family.documentation, name
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name)
        assert not re.search(r"milliseconds|_ms$|kilobytes|_count$", name)
    assert {"process_resident_memory", "process_open_fds"} & {name.removesuffix("_bytes") for name in families}


def test_each_protocol_arm_and_status_is_counted_apart(answered) -> None:
    toy = {"model": "toy", "version": "1", "arm": "champion"}
    count = "homeostat_requests_total"
    assert value(answered, count, **toy, protocol="v2-rest", status="200") == 1
    assert value(answered, count, **toy, protocol="v2-rest", status="400") == 1
    assert value(answered, count, **toy, protocol="tensorflow-rest", status="200") == 1
    assert value(answered, count, **toy, protocol="mlflow-rest", status="200") == 1
    assert value(answered, count, model="", version="", arm="", protocol="", status="404") == 1
    assert value(answered, "homeostat_rows_total", model="toy", version="1") == 4
    assert value(answered, "homeostat_out_of_range_total", model="toy", version="1") == 1


def test_a_request_lasts_at_least_as_long_as_its_inference(answered) -> None:
    for protocol in ("v2-rest", "tensorflow-rest", "mlflow-rest"):
        labels = {"model": "toy", "version": "1", "arm": "champion", "protocol": protocol}
        whole = value(answered, "homeostat_request_duration_seconds_sum", **labels)
        assert whole > value(answered, "homeostat_inference_seconds_total", **labels) > 0
        assert value(answered, "homeostat_request_duration_seconds_bucket", **labels, le="+Inf") == 1
        buckets = [
            value(answered, "homeostat_request_duration_seconds_bucket", **labels, le=str(edge)) for edge in BUCKETS
        ]
        assert buckets == sorted(buckets)


def test_what_the_server_reads_when_asked(answered) -> None:
    assert value(answered, "homeostat_live_version", model="toy") == 1
    assert value(answered, "homeostat_generation", model="toy") == 1
    assert value(answered, "homeostat_ready") == value(answered, "homeostat_control_store_up") == 1
    assert value(answered, "homeostat_connections") == 0
    assert value(answered, "homeostat_connections_limit") == 7
    assert value(answered, "homeostat_requests_in_flight", transport="rest") == 2
    assert value(answered, "homeostat_requests_in_flight", transport="grpc") == 0
    assert value(answered, "homeostat_captured_total") == 3
    assert value(answered, "homeostat_capture_backlog_records") == 3
    waiting = value(answered, "homeostat_capture_backlog_bytes")
    assert 100 < waiting < value(answered, "homeostat_capture_backlog_limit_bytes")
    assert 'homeostat_build_info{onnxruntime="' in answered


def test_a_store_that_is_down_and_a_version_that_is_refused_are_seen(plane) -> None:
    plane.metrics.add(Gauges(plane.plane))
    plane.store.promote(make_bundle(plane.home))
    plane.repository.poll()
    broken = make_bundle(plane.home, 2)
    plane.store.put(rollout(plane.store.table["toy"].champion, 2, challenger=broken))
    Path(broken.url.removeprefix("file://"), "model.onnx").write_bytes(b"damaged")
    plane.repository.poll()
    plane.store.down = True
    plane.repository.poll()
    text = plane.metrics.render().decode()
    assert (value(text, "homeostat_problem", model="toy"), value(text, "homeostat_control_store_up")) == (1, 0)
    assert value(text, "homeostat_ready") == 1


def test_calls_over_grpc_have_their_own_protocols_and_leave_nothing_in_flight(zoo, client) -> None:
    raw = {"raw_input_contents": [bytes(16)], "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32"}]}
    before = zoo.metrics.version("toy", 2).statuses.get(200, 0)
    client.call(INFERENCE, "ModelInfer", model_name="toy", **raw)
    tensor = {"dtype": 1, "tensor_shape": {"dim": [{"size": 1}, {"size": 4}]}, "tensor_content": bytes(16)}
    client.call(PREDICTION, "Predict", model_spec={"name": "toy"}, inputs={"x": tensor})
    series = zoo.metrics.version("toy", 2).series
    assert series["champion", "v2-grpc"].statuses[200] >= 1
    assert series["champion", "tensorflow-grpc"].statuses[200] >= 1
    assert zoo.metrics.version("toy", 2).statuses[200] == before + 2
    assert zoo.metrics.calls == 0


def test_versions_that_are_long_gone_are_forgotten() -> None:
    metrics = Metrics()
    for version in range(1, RETIRED + 3):
        metrics.version("toy", version).refused("champion", "v2-rest", 400)
        metrics.retire("toy", version)
        metrics.retire("toy", version)
    assert sorted(version for _, version in metrics.versions) == list(range(3, RETIRED + 3))
    metrics.version("toy", 3)  # loaded again: others go first
    for version in range(100, 100 + RETIRED + 1):
        metrics.version("toy", version)
        metrics.retire("toy", version)
    assert ("toy", 3) in metrics.versions
    assert len(metrics.versions) == RETIRED + 1


def test_a_model_name_from_a_client_makes_no_series(toy) -> None:
    before = len(samples(toy.metrics.render().decode()))
    for number in range(5):
        toy.infer(BODY, f"/v2/models/m{number}/infer")
    names = {dict(labels).get("model", "") for _, labels in samples(toy.metrics.render().decode())}
    assert names == {"", "toy", "pair"}
    assert len(samples(toy.metrics.render().decode())) <= before + 1
    assert json.loads(toy.infer(BODY).text)["model_name"] == "toy"
