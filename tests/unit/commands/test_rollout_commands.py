"""`homeostat rollout`: the commands of its page, run in their order, and what each says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from homeostat.cli import main
from homeostat.config import RolloutConfig, load_config
from homeostat.control.store import ControlStore
from homeostat.guards import Evidence, describe, judge
from homeostat.serving.rollout.journal import Journal
from homeostat.settings import load_settings
from tests.bundles import make_bundle
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "rollout.md").read_text()
CONFIG = RolloutConfig(strategy="shadow+canary", min_seconds=0.0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEOSTAT_ROOT", str(tmp_path))
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path / "var"))
    for name in ("CONTROL_URL", "MLFLOW_URL"):
        monkeypatch.delenv(f"HOMEOSTAT_{name}", raising=False)
    monkeypatch.setenv("USER", "ada")
    return tmp_path / "var"


@pytest.fixture
def store(home: Path) -> ControlStore:
    store = ControlStore(load_settings().control_url)
    for version in (1, 2):
        store.register_bundle(make_bundle(home, version, "digits", rollout=CONFIG))
    store.promote("digits", 1, expected_generation=0, actor="t", reason="t")
    return store


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "80"})


def good(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80 or "--json" in arguments
    return result.stdout


def test_the_commands_of_the_page_run_in_their_order(store):
    block, _ = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert " ".join(line[2] for line in lines) == "start status status pause resume promote abort release"
    said = [good(*line[1:]) for line in lines]
    assert said[0] == "digits: shadow of v2 (generation 2)\n"
    assert said[1].startswith("digits: shadow of v2, since ")
    found = json.loads(said[2])
    assert (found["models"]["digits"]["rollout"]["mode"], found["quarantine"]) == ("shadow", [])
    assert [line.split(" (")[0] for line in (said[3].strip(), said[4].strip())] == [
        "digits: shadow of v2, paused",
        "digits: shadow of v2",
    ]
    assert said[5] == "digits: bake of v2, 95% of traffic (generation 5)\n"
    assert said[6] == "digits: champion v1 has all traffic (generation 6)\n"
    assert said[7] == "digits: v2 is out of quarantine\n"
    entries = store.history("digits")
    assert " ".join(entry.action for entry in entries) == "promote start pause resume promote rollback release"
    assert {entry.actor for entry in entries[1:]} == {"cli:ada"}
    assert (entries[2].reason, entries[5].reason) == ("release freeze", "wrong on Mondays")
    assert store.verify() == len(entries)


def test_the_settings_of_the_page_are_valid(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    path = tmp_path / "project.toml"
    expected = [RolloutConfig(strategy="shadow+canary"), RolloutConfig(approval_hours=48)]
    for block, rollout in zip(blocks, expected, strict=True):
        path.write_text(f'name = "digits"\nproject = "a.b:C"\ntask = "classification"\n{block}')
        assert load_config(path).rollout == rollout


def test_status_shows_what_the_server_of_this_home_said_last(store, home):
    good("rollout", "start", "digits", "2")
    assert "no evidence from a server of this HOMEOSTAT_HOME yet" in good("rollout", "status", "digits")
    row, evidence = store.row("digits"), Evidence()
    for _ in range(30):
        evidence.count_pair("errors", control=False, candidate=True)
    found = describe(judge(evidence, CONFIG, "shadow", "classification"))
    said = {"guards": found, "requests": 30, "dropped": 2, "next": "errors: it fails", "time": "2026-11-26T03:00:00"}
    Journal(home / "serving", 0).keep(row, row.challenger, evidence, said, running=True)
    text = good("rollout", "status", "digits")
    assert re.search(r"errors\* +│ fail", text)
    assert "30 requests in this step; errors: it fails" in text
    shown = json.loads(good("rollout", "status", "digits", "--json"))["models"]["digits"]
    assert shown["evidence"]["guards"]["errors"]["outcome"] == "fail"
    assert shown["rollout"]["required"] == ["errors", "latency", "disagreement"]


def test_status_without_a_rollout(store, home):
    assert good("rollout", "status") == "digits: no rollout in progress, champion v1 (generation 1)\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("start", "digits"), "no challenger; name a version"),
        (("start", "digits", "1"), "v1 is champion already"),
        (("start", "digits", "9"), "no bundle of version 9"),
        (("status", "nothing"), "no model 'nothing'"),
        (("pause", "digits"), "no rollout is in progress"),
        (("resume", "digits"), "no rollout is in progress"),
        (("promote", "digits"), "no rollout is in progress"),
        (("abort", "digits"), "no rollout is in progress"),
        (("release", "digits", "9"), "no bundle of version 9"),
    ],
)
def test_what_cannot_be_done_is_one_message(store, arguments, message):
    result = run("rollout", *arguments)
    assert (result.exit_code, message in result.stderr) == (1, True), result.output


def test_a_damaged_bundle_is_not_rolled_out(store):
    path = Path(store.bundle("digits", 2).url.removeprefix("file://"))
    next(path.glob("*.onnx")).write_bytes(b"nothing")
    result = run("rollout", "start", "digits", "2")
    assert result.exit_code == 1
    assert store.row("digits").mode == "live"
