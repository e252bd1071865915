"""gateway.toml and its secrets, and what a body means by it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.webhooks.types import get_example_payload_for_event

from homeostat.errors import ConfigError, RequestInvalid
from homeostat.gateway.config import GatewayConfig, Rule, load_gateway, read_address, read_keys
from homeostat.gateway.rules import MAX_VALUE, find_rule, read_body
from tests.conftest import ROOT

RULES = (
    Rule(when={"type": "data.ready", "data.rows": 3}, deployment="retrain/digits", parameters={"trigger": "webhook"}),
    Rule(when={"data.ok": True}, deployment="promote/digits", take={"version": "data.version", "reason": "data.why"}),
)


def write(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(text)
    return path


def test_without_a_file_nobody_may_send(tmp_path: Path):
    assert load_gateway(tmp_path / "gateway.toml") == GatewayConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sources.ci]\nform = 'standard'", "missing key 'sources.ci.rules'"),
        ("[sources.ci]\nform = 'stripe'\nrules = []", "sources.ci.form: Input should be 'standard', 'github' or"),
        ("[sources.CI]\nform = 'github'\n[[sources.CI.rules]]\ndeployment = 'a/b'", "sources.CI"),
        (
            "[sources.ci]\nform = 'github'\n[[sources.ci.rules]]\ndeployment = 'a/b'\nwhere = 1",
            "unknown key 'sources.ci.rules.0.where'; allowed here: when, deployment, parameters, take",
        ),
        ("[sources.ci]\nform = 'github'\n[[sources.ci.rules]]\ndeployment = 'ab'", "sources.ci.rules.0.deployment"),
        ("[sources.ci]\nform = 'github'\nsecret = 'x'\n[[sources.ci.rules]]\ndeployment = 'a/b'", "unknown key"),
        ("[targets.team]\nform = 'apprise'\non = ['exploded']", "targets.team.on.0"),
        ("sources = 1", "sources: Input should be a valid dictionary"),
        ("[", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, said: str):
    with pytest.raises(ConfigError) as raised:
        load_gateway(write(tmp_path, text))
    assert said in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_secrets_of_the_environment_and_of_a_file(tmp_path: Path):
    path = tmp_path / "secret"
    path.write_text("first-secret-of-ours\nsecond-secret-of-ours\n")
    path.chmod(0o600)
    assert read_keys("ci", "github", {"HOMEOSTAT_HOOK_CI_SECRET_FILE": str(path)}) == (
        b"first-secret-of-ours",
        b"second-secret-of-ours",
    )
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys("ci", "github", {"HOMEOSTAT_HOOK_CI_SECRET_FILE": str(path)})
    whsec = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert len(read_keys("ci", "standard", {"HOMEOSTAT_HOOK_CI_SECRET": f"{whsec},{whsec}"})) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is not set"),
        ("short", "can be guessed"),
        ("whsec_*", "is base64 behind"),
    ],
)
def test_secrets_that_are_none(value: str, said: str):
    with pytest.raises(ConfigError, match=said) as raised:
        read_keys("ci", "standard" if "*" in value else "github", {"HOMEOSTAT_HOOK_CI_SECRET": value})
    assert not value or value not in str(raised.value).replace("whsec_$(", "")


def test_an_address_that_is_not_set():
    with pytest.raises(ConfigError, match="HOMEOSTAT_NOTICE_TEAM_URL is not set"):
        read_address("team", {})


def test_the_first_rule_that_fits():
    found = find_rule(RULES, {"type": "data.ready", "data": {"rows": 3, "ok": True}})
    assert found == ("retrain/digits", {"trigger": "webhook"})
    taken = find_rule(RULES, {"type": "x", "data": {"ok": True, "version": 4, "why": "agreed"}})
    assert taken == ("promote/digits", {"version": 4, "reason": "agreed"})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"type": "data.ready"},
        {"type": "data.ready", "data": None},
        {"type": "data.ready", "data": [3]},
        {"type": "data.ready", "data": {"rows": 3.0}},
        {"type": "data.ready", "data": {"rows": "3"}},
        {"data": {"ok": 1}},
        {"data.ok": True},
    ],
)
def test_what_fits_no_rule(body: dict[str, object]):
    assert find_rule(RULES, body) is None


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, "x" * (MAX_VALUE + 1), math.nan, -math.inf])
def test_what_no_parameter_can_be(value: object):
    with pytest.raises(RequestInvalid, match="parameter 'reason'"):
        find_rule(RULES, {"data": {"ok": True, "version": 1, "why": value}})


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("standard", b""),
        ("standard", b"[]"),
        ("standard", b"\xff"),
        ("standard", b'{"type": 1, "data": {}}'),
        ("standard", b'{"type": "x"}'),
        ("standard", b'{"type": "x", "data": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
        ("mlflow", b'{"entity": "a", "action": "b", "data": 1}'),
        ("github", b"1"),
    ],
)
def test_bodies_that_are_none(form: str, body: bytes):
    with pytest.raises(RequestInvalid) as raised:
        read_body(form, body)  # type: ignore[arg-type]
    assert raised.value.status == 422


def test_the_file_of_the_docs(tmp_path: Path):
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "gateway.md").read_text(), flags=re.DOTALL)
    config = load_gateway(write(tmp_path, example))
    assert set(config.sources) == {"ci", "github", "registry"}
    event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
    data = get_example_payload_for_event(event) | {"name": "digits", "alias": "please_promote", "version": "4"}
    body = json.dumps({"entity": event.entity.value, "action": event.action.value, "timestamp": "", "data": data})
    found = find_rule(config.sources["registry"].rules, read_body("mlflow", body.encode()))
    assert found == ("promote/digits", {"version": "4"})


def test_a_body_keeps_all_it_has():
    assert read_body("github", b'{"ref": "main", "x": {"y": [1]}}') == {"ref": "main", "x": {"y": [1]}}
