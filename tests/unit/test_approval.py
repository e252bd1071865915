"""Approval: a decided promotion waits for a yes, which is good for some hours, and for what it was asked for alone."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flows.promote import promote
from homeostat.approval import ASKED, approve, ask_approval, find_waiting, reject
from homeostat.cli import main
from homeostat.config import RolloutConfig
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.errors import BundleInvalid, Conflict, NotFound, Quarantined
from homeostat.gateway.notices import event_of
from tests.bundles import linear, make_bundle
from tests.conftest import ROOT

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
WHY = Why("flow_run 1", "it is better", {"verdict": "promote", "comparison": {"rows": 500}})
DIRECT = RolloutConfig(approval_hours=24)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path))
    monkeypatch.delenv("HOMEOSTAT_CONTROL_URL", raising=False)
    return tmp_path


@pytest.fixture
def store(home: Path) -> ControlStore:
    return ControlStore(f"sqlite:///{home}/control.db")


@pytest.fixture
def challenge(store: ControlStore, home: Path) -> Callable[..., None]:
    """Make version 1 champion, if there is none, and another one the challenger that waits."""

    def begin(version: int = 2, rollout: RolloutConfig = DIRECT, now: datetime = NOW) -> None:
        for one in (1, version):
            bundle = make_bundle(home, one, onnx_bytes=linear(float(one)), rollout=rollout)
            generation = store.generation("toy")
            row = store.set_challenger("toy", bundle, expected_generation=generation, actor="t", reason="t")
            if row.champion is None:
                store.promote("toy", 1, expected_generation=row.generation, actor="t", reason="t")
        ask_approval(store, bundle, rollout.approval_hours, WHY, store.generation("toy"), now)

    return begin


def test_a_yes_promotes_and_says_on_what(store: ControlStore, home: Path, challenge) -> None:
    challenge()
    waiting = find_waiting(store, "toy")
    assert waiting is not None
    assert (waiting.bundle.version, waiting.until) == (2, NOW + timedelta(hours=24))
    assert store.row("toy").champion.version == 1
    row = approve(store, home, "toy", 2, "ann", "agreed", NOW + timedelta(hours=23))
    assert row.champion.version == 2
    entry = store.history("toy")[-1]
    assert (entry.action, entry.actor, entry.reason) == ("promote", "ann", "approved: agreed")
    assert entry.evidence == {"verdict": "promote", "comparison": {"rows": 500}, "approval": waiting.sequence}
    assert find_waiting(store, "toy") is None
    with pytest.raises(NotFound, match="no version waits"):
        approve(store, home, "toy", 2, "ann", "again", NOW)


def test_a_yes_begins_the_canary_of_the_signed_bundle(store: ControlStore, home: Path, challenge) -> None:
    challenge(rollout=RolloutConfig(approval_hours=1, strategy="canary", steps=(0.1, 0.5)))
    row = approve(store, home, "toy", None, "ann", "agreed", NOW)
    assert (row.mode, row.weight, row.champion.version) == ("canary", 0.1, 1)
    assert store.history("toy")[-1].evidence["verdict"] == "promote"
    assert find_waiting(store, "toy") is None


def test_it_is_asked_once_as_long_as_it_waits(store: ControlStore, home: Path, challenge) -> None:
    challenge()
    challenge(now=NOW + timedelta(hours=1))
    assert [entry.action for entry in store.history("toy")].count(ASKED) == 1
    challenge(now=NOW + timedelta(hours=25))
    assert find_waiting(store, "toy").until == NOW + timedelta(hours=49)
    assert event_of(store.history("toy")[-1]) == "approval"


def test_a_yes_that_comes_too_late(store: ControlStore, home: Path, challenge) -> None:
    challenge()
    before = store.history("toy")
    with pytest.raises(Conflict, match="until 2026-11-28 12:00 UTC"):
        approve(store, home, "toy", 2, "ann", "late", NOW + timedelta(hours=24))
    assert store.history("toy") == before


def test_a_no_takes_the_challenger_out(store: ControlStore, home: Path, challenge) -> None:
    challenge()
    row = reject(store, "toy", None, "bob", "not before the holidays")
    assert (row.champion.version, row.challenger) == (1, None)
    assert store.history("toy")[-1].reason == "rejected: not before the holidays"
    with pytest.raises(NotFound):
        approve(store, home, "toy", 2, "ann", "but", NOW)
    challenge()
    assert find_waiting(store, "toy").bundle.version == 2, "it may come again"


def test_a_yes_is_for_what_was_asked(store: ControlStore, home: Path, challenge) -> None:
    challenge()
    with pytest.raises(NotFound, match="v2 waits, not v3"):
        approve(store, home, "toy", 3, "ann", "agreed", NOW)
    challenge(version=3)
    with pytest.raises(NotFound, match="v3 waits, not v2"):
        approve(store, home, "toy", 2, "ann", "agreed", NOW)


@pytest.mark.parametrize("change", ["promote", "rollback"])
def test_another_champion_ends_the_waiting(store: ControlStore, home: Path, challenge, change: str) -> None:
    challenge()
    generation = store.generation("toy")
    if change == "promote":
        bundle = make_bundle(home, 3, onnx_bytes=linear(3.0))
        store.register_bundle(bundle)
        store.promote("toy", 3, expected_generation=generation, actor="t", reason="t")
    else:
        store.promote("toy", 2, expected_generation=generation, actor="t", reason="t")
        store.rollback("toy", expected_generation=generation + 1, actor="t", reason="t")
    assert find_waiting(store, "toy") is None
    with pytest.raises(NotFound):
        approve(store, home, "toy", 2, "ann", "agreed", NOW)


def test_a_bundle_that_was_changed_is_not_promoted(store: ControlStore, home: Path, challenge) -> None:
    challenge()
    manifest = Path(store.row("toy").challenger.url.removeprefix("file://")) / "manifest.json"
    before = manifest.read_bytes()
    manifest.write_bytes(before.replace(b"direct", b"canary"))
    assert manifest.read_bytes() != before
    with pytest.raises(BundleInvalid):
        approve(store, home, "toy", 2, "ann", "agreed", NOW)
    assert store.row("toy").champion.version == 1


def test_of_a_yes_and_a_no_at_once_one_holds(store: ControlStore, home: Path, challenge) -> None:
    from concurrent.futures import ThreadPoolExecutor

    challenge()

    def say(number: int) -> str:
        try:
            if number % 2:
                reject(store, "toy", 2, "bob", "no")
            else:
                approve(store, home, "toy", 2, "ann", "yes", NOW)
        except (Conflict, NotFound, Quarantined):
            return "lost"
        return "no" if number % 2 else "yes"

    with ThreadPoolExecutor(8) as pool:
        said = [one for one in pool.map(say, range(16)) if one != "lost"]
    row = store.row("toy")
    assert set(said) in ({"yes"}, {"no"})
    assert (row.champion.version, row.challenger) == ((2, None) if said[0] == "yes" else (1, None))
    assert [entry.action for entry in store.history("toy")].count("promote") == (2 if said[0] == "yes" else 1)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_the_commands(store: ControlStore, home: Path, challenge) -> None:
    challenge(now=datetime.now(UTC))
    shown = " ".join(run("status").output.split())
    assert "promote: it is better; waits for approval until" in shown
    answer = run("approve", "toy", "v3")
    assert (answer.exit_code, "v2 waits, not v3" in answer.output) == (1, True)
    answer = run("approve", "toy", "--reason", "agreed with the team")
    assert answer.exit_code == 0, answer.output
    assert "toy: champion v1 -> v2" in answer.output
    answer = run("reject", "toy")
    assert (answer.exit_code, "no version waits for approval" in answer.output) == (1, True)


def test_the_commands_of_the_page(home: Path) -> None:
    _, block = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "rollout.md").read_text(), flags=re.DOTALL)
    yes, no, deployment = [shlex.split(line, comments=True) for line in block.splitlines()]
    for words in (yes, no):
        assert "no model 'digits'" in run(*words[1:]).output
    given = dict(one.split("=") for one in deployment[deployment.index("--param") :] if "=" in one)
    assert set(given) <= set(inspect.signature(promote.fn).parameters)


def test_a_canary_that_is_approved_by_the_command(store: ControlStore, home: Path, challenge) -> None:
    challenge(rollout=RolloutConfig(approval_hours=1, strategy="canary"), now=datetime.now(UTC))
    assert "toy: canary of v2 has begun" in run("approve", "toy").output


def test_a_no_by_the_command(store: ControlStore, home: Path, challenge) -> None:
    challenge(now=datetime.now(UTC))
    assert "toy: v1 stays champion" in run("reject", "toy", "2").output
