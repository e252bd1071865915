"""The access log and the error log: every field is one of the Elastic Common Schema, and no secret is ever in them."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from homeostat.apikeys import FILE, create_key
from homeostat.serving import accesslog
from homeostat.serving.access.authorization import Access
from homeostat.serving.accesslog import AccessLog
from homeostat.serving.exchange import MAX_TEXT, Exchange, current
from homeostat.serving.jsonlog import JsonLines
from homeostat.serving.observer import Observer
from homeostat.serving.protos import message
from homeostat.serving.rest.gate import Gate
from homeostat.serving.rest.observed import Observed
from homeostat.settings import Settings
from tests.bundles import make_bundle
from tests.conftest import free_port
from tests.grpc_client import INFERENCE, GrpcClient, grpc_server

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.25, 1, 1, 1]}]}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"

KEYWORD, LONG, IP, DATE, ARRAY = "keyword", "long", "ip", "date", "keyword[]"
ECS = {
    "@timestamp": DATE,
    "client.address": KEYWORD,
    "client.ip": IP,
    "ecs.version": KEYWORD,
    "error.message": KEYWORD,
    "error.stack_trace": KEYWORD,
    "error.type": KEYWORD,
    "event.category": ARRAY,
    "event.dataset": KEYWORD,
    "event.duration": LONG,
    "event.kind": KEYWORD,
    "event.outcome": KEYWORD,
    "event.type": ARRAY,
    "http.request.id": KEYWORD,
    "http.request.method": KEYWORD,
    "http.response.status_code": LONG,
    "http.version": KEYWORD,
    "labels.arm": KEYWORD,
    "labels.model": KEYWORD,
    "labels.protocol": KEYWORD,
    "labels.version": KEYWORD,
    "log.level": KEYWORD,
    "log.logger": KEYWORD,
    "message": KEYWORD,
    "network.protocol": KEYWORD,
    "process.pid": LONG,
    "service.name": KEYWORD,
    "service.type": KEYWORD,
    "service.version": KEYWORD,
    "span.id": KEYWORD,
    "trace.id": KEYWORD,
    "url.path": KEYWORD,
    "user.id": KEYWORD,
    "user_agent.original": KEYWORD,
}
"""The fields of ECS 8.11 that we use, and their types as Elasticsearch maps them."""
ALWAYS = {
    "@timestamp", "log.level", "message", "ecs.version", "event.dataset", "event.duration", "event.outcome",
    "http.request.method", "http.response.status_code", "url.path", "service.name", "service.version",
}  # fmt: skip


def check_ecs(line: dict[str, object]) -> None:
    for name, value in line.items():
        kind = ECS[name]
        if kind == LONG:
            assert type(value) is int, name
        elif kind == ARRAY:
            assert isinstance(value, list), name
        else:
            assert isinstance(value, str), name
        if kind == IP:
            ip_address(str(value))
        if kind == DATE:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(value))


class Log:
    """An access log into a pipe, and an observed plane."""

    def __init__(self, plane, home, **settings) -> None:
        self.read, self._write = os.pipe()
        self.log = AccessLog(self._write)
        self.observer = Observer(self.log)
        self.access = Access(Settings(home=home, **settings), open_metrics=True)
        gate = Gate(plane.app, self.access, plane.metrics.refuse)
        self.plane = replace(plane, app=Observed(gate, self.observer))

    def lines(self) -> list[dict[str, object]]:
        self.log.start()
        self.log.close()
        os.close(self._write)
        with os.fdopen(self.read, "rb") as file:
            found = [json.loads(line) for line in file.read().splitlines()]
        for line in found:
            check_ecs(line)
            assert line.keys() >= ALWAYS
        return found


@pytest.fixture
def served(plane):
    plane.store.promote(make_bundle(plane.home))
    plane.repository.poll()
    return plane


def test_a_request_is_one_line_in_ecs(served) -> None:
    log = Log(served, served.home)
    headers = {"traceparent": PARENT, "User-Agent": "curl/8"}
    body = {**BODY, "id": "visit-1"}
    assert log.plane.call("POST", "/v2/models/toy/infer?q=secret", json=body, headers=headers).status_code == 200
    (line,) = log.lines()
    wanted = {
        "message": "POST /v2/models/toy/infer 200",
        "event.outcome": "success",
        "http.request.method": "POST",
        "http.request.id": "visit-1",
        "http.response.status_code": 200,
        "http.version": "1.1",
        "url.path": "/v2/models/toy/infer",
        "client.address": "127.0.0.1",
        "user_agent.original": "curl/8",
        "trace.id": TRACE,
        "labels.model": "toy",
        "labels.version": "1",
        "labels.arm": "champion",
        "labels.protocol": "v2-rest",
    }
    assert {name: line[name] for name in wanted} == wanted
    assert 0 < line["event.duration"] < 5e9
    assert "secret" not in json.dumps(line)


def test_what_is_refused_is_told_too(served) -> None:
    log = Log(served, served.home)
    for path, body in (("/v2/models/toy/infer", {}), ("/v2/models/no/infer", BODY), ("/no%0A%E2%80%A8%FF/%00", {})):
        log.plane.call("POST", path, json=body)
    log.plane.call("GET", "/" + "x" * 5000, headers={"user-agent": "y" * 5000})
    bad, absent, strange, long = log.lines()
    assert (bad["http.response.status_code"], bad["labels.model"], bad["event.outcome"]) == (400, "toy", "failure")
    assert (absent["http.response.status_code"], "labels.model" in absent) == (404, False)
    assert (strange["http.response.status_code"], strange["url.path"][:4]) == (404, "/no\n")
    assert len(long["url.path"]) == len(long["user_agent.original"]) == MAX_TEXT


def test_a_client_is_named_by_its_id_and_never_by_its_key(served, tmp_path) -> None:
    key, record = create_key(tmp_path / FILE, "web", ["infer"])
    log = Log(served, tmp_path)
    log.plane.call("POST", "/v2/models/toy/infer", json=BODY, headers={"Authorization": f"Bearer {key}"})
    log.plane.call("POST", "/v2/models/toy/infer", json=BODY, headers={"X-API-Key": key + "x"})
    log.plane.call("POST", "/v1/feedback", json={"id": "a", "labels": [1]}, headers={"X-API-Key": key})
    known, unknown, forbidden = lines = log.lines()
    assert known["user.id"] == record.id
    assert (unknown["http.response.status_code"], "user.id" in unknown) == (401, False)
    assert (forbidden["http.response.status_code"], forbidden["client.ip"]) == (403, "127.0.0.1")
    text = json.dumps(lines)
    assert key not in text
    assert key.split("_", 2)[-1] not in text
    assert "1.25" not in text


def test_calls_over_grpc_are_told_alike(served, tmp_path) -> None:
    key, record = create_key(tmp_path / FILE, "web", ["infer"])
    log = Log(served, tmp_path)
    port = free_port()
    fields = {"raw_input_contents": [bytes(16)], "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32"}]}
    with grpc_server(served.plane, log.access, port, observer=log.observer):
        client = GrpcClient(port)
        data = message("inference.ModelInferRequest")(model_name="toy", **fields).SerializeToString()
        client.send(INFERENCE, "ModelInfer", data, metadata=(("x-api-key", key), ("traceparent", PARENT)))
        with pytest.raises(Exception, match="UNAUTHENTICATED"):
            client.send(INFERENCE, "ModelInfer", data)
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            client.send(INFERENCE, "ModelInfer", b"\xff\xff", metadata=(("x-api-key", key),))
        client.close()
    good, stranger, broken = log.lines()
    assert good["url.path"] == "/inference.GRPCInferenceService/ModelInfer"
    assert (good["http.response.status_code"], good["network.protocol"]) == (200, "grpc")
    assert (good["user.id"], good["trace.id"], good["client.ip"]) == (record.id, TRACE, "127.0.0.1")
    assert (good["labels.model"], good["labels.protocol"]) == ("toy", "v2-grpc")
    assert (stranger["http.response.status_code"], "user.id" in stranger) == (401, False)
    assert (broken["http.response.status_code"], broken["user.id"]) == (400, record.id)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (PARENT, True),
        (PARENT.replace("00-", "01-", 1) + "-more", True),
        (PARENT + "-more", False),
        (PARENT.replace("00-", "ff-", 1), False),
        (PARENT.upper(), False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE}-{SPAN}", False),
        ("x" * 100_000, False),
        ("", False),
    ],
)
def test_a_traceparent_is_taken_as_w3c_says(text, taken) -> None:
    found = Exchange("rest", "GET", "/", "", "1.1", traceparent=text)
    assert (found.trace_id, found.traceparent) == ((TRACE, text) if taken else ("", ""))


def test_a_fault_is_told_with_its_traceback_and_trace(served, caplog) -> None:
    log = Log(served, served.home)

    def fail(names, tensors):
        raise RuntimeError("broken graph")

    served.repository.models["toy"].live.session._run = fail
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonLines().format(record))
    logging.getLogger("homeostat.serving.rest.app").addHandler(handler)
    try:
        log.plane.call("POST", "/v2/models/toy/infer", json=BODY, headers={"traceparent": PARENT})
    finally:
        logging.getLogger("homeostat.serving.rest.app").removeHandler(handler)
    (fault,) = [json.loads(line) for line in lines]
    check_ecs(fault)
    assert (fault["error.type"], fault["trace.id"], fault["log.level"]) == ("InferenceFailed", TRACE, "error")
    assert "RuntimeError: broken graph" in fault["error.stack_trace"]
    (line,) = log.lines()
    assert (line["http.response.status_code"], line["labels.version"]) == (500, "1")


def test_a_client_that_left_is_499() -> None:
    log = AccessLog(-1)
    exchange = Exchange("rest", "POST", "/", "::1", "1.1")
    Observer(log).end(exchange)
    assert exchange.status == 499
    assert len(log._waiting) == 1


def test_a_reader_that_is_stuck_holds_nobody_up(monkeypatch) -> None:
    monkeypatch.setattr(accesslog, "BUFFER_LINES", 50)
    monkeypatch.setattr(accesslog, "CLOSE_SECONDS", 0.2)
    read, write = os.pipe()
    log = AccessLog(write)
    observer = Observer(log)
    log.start()
    started = time.monotonic()
    for _ in range(2000):  # about a megabyte, and the pipe takes 64 kB
        observer.end(Exchange("rest", "GET", "/", "", "1.1"))
        time.sleep(0.0002)
    assert time.monotonic() - started < 5
    log.close()
    assert log.dropped > 0
    told = 2000 - log.dropped
    drained = threading.Thread(target=lambda: list(iter(lambda: os.read(read, 1 << 20), b"")), daemon=True)
    drained.start()
    log._thread.join(10)
    os.close(write)
    drained.join(10)
    os.close(read)
    assert told >= 0


def test_the_lines_of_several_workers_do_not_mix(tmp_path) -> None:
    read, write = os.pipe()
    logs = [AccessLog(write) for _ in range(2)]
    taken: list[bytes] = []
    reader = threading.Thread(target=lambda: taken.extend(iter(lambda: os.read(read, 7000), b"")))
    reader.start()
    for log in logs:
        for number in range(1500):
            log.put(Exchange("rest", "GET", f"/{number}", "", "1.1", user_agent="x" * (number % 300)))
    for log in logs:
        log.start()
    for log in logs:
        log.close()
    os.close(write)
    reader.join(20)
    os.close(read)
    paths = [json.loads(line)["url.path"] for line in b"".join(taken).splitlines()]
    assert sorted(paths) == sorted(2 * [f"/{number}" for number in range(1500)])


def test_a_file_that_cannot_be_written_is_said_once_and_counted(caplog) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        log = AccessLog(full.fileno())
        for _ in range(3):
            log.put(Exchange("rest", "GET", "/", "", "1.1"))
            log._write()
    assert log.dropped == 3
    assert caplog.text.count("No space left on device") == 1


def test_nothing_is_noted_while_it_is_off(served) -> None:
    assert served.infer(BODY).status_code == 200
    assert current.get() is None
    log = AccessLog(-1)
    log.close()
    assert log.dropped == 0
