"""The page of a window: each conclusion in words, safe whatever the names, small, and well-formed."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from homeostat.errors import DataInvalid
from homeostat.monitoring.document import read_monitoring, write_monitoring
from homeostat.monitoring.page import Bins, bin_columns, window_page
from homeostat.monitoring.page.charts import histogram, nice
from homeostat.monitoring.page.words import clip, count, detector, odds, span
from homeostat.records import Fairness, Gap, GroupFigures, Interval, LabelIssue, LabelQuality
from tests.windows import CASES, HOSTILE, Case, column, harm, harmful, harmless, healthy, look, tiny, wide

VOID = {"meta", "br", "img", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags are balanced, and keeps elements, attributes and text."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(case: Case) -> bytes:
    return window_page(case.window, case.history, case.decisions, bins=case.bins)


def words_of(case: Case) -> str:
    return Outline(page_of(case)).words


@pytest.mark.parametrize("name", CASES)
def test_every_page_is_well_formed_self_contained_and_says_its_conclusion(name):
    case = CASES[name]()
    page = page_of(case)
    outline = Outline(page)
    assert not {"script", "img", "link", "iframe", "object", "form", "a"} & set(outline.tags)
    assert not [a for a in outline.attributes if a[1] in {"style", "src", "href"} or a[1].startswith("on")]
    assert not re.search(rb"url\(|@import|nan\b|none,none", page.split(b"<style>")[0] + page.split(b"</style>")[-1])
    for tag in ("html", "head", "body", "main", "h1", "title"):
        assert outline.tags.count(tag) == 1
    assert outline.tags.count("svg") == sum(name == "aria-label" and bool(v) for tag, name, v in outline.attributes)
    first = {"healthy": "Healthy", "drift": "Drift", "harm": "Harm", "inconclusive": "Inconclusive"}
    headline = re.search(rb"<h1.*?</h1>", page, re.DOTALL)
    assert headline is not None
    assert first[case.window.conclusion].encode() in headline[0]
    for question in ("What changed?", "Does it hurt?", "Since when?", "How sure?", "What was done?"):
        assert question in outline.words


def test_the_policy_allows_nothing_but_our_own_style():
    page = page_of(healthy()).decode()
    style = page.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert f'content="{policy}"' in page


def test_a_healthy_window():
    said = words_of(healthy())
    assert "Healthy: nothing changed, and labels show no harm." in said
    assert "Nothing: none of 9 columns is over its alarm line." in said
    assert "Without harm, the detector alarms once in 40,000 labels on average, at most. Small harm" in said
    assert "Nothing since this window began; before: v3 was promoted" in said


def test_drift_without_harm_says_which_columns_since_when_and_what_was_done():
    said = words_of(harmless())
    assert "Drift without harm: 2 of 9 columns changed." in said
    assert "2 of 9 columns: ward, bmi." in said, "the severest first"
    assert "Labels say no: loss 0.09 (0.07 to 0.11), tolerated 0.12" in said
    assert "Drift since the window that began 9 Mar 2026 00:00 UTC." in said
    assert "Evidence of change in ward: 18,000:1" in said
    assert "Verdict: hold, 11 Mar 2026 01:00 UTC: drift does no harm" in said


def test_single_requests_are_listed_with_what_is_unusual_of_them():
    said = words_of(healthy())
    assert "1 of 2,150 requests' rows are unlike the reference" in said
    assert "request visit-17 row 0: age 412, mostly 19 to 93; ward Z, 0.0% of the reference (p = 0.00027)" in said
    assert "Fewer than 6 among them may go unnamed" in said


def test_groups_of_people_stand_beside_each_other():
    error = Interval(0.1, 0.08, 0.12)
    gap = Gap("error", "", "m", "<f>", Interval(0.1, 0.02, 0.2), "over")
    groups = (GroupFigures("<f>", 3000, 280, {"error": error}), GroupFigures("m", 200, 0))
    case = healthy()
    fairness = (Fairness("sex", groups, (gap,), ("4 rows name no sex",)), Fairness("age", notes=("nothing",)))
    said = words_of(replace(case, window=replace(case.window, fairness=fairness)))
    assert "sex group rows labelled error <f> 3,000 280 0.1 (0.08 to 0.12) m 200 0" in said
    assert "Error: 0.1 (0.02 to 0.2) between m and <f>, over gate.max_group_gap." in said
    assert "4 rows name no sex" in said


def test_labels_that_are_probably_wrong():
    issue = LabelIssue("request r7 row 0", "<cat>", "dog", 0.97)
    found = LabelQuality(400, 40, Interval(0.1, 0.08, 0.13), {}, (issue,), usual=Interval(0.02, 0.01, 0.03))
    case = healthy()
    said = words_of(replace(case, window=replace(case.window, label_quality=found)))
    assert "10.0% (8.0% to 13.0%) of 400; 2.0% of the reference's. Either the labels have become worse, or" in said
    assert "request r7 row 0: labelled <cat>, dog by 97%" in said
    unknown = LabelQuality(40, reason="40 labelled rows of 2 classes")
    assert "40 labelled rows of 2 classes" in words_of(
        replace(case, window=replace(case.window, label_quality=unknown))
    )


def test_few_labels_do_not_say_that_nothing_hurts():
    case = healthy()
    loss = Interval(0.05, 0.001, 0.6)
    few = replace(case.window, harm=tuple(replace(one, loss=loss, labels=2) for one in case.window.harm))
    said = words_of(replace(case, window=few))
    assert "No sign of it so far, but too few labels to rule it out: loss 0.05 (0.001 to 0.6)" in said
    assert "Labels say no" not in said


def test_harm_says_how_much_where_and_since_when():
    said = words_of(harmful())
    assert "Harm: v3 answers worse than is tolerated." in said
    assert "Yes: loss 0.221 (0.201 to 0.241), tolerated 0.12." in said
    assert "Harm since 8 Mar 2026 06:00 UTC, most likely." in said
    assert said.index("ward=D") < said.index("ward=C") < said.index("ward=B"), "the worst slice first"
    assert "tolerated 0.13; detector 160,000 of 40,000" in said
    assert "Rolled back to v2" in said
    assert "not shown: over 8 mature windows no nearer" in said
    assert "worse: calibration error 0.090" in said


def test_the_contract_and_the_replay():
    said = words_of(harmful())
    assert "1 rule of the contract broken. 7 of 100 replayed requests differ from what was served." in said
    assert "age: expected 0 to 110: 430 rows (20.0%, allowed 5.0%): row 3 is 130.0, row 9 is 997.0 broken" in said
    assert "ward: expected one of A, B, C, D: 12 rows (0.6%, allowed 5.0%): row 41 is E 7 of" in said, "not broken"
    assert "request r-81 row 0: feature stay_days was 3.0, replayed 2.5" in said
    calm = words_of(healthy())
    assert "No row breaks a rule of the version's contract." in calm
    assert "100 requests replayed: equal features and equal answers." in calm
    assert "Contract and replay" not in words_of(Case(look(1, skew=None)))


def test_harm_in_a_slice_alone_and_harm_without_an_alarm_that_stands():
    hurt = replace(harm("site=a", 0.3, 0.1, 2.0), harmed=True, p_value=1e-6)
    said = words_of(Case(look(1, conclusion="harm", harm=(harm(), hurt, harm("site=b")))))
    assert "Harm in 1 of 2 slices: site=a." in said
    assert "Yes: loss 0.3 (0.28 to 0.32) on site=a, tolerated 0.1." in said
    assert "Harm: in this window's labels." in said
    assert "This window's labels alone are worse than the reference's (p = 1e-06)." in said


def test_without_labels_nothing_is_claimed_of_harm():
    said = words_of(Case(look(1, harm=())))
    assert "Healthy: nothing changed. " in said
    assert "Unknown: no label has been counted. Estimated accuracy 0.905." in said
    drifted = look(1, harm=(), drifted=True, conclusion="drift", columns=(column("a", 9, 1e-6, True),))
    assert "Drift: 1 of 1 columns changed; no label tells yet whether it hurts." in words_of(Case(drifted))


def test_an_inconclusive_window_says_why():
    said = words_of(tiny())
    assert "Inconclusive: window of 14 rows is under monitor.min_rows = 100: not tested." in said
    assert "Too little to tell." in said
    assert "2 unreadable" in said


def test_drift_in_all_of_the_history_is_older_than_it():
    drifting = [look(i, drifted=True, conclusion="drift") for i in (1, 2, 3)]
    assert "Drift since at least the window that began 1 Mar 2026" in words_of(Case(drifting[-1], tuple(drifting[:2])))


def test_other_versions_and_later_windows_are_no_history():
    later, other = look(12, harm=(harm(loss=0.77),)), look(5, version=2, harm=(harm(loss=0.66),))
    page = window_page(look(10), (other, later)).decode()
    assert "Loss of each look&#39;s labels: 1 values" in page


def test_names_from_data_stay_text():
    page = page_of(CASES["hostile"]())
    said = Outline(page).words
    for name in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}{% raw %}", "&lt;b&gt;"):
        assert name in said
    assert "a_very_long_name" in said
    assert "a_very_long_name_of_a_column_that_somebody_made_by_joining_many_tables_" * 3 not in said
    shown = page.decode()
    assert not {"\u202e", "\x00", "\x1b", "\ud800"} & set(shown)


def test_a_page_of_many_columns_and_windows_is_small():
    assert len(page_of(wide(columns=60, windows=9))) < 200_000
    big = wide(columns=200, windows=100, slices=200)
    big = replace(big, window=replace(big.window, notes=("n" * 4000,) * 500, faults=("f" * 4000,) * 500))
    assert len(page_of(big)) < 1_000_000
    huge = wide(columns=3000, windows=2, slices=1000)
    page = page_of(huge)
    assert len(page) < 1_000_000
    assert b"2600 more in the JSON." in page


def test_numbers_that_are_not_finite_are_left_out():
    odd = column("odd", math.nan, math.nan), column("large", math.inf, 0.0, True), column("low", -math.inf, 1.0)
    flat = replace(column("flat"), threshold=0.0)
    page = window_page(look(2, columns=(*odd, flat), harm=(harm(loss=math.nan, log_e=-math.inf),)), (look(1),))
    said = Outline(page).words
    assert "no new labels in this window" in said
    assert not re.search(r"\b(nan|inf)\b", page.decode().split("</style>")[1])


@pytest.mark.parametrize("name", CASES)
def test_json_is_strict_and_reads_back(name):
    window = CASES[name]().window
    data = write_monitoring(window)

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(data, parse_constant=refuse)
    assert next(iter(content)) == "schema_version"
    again = read_monitoring(content)
    assert json.loads(write_monitoring(again)) == content
    if name != "hostile":  # NaN is not equal to itself, and -Inf comes back as NaN
        assert again == window


def test_a_look_of_the_control_store_reads_back():
    found = json.loads(write_monitoring(look(1)))
    del found["schema_version"]
    found["latency_p50_ms"], found["harm"][0]["log_e"] = "nan", "-inf"
    seen = read_monitoring(found)
    assert (math.isnan(seen.latency_p50_ms), seen.harm[0].log_e) == (True, -math.inf)


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"schema_version": 2}, "schema version 2"), ({"window": None}, "window"), ({"harm": [{"labels": "x"}]}, "harm")],
)
def test_another_document_is_refused(changed, why):
    with pytest.raises(DataInvalid, match=why):
        read_monitoring(json.loads(write_monitoring(look(1))) | changed)


def test_bins_of_numbers_and_categories():
    rng = np.random.default_rng(0)
    before = pd.DataFrame(
        {"x": rng.normal(size=500), "c": ["a", "b"] * 250, "flag": [True, False] * 250, "none": np.nan}
    )
    now = pd.DataFrame({"x": rng.normal(2, 1, 300), "c": ["b", "new", None] * 100, "flag": True, "none": np.nan})
    now.loc[0, "x"] = np.inf
    found = bin_columns(before, now, ["x", "c", "flag", "none", "absent"])
    assert set(found) == {"x", "c", "flag"}
    assert (sum(found["x"].reference), sum(found["x"].window), len(found["x"].names)) == (500, 299, 12)
    assert found["c"] == Bins(("a", "b", "new"), (250, 250, 0), (0, 100, 100))
    assert found["flag"] == Bins(("False", "True"), (250, 250), (0, 300))


def test_bins_of_many_categories_and_of_one_value():
    many = pd.DataFrame({"c": [f"k{i % 30}" for i in range(600)], "one": 1.0})
    found = bin_columns(many, many, ["c", "one"])
    assert set(found) == {"c"}
    assert (found["c"].names[-1], sum(found["c"].reference), len(found["c"].names)) == ("other", 600, 9)


def test_small_pieces():
    assert (odds(0.0), odds(math.log(12345)), odds(50.0)) == ("none", "12,000:1", "over 10⁹:1")
    assert odds(-math.inf) == odds(math.nan) == "none"
    assert detector(harm(log_e=-math.inf)) == detector(harm(log_e=math.nan)) == "0 of 40,000"
    assert (count(2.345), count(20_000.4)) == ("2.3", "20,000")
    assert (span(30), span(600), span(86400), span(3 * 86400)) == ("30 s", "10 minutes", "24 hours", "3 days")
    assert clip("x" * 200, 10) == "x" * 9 + "…"
    assert nice(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert histogram(Bins(("a",), (0,), (3,))) is None
    assert all(clip(name) for name in HOSTILE)
