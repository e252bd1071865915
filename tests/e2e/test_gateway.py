"""The gateway as a process, before a real Prefect and MLflow: one flow run for each decision, whatever is killed."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.tracking import MlflowClient

from deployments.places import Ports, environment
from deployments.stack import commands
from homeostat.control.store import ControlStore
from homeostat.gateway.server import HEAD_SECONDS
from homeostat.gateway.signatures import sign
from homeostat.settings import Settings
from tests.conftest import ROOT, free_port, make_settings

pytestmark = pytest.mark.e2e

DOCS = (ROOT / "docs" / "gateway.md").read_text()
KEY = b"a key that has 24 bytes."
ENVIRONMENT = {
    "HOMEOSTAT_HOOK_CI_SECRET": "whsec_YSBrZXkgdGhhdCBoYXMgMjQgYnl0ZXMu",
    "HOMEOSTAT_HOOK_REGISTRY_SECRET": "a-secret-of-the-registry",
}
CONFIG = """
[sources.ci]
form = "standard"
[[sources.ci.rules]]
when = {type = "data.ready"}
deployment = "retrain/toy"
parameters = {trigger = "webhook"}
[[sources.ci.rules]]
when = {type = "typo"}
deployment = "retrain/toy"
parameters = {triger = "webhook"}
[[sources.ci.rules]]
when = {type = "wrong"}
deployment = "retrain/toy"
parameters = {trigger = "because"}

[sources.registry]
form = "mlflow"
[[sources.registry.rules]]
when = {entity = "registered_model", action = "created"}
deployment = "retrain/toy"
parameters = {trigger = "webhook"}
[[sources.registry.rules]]
when = {entity = "model_version_alias", action = "created", "data.alias" = "please_promote"}
deployment = "retrain/toy"
parameters = {trigger = "webhook"}
take = {version = "data.version"}
"""


class Process:
    """A command with a log, and a URL that answers when it is there."""

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str], probe: str) -> None:
        self.command, self.environ, self.probe = command, environ, probe
        self.log = folder / f"{Path(command[0]).name}-{secrets.token_hex(2)}.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environ, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )
        until(self.answers, 60, lambda: self.log.read_text())

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with suppress(httpx.TransportError):
            return httpx.get(self.probe, trust_env=False).is_success
        return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait(10)


def until(true: Callable[[], object], seconds: float, about: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, about()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def ports() -> Ports:
    return Ports(*(free_port() for _ in range(5)))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("gateway")
    (home / "prefect").mkdir()
    return make_settings(home)


@pytest.fixture(scope="module")
def environ(ports: Ports, settings: Settings) -> dict[str, str]:
    allowed = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    key = {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode()}
    return {**environment(ports, settings), **ENVIRONMENT, **allowed, **key}


@pytest.fixture(scope="module")
def prefect(ports: Ports, settings: Settings, environ: dict[str, str]) -> Iterator[Process]:
    """A Prefect server that knows one deployment, for which nobody works."""
    api = f"{ports.urls['prefect']}/api"
    server = Process(commands(ports, settings)["prefect"], settings.home, environ, f"{api}/health")
    try:
        flow = httpx.post(f"{api}/flows/", json={"name": "retrain"}, trust_env=False).json()["id"]
        trigger = {"enum": ["schedule", "webhook"], "type": "string", "title": "trigger"}
        properties = {"trigger": trigger, "project": {"type": "string"}, "version": {"type": "integer"}}
        schema = {"type": "object", "properties": properties}
        asked = {
            "name": "toy",
            "flow_id": flow,
            "parameters": {"project": "toy"},
            "parameter_openapi_schema": schema,
            "enforce_parameter_schema": True,
        }
        # its services write as it starts, and SQLite has one writer: 503 until they have done
        until(lambda: httpx.post(f"{api}/deployments/", json=asked, trust_env=False).is_success, 30)
        yield server
    finally:
        server.stop()


@pytest.fixture
def gateway(ports: Ports, settings: Settings, environ: dict[str, str]) -> Iterator[Process]:
    file = settings.home / "gateway.toml"
    file.write_text(CONFIG)
    command = [sys.executable, "-m", "homeostat.cli", "gateway", "--config", str(file)]
    started = Process(command, settings.home, environ, f"{ports.urls['gateway']}/health")
    yield started
    assert started.stop() == 0, started.log.read_text()


def send(ports: Ports, identity: str, kind: str = "data.ready") -> httpx.Response:
    body = json.dumps({"type": kind, "data": {}}).encode()
    headers = sign(identity, int(time.time()), body, KEY)
    return httpx.post(f"{ports.urls['gateway']}/hooks/ci", content=body, headers=headers, trust_env=False, timeout=20)


def runs(ports: Ports, decision: str) -> list[dict[str, object]]:
    """The flow runs that a decision has started."""
    asked = {"flow_runs": {"idempotency_key": {"any_": [f"retrain/toy:{decision}"]}}}
    found = httpx.post(f"{ports.urls['prefect']}/api/flow_runs/filter", json=asked, trust_env=False).json()
    assert isinstance(found, list), found
    return found


def status(ports: Ports, answer: httpx.Response) -> str:
    told = httpx.get(ports.urls["gateway"] + answer.json()["url"], trust_env=False)
    return str(told.json()["status"])


def test_a_hundred_copies_start_one_flow_run(prefect: Process, gateway: Process, ports: Ports) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: send(ports, "same"), range(100)))
    assert {answer.status_code for answer in answers} == {202}
    decision = answers[0].json()["decision"]
    assert {answer.json()["decision"] for answer in answers} == {decision}
    until(lambda: status(ports, answers[0]) == "started", 20, lambda: gateway.log.read_text())
    (run,) = runs(ports, decision)
    assert run["parameters"] == {"project": "toy", "trigger": "webhook"}
    told = httpx.get(f"{ports.urls['gateway']}/decisions/{decision}", trust_env=False).json()
    assert told["flow_run"] == {"id": run["id"], "name": run["name"], "state": "Scheduled"}


def test_a_gateway_that_is_killed_starts_each_run_once(prefect: Process, gateway: Process, ports: Ports) -> None:
    decisions = []
    for number in range(6):
        answers = [send(ports, f"killed-{number}-{one}") for one in range(3)]
        time.sleep(0.02 * number)  # each time at another point of what follows
        gateway.kill()
        gateway.start()
        assert {answer.status_code for answer in answers} == {202}
        decisions += [answer.json()["decision"] for answer in answers]
    until(lambda: all(runs(ports, one) for one in decisions), 30, lambda: gateway.log.read_text())
    time.sleep(1.5)  # as long as it would take to try again
    assert [len(runs(ports, one)) for one in decisions] == [1] * len(decisions)


def test_parameters_that_are_not_the_flows(prefect: Process, gateway: Process, ports: Ports) -> None:
    for kind, said in (("typo", "no parameter 'triger'"), ("wrong", "refuses its parameters")):
        answer = send(ports, kind, kind)
        until(lambda: status(ports, answer) == "refused", 20, lambda: gateway.log.read_text())  # noqa: B023
        told = httpx.get(ports.urls["gateway"] + answer.json()["url"], trust_env=False).json()
        assert said in told["note"], told
        assert runs(ports, answer.json()["decision"]) == []


def test_webhooks_wait_for_prefect(prefect: Process, gateway: Process, ports: Ports) -> None:
    prefect.stop()
    answer = send(ports, "waits")
    assert answer.status_code == 202
    until(lambda: "does not answer" in gateway.log.read_text(), 10)
    assert status(ports, answer) == "accepted"
    prefect.start()
    until(lambda: status(ports, answer) == "started", 40, lambda: gateway.log.read_text())
    assert len(runs(ports, answer.json()["decision"])) == 1


def test_prefect_hears_of_decisions(prefect: Process, gateway: Process, ports: Ports, settings: Settings) -> None:
    until(lambda: "webhooks of: ci, registry; told: prefect" in gateway.log.read_text(), 10)
    time.sleep(1.0)  # a new target begins at the ledger's end
    entry = ControlStore(settings.control_url).record("toy", "retrain", actor="test", reason="of a test")
    asked = {"filter": {"event": {"name": ["homeostat.retraining"]}}}

    def heard() -> list[dict[str, object]]:
        answer = httpx.post(f"{ports.urls['prefect']}/api/events/filter", json=asked, trust_env=False)
        found: list[dict[str, object]] = answer.json()["events"]
        return found

    until(heard, 20, lambda: gateway.log.read_text())
    (event,) = heard()
    assert event["resource"] == {"prefect.resource.id": "homeostat.model.toy", "prefect.resource.name": "toy"}
    assert event["payload"]["sequence"] == entry.sequence  # type: ignore[index]


def test_mlflows_registry_sends_a_webhook(
    prefect: Process, gateway: Process, ports: Ports, settings: Settings, environ: dict[str, str]
) -> None:
    command = commands(ports, settings)["mlflow"]
    mlflow = Process(command, settings.home, environ, f"{ports.urls['mlflow']}/health")
    try:
        client = MlflowClient(ports.urls["mlflow"])
        client.create_webhook(
            "homeostat",
            f"{ports.urls['gateway']}/hooks/registry",
            [
                WebhookEvent(WebhookEntity.REGISTERED_MODEL, WebhookAction.CREATED),
                WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED),
            ],
            secret=ENVIRONMENT["HOMEOSTAT_HOOK_REGISTRY_SECRET"],
        )
        client.create_registered_model("toy")
        run = client.create_run("0").info
        client.create_model_version("toy", f"{run.artifact_uri}/model", run.run_id)
        client.set_registered_model_alias("toy", "please_promote", "1")
        started = re.compile(r"decision (\w+) of registry: flow run")
        until(lambda: len(started.findall(gateway.log.read_text())) == 2, 30, lambda: gateway.log.read_text())
        found = [runs(ports, decision)[0]["parameters"] for decision in started.findall(gateway.log.read_text())]
        asked = {"project": "toy", "trigger": "webhook"}
        assert sorted(found, key=str) == sorted([asked, asked | {"version": 1}], key=str)
    finally:
        mlflow.stop()


def test_slow_and_large_heads(gateway: Process, ports: Ports) -> None:
    """Clients that send no head hold up nobody for longer than it may take, and a large one is refused."""
    # it may be closed before all of it was sent
    with socket.create_connection(("127.0.0.1", ports.gateway), timeout=20) as client, suppress(ConnectionError):
        client.sendall(b"POST /hooks/ci HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
        assert client.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", ports.gateway))) for _ in range(250)]
        for one in slow:
            with suppress(OSError):
                one.sendall(b"POST /hooks/ci HTTP/1.1\r\nHost: x\r\n")
        until(lambda: send(ports, "among slow ones").status_code == 202, HEAD_SECONDS + 10)


def test_the_example_of_the_docs(prefect: Process, gateway: Process, ports: Ports) -> None:
    (example,) = re.findall(r"```sh\n(export HOMEOSTAT_HOOK_CI_SECRET.*?)```", DOCS, flags=re.DOTALL)
    secret, rest = example.split("\n", 1)
    assert "openssl rand" in secret
    script = rest.replace("localhost:8090", f"127.0.0.1:{ports.gateway}")
    environ = os.environ | ENVIRONMENT
    done = subprocess.run(["bash", "-ec", script], env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    decision = json.loads(done.stdout)["decision"]
    until(lambda: runs(ports, decision), 20, lambda: gateway.log.read_text())


def test_without_a_secret_it_does_not_start(settings: Settings, environ: dict[str, str]) -> None:
    file = settings.home / "other.toml"
    file.write_text(CONFIG)
    without = {name: value for name, value in environ.items() if name not in ENVIRONMENT}
    for more in ([], ["--check"]):
        command = [sys.executable, "-m", "homeostat.cli", "gateway", "--config", str(file), *more]
        ended = subprocess.run(command, env=without, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, "HOMEOSTAT_HOOK_CI_SECRET is not set" in ended.stderr) == (1, True), ended.stderr
