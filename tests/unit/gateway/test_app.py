"""The gateway's HTTP: what is believed, what is refused and how, and one decision for all copies."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest
import uvicorn

from homeostat.control.deliveries import Deliveries
from homeostat.control.store import ControlStore
from homeostat.errors import ControlUnavailable
from homeostat.gateway.app import SOURCE_BURST, Gateway, Sender
from homeostat.gateway.config import Rule, Source
from homeostat.gateway.dispatcher import Dispatcher
from homeostat.gateway.prefect import FlowRunRefused, PrefectUnavailable
from homeostat.gateway.signatures import sign
from tests.unit.gateway.conftest import AskedPrefect, Clock

KEY = b"a key that has 24 bytes."
RULE = Rule(when={"type": "data.ready"}, deployment="retrain/digits", parameters={"trigger": "webhook"})
BODY = json.dumps({"type": "data.ready", "data": {}}).encode()
MAX_BODY = 2048


@pytest.fixture
def woken() -> list[bool]:
    return []


@pytest.fixture
def client(
    deliveries: Deliveries, store: ControlStore, prefect: AskedPrefect, clock: Clock, woken: list[bool]
) -> Iterator[httpx.Client]:
    senders = {"ci": Sender(Source(form="standard", rules=(RULE,)), (KEY,))}
    gateway = Gateway(
        senders, deliveries, store, prefect, max_body=MAX_BODY, wake=lambda: woken.append(True), clock=clock
    )  # type: ignore[arg-type]
    config = uvicorn.Config(gateway.app(), lifespan="off", log_config=None)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", trust_env=False) as client:
            yield client
        server.should_exit = True
        thread.join()


@pytest.fixture
def send(client: httpx.Client, clock: Clock) -> Callable[..., object]:
    def post(identity: str = "1", body: bytes = BODY, source: str = "ci", **headers: str):
        signed = sign(identity, int(clock.now.timestamp()), body, KEY)
        return client.post(f"/hooks/{source}", content=body, headers=signed | headers)

    return post


def test_a_webhook_becomes_a_flow_run(
    send, client, make_dispatcher: Callable[[], Dispatcher], prefect: AskedPrefect, woken: list[bool], store
):
    answer = send()
    assert answer.status_code == 202, answer.text
    decision = answer.json()["decision"]
    assert answer.json() == {"decision": decision, "status": "accepted", "url": f"/decisions/{decision}"}
    assert woken == [True]
    make_dispatcher().dispatch()
    assert prefect.runs == {decision: ("retrain/digits", {"trigger": "webhook"})}
    store.record("digits", "verdict", actor=f"flow_run run of {decision}", reason="cooldown")
    told = client.get(answer.json()["url"]).json()
    assert told["status"] == "started"
    assert told["flow_run"] == {"id": f"run of {decision}", "name": "brave-run", "state": "Completed"}
    assert told["ledger"] == [{"sequence": 1, "action": "verdict", "reason": "cooldown"}]


def test_a_hundred_copies_are_one_decision(send, make_dispatcher: Callable[[], Dispatcher], prefect: AskedPrefect):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send(), range(100)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["decision"] for answer in answers}) == 1
    make_dispatcher().dispatch()
    make_dispatcher().dispatch()
    assert len(prefect.runs) == prefect.asked == 1
    assert send().json()["status"] == "started"


def test_what_fits_no_rule_is_remembered_and_starts_nothing(send, make_dispatcher, prefect: AskedPrefect, woken):
    answer = send(body=b'{"type": "ping", "data": {}}')
    assert (answer.status_code, answer.json()["status"]) == (202, "ignored")
    make_dispatcher().dispatch()
    assert prefect.asked == 0


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ({"source": "nobody"}, 404, "gateway.toml has: ci"),
        ({"webhook-signature": "v1,AAAA"}, 401, "no secret of this source"),
        ({"webhook-id": "2"}, 401, "no secret of this source"),
        ({"webhook-timestamp": "yesterday"}, 400, "no Unix time"),
        ({"body": b"{}"}, 422, "type: Field required"),
        ({"body": b"not json"}, 422, "Invalid JSON"),
        ({"body": b" " * (MAX_BODY + 1)}, 413, f"larger than {MAX_BODY} bytes"),
        ({"content-encoding": "gzip"}, 415, "uncompressed"),
    ],
)
def test_what_is_refused(send, deliveries: Deliveries, given: dict[str, object], status: int, said: str):
    answer = send(**given)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert deliveries.due(1e12) == []


def test_a_body_without_a_length_is_cut_off(client: httpx.Client):
    answer = client.post("/hooks/ci", content=iter([b"x" * 1000] * 10))
    assert answer.status_code == 413


def test_old_and_future_webhooks(client: httpx.Client, clock: Clock):
    for away in (-400, 400):
        signed = sign("1", int((clock.now + timedelta(seconds=away)).timestamp()), BODY, KEY)
        assert client.post("/hooks/ci", content=BODY, headers=signed).status_code == 401


def test_a_source_that_sends_too_much(send):
    answers = [send(identity=str(number)) for number in range(SOURCE_BURST + 5)]
    assert [answer.status_code for answer in answers].count(202) == SOURCE_BURST
    refused = answers[-1]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "sources.ci.per_minute" in refused.json()["error"]
    assert send(identity="0").status_code == 202, "a copy of one that was taken is no new one"


def test_forged_ones_do_not_use_up_a_sources_rate(send):
    for number in range(SOURCE_BURST * 2):
        assert send(identity=str(number), **{"webhook-signature": "v1,AAAA"}).status_code == 401
    assert send().status_code == 202


def test_without_the_control_store_nothing_is_taken(send, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch):
    def gone(*_: object) -> None:
        raise ControlUnavailable("the control store does not answer")

    monkeypatch.setattr(deliveries, "accept", gone)
    answer = send()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_paths_that_are_none(client: httpx.Client):
    for method, path in (("GET", "/hooks/ci"), ("GET", "/"), ("POST", "/decisions/x"), ("GET", "/hooks/ci/more")):
        answer = client.request(method, path)
        assert answer.status_code in (404, 405)
        assert "POST /hooks/SOURCE" in answer.json()["error"]
    assert client.get("/decisions/1234").status_code == 404
    assert client.get("/decisions/" + "0" * 32).status_code == 404
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}


def test_a_decision_can_be_asked_for_while_prefect_is_gone(send, client, make_dispatcher, prefect: AskedPrefect):
    url = send().json()["url"]
    make_dispatcher().dispatch()
    prefect.failing = PrefectUnavailable("gone")
    told = client.get(url).json()
    assert (told["status"], told["flow_run"]["state"], told["note"]) == ("started", None, "gone")


def test_prefect_comes_back(send, client, make_dispatcher, prefect: AskedPrefect, clock: Clock):
    url = send().json()["url"]
    prefect.failing = PrefectUnavailable("gone")
    make_dispatcher().dispatch()
    assert client.get(url).json()["note"] == "gone"
    prefect.failing = None
    make_dispatcher().dispatch()
    assert prefect.runs == {}, "it waits a second"
    clock.now += timedelta(seconds=1)
    make_dispatcher().dispatch()
    assert client.get(url).json()["status"] == "started"


def test_prefect_is_gone_for_too_long(send, client, make_dispatcher, prefect: AskedPrefect, clock: Clock):
    url = send().json()["url"]
    prefect.failing = PrefectUnavailable("gone")
    asked = 0
    while client.get(url).json()["status"] == "accepted":
        make_dispatcher().dispatch()
        clock.now += timedelta(seconds=30)
        asked += 1
        assert asked < 200
    assert client.get(url).json()["status"] == "expired"
    assert clock.now - Clock.now > timedelta(hours=1)
    assert prefect.asked < 70, "it is asked less and less often"


def test_what_prefect_refuses_is_not_tried_again(send, client, make_dispatcher, prefect: AskedPrefect):
    url = send().json()["url"]
    prefect.failing = FlowRunRefused("retrain/digits has no parameter 'triger'")
    make_dispatcher().dispatch()
    make_dispatcher().dispatch()
    assert prefect.asked == 1
    assert client.get(url).json()["note"] == "retrain/digits has no parameter 'triger'"


def test_another_gateway_after_a_kill_starts_no_second_run(send, deliveries, make_dispatcher, prefect: AskedPrefect):
    decision = send().json()["decision"]
    prefect.start("retrain/digits", {"trigger": "webhook"}, decision, ())  # killed before this was written down
    make_dispatcher().dispatch()
    assert len(prefect.runs) == 1
    assert deliveries.find(decision).flow_run == f"run of {decision}"
