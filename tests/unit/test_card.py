"""The model card says what the records say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from homeostat.card import model_card
from homeostat.config import ProjectConfig
from homeostat.records import (
    Artifact,
    Candidate,
    Comparison,
    Compression,
    DatasetRecord,
    Evaluation,
    Export,
    Fairness,
    FoundSlice,
    FoundSlices,
    Gap,
    Gate,
    GroupFigures,
    Interval,
    LabelIssue,
    LabelQuality,
    Latency,
    Leak,
    Leakage,
    Lineage,
    TrainedModel,
    Validation,
)

FILE = Artifact("/tmp/x", "c" * 64, 2048)
CONFIG = ProjectConfig(name="digits", project="projects.digits.project:Digits", task="classification")
SOURCES = {"project": 1200}
METRICS = {"accuracy": Interval(0.97, 0.95, 0.99), "f1": Interval(0.9, 0.8, 1)}


def candidate(name: str, **changes) -> Candidate:
    made = Candidate(name, FILE, FILE, {"accuracy": 0.975}, (Latency(1, 12.3, 45.6), Latency(32, 50, 99)), 0.001, True)
    return replace(made, **changes)


@pytest.fixture
def records() -> dict:
    return {
        "project_doc": "Handwritten digits.\n\n    8 x 8 grey pixels.\n    ",
        "config": CONFIG,
        "dataset": DatasetRecord("digits", "classification", "d" * 64, {"train": 1000, "test": 200}, {}, SOURCES),
        "validation": Validation(FILE, FILE, FILE, "/docs", 75, "inferred"),
        "trained": TrainedModel(FILE, 7, 3.21, {}, 12345),
        "compression": Compression(
            (candidate("fp32"), candidate("dynamic_int8", refused="p50 2.0x | over 1.5x", batch_invariant=False)),
            "fp32", "fp32: nothing smaller keeps the budget", FILE, FILE,
        ),
        "export": Export(FILE, FILE, "/saved", "fp32", (Gate("parity", "max 1e-6"),)),
        "evaluation": Evaluation("accuracy", METRICS, 200, ()),
        "lineage": Lineage("run-7", "d" * 64, "e" * 64, "f" * 64, "a" * 40, True, 3),
    }  # fmt: skip


def test_the_card(records):
    card = model_card(**records)
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == [
        "# digits", "## What it is", "## Figures", "## Data", "## Candidates",
        "## Gates passed", "## Limits", "## Lineage",
    ]  # fmt: skip
    assert "Handwritten digits.\n\n8 x 8 grey pixels." in card
    assert "| **accuracy** | 0.9700 | 0.9500 to 0.9900 |" in card
    assert "| metric | value | 95 % interval |" in card
    assert "12,345 parameters, 7 epochs, 3.2 s on CPU" in card
    assert "| fp32 | 0.9750 | 2.0 KB | 12 / 46 | 0.001 | chosen |" in card
    assert "p50 2.0x \\| over 1.5x" in card
    assert "| test | 200 |" in card
    assert f"`{'a' * 40}` with uncommitted changes" in card
    assert "| parent version | v3 |" in card
    assert "Against champion" not in card
    assert "other rows of a batch" not in card


def test_champion_and_batch_dependence(records):
    versus = Comparison("accuracy", 3, 200, 0.97, 0.96, Interval(0.01, -0.002, 0.02))
    records["evaluation"] = replace(records["evaluation"], comparison=versus)
    records["compression"] = replace(records["compression"], winner="dynamic_int8")
    records["project_doc"] = ""
    card = model_card(**records)
    assert "Against champion v3 on the same 200 rows: accuracy 0.9700 against 0.9600, gain +0.0100" in card
    assert "other rows of a batch" in card
    assert "has no docstring" in card


def test_found_slices(records):
    found = FoundSlices((FoundSlice("age >= 61 and bmi <= 22", 84, 0.31, 0.12, 0.0013),), 4, "4 parts were tested")
    records["evaluation"] = replace(records["evaluation"], found_slices=found)
    card = model_card(**records)
    assert "## Slices" in card
    assert "| age >= 61 and bmi <= 22 | 84 | 0.31 | 0.12 | 0.0013 |" in card
    records["evaluation"] = replace(records["evaluation"], found_slices=FoundSlices((), 0, "not enough rows"))
    assert "No slice was found on which it errs more: not enough rows." in model_card(**records)


def test_leakage(records):
    leak = Leak(
        "predictor", "column 'closed'", "predicts the target almost alone (score 0.990)", "leave it out", 0.99, False
    )
    found = Leakage((leak,), 30, 30, 1000, "column 'closed'", 0.99, {"test": 0.125}, ("entities is off",))
    records["validation"] = replace(records["validation"], leakage=found)
    card = model_card(**records)
    assert "## Leakage\n\nFound, and let pass:\n\n- predictor: column 'closed' predicts the target almost alone" in card
    assert "30 of 30 input columns were held against the target; column 'closed' predicts it best alone" in card
    assert "Rows whose inputs a training row has too: test 12.5%. Entities is off." in card
    records["validation"] = replace(records["validation"], leakage=Leakage((), 1, 1, 10))
    assert "## Leakage\n\nNothing was found.\n\n1 of 1 input columns" in model_card(**records)


def test_groups_of_people(records):
    error = Interval(0.1, 0.08, 0.12)
    gap = Gap("error", "", "m", "f|x", Interval(0.1, 0.02, 0.2), "inconclusive")
    groups = (GroupFigures("f|x", 300, 280, {"error": error}), GroupFigures("m", 200, 9))
    fairness = (Fairness("sex", groups, (gap,), ("4 of 504 rows name no sex",)),)
    card = model_card(**records | {"evaluation": replace(records["evaluation"], fairness=fairness)})
    assert "| sex | rows | error |" in card
    assert "| f\\|x | 280 | 0.100 (0.080 to 0.120) |\n| m | 9 | - |" in card
    assert "- error: 0.1 (0.02 to 0.2) between m and f\\|x, too few rows to say whether it is within" in card
    assert "- 4 of 504 rows name no sex" in card


def test_labels_that_are_probably_wrong(records):
    issue = LabelIssue("test 7 (patient-4)", "cat", "dog|s", 0.97)
    found = LabelQuality(
        400, 12, Interval(0.03, 0.02, 0.05), {"cat": 12}, (issue,), "3 rows of small classes are left out"
    )
    card = model_card(**records | {"evaluation": replace(records["evaluation"], label_quality=found)})
    assert "12 of 400 labels of the held-out rows (3.0%, 95 % interval 2.0% to 5.0%) are probably wrong" in card
    assert "- test 7 (patient-4): labelled cat, dog\\|s by 97%" in card
    assert "3 rows of small classes are left out." in card
    none = LabelQuality(40, reason="too few")
    card = model_card(**records | {"evaluation": replace(records["evaluation"], label_quality=none)})
    assert "Not judged: too few." in card
