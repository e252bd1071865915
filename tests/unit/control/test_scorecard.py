"""A model's figures from its ledger, and the command that shows them."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from homeostat.cli import main
from homeostat.control.scorecard import Spread, make_scorecard
from homeostat.control.store import ControlStore
from homeostat.records import LedgerEntry
from tests.bundles import make_bundle

START = datetime(2026, 3, 2, tzinfo=UTC)


def entry(hours: float, action: str, version: int = 1, **evidence) -> LedgerEntry:
    time = (START + timedelta(hours=hours)).isoformat()
    return LedgerEntry(1, time, "toy", action, "t", "t", 1, version, "a" * 64, evidence, "", "")


def look(hours: float, conclusion: str, since: float | None = None) -> LedgerEntry:
    begun = "" if since is None else (START + timedelta(hours=since)).isoformat()
    return entry(hours, "drift", conclusion=conclusion, rows=200, labelled=150, harm_since=begun)


LIFE = [
    entry(0, "challenger"),
    entry(1, "promote"),
    look(24, "healthy"),
    look(48, "drift"),
    entry(49, "verdict", kind="hold"),
    look(72, "harm", since=66),
    look(73, "harm", since=66),
    entry(73.5, "retrain", kind="retrain"),
    entry(74, "challenger", 2),
    entry(76, "promote", 2),
    entry(80, "rollback", 1),
    look(96, "harm"),
    entry(100, "promote", 3),
    look(120, "harm", since=118),
]


def test_the_figures_of_a_life():
    found = make_scorecard("toy", LIFE, START + timedelta(days=7))
    assert (found.days, found.promotions, found.promotions_per_week, found.taken_back) == (7, 3, 3, 1)
    assert found.rollback == Spread(1, 4 * 3600, 4 * 3600)
    assert found.detection == Spread(2, 4 * 3600, 6 * 3600), "harm after 6 and 2 hours; the third has no beginning"
    assert found.recovery == Spread(2, 4 * 3600, 4 * 3600)
    assert found.open_harm == 48 * 3600
    assert (found.retrainings, found.held, found.looks, found.harmless_drift) == (1, 1, 6, 1)
    assert found.coverage == 0.75
    assert found.champion_age == 68 * 3600


def test_a_part_of_it_and_nothing():
    found = make_scorecard("toy", LIFE, START + timedelta(days=7), START + timedelta(hours=98))
    assert (found.promotions, found.looks, found.taken_back) == (1, 1, 0)
    assert found.champion_age == 68 * 3600
    none = make_scorecard("toy", [], START)
    assert (none.promotions_per_week, none.coverage, none.champion_age, none.recovery) == (None, None, None, Spread(0))


@pytest.mark.parametrize("since", ["soon", None, "2026-13-01", "nan"])
def test_a_beginning_that_is_no_time_is_left_out(since):
    harm = entry(5, "drift", conclusion="harm", harm_since=since)
    assert make_scorecard("toy", [harm], START + timedelta(days=2)).detection == Spread(0)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path))
    monkeypatch.delenv("HOMEOSTAT_CONTROL_URL", raising=False)
    nothing = CliRunner().invoke(main, ["scorecard"])
    assert nothing.exit_code == 1
    assert "there is no control store" in nothing.output
    store = ControlStore(f"sqlite:///{tmp_path}/control.db", clock=lambda: datetime.now(UTC) - timedelta(days=3))
    said = {"actor": "t", "reason": "t", "evidence": {}}
    store.set_challenger("toy", make_bundle(tmp_path, 1), expected_generation=0, **said)
    store.promote("toy", 1, expected_generation=1, **said)
    shown = CliRunner().invoke(main, ["scorecard"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert "1, 2.3 a week" in shown.output
    assert "3 days" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    values = json.loads(CliRunner().invoke(main, ["scorecard", "toy", "--json"]).output)
    assert values["toy"]["promotions"] == 1
    figures = make_scorecard("toy", store.history("toy"), datetime.now(UTC)).metrics()
    assert figures["scorecard/promotions"] == 1.0
    assert figures["scorecard/champion_age_seconds"] == pytest.approx(3 * 86_400, abs=60)
    assert "scorecard/recovery_median_seconds" not in figures, "nothing was seen to measure"
    late = CliRunner().invoke(main, ["scorecard", "--since", "2999-01-01"])
    assert "has not come yet" in late.output
    unknown = CliRunner().invoke(main, ["scorecard", "other"])
    assert unknown.exit_code != 0
    assert "toy" in unknown.output
