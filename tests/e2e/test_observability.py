"""What a running server shows of itself: its metrics, and that the rules and the dashboard name no others."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import promtool
from tests.conftest import ROOT
from tests.e2e.test_server import BODY, Server

pytestmark = pytest.mark.e2e

PROMETHEUS = ROOT / "deployments" / "prometheus"
DASHBOARD = json.loads((ROOT / "deployments" / "grafana" / "homeostat.json").read_text())
METRIC = re.compile(r"(?<![\w:])(?:homeostat|process)_\w+(?![\w:])")
LABELS = re.compile(r"(?:by|label_values)\s*\(([^()]*)\)|(\w+)\s*=~?\s*\"")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has answered, refused and captured."""
    made = Server(tmp_path_factory.mktemp("observed") / "home", HOMEOSTAT_ACCESS_LOG="true")
    try:
        made.promote(1)
        assert made.call("POST", "/v2/models/toy/infer", BODY)[0] == 200
        assert made.call("POST", "/v2/models/toy/infer", "{")[0] == 400
        yield made
    finally:
        made.process.terminate()
        made.process.wait(20)


@pytest.fixture(scope="module")
def text(served: Server) -> str:
    return httpx.get(f"http://127.0.0.1:{served.port}/metrics", timeout=10).text


def expressions(panels: list[dict[str, Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def dashboard_expressions() -> list[str]:
    found = expressions(DASHBOARD["panels"]) + [one["expr"] for one in DASHBOARD["annotations"]["list"]]
    values = {"$__rate_interval": "5m", "$model": ".*", "$instance": ".*", "$job": ".*"}
    for name, value in values.items():
        found = [one.replace(name, value) for one in found]
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@promtool.needed
def test_promtool_finds_nothing_in_what_a_server_says(text: str) -> None:
    assert promtool.check("check", "metrics", stdin=text) == ""


def test_dashboard_and_rules_name_only_what_a_server_says(text: str) -> None:
    said = set(re.findall(r"^(\w+)(?:\{| )", text, re.M))
    queries = [one["query"]["query"] for one in DASHBOARD["templating"]["list"][1:]]
    used = {name for one in (*dashboard_expressions(), *queries) for name in METRIC.findall(one)}
    ruled = {name for rule in rules() for name in METRIC.findall(rule["expr"])}
    assert len(used) >= 25
    assert len(ruled) >= 14
    histograms = re.findall(r"^# TYPE (\w+) histogram", text, re.M)  # one that counts nothing yet has no samples
    assert used | ruled <= said | {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}
    ours = {name for name in said if name.startswith("homeostat_") and not name.endswith("_created")}
    assert ours <= used | ruled | {"homeostat_request_duration_seconds_count"}, "a figure that nobody looks at"


def test_dashboard_and_rules_name_only_labels_that_there_are(text: str) -> None:
    said = set(re.findall(r"[{,](\w+)=\"", text)) | {"job", "instance"}  # Prometheus adds these
    found = [*dashboard_expressions(), *(rule["expr"] for rule in rules())]
    used = {
        name.strip() for one in found for pair in LABELS.findall(one) for part in pair for name in part.split(",")
    } - {""}
    assert {"model", "version", "arm", "protocol", "status"} <= used <= said


def test_recording_rules_are_recorded_before_they_are_used() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for rule in rules() for name in re.findall(r"\w+:\w+:\w+", rule["expr"])}
    assert used <= recorded
    tested = (PROMETHEUS / "rules_test.yml").read_text()
    assert all(f"expr: {name}\n" in tested for name in recorded)


def test_each_alert_is_tested_both_ways_and_says_what_to_do() -> None:
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    outcomes = [
        (one["alertname"], bool(one["exp_alerts"])) for test in tests for one in test.get("alert_rule_test", ())
    ]
    assert {(name, fires) for name in alerts for fires in (False, True)} == set(outcomes)
    for name, alert in alerts.items():
        assert alert["labels"]["severity"] in ("warning", "critical"), name
        assert {"summary", "description"} == alert["annotations"].keys(), name


@promtool.needed
def test_promtool_takes_the_scrape_the_rules_and_their_tests() -> None:
    promtool.check("check", "config", str(PROMETHEUS / "prometheus.yml"))
    promtool.check("check", "rules", str(PROMETHEUS / "rules.yml"))
    promtool.check("test", "rules", str(PROMETHEUS / "rules_test.yml"))


@promtool.needed
def test_promtool_can_read_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    made = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(dashboard_expressions())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    assert f"{len(made)} rules found" in promtool.check("check", "rules", str(path))


def test_panels_do_not_lie_on_one_another() -> None:
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_stdout_has_the_access_log_and_stderr_the_rest(served: Server) -> None:
    lines = served.wait(lambda: [one for one in served.out.read_text().splitlines() if "/infer" in one])
    answered, refused = (json.loads(one) for one in lines[:2])
    assert (answered["http.response.status_code"], answered["labels.version"]) == (200, "1")
    assert (refused["http.response.status_code"], refused["client.ip"]) == (400, "127.0.0.1")
    told = [json.loads(one) for one in served.log.read_text().splitlines()]
    assert {one["event.dataset"] for one in told} == {"homeostat.server"}
    assert {one["event.dataset"] for one in map(json.loads, served.out.read_text().splitlines())} == {
        "homeostat.access"
    }


def test_the_last_line_is_written_before_the_server_ends(tmp_path: Path) -> None:
    server = Server(tmp_path / "home", HOMEOSTAT_ACCESS_LOG="true")
    assert server.get("/v2")[0] == 200
    server.process.terminate()
    assert server.process.wait(20) == 0
    assert json.loads(server.out.read_text().splitlines()[-1])["url.path"] == "/v2"


class Collector(HTTPServer):
    """An OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805
                body = handler.rfile.read(int(handler.headers["content-length"]))
                self.taken.append((handler.path, ExportTraceServiceRequest.FromString(body)))
                handler.send_response(200)
                handler.end_headers()

            def log_message(handler, *told: object) -> None:  # noqa: N805
                del told

        super().__init__(("127.0.0.1", 0), Handler)
        self.taken: list[tuple[str, Any]] = []
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


def test_the_last_spans_reach_the_collector_when_the_server_ends(tmp_path: Path) -> None:
    collector = Collector()
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        server = Server(
            tmp_path / "home",
            HOMEOSTAT_TRACES="true",
            HOMEOSTAT_ACCESS_LOG="true",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        )
        try:
            server.promote(1)
            assert server.call("POST", "/v2/models/toy/infer", BODY)[0] == 200
        finally:
            server.process.terminate()
            assert server.process.wait(20) == 0
    finally:
        collector.close()
    assert {path for path, _ in collector.taken} == {"/v1/traces"}
    resources = [resource for _, sent in collector.taken for resource in sent.resource_spans]
    names = {one.key: one.value.string_value for one in resources[0].resource.attributes}
    assert (names["service.name"], names["deployment.environment.name"]) == ("homeostat", "test")
    spans = {span.name: span for one in resources for scope in one.scope_spans for span in scope.spans}
    assert spans["infer"].parent_span_id == spans["infer toy"].span_id
    told = [json.loads(line) for line in server.out.read_text().splitlines() if "/infer" in line]
    assert told[0]["trace.id"] == spans["infer toy"].trace_id.hex()
    assert told[0]["span.id"] == spans["infer toy"].span_id.hex()
