"""Looks at live traffic: each goes on from the one before it, once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text

from homeostat.control.windows import MAX_WINDOWS, Standing, Windows
from homeostat.errors import ControlError, LookConflict


def test_a_look_goes_on_from_the_one_before_it(url):
    windows = Windows(url)
    assert windows.standing("toy", 1) == Standing(0, "")
    windows.keep("toy", 1, Standing(0, ""), "2026-01-01", {"rows": 5}, "first")
    windows.keep("toy", 1, windows.standing("toy", 1), "2026-01-02", {"rows": 6}, "second")
    windows.keep("toy", 2, Standing(0, ""), "2026-01-02", {"rows": 7}, "other")
    assert windows.standing("toy", 1) == Standing(2, "second")
    assert windows.standing("toy", 2) == Standing(1, "other")
    assert [(one.sequence, one.end, one.found["rows"]) for one in windows.history("toy", 1)] == [
        (1, "2026-01-01", 5),
        (2, "2026-01-02", 6),
    ]
    assert [one.sequence for one in windows.history("toy", 1, limit=1)] == [2]


def test_the_same_look_twice_is_a_conflict(url):
    windows = Windows(url)
    before = windows.standing("toy", 1)
    windows.keep("toy", 1, before, "2026-01-01", {}, "a")
    with pytest.raises(LookConflict, match="look 1 is the last, not 0"):
        windows.keep("toy", 1, before, "2026-01-01", {}, "b")
    assert windows.standing("toy", 1) == Standing(1, "a")


def test_of_many_looks_at_once_one_is_kept(url):
    windows = Windows(url)
    before = windows.standing("toy", 1)

    def keep(number: int) -> bool:
        try:
            Windows(url, timeout_seconds=30).keep("toy", 1, before, "2026-01-01", {"number": number}, str(number))
        except LookConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(keep, range(8)))
    assert kept.count(True) == 1
    assert windows.standing("toy", 1) == Standing(1, str(kept.index(True)))


def test_old_looks_go(url, monkeypatch):
    monkeypatch.setattr("homeostat.control.windows.MAX_WINDOWS", 3)
    windows = Windows(url)
    for _ in range(5):
        windows.keep("toy", 1, windows.standing("toy", 1), "2026-01-01", {}, "state")
    assert [one.sequence for one in windows.history("toy", 1)] == [3, 4, 5]
    assert MAX_WINDOWS >= 24 * 365


def test_a_look_that_is_not_finite_is_not_kept(url):
    windows = Windows(url)
    with pytest.raises(ValueError, match="not JSON compliant"):
        windows.keep("toy", 1, Standing(0, ""), "2026-01-01", {"value": float("nan")}, "state")
    assert windows.standing("toy", 1) == Standing(0, "")


def test_a_look_that_was_damaged_by_hand_is_named(url):
    windows = Windows(url)
    windows.keep("toy", 1, Standing(0, ""), "2026-01-01", {}, "state")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE \"window\" SET found = 'x'"))
    engine.dispose()
    with pytest.raises(ControlError, match="a look at toy v1 is not JSON"):
        windows.history("toy", 1)
