"""Access and the gate: scopes, models, expiry, revocation within a second, and nothing of it when no key is there."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from homeostat.apikeys import FILE, create_key, revoke_key
from homeostat.client import client_id
from homeostat.errors import Forbidden, TooManyRequests, Unauthenticated
from homeostat.serving.access import authorization as access_module
from homeostat.serving.access.authorization import Access, scope_of, scope_of_method
from homeostat.serving.rest.gate import Gate
from homeostat.settings import Settings
from tests.bundles import Store, make_bundle
from tests.unit.serving.conftest import make_plane

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}]}
INFER = "/v2/models/toy/infer"


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    home = tmp_path_factory.mktemp("access")
    made = make_plane(home, Store())
    made.store.promote(make_bundle(home))
    made.store.promote(make_bundle(home, model="other"))
    made.repository.poll()
    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / FILE


def guarded(plane, home, *, open_metrics: bool = False, **settings):
    access = Access(Settings(home=home, **settings), open_metrics=open_metrics)
    return replace(plane, app=Gate(plane.app, access, plane.metrics.refuse)), access


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_a_key_the_server_is_open(plane, tmp_path):
    gate, access = guarded(plane, tmp_path)
    assert access.idle()
    assert gate.infer(BODY).status_code == 200


def test_401_says_how_and_403_says_what(plane, path):
    key, record = create_key(path, "labels", ["label"])
    gate, _ = guarded(plane, path.parent)
    before = plane.metrics.refused.get(401, 0)
    for headers in ({}, bearer("hs_wrong"), bearer(key[:-1]), {"Authorization": f"Basic {key}"}, {"X-API-Key": ""}):
        answer = gate.call("POST", INFER, json=BODY, headers=headers)
        assert answer.status_code == 401, headers
        assert answer.headers["www-authenticate"] == 'Bearer realm="homeostat"'
        assert key[-20:] not in answer.text
    assert plane.metrics.refused[401] == before + 5
    answer = gate.call("POST", INFER, json=BODY, headers=bearer(key))
    assert (answer.status_code, "'infer'" in answer.text, record.id in answer.text) == (403, True, True)
    feedback = {"id": "a", "labels": [1]}
    assert gate.call("POST", "/v1/feedback", json=feedback, headers=bearer(key)).status_code == 202


def test_both_headers_and_any_case(plane, path):
    key, _ = create_key(path, "shop", ["infer"])
    gate, _ = guarded(plane, path.parent)
    for headers in (bearer(key), {"authorization": f"bearer {key}"}, {"X-API-Key": key}, {"x-api-key": f" {key} "}):
        assert gate.call("POST", INFER, json=BODY, headers=headers).status_code == 200


def test_probes_need_no_key_and_everything_else_does(plane, path):
    create_key(path, "shop", ["infer"])
    gate, _ = guarded(plane, path.parent)
    for open_path in ("/v2/health/live", "/v2/health/ready", "/v2/models/toy/ready", "/v2/models/toy/versions/1/ready"):
        assert gate.call("GET", open_path).status_code == 200
    for closed in ("/v2", "/v2/models/toy", "/metrics", "/", "/nothing", "/v2/health/ready/x", "/v2/models/a/b/ready"):
        assert gate.call("GET", closed).status_code == 401, closed


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/feedback", "label"),
        ("/v1/feedback/", "label"),
        ("/metrics", "any"),
        ("/metrics/", "any"),
        ("/ping", None),
        ("/invocations", "infer"),
        ("/v1/models/toy:predict", "infer"),
        ("/v2/repository/index", "infer"),
        ("/v2/repository/models/toy/load", "operate"),
        ("/v2/repository/models/toy/unload", "operate"),
        ("/v2/repository/models/a/b/c", "operate"),
        ("/v1/rollouts", "operate"),
        ("/v1/rollouts/toy/abort", "operate"),
        ("/v1/rollouts/toy\n/abort", "operate"),
        ("/v1/rolloutsx", "infer"),
        ("/v2/health/ready\n", "infer"),
    ],
)
def test_scopes_of_paths(path, scope):
    assert scope_of(path) == scope


def test_scopes_of_grpc_methods():
    service = "/inference.GRPCInferenceService/"
    assert scope_of_method(service + "ServerReady") is None
    assert scope_of_method(service + "ModelInfer") == "infer"
    assert scope_of_method(service + "RepositoryModelUnload") == "operate"
    assert scope_of_method("/tensorflow.serving.PredictionService/Predict") == "infer"


def test_a_key_may_be_limited_to_models(plane, path):
    key, _ = create_key(path, "shop", ["infer"], ["toy"])
    gate, _ = guarded(plane, path.parent)
    assert gate.call("POST", INFER, json=BODY, headers=bearer(key)).status_code == 200
    for method, closed in (("POST", "/v2/models/other/infer"), ("GET", "/v2/models/other"), ("GET", "/metrics")):
        answer = gate.call(method, closed, headers=bearer(key), **({"json": BODY} if method == "POST" else {}))
        assert answer.status_code == 403, closed


def test_metrics_by_any_key_or_open(plane, path):
    key, _ = create_key(path, "prometheus", ["label"])
    gate, _ = guarded(plane, path.parent)
    assert gate.call("GET", "/metrics", headers=bearer(key)).status_code == 200
    gate, _ = guarded(plane, path.parent, open_metrics=True)
    assert gate.call("GET", "/metrics").status_code == 200


def test_admin_is_every_scope(plane, path):
    key, _ = create_key(path, "root", ["admin"])
    gate, _ = guarded(plane, path.parent)
    assert gate.call("POST", INFER, json=BODY, headers=bearer(key)).status_code == 200
    assert gate.call("POST", "/v1/feedback", json={"id": "a", "labels": [1]}, headers=bearer(key)).status_code == 202


def test_an_expired_key_is_refused(plane, path, monkeypatch):
    key, _ = create_key(path, "shop", ["infer"], expires=datetime.now(UTC) + timedelta(seconds=30))
    gate, _ = guarded(plane, path.parent)
    assert gate.call("POST", INFER, json=BODY, headers=bearer(key)).status_code == 200
    now = time.time()
    monkeypatch.setattr(access_module.time, "time", lambda: now + 31)
    answer = gate.call("POST", INFER, json=BODY, headers=bearer(key))
    assert (answer.status_code, "expired" in answer.text) == (401, True)


def test_keys_come_and_go_within_a_second_and_the_server_stays_closed(plane, path):
    gate, access = guarded(plane, path.parent)
    assert gate.infer(BODY).status_code == 200
    key, record = create_key(path, "shop", ["infer"])

    def status(headers) -> int:
        return gate.call("POST", INFER, json=BODY, headers=headers).status_code

    def within_a_second(headers, wanted) -> None:
        deadline = time.monotonic() + 1.0
        while (found := status(headers)) != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    within_a_second({}, 401)
    assert status(bearer(key)) == 200
    revoke_key(path, record.id)
    within_a_second(bearer(key), 401)
    path.unlink()
    access._due = 0.0
    assert status({}) == 401, "a server that had keys never opens by itself"


def test_a_damaged_file_leaves_the_last_good_keys(plane, path, caplog):
    key, _ = create_key(path, "shop", ["infer"])
    gate, access = guarded(plane, path.parent)
    path.write_text("{")
    access._due = 0.0
    assert gate.call("POST", INFER, json=BODY, headers=bearer(key)).status_code == 200
    assert "stay in force" in caplog.text
    assert key not in caplog.text


def test_rates_are_of_each_key_and_else_of_each_address(plane, path):
    one, two = (create_key(path, name, ["infer"])[0] for name in ("one", "two"))
    gate, access = guarded(plane, path.parent, rate_limit=0.001, rate_burst=2)
    statuses = [gate.call("POST", INFER, json=BODY, headers=bearer(one)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    answer = gate.call("POST", INFER, json=BODY, headers=bearer(one))
    assert int(answer.headers["retry-after"]) >= 1
    assert gate.call("POST", INFER, json=BODY, headers=bearer(two)).status_code == 200
    assert [gate.call("POST", INFER, json=BODY).status_code for _ in range(3)] == [401, 401, 429]
    assert gate.call("GET", "/v2/health/live").status_code == 200
    with pytest.raises(TooManyRequests):
        access.admit(INFER, {}, "127.0.0.1")
    with pytest.raises(Unauthenticated):
        access.admit(INFER, {}, "127.0.0.2")


def test_grpc_calls_are_admitted_by_the_same_rules(path):
    key, record = create_key(path, "shop", ["infer"])
    access = Access(Settings(home=path.parent), open_metrics=True)
    method = "/inference.GRPCInferenceService/"
    for metadata in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}, {"x-api-key": key.encode()}):
        assert access.admit_call(method + "ModelInfer", metadata, "127.0.0.1").id == record.id
    assert access.admit_call(method + "ServerLive", {}, "127.0.0.1") is None
    with pytest.raises(Unauthenticated):
        access.admit_call(method + "ModelInfer", {}, "127.0.0.1")
    with pytest.raises(Forbidden, match="operate"):
        access.admit_call(method + "RepositoryModelLoad", {"x-api-key": key}, "127.0.0.1")


def test_the_client_is_known_while_the_request_is_answered(plane, path):
    key, record = create_key(path, "shop", ["infer"])
    seen = []

    async def app(scope, receive, send):
        seen.append(client_id())
        await plane.app(scope, receive, send)

    gate, access = guarded(plane, path.parent)
    gate = replace(gate, app=Gate(app, access, plane.metrics.refuse))
    assert gate.call("POST", INFER, json=BODY, headers=bearer(key)).status_code == 200
    assert seen == [record.id]
    assert client_id() is None
