"""The operator API: each action once, in the name of its key; who may not, what is refused, and who comes second."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeostat.client import Client, current
from homeostat.serving.operators import ORDERS, Operators
from homeostat.serving.rest.app import App
from tests.challengers import classifier
from tests.rollouts import CANARY, World

OPERATOR = Client("0123456789ab", frozenset({"operate"}))


class Api:
    """The application of one process, asked in the name of a client."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.control, self.process = self.world.control, self.world.process()
        self.operators = Operators(self.process.connect, self.world.home, self.process.repository.poke)
        self.app = App(self.process.plane, operators=self.operators)

    def ask(self, method: str, path: str = "", client: Client | None = OPERATOR, **request: Any) -> httpx.Response:
        return self.ask_all([(method, path, request)], client)[0]

    def ask_all(
        self, requests: list[tuple[str, str, dict[str, Any]]], client: Client | None = OPERATOR
    ) -> list[httpx.Response]:
        async def send() -> list[httpx.Response]:
            current.set(client)  # as the gate does
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as http:
                asked = [http.request(method, f"/v1/rollouts{path}", **more) for method, path, more in requests]
                return await asyncio.gather(*asked)

        return asyncio.run(send())

    def post(self, action: str, client: Client | None = OPERATOR, **order: Any) -> httpx.Response:
        return self.ask("POST", f"/toy/{action}", client, json=order)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path)
    made.control.register_bundle(made.world.bundle(2, classifier(wrong_over=0.9)))
    yield made
    made.operators.close()
    made.world.close()


def test_a_rollout_from_its_start_to_its_rollback(api):
    started = api.post("start", version=2, reason="Monday")
    assert started.status_code == 200, started.text
    rollout = started.json()["rollout"]
    assert (rollout["mode"], rollout["version"], rollout["weight"]) == ("canary", 2, 0.5)
    assert api.post("pause").json()["rollout"]["paused"] is True
    found = api.ask("GET", "/toy").json()
    assert (found["rollout"]["paused"], found["rollout"]["steps"], found["champion"]) == (True, 1, "v1")
    assert api.ask("GET").json() == {"models": {"toy": found}, "quarantine": []}
    assert api.post("resume").json()["rollout"]["paused"] is False
    promoted = api.post("promote").json()
    assert (promoted["champion"], promoted["rollout"]["mode"]) == ("v2", "bake")
    back = api.post("abort", reason="wrong on Mondays").json()
    assert (back["champion"], back["rollout"]) == ("v1", {"mode": "live"})
    assert [one["reason"] for one in api.ask("GET").json()["quarantine"]] == ["wrong on Mondays"]
    refused = api.post("start", version=2)
    assert (refused.status_code, "homeostat rollout release toy 2" in refused.json()["error"]) == (409, True)
    assert api.post("release", version=2).status_code == 200
    api.control.promote("toy", 2, expected_generation=api.control.generation("toy"), actor="t", reason="t")
    assert api.post("rollback").json()["champion"] == "v1"
    entries = api.control.history("toy")
    asked = [entry for entry in entries if entry.actor == "key:0123456789ab"]
    actions = ["start", "pause", "resume", "promote", "rollback", "release", "rollback"]
    assert [entry.action for entry in asked] == actions
    assert (asked[0].reason, asked[1].reason) == ("Monday", "asked for by hand")
    assert api.control.verify() == len(entries)


def test_a_token_is_the_actor_by_its_subject(api):
    token = Client("jwt:ada", frozenset({"admin"}))
    assert api.post("start", token, version=2).status_code == 200
    assert api.control.history("toy")[-1].actor == "jwt:ada"


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (None, "homeostat key create NAME --scope operate"),
        (Client("a", frozenset({"infer", "label"})), "lacks the scope 'operate'"),
        (Client("a", frozenset({"operate"}), frozenset({"other"})), "may not use model 'toy'"),
    ],
)
def test_nobody_else_may(api, client, says):
    before = api.control.row("toy")
    for method, path in [("GET", "/toy"), *(("POST", f"/toy/{action}") for action in ORDERS)]:
        answer = api.ask(method, path, client)
        assert (answer.status_code, says in answer.json()["error"]) == (403, True), path
    assert api.control.row("toy") == before


def test_a_key_of_other_models_sees_none_of_this(api):
    api.world.start(classifier(), CANARY)
    api.post("abort")
    other = Client("a", frozenset({"operate"}), frozenset({"other"}))
    assert api.ask("GET", "", other).json() == {"models": {}, "quarantine": []}


@pytest.mark.parametrize(
    ("method", "path", "request_", "status", "says"),
    [
        ("GET", "/absent", {}, 404, "no model 'absent' in the control store; there are: toy"),
        ("GET", "/%2e%2e", {}, 404, "no model '..'"),
        ("POST", "/absent/abort", {}, 404, "no model 'absent'"),
        ("POST", "/toy/start", {"json": {"version": 9}}, 404, "no bundle of version 9; there are: v1, v2"),
        ("POST", "/toy/start", {}, 404, "has no challenger; name a version"),
        ("POST", "/toy/explode", {}, 404, "no such path"),
        ("POST", "/toy/start/now", {}, 404, "no such path"),
        ("GET", "//start", {}, 404, "no such path"),
        ("GET", "/toy/start", {}, 405, "use POST"),
        ("POST", "/toy", {}, 405, "use GET"),
        ("POST", "/toy/abort", {}, 409, "`homeostat rollout start toy VERSION` starts one"),
        ("POST", "/toy/rollback", {}, 409, "no previous champion"),
        ("POST", "/toy/start", {"json": {"version": 1}}, 409, "champion already"),
        ("POST", "/toy/start", {"json": {"version": 2, "generation": 7}}, 409, "somebody changed it first"),
        ("POST", "/toy/start", {"json": {"version": "2"}}, 400, "version"),
        ("POST", "/toy/start", {"json": {"version": True}}, 400, "version"),
        ("POST", "/toy/start", {"json": {"version": 0}}, 400, "version"),
        ("POST", "/toy/abort", {"json": {"version": 2}}, 400, "abort knows reason, generation"),
        ("POST", "/toy/abort", {"json": {"reason": ""}}, 400, "reason"),
        ("POST", "/toy/abort", {"json": {"reason": "a" * 501}}, 400, "reason"),
        ("POST", "/toy/release", {}, 400, "version"),
        ("POST", "/toy/abort", {"json": []}, 400, "a JSON object is expected"),
        ("POST", "/toy/abort", {"content": b"{"}, 400, "not valid JSON"),
        ("POST", "/toy/abort", {"json": {"reason": "a" * 20_000}}, 413, "more than 16384 bytes"),
    ],
)
def test_what_is_refused_changes_nothing(api, method, path, request_, status, says):
    before = api.control.history()
    answer = api.ask(method, path, **request_)
    assert (answer.status_code, says in answer.json()["error"]) == (status, True), answer.text
    assert api.control.history() == before


def test_of_two_promotions_at_once_one_is_done(api):
    generation = api.post("start", version=2).json()["generation"]
    one = ("POST", "/toy/promote", {"json": {"generation": generation}})
    answers = api.ask_all([one, one])
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert api.control.row("toy").mode == "bake"
    assert [entry.action for entry in api.control.history("toy")] == ["promote", "start", "promote"]


def test_while_the_control_store_is_away_it_says_so_and_comes_back(api):
    api.process.down = True
    answer = api.post("pause")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "does not answer" in answer.json()["error"]
    api.process.down = False
    assert api.ask("GET", "/toy").status_code == 200


def test_a_bundle_that_was_changed_is_not_started(api):
    path = Path(api.world.refs[-1].url.removeprefix("file://")) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"created": "later"}))
    answer = api.post("start", version=2)
    assert answer.status_code == 409, answer.text
    assert api.control.row("toy").mode == "live"
