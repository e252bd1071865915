"""What MLflow plots of a window over time, and its summary as markdown."""

from dataclasses import replace

from homeostat.monitoring.figures import figures, summary
from homeostat.records import ColumnDrift, Estimate, Harm, Interval, LabelDelay, Monitoring, Outliers, Window

WINDOW = Window("toy", "2026-03-01T00:00:00+00:00", "2026-03-02T00:00:00+00:00", 500, 400, "")
LOSS = Interval(0.3, 0.25, 0.35)
HARM = Harm("all", 900, LOSS, 0.1, 12.0, 9.9, True, "2026-03-01T06:00:00+00:00")
SEEN = Monitoring(
    "toy",
    3,
    WINDOW,
    True,
    "2 of 3 columns drifted",
    columns=(
        ColumnDrift("quiet", "ks", 0.5, 0.01, False, -0.5, 0.1, 0.0),
        ColumnDrift("small", "ks", 0.001, 0.01, True, 6.0, 0.01, 0.02),
        ColumnDrift("large", "ks", 0.002, 0.01, True, 5.0, 0.2, 0.4),
        ColumnDrift("plain", "psi", 0.1, 0.2, False),
    ),
    conclusion="harm",
    harm=(HARM, replace(HARM, name="site=a b"), replace(HARM, name="site:a b", harmed=False, since="")),
    delay=LabelDelay(60.0, 3600.0, 0.8, 7200.0),
    estimate=Estimate("accuracy", 0.7, True, 0.02, 0.05, "error 0.02, constant 0.05"),
)


def test_figures_of_evidence():
    shown = figures(SEEN)
    assert (shown["drift/large"], shown["evidence/large"], shown["severity/large"]) == (0.002, 5.0, 0.4)
    assert not {"evidence/plain", "severity/plain"} & set(shown)
    assert [shown[f"harm/all/{name}"] for name in ("loss", "loss.low", "loss.high")] == [0.3, 0.25, 0.35]
    assert (shown["harm/all/log_e"], shown["harm/all/labels"], shown["harm/all/harmed"]) == (12, 900, 1)
    assert (shown["harm/site_a b/harmed"], shown["harm/site_a b_2/harmed"]) == (1, 0), "two slices, one name"
    assert shown["labels/coverage"] == 0.8
    assert (shown["labels/delay_p50_s"], shown["labels/delay_p90_s"], shown["labels/horizon_s"]) == (60, 3600, 7200)
    assert shown["estimate/accuracy"] == 0.7


def test_what_is_not_known_is_no_figure():
    unknown = replace(
        SEEN,
        harm=(replace(HARM, log_e=float("-inf")),),
        delay=LabelDelay(None, None, None, 7200.0),
        estimate=Estimate("accuracy", 0.7, False, 0.05, 0.02, "no better than a constant"),
    )
    shown = figures(unknown)
    assert not {"harm/all/log_e", "labels/coverage", "labels/delay_p50_s", "estimate/accuracy"} & set(shown)


def test_summary_says_what_hurts_and_lists_the_severest_first():
    said = summary(SEEN)
    assert said.startswith("## toy v3: harm\n\nDrift: 2 of 3 columns drifted\n")
    assert "- all: **harm** since 2026-03-01T06:00:00+00:00; loss 0.3 [0.25, 0.35], tolerated 0.1" in said
    assert "- site=a b: **harm**" in said
    assert "- site:a b" not in said
    assert "| label delay p50, p90 | 60 s, 3600 s |" in said
    assert "| labelled, of rows older than 7200 s | 80% |" in said
    assert "| accuracy, estimated without labels | 0.7: error 0.02, constant 0.05 |" in said
    assert [said.index(f"| {name} |") for name in ("large", "small", "quiet")] == sorted(
        said.index(f"| {name} |") for name in ("large", "small", "quiet")
    )


def test_summary_of_an_abstaining_estimate_gives_no_value():
    estimate = Estimate("accuracy", 0.7, False, 0.05, 0.02, "no better than a constant")
    said = summary(replace(SEEN, estimate=estimate, harm=()))
    assert "not shown: no better than a constant" in said
    assert "- all" not in said


def test_the_share_of_outliers():
    found = Outliers("isolation forest", 0.1, 200, 400, 5, 1, (), "5 of 200 are unlike")
    assert figures(replace(SEEN, outliers=found))["monitor/outlier_share"] == 0.025
    assert "- outliers: 5 of 200 are unlike" in summary(replace(SEEN, outliers=found))
    assert "monitor/outlier_share" not in figures(replace(SEEN, outliers=replace(found, scored=0)))
