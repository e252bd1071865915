"""One look at a window of live traffic: drift, quality on labels, latency, and the version before."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from homeostat.config import ProjectConfig
from homeostat.contract import Contract
from homeostat.data.violations import check_window
from homeostat.dataset import Array
from homeostat.errors import ConfigError, DataInvalid, GateFailed, MonitoringFailed
from homeostat.masking import mask_like
from homeostat.monitoring.columns import answered_frame, watched_frame
from homeostat.monitoring.drift import Drift, find_drift
from homeostat.monitoring.evidence import Evidence
from homeostat.monitoring.figures import figures, summary
from homeostat.monitoring.labels import look_at_labels
from homeostat.monitoring.outliers import find_outliers
from homeostat.monitoring.performance import (
    MIN_LABELLED,
    latency,
    live_fairness,
    live_labels,
    live_quality,
    usable_labels,
)
from homeostat.monitoring.reference import Reference, load_reference
from homeostat.monitoring.reports import quality_report
from homeostat.monitoring.rivals import compare_live
from homeostat.monitoring.sequence import DriftState
from homeostat.monitoring.skew import check_skew
from homeostat.monitoring.traffic import TrafficRows
from homeostat.monitoring.window import read_window
from homeostat.project import Project
from homeostat.records import Comparison, Conclusion, Harm, Monitoring, Trial, Violation
from homeostat.sealing import Keyring

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

__all__ = ["figures", "monitor", "summary"]


def monitor(
    project: Project,
    config: ProjectConfig,
    *,
    version: int,
    onnx: bytes,
    reference: bytes,
    predecessor: tuple[int, bytes] | None,
    tried: tuple[int, bytes, datetime] | None = None,
    traffic: Path,
    workspace: Path,
    since: datetime,
    champion_since: datetime,
    now: datetime,
    seed: int,
    keys: Keyring | None = None,
    state: str = "",
    contract: Contract | None = None,
) -> tuple[Monitoring, str]:
    """Hold what the live version answered from `since` to `now` against its reference; return the state after it.

    state: what the look before returned, empty for the first one of a version: its evidence goes on
    from there, so that no label counts twice. Evidence that cannot be read begins anew, with a note.

    version, onnx, reference: the live version's, out of its bundle. predecessor: (version, ONNX
    graph) of the champion before it, which is replayed on the labelled rows answered since
    `champion_since`; rows from before that time, or of another version, never count. tried: (version,
    ONNX graph, since when) of a challenger, which is replayed on what anyone has answered since then. keys: of
    encrypted traffic. contract: the version's, which the window's rows are held against. Writes
    window.parquet and the reports into `workspace`. Raises BundleInvalid (reference), DataInvalid
    ConfigError or Unavailable (capture), MonitoringFailed (drift report).
    """
    since, champion_since, now = (_utc(moment) for moment in (since, champion_since, now))
    expected = load_reference(reference)

    def to_frame(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> pd.DataFrame:
        return watched_frame(project, config.task, inputs, expected.columns, outputs)

    window, rows = read_window(
        traffic,
        config.name,
        max(since, champion_since),
        now,
        config.monitor.max_rows,
        workspace,
        version,
        seed=seed,
        keys=keys,
        to_frame=to_frame,
    )
    before, lost = _evidence(state, champion_since)
    labels = look_at_labels(
        project,
        config,
        expected,
        before.harm,
        version=version,
        traffic=traffic,
        champion_since=champion_since,
        since=max(since, champion_since),
        now=now,
        seed=seed,
        keys=keys,
    )
    labelled = usable_labels(rows, config.task)
    violations, unheld = _violations(project, expected, rows, contract)
    drift = _drift(project, config, expected, rows, workspace, before.drift, f"{config.name} v{version}")
    quality_reports, no_report = _quality_reports(config, expected, labelled, workspace)
    comparisons = _Comparisons(project, config, expected, traffic, champion_since, now, keys)
    predecessor_gain = comparisons.with_predecessor((version, onnx), predecessor)
    trial = comparisons.of_challenger((version, onnx), tried)
    p50, p99 = latency(rows)
    found = Monitoring(
        model=config.name,
        version=version,
        window=window,
        drifted=drift.drifted,
        reason=drift.reason,
        columns=drift.columns,
        faults=drift.faults,
        basis=drift.basis,
        quality=live_quality(project, config, labelled, seed),
        latency_p50_ms=p50,
        latency_p99_ms=p99,
        reports=drift.reports + quality_reports,
        predecessor=predecessor_gain,
        trial=trial,
        notes=_notes(rows, labelled) + drift.notes + no_report + comparisons.notes + labels.notes + unheld + lost,
        conclusion=_conclude(drift, labels.harm),
        harm=labels.harm,
        cohorts=labels.cohorts,
        delay=labels.delay,
        estimate=labels.estimate,
        changes=labels.changes,
        violations=violations,
        skew=check_skew(project, expected.columns, onnx, rows, version=version, seed=seed),
        outliers=find_outliers(project, expected, rows, config.monitor.outlier_rate, seed),
        fairness=live_fairness(config, rows),
        label_quality=live_labels(config, expected, labelled),
    )
    return found, Evidence(now, labels.state, drift.state).to_json()


def _evidence(state: str, champion_since: datetime) -> tuple[Evidence, tuple[str, ...]]:
    """Return the evidence of the looks before, or none and a note when it cannot be read."""
    try:
        return Evidence.from_json(state).since(champion_since), ()
    except DataInvalid as error:
        logger.warning("%s; it begins anew", error)
        return Evidence(), (f"{error}: it begins anew",)


def _conclude(drift: Drift, harm: tuple[Harm, ...]) -> Conclusion:
    """Return the window in one word: harm goes before drift, and what was not tested is not healthy."""
    if any(one.harmed for one in harm):
        return "harm"
    if drift.drifted:
        return "drift"
    return "healthy" if drift.columns and drift.judged else "inconclusive"


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class _Comparisons:
    """The live version beside others on labelled rows; where these rows do not allow it, `notes` says why."""

    def __init__(
        self,
        project: Project,
        config: ProjectConfig,
        reference: Reference,
        traffic: Path,
        since: datetime,
        now: datetime,
        keys: Keyring | None,
    ) -> None:
        self._project, self._config, self._reference = project, config, reference
        self._traffic, self._since, self._now, self._keys = traffic, since, now, keys
        self.notes: tuple[str, ...] = ()

    def with_predecessor(self, live: tuple[int, bytes], predecessor: tuple[int, bytes] | None) -> Comparison | None:
        """Return the live version's gain over its predecessor, on what it has answered since it became champion."""
        if predecessor is None:
            return None
        few = self._config.rollout.rollback_min_labels
        return self._compare("the predecessor", live[1], predecessor, since=self._since, few=few, version=live[0])

    def of_challenger(self, live: tuple[int, bytes], tried: tuple[int, bytes, datetime] | None) -> Trial | None:
        """Return a challenger's gain over the live version, on what anyone has answered since it was registered."""
        if tried is None:
            return None
        version, onnx, made = tried
        since, few = max(made, self._since), self._config.rollout.trial.min_labels
        found = self._compare(f"challenger v{version}", onnx, live, since=since, few=few)
        return Trial(version, since.isoformat(timespec="seconds"), self._now.isoformat(timespec="seconds"), found)

    def _compare(
        self,
        whom: str,
        mine: bytes,
        rival: tuple[int, bytes],
        *,
        since: datetime,
        few: int,
        version: int | None = None,
    ) -> Comparison | None:
        config = self._config
        try:
            return compare_live(
                self._project,
                config,
                self._reference,
                mine,
                rival,
                traffic=self._traffic,
                since=since,
                now=self._now,
                min_labels=few,
                version=version,
                keys=self._keys,
            )
        except (GateFailed, ConfigError) as error:
            logger.warning("%s: not compared with %s: %s", config.name, whom, error)
            self.notes += (f"not compared with {whom}: {error}",)
            return None


def _drift(
    project: Project,
    config: ProjectConfig,
    reference: Reference,
    rows: TrafficRows,
    workspace: Path,
    state: DriftState,
    seed: str,
) -> Drift:
    if not len(rows):
        return Drift(False, "no captured request of this version in the window: not tested", state=state)
    absent = sorted(reference.inputs.keys() - rows.inputs.keys())
    if absent:
        faults = tuple(f"{name}: absent" for name in absent)
        return Drift(True, f"inputs absent: {', '.join(absent)}", faults=faults, state=state)
    inputs = reference.inputs if rows.masking is None else mask_like(rows.masking, reference.inputs)
    expected = watched_frame(project, config.task, inputs, reference.columns, reference.outputs)
    current = watched_frame(project, config.task, rows.inputs, reference.columns, rows.outputs)
    if rows.masking is not None:
        gone = [column for column in expected if column in current and _blank(expected[column], current[column])]
        expected, current = expected.drop(columns=gone), current.drop(columns=gone)
    return find_drift(
        expected,
        current,
        config,
        workspace,
        state=state,
        times=rows.times,
        seed=seed,
        importance=reference.importance,
    )


def _violations(
    project: Project, reference: Reference, rows: TrafficRows, contract: Contract | None
) -> tuple[tuple[Violation, ...], tuple[str, ...]]:
    """Hold the window's rows against the contract; return a note where masking leaves nothing to hold."""
    if contract is None or not len(rows) or reference.inputs.keys() - rows.inputs.keys():
        return (), ()  # inputs that are absent are drift's first finding
    if rows.masking is not None:
        return (), ("captured inputs are masked (serve.masking): not held against the contract",)
    return check_window(contract, project.to_frame(rows.inputs, reference.columns)), ()


def _blank(expected: pd.Series, current: pd.Series) -> bool:
    """Return whether both sides hold one and the same value, or none, as a dropped or hashed column does."""
    values = {*map(str, expected.unique()), *map(str, current.unique())}
    return len(values) < 2


def _quality_reports(
    config: ProjectConfig, reference: Reference, labelled: TrafficRows, workspace: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write Evidently's quality report of the labelled rows; return its paths, and notes on why there is none.

    Nothing rests on it (quality and predecessor are our own figures), so its failure is a note.
    """
    if len(labelled) < MIN_LABELLED:
        return (), ()
    try:
        report = quality_report(
            answered_frame(config.task, reference.outputs, reference.target),
            answered_frame(config.task, labelled.outputs, labelled.labels),
            config.task,
        )
    except MonitoringFailed as error:
        logger.warning("%s: no quality report: %s", config.name, error, exc_info=True)
        return (), (f"no quality report: {error}",)
    return (report.write_json(workspace / "quality.json"), report.write_html(workspace / "quality.html")), ()


def _notes(rows: TrafficRows, labelled: TrafficRows) -> tuple[str, ...]:
    notes = []
    if rows.found > len(rows) + len(rows.unreadable):
        notes.append(f"a sample of {len(rows)} of {rows.found} rows")
    if rows.unreadable:
        more = f" and {len(rows.unreadable) - 3} more" if len(rows.unreadable) > 3 else ""
        notes.append(f"{len(rows.unreadable)} unreadable: {'; '.join(rows.unreadable[:3])}{more}")
    unusable = int(rows.labelled.sum()) - len(labelled)
    if unusable:
        notes.append(f"{unusable} labels are not one of the classes: left out")
    return tuple(notes)
