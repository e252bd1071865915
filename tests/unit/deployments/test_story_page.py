"""The page of `make run`: what it shows of answers, decisions and stages, and that it needs nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree as ET

from deployments.page import make_page
from deployments.timeline import Row
from deployments.traffic import Answered
from homeostat.records import LedgerEntry

BORN = datetime(2026, 1, 1, tzinfo=UTC)
FAULTS = {
    "changed world": {"caught_by": "labels", "detection_seconds": 18.5, "recovery_seconds": 61.2},
    "bad version": {
        "version": 3,
        "caught_by": "errors",
        "detection_seconds": 0.9,
        "rollback_seconds": 0.03,
        "wrong_answers": 17,
    },
}
RECORD: dict[str, Any] = {
    "project": "digits",
    "seconds": 200.0,
    "requests": {"sent": 40, "failed": 0, "p50_ms": 1.0, "p99_ms": 2.0},
    "faults": FAULTS,
}


def entry(number: int, action: str, reason: str, **evidence: object) -> LedgerEntry:
    time = (BORN + timedelta(seconds=3 * number)).isoformat()
    return LedgerEntry(number, time, "digits", action, "cli:uid 0", reason, number, number, None, evidence, "", "")


def answers() -> list[Answered]:
    start = BORN.timestamp()
    return [Answered(start + 0.5 * n, 1 + n // 20, float(n % 4 == 0), 1.0) for n in range(40)]


def test_it_says_what_happened_and_stands_alone() -> None:
    events = [
        entry(1, "register", "not shown"),
        entry(2, "drift", "everything moved", conclusion="harm"),
        entry(3, "abort", "errors: <b>17</b> of 17"),
    ]
    rows = [Row("a model is born", "train", 9.5, "20 epochs"), Row("it ends", "rollback", 0.1, "v2 -> v1")]
    page = make_page(RECORD, rows, answers(), events, "share of wrong answers")
    assert not re.search(r"""(src|href)=["']?(http|//)""", page)
    assert "script" not in page
    assert "17&lt;" not in page.replace("&lt;b&gt;17&lt;/b&gt;", "")
    assert "&lt;b&gt;17" in page
    assert "not shown" not in page
    for words in ("found 18.5 s after it began, on labels; a better champion 61 s later", "by the guard of errors"):
        assert words in page
    assert page.count('class="alarm"') == 2
    svg = ET.fromstring(re.findall(r"<svg.*</svg>", page, re.DOTALL)[0])
    drawn = " ".join("".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text"))
    for words in ("v1", "v2", "share of wrong answers", "answers a second"):
        assert words in drawn
    assert len(page) < 200_000


def test_points_are_means_of_two_seconds() -> None:
    from deployments.page import binned

    start = BORN.timestamp()
    given = [Answered(start + at, version, loss, 1.0) for at, version, loss in [(0, 1, 1), (1, 1, 0), (5, 2, 0.5)]]
    seen = binned(given, start, 6.0)
    assert seen[1][0].tolist() == [2, 0, 0, 0]
    assert seen[1][1].tolist() == [1, 0, 0, 0]
    assert (seen[2][0].tolist(), seen[2][1].tolist()) == ([0, 0, 1, 0], [0, 0, 0.5, 0])
