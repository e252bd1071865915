"""From a webhook to its flow run, and from an event to its: `python -m benchmarks.webhooks --help`.

A real Prefect server and the real gateway, each in its process; nobody works, so that a flow run is made and not
begun. A webhook's way: signature, replay store and 202, then Prefect. An event's way: Prefect's API, its automation.
Times are from before the request to the flow run's `created`, on one clock. Each alone, then ten at once: the next
ones are sent when these have their flow runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np

from deployments.places import Ports, environment
from deployments.stack import commands
from homeostat.gateway.signatures import sign
from homeostat.settings import load_settings

KEY = b"a key that has 24 bytes."
SECRET = "whsec_YSBrZXkgdGhhdCBoYXMgMjQgYnl0ZXMu"
CONFIG = """
[sources.bench]
form = "standard"
per_minute = 60000
[[sources.bench.rules]]
deployment = "bench/bench"
take = {number = "data.number"}
"""
WAIT = 120.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while True:
        with suppress(httpx.TransportError):
            if true():
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not after {WAIT:g} s")
        time.sleep(0.1)


@contextmanager
def running(command: list[str], environ: dict[str, str], probe: str) -> Iterator[None]:
    """Run a server until the block ends."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            _wait(lambda: httpx.get(probe, trust_env=False).is_success, command[0])
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Bench:
    """Sends, and reads when the flow runs were made."""

    def __init__(self, client: httpx.Client, api: str, gateway: str) -> None:
        self._client, self._api, self._gateway = client, api, gateway
        self._sent: dict[str, float] = {}

    def prepare(self) -> None:
        """Make the deployment, and the automation that an event starts it by."""
        flow = self._post("/flows/", {"name": "bench"})["id"]
        schema = {"type": "object", "properties": {"number": {"type": "string"}}}
        asked = {"name": "bench", "flow_id": flow, "parameter_openapi_schema": schema}
        deployment = self._post("/deployments/", asked)["id"]
        number = {"__prefect_kind": "jinja", "template": "{{ event.payload.number }}"}
        trigger = {"type": "event", "posture": "Reactive", "threshold": 1, "within": 0}
        action = {"type": "run-deployment", "source": "selected", "deployment_id": deployment}
        self._post(
            "/automations/",
            {
                "name": "bench",
                "trigger": trigger | {"expect": ["bench.event"], "for_each": ["prefect.resource.id"]},
                "actions": [action | {"parameters": {"number": number}}],
            },
        )

    def _post(self, path: str, body: object) -> dict[str, str]:
        answer = None

        def posted() -> bool:
            nonlocal answer
            answer = self._client.post(f"{self._api}{path}", json=body)
            return answer.status_code != 503  # SQLite has one writer, and Prefect's services write as they start

        _wait(posted, path)
        assert answer is not None
        found: dict[str, str] = answer.raise_for_status().json()
        return found

    def webhook(self, number: str) -> float:
        """Send one webhook; return the milliseconds to its 202."""
        body = json.dumps({"type": "bench", "data": {"number": number}}).encode()
        self._sent[number] = time.time()
        headers = sign(number, int(time.time()), body, KEY)
        self._client.post(f"{self._gateway}/hooks/bench", content=body, headers=headers).raise_for_status()
        return 1e3 * (time.time() - self._sent[number])

    def event(self, number: str) -> float:
        """Send one event; return the milliseconds to Prefect's answer."""
        self._sent[number] = time.time()
        event = {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": "bench.event",
            "resource": {"prefect.resource.id": f"bench.{number}"},
            "payload": {"number": number},
        }
        self._client.post(f"{self._api}/events", json=[event]).raise_for_status()
        return 1e3 * (time.time() - self._sent[number])

    def delays(self, numbers: Sequence[str]) -> list[float]:
        """Return the milliseconds from each sending to its flow run; each must be there once."""
        made: dict[str, list[float]] = {}

        def all_there() -> bool:
            made.clear()
            page = {"limit": 50, "sort": "EXPECTED_START_TIME_DESC"}
            for run in self._client.post(f"{self._api}/flow_runs/filter", json=page).raise_for_status().json():
                created = datetime.fromisoformat(run["created"]).timestamp()
                made.setdefault(run["parameters"].get("number", ""), []).append(created)
            return all(number in made for number in numbers)

        _wait(all_there, "flow runs")
        if any(len(made[number]) != 1 for number in numbers):
            raise SystemExit("a webhook or an event has started two flow runs")
        return [1e3 * (made[number][0] - self._sent[number]) for number in numbers]


def _said(name: str, values: Sequence[float]) -> str:
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return f"| {name} | {len(values)} | {p50:.0f} | {p99:.0f} | {max(values):.0f} |"


def run(count: int) -> Iterator[str]:
    """Yield the lines of the report."""
    with tempfile.TemporaryDirectory(prefix="homeostat-bench-") as folder:
        home = Path(folder)
        (home / "prefect").mkdir()
        (home / "gateway.toml").write_text(CONFIG)
        settings, ports = load_settings(home=home), Ports(*(_free_port() for _ in range(5)))
        environ = environment(ports, settings) | {"HOMEOSTAT_HOOK_BENCH_SECRET": SECRET}
        api, gateway = f"{ports.urls['prefect']}/api", ports.urls["gateway"]
        command = [sys.executable, "-m", "homeostat.cli", "gateway", "--config", str(home / "gateway.toml")]
        with (
            running(commands(ports, settings)["prefect"], environ, f"{api}/health"),
            running(command, environ, f"{gateway}/health"),
            httpx.Client(timeout=30, trust_env=False) as client,
        ):
            bench = Bench(client, api, gateway)
            bench.prepare()
            time.sleep(10)  # Prefect loads automations, and gets its start behind it
            yield "| | n | p50, ms | p99, ms | longest, ms |\n|---|---:|---:|---:|---:|"
            for name, send in (("webhook", bench.webhook), ("event", bench.event)):
                for at_once in (1, 10):
                    numbers = [f"{name}-{at_once}-{number}" for number in range(count)]
                    batches = [numbers[first : first + at_once] for first in range(0, count, at_once)]
                    answered, delays = [], []
                    for batch in batches:
                        with ThreadPoolExecutor(at_once) as pool:
                            answered += list(pool.map(send, batch))
                        delays += bench.delays(batch)
                    how = f"{name}, {'alone' if at_once == 1 else f'{at_once} at once'}"
                    yield _said(f"{how}: to the answer", answered)
                    yield _said(f"{how}: to the flow run", delays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="of each kind  [default: 200]")
    parser.add_argument("--quick", action="store_true", help="20 of each kind")
    options = parser.parse_args()
    for line in run(20 if options.quick else options.count):
        print(line, flush=True)


if __name__ == "__main__":
    main()
