"""The operator API of a real server with keys: the page's examples, who may not, and two promotions at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from homeostat.apikeys import FILE, create_key
from homeostat.config import RolloutConfig
from tests.bundles import make_bundle
from tests.challengers import classifier
from tests.conftest import ROOT
from tests.e2e.test_server import Server

pytestmark = pytest.mark.e2e

# it moves by an operator alone
SLOW = RolloutConfig(strategy="shadow+canary", min_seconds=3600.0, bake_seconds=3600.0)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """A key for each scope, there before the server: a worker takes up to a second to see a new one."""
    return {scope: create_key(tmp_path / "home" / FILE, scope, [scope])[0] for scope in ("infer", "operate")}


@pytest.fixture
def served(tmp_path: Path, keys: dict[str, str]) -> Iterator[Server]:
    """Two workers with champion v1 of `digits`; v2 and v3 wait, and are worse."""
    del keys
    home = tmp_path / "home"
    made = Server(home, HOMEOSTAT_WORKERS="2")
    try:
        for version, limit in ((1, None), (2, 0.5), (3, 0.6)):
            graph = classifier(wrong_over=limit)
            made.control.register_bundle(
                make_bundle(home, version, "digits", onnx_bytes=graph, task="classification", rollout=SLOW)
            )
        made.control.promote("digits", 1, expected_generation=0, actor="t", reason="t")
        made.wait(lambda: made.get("/v2/models/digits/ready")[0] == 200)
        yield made
    finally:
        made.process.terminate()
        assert made.process.wait(20) == 0


def test_the_examples_of_the_page_with_a_key_of_the_command(served):
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "rollout.md").read_text(), re.S)
    first, *examples = block.splitlines()
    command = first.removeprefix("export KEY=$(homeostat ").removesuffix(" | head -1)").split()
    done = subprocess.run(
        [sys.executable, "-m", "homeostat.cli", *command],
        env=served.environment, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    key = done.stdout.splitlines()[0]
    url = f"http://127.0.0.1:{served.port}/v1/rollouts"
    time.sleep(1.1)  # a new key is in force within a second, in every worker
    assert httpx.get(url, headers={"X-API-Key": key}, trust_env=False).status_code == 200
    answers = {}
    for example in examples:
        here = example.replace("localhost:8080", f"127.0.0.1:{served.port}").replace("curl -s", "curl -s --max-time 20")
        ran = subprocess.run(["bash", "-c", here], env={"KEY": key}, capture_output=True, text=True, check=True)
        answers[example.split()[2].partition("/v1/")[2]] = json.loads(ran.stdout)
    assert all("error" not in answer for answer in answers.values()), answers
    assert answers["rollouts/digits/start"]["rollout"]["mode"] == "shadow"
    assert answers["rollouts"]["models"]["digits"]["rollout"]["version"] == 2
    assert answers["rollouts/digits/pause"]["rollout"]["paused"] is True
    assert answers["rollouts/digits/promote"]["champion"] == "v2"
    assert answers["rollouts/digits/abort"]["champion"] == "v1"
    entries = served.control.history("digits")
    assert [entry.action for entry in entries[1:]] == ["start", "pause", "resume", "promote", "rollback", "release"]
    identity = key.split("_")[1]
    assert {entry.actor for entry in entries[1:]} == {f"key:{identity}"}
    assert served.control.verify() == len(entries)


def test_who_may_not_and_of_two_promotions_one_is_done(served, keys):
    url = f"http://127.0.0.1:{served.port}"

    def post(action: str, key: str, **order: object) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=20) as client:
            headers = {"Authorization": f"Bearer {key}"}
            return client.post(f"{url}/v1/rollouts/digits/{action}", headers=headers, json=order)

    assert post("nothing", keys["operate"]).status_code == 404
    for _ in range(8):  # whichever worker answers
        refused = post("start", keys["infer"], version=3)
        assert (refused.status_code, "'operate'" in refused.json()["error"]) == (403, True)
        assert post("start", "hs_wrong", version=3).status_code == 401
    generation = post("start", keys["operate"], version=3).json()["generation"]
    with ThreadPoolExecutor(8) as threads:
        sent = [threads.submit(post, "promote", keys["operate"], generation=generation) for _ in range(8)]
        statuses = sorted(one.result().status_code for one in sent)
    assert statuses == [200] + [409] * 7
    with httpx.Client(trust_env=False, headers={"X-API-Key": keys["infer"]}) as client:
        served.wait(lambda: client.get(f"{url}/v2/models/digits/ready").json().get("version") == "3")
    assert post("abort", keys["operate"]).json()["champion"] == "v1"
    again = post("abort", keys["operate"])
    assert (again.status_code, "`homeostat rollout start" in again.json()["error"]) == (409, True)
    assert [entry.action for entry in served.control.history("digits")] == ["promote", "start", "promote", "rollback"]
