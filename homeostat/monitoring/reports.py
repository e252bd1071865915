"""Evidently's reports, with methods and thresholds set explicitly; the only module that imports it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homeostat.dataset import write_artifact
from homeostat.errors import MonitoringFailed
from homeostat.monitoring.columns import PREDICTION, TARGET, Kind
from homeostat.monitoring.homogeneity import homogeneity_p
from homeostat.records import Task

if TYPE_CHECKING:
    import pandas as pd

os.environ["DO_NOT_TRACK"] = "1"  # read by Evidently when it is imported

TWO_SAMPLE = "two_sample_chisquare"
"""Our test, registered with Evidently: its own `chisquare` takes the reference for exact."""


@dataclass(frozen=True)
class Measured:
    """One column as Evidently measured it: a p-value or a distance, by its method."""

    method: str
    value: float
    threshold: float


@dataclass(frozen=True)
class ColumnTest:
    """How every column of one kind is tested."""

    method: str
    threshold: float


class Report:
    """A finished Evidently snapshot."""

    def __init__(self, snapshot: Any) -> None:
        self._snapshot = snapshot

    def values(self) -> dict[str, Any]:
        """Return Evidently's result as plain values; what is not a finite number becomes None."""
        values: dict[str, Any] = json.loads(self._snapshot.json(), parse_constant=lambda _: None)
        return values

    def write_json(self, path: Path) -> str:
        """Write the result as strict JSON and return the path."""
        return write_artifact(path, json.dumps(self.values(), indent=1, allow_nan=False).encode()).path

    def write_html(self, path: Path) -> str:
        """Write the self-contained page (about 5 MB) and return the path."""
        return write_artifact(path, self._snapshot.get_html_str(as_iframe=False).encode()).path


def drift_report(
    reference: pd.DataFrame, current: pd.DataFrame, kinds: Mapping[str, Kind], tests: Mapping[Kind, ColumnTest]
) -> tuple[dict[str, Measured], Report]:
    """Run Evidently's drift and summary presets on the columns of `kinds`, which both frames have.

    A category's values must be text (or missing). Raises MonitoringFailed when Evidently's
    answer is not built as expected.
    """
    evidently = _evidently()
    _register_two_sample()
    columns = list(kinds)
    definition = evidently.DataDefinition(
        numerical_columns=[c for c in columns if kinds[c] == "number"],
        categorical_columns=[c for c in columns if kinds[c] == "category"],
    )
    drift = evidently.presets.DataDriftPreset(
        columns=columns,
        drift_share=1 / len(columns),
        num_method=tests["number"].method,
        num_threshold=tests["number"].threshold,
        cat_method=tests["category"].method,
        cat_threshold=tests["category"].threshold,
        include_tests=False,
    )
    report = _run([drift, evidently.presets.DataSummaryPreset()], reference[columns], current[columns], definition)
    return _read_drift(report.values(), kinds, tests), report


def quality_report(reference: pd.DataFrame, current: pd.DataFrame, task: Task) -> Report:
    """Run Evidently's classification or regression preset on labelled rows: model.target and model.prediction.

    Classes are text. Raises MonitoringFailed where Evidently cannot plot what it is given, such
    as a regression without a single underestimate.
    """
    evidently = _evidently()
    if task == "regression":
        answers = evidently.Regression(target=TARGET, prediction=PREDICTION)
        definition = evidently.DataDefinition(numerical_columns=[TARGET, PREDICTION], regression=[answers])
        return _run([evidently.presets.RegressionPreset()], reference, current, definition)
    before, now = (sorted(set(frame[TARGET]) | set(frame[PREDICTION])) for frame in (reference, current))
    if len(now) == 2:  # Evidently counts the labels it sees, and looks for a positive one among two
        answers = evidently.BinaryClassification(target=TARGET, prediction_labels=PREDICTION, pos_label=now[1])
    else:
        answers = evidently.MulticlassClassification(target=TARGET, prediction_labels=PREDICTION)
    definition = evidently.DataDefinition(categorical_columns=[TARGET, PREDICTION], classification=[answers])
    preset = evidently.presets.ClassificationPreset()  # include_tests=False crashes it (0.7.23)
    beside = reference if before == now or min(len(before), len(now)) > 2 else None
    return _run([preset], beside, current, definition)


def _evidently() -> Any:
    """Import Evidently with its presets; its dependencies warn of their own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import evidently
        import evidently.presets
    return evidently


def _run(presets: list[Any], reference: pd.DataFrame | None, current: pd.DataFrame, definition: Any) -> Report:
    """Run a report without tests: ours are the thresholds of the drift preset, and nothing else is a gate."""
    evidently = _evidently()

    def dataset(frame: pd.DataFrame) -> Any:
        return evidently.Dataset.from_pandas(frame, data_definition=definition)

    with warnings.catch_warnings():
        # plots of a constant column, a bin of one row: shown as they are, no figure of ours comes from them
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            snapshot = evidently.Report(presets, include_tests=False).run(
                dataset(current), None if reference is None else dataset(reference)
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            columns = ", ".join(map(str, current.columns))
            raise MonitoringFailed(
                f"Evidently fails on {len(current)} rows of {columns:.200}: {type(error).__name__}: {error!s:.200}"
            ) from error
    return Report(snapshot)


def _read_drift(
    values: dict[str, Any], kinds: Mapping[str, Kind], tests: Mapping[Kind, ColumnTest]
) -> dict[str, Measured]:
    """Read each column's value as Evidently 0.7 gives it: metrics[].config.{type,column,method,threshold}, .value."""
    measured: dict[str, Measured] = {}
    try:
        for metric in values["metrics"]:
            config = metric["config"]
            if config["type"] == "evidently:metric_v2:ValueDrift":
                value = float("nan") if metric["value"] is None else float(metric["value"])
                measured[config["column"]] = Measured(config["method"], value, float(config["threshold"]))
    except (KeyError, TypeError, ValueError) as error:
        raise MonitoringFailed(
            f"Evidently's result is not built as in 0.7.23 ({type(error).__name__}: {error}); pin evidently"
        ) from error
    expected = {column: (tests[kind].method, tests[kind].threshold) for column, kind in kinds.items()}
    found = {column: (m.method, m.threshold) for column, m in measured.items()}
    if found != expected:
        wrong = sorted(c for c in expected.keys() | found.keys() if expected.get(c) != found.get(c))
        raise MonitoringFailed(f"Evidently tested other columns, methods or thresholds than asked: {', '.join(wrong)}")
    return {column: measured[column] for column in kinds}


def _register_two_sample() -> None:
    """Make our chi-square test known to Evidently by name; repeating it changes nothing."""
    from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    register_stattest(
        StatTest(
            name=TWO_SAMPLE,
            display_name="two-sample chi-square p_value",
            allowed_feature_types=[ColumnType.Categorical],
        ),
        _two_sample_chisquare,
    )


def _two_sample_chisquare(
    reference: pd.Series, current: pd.Series, feature_type: Any, threshold: float
) -> tuple[float, bool]:
    del feature_type
    before, now = reference.value_counts(), current.value_counts()
    names = sorted(set(before.index) | set(now.index))
    p_value = homogeneity_p(
        before.reindex(names, fill_value=0).to_numpy(), now.reindex(names, fill_value=0).to_numpy(), threshold
    )
    return p_value, p_value <= threshold
