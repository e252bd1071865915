"""Final figures of an exported graph on the test part, the project's bar, and the champion on the same rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset, read_artifact
from homeostat.errors import DataInvalid, GateFailed
from homeostat.evaluation.fairness import check_gap, check_sensitive, group_figures
from homeostat.evaluation.found_slices import slices_of_graph
from homeostat.evaluation.label_quality import labels_of_graph
from homeostat.evaluation.metrics import (
    higher_is_better,
    matrix,
    measure,
    point_metrics,
    primary_of,
    read_answers,
)
from homeostat.evaluation.paired import gain_interval, metric_intervals
from homeostat.evaluation.slices import declared_slices, slice_table
from homeostat.evaluation.weighted import weighted_metrics
from homeostat.inference import predict
from homeostat.project import Project
from homeostat.records import Artifact, Comparison, DatasetRecord, Evaluation, Fairness, Interval

log = logging.getLogger(__name__)


def evaluate(
    project: Project,
    config: ProjectConfig,
    record: DatasetRecord,
    onnx: Artifact,
    champion: tuple[int, bytes] | None,
    workspace: Path,
) -> Evaluation:
    """Measure the graph on the test part, and the champion (version, ONNX graph) on the same rows.

    Writes a plot, a table of slices if the project has any, the slices that validation and
    calibration part propose and the test part confirms, and the labels of all three that are
    probably wrong, to workspace/evaluation. Raises
    GateFailed when answers are no probabilities or not finite, the primary metric misses
    gate.min_metric or gate.max_metric, or groups are apart by more than gate.max_group_gap;
    ConfigError when the primary metric is not measured, or gate.sensitive names no slice.
    """
    from homeostat.evaluation.plots import draw_plot  # matplotlib

    data = Dataset.load(record.parts["test"])
    seed = config.train.seed
    graph = read_artifact(onnx)
    outputs = matrix(predict(graph, data.inputs))
    check_answers(config, outputs)
    metrics = intervals(project, config, data.target, outputs, seed, data.ids)
    primary = primary_of(config, metrics)
    log.info("%s %.4f on %d test rows", primary, metrics[primary].value, len(data))
    plots = [draw_plot(config, data, outputs, workspace / "evaluation")]
    table = slice_table(project, config, data, outputs, workspace / "evaluation")
    plots += [table] if table else []
    held_out = Dataset.load(record.parts["validation"]).join(Dataset.load(record.parts["calibration"]))
    slices, pages = slices_of_graph(project, config, held_out, data, graph, workspace / "evaluation")
    plots += pages
    check_bar(config, primary, metrics[primary], len(data))
    fairness = fairness_of(project, config, data, outputs)
    labels = None
    if config.task == "classification":
        parts = {part: Dataset.load(record.parts[part]) for part in ("validation", "calibration")} | {"test": data}
        labels, issues = labels_of_graph(parts, graph, workspace / "evaluation")
        plots.append(issues)
    comparison = None
    if champion is not None:
        comparison = compare(project, config, data, graph, champion[1], champion[0], seed)
    return Evaluation(primary, metrics, len(data), tuple(plots), comparison, slices, fairness, labels)


def fairness_of(project: Project, config: ProjectConfig, data: Dataset, outputs: Array) -> tuple[Fairness, ...]:
    """Return the figures of the groups in gate.sensitive; raises ConfigError and GateFailed."""
    if not config.gate.sensitive:
        return ()
    groups = declared_slices(project, data)
    check_sensitive(config.gate, groups)
    found = group_figures(config.task, data.target.astype(np.float64), outputs, groups, config.gate)
    check_gap(found, config.gate)
    return found


def intervals(
    project: Project,
    config: ProjectConfig,
    target: Array,
    outputs: Mapping[str, Array] | Array,
    seed: int,
    ids: Array | None = None,
) -> dict[str, Interval]:
    """Return every metric with its bootstrap interval (gate.bootstrap resamples, gate.confidence).

    target: [n]. outputs: [n, k], or output name -> [n, k]. ids: [n] entities, drawn whole. The
    ends are NaN with fewer than two rows (or entities). Raises DataInvalid without rows.
    """
    answers = read_answers(config.task, target, outputs)
    values = {name: value(answers) for name, value in point_metrics(project, config.task, answers).items()}
    weighted = weighted_metrics(project, config.task)
    found = metric_intervals([weighted[name] for name in values], answers, config.gate, seed, ids)
    return {name: replace(interval, value=values[name]) for name, interval in zip(values, found, strict=True)}


def compare(
    project: Project,
    config: ProjectConfig,
    data: Dataset,
    challenger: bytes,
    champion: bytes,
    champion_version: int,
    seed: int,
) -> Comparison:
    """Score two ONNX graphs by the primary metric on the same rows, with the paired interval of the gain.

    The gain is in units of the metric, and positive when the challenger is better. Raises
    GateFailed when the champion does not take these rows, or answers in another shape.
    """
    mine, theirs = answers_of_both(config, data.inputs, challenger, champion, champion_version)
    first, second = measure(project, config, data.target, mine), measure(project, config, data.target, theirs)
    name = primary_of(config, {key: 0 for key in first if key in second})
    answers = [read_answers(config.task, data.target, outputs) for outputs in (mine, theirs)]
    up = higher_is_better(name)
    better, worse = answers if up else reversed(answers)
    gain = gain_interval(weighted_metrics(project, config.task)[name], better, worse, config.gate, seed, data.ids)
    value = first[name] - second[name] if up else second[name] - first[name]
    return Comparison(name, champion_version, len(data), first[name], second[name], replace(gain, value=value))


def answers_of_both(
    config: ProjectConfig, inputs: Mapping[str, Array], challenger: bytes, champion: bytes, champion_version: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return what two ONNX graphs answer to the same inputs, output name -> [n, k]; raises GateFailed as `compare`."""
    try:
        mine = predict(challenger, inputs)
    except DataInvalid as error:
        raise GateFailed(f"the model of {config.name} cannot be scored on these rows: {error}") from error
    try:
        theirs = predict(champion, inputs)
    except DataInvalid as error:
        raise GateFailed(
            f"champion v{champion_version} of {config.name} cannot be scored on the same rows: {error}; "
            "a model with other inputs is another model: give the project a new name"
        ) from error
    widths = [matrix(outputs).shape[1] for outputs in (mine, theirs)]
    if widths[0] < widths[1] or widths[0] > widths[1] == 1:  # a class more at the end is read as before
        raise GateFailed(
            f"the model answers {widths[0]} numbers a row, champion v{champion_version} of {config.name} {widths[1]}: "
            "its clients would read them wrong; keep the last layer, or give the project a new name"
        )
    return mine, theirs


def check_answers(config: ProjectConfig, outputs: Array) -> None:
    """Raise GateFailed unless every answer [n, k] is finite and, in classification, a probability."""
    lost = int((~np.isfinite(outputs)).any(axis=1).sum())
    if lost:
        raise GateFailed(
            f"{lost} of {len(outputs)} test rows get an answer that is NaN or infinite; "
            "clip or impute inside the model, or lower train.learning_rate"
        )
    slack = 1e-3
    if config.task == "classification" and (outputs.min() < -slack or outputs.max() > 1 + slack):
        raise GateFailed(
            f"the answers lie in [{outputs.min():.3g}, {outputs.max():.3g}], which are no probabilities; "
            "end the model of build_model in softmax, or in one sigmoid"
        )


def check_bar(config: ProjectConfig, name: str, found: Interval, rows: int) -> None:
    """Raise GateFailed when the primary metric is no number, or misses gate.min_metric or gate.max_metric."""
    gate = config.gate
    if not math.isfinite(found.value):
        raise GateFailed(
            f"{name} is {found.value} on {rows} test rows: nothing can be compared with it, and nothing is registered; "
            "look at metrics() of the project, or choose another `metric` in project.toml"
        )
    bars = (("min_metric", gate.min_metric, "below"), ("max_metric", gate.max_metric, "above"))
    for key, bar, side in bars:
        if bar is None or (found.value >= bar if side == "below" else found.value <= bar):
            continue
        raise GateFailed(
            f"{name} {found.value:.4g} is {abs(found.value - bar):.3g} {side} gate.{key} {bar:g} "
            f"({100 * found.confidence:g} % interval {found.low:.4g} to {found.high:.4g}) on {rows} test rows; "
            f"nothing is registered: train longer, change the model or its data, or move the bar in project.toml"
        )
