"""The model card of a version, as markdown: what it is, its data, figures, candidates, limits and lineage.

The headings follow Mitchell et al., "Model Cards for Model Reporting" (2019).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from homeostat.config import ProjectConfig
from homeostat.records import (
    Candidate,
    Compression,
    DatasetRecord,
    Evaluation,
    Export,
    Fairness,
    FoundSlices,
    Interval,
    LabelQuality,
    Leakage,
    Lineage,
    TrainedModel,
    Validation,
)

DESCRIPTION_LIMIT = 5000
"""Characters that MLflow's database keeps of a description."""


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1024:.1f} KB" if count < 1024**2 else f"{count / 1024**2:.1f} MB"


def _data(dataset: DatasetRecord, validation: Validation) -> str:
    sources = ", ".join(f"{count} from {name}" for name, count in dataset.sources.items())
    rows = _table(("part", "rows"), dataset.rows.items())
    origin = f"Rows: {sources}.\n\n" if sources else ""
    return (
        f"{origin}{rows}\n\nSplit once, with a seed; the test part was used for the figures "
        f"above alone. The data passed {validation.checks} checks of its contract ({validation.contract_from})."
    )


def _leakage(found: Leakage) -> str:
    lines = [f"- {leak.check}: {leak.where} {leak.finding}" for leak in found.leaks]
    text = "Found, and let pass:\n\n" + "\n".join(lines) if lines else "Nothing was found."
    text += f"\n\n{found.columns} of {found.of_columns} input columns were held against the target"
    if found.strongest_score is not None:
        text += f"; {found.strongest} predicts it best alone (score {found.strongest_score:.3f}; 0 a guess, 1 no error)"
    shares = ", ".join(f"{part} {share:.1%}" for part, share in found.duplicates.items())
    text += "." + (f" Rows whose inputs a training row has too: {shares}." if shares else "")
    return text + "".join(f" {note[0].upper()}{note[1:]}." for note in found.notes)


def _figures(evaluation: Evaluation) -> str:
    confidence = next(iter(evaluation.metrics.values())).confidence if evaluation.metrics else 0.95
    rows = [
        (f"**{name}**" if name == evaluation.primary else name, f"{i.value:.4f}", f"{i.low:.4f} to {i.high:.4f}")
        for name, i in evaluation.metrics.items()
    ]
    table = _table(("metric", "value", f"{100 * confidence:g} % interval"), rows)
    text = f"On the {evaluation.rows} rows of the test part, by the exported graph; bootstrap intervals.\n\n{table}"
    versus = evaluation.comparison
    if versus:
        text += (
            f"\n\nAgainst champion v{versus.champion_version} on the same {versus.rows} rows: {versus.metric} "
            f"{versus.challenger:.4f} against {versus.champion:.4f}, gain {versus.gain.value:+.4f} "
            f"({versus.gain.low:+.4f} to {versus.gain.high:+.4f}; positive is better)."
        )
    return text


def _found(found: FoundSlices) -> str:
    if not found.slices:
        return f"No slice was found on which it errs more: {found.reason}."
    rows = [(s.words, s.rows, f"{s.error:.4g}", f"{s.rest:.4g}", f"{s.p_value:.2g}") for s in found.slices]
    table = _table(("it errs more where", "rows", "error", "elsewhere", "p"), rows)
    return f"{table}\n\nProposed by validation and calibration part, tested on the test part: {found.reason}."


def _labels(found: LabelQuality) -> str:
    if found.share is None:
        return f"Not judged: {found.reason}."
    share, confidence = found.share, f"{100 * found.share.confidence:g}"
    text = (
        f"{found.issues} of {found.rows} labels of the held-out rows ({share.value:.1%}, {confidence} % interval "
        f"{share.low:.1%} to {share.high:.1%}) are probably wrong, by confident learning; `label_issues.json` has all."
    )
    lines = [f"- {_cell(issue)}" for issue in found.worst[:5]]
    return "\n\n".join(filter(None, (text, "\n".join(lines), found.reason and f"{found.reason}.")))


def _fairness(fairness: tuple[Fairness, ...]) -> str:
    return "\n\n".join(map(_attribute, fairness))


def _attribute(found: Fairness) -> str:
    def shown(rate: Interval | None) -> str:
        return "-" if rate is None else f"{rate.value:.3f} ({rate.low:.3f} to {rate.high:.3f})"

    rates = list(dict.fromkeys(rate for group in found.groups for rate in group.rates))
    rows = [(group.group, group.labelled, *(shown(group.rates.get(rate)) for rate in rates)) for group in found.groups]
    head = (_cell(found.attribute), "rows", *(rate.replace("_", " ") for rate in rates))
    gaps = [f"- {_cell(gap)}" for gap in found.gaps]
    notes = [f"- {_cell(note)}" for note in found.notes]
    return "\n\n".join(filter(None, (_table(head, rows) if rows else "", "\n".join(gaps + notes))))


def _latency(candidate: Candidate) -> str:
    one = next((t for t in candidate.latency if t.batch == 1), None)
    return f"{one.p50_us:.0f} / {one.p99_us:.0f}" if one else "-"


def _candidates(config: ProjectConfig, compression: Compression) -> str:
    def row(candidate: Candidate) -> tuple[object, ...]:
        metric = candidate.metrics.get(config.primary)
        note = "chosen" if candidate.name == compression.winner else candidate.refused or "eligible"
        figures = (_size(candidate.onnx.bytes), _latency(candidate), f"{candidate.max_difference:.2g}")
        return (candidate.name, "-" if metric is None else f"{metric:.4f}", *figures, note)

    head = (
        "candidate",
        f"{config.primary} (validation)",
        "size",
        "batch 1 p50 / p99 us",
        "largest difference from fp32",
        "note",
    )
    return _table(head, map(row, compression.candidates)) + f"\n\n{compression.reason}"


def _limits(config: ProjectConfig, compression: Compression) -> str:
    chosen = compression.chosen
    nan = "refused" if config.serve.nan == "reject" else "let in"
    outside = "refused" if config.serve.out_of_range == "reject" else "answered and counted"
    limits = [
        "The figures hold for data like the test part; drift reports say when live traffic no longer is.",
        f"NaN and Inf in a request are {nan}; values outside the contract's range are {outside}.",
        f"A request may hold {config.serve.max_rows} rows.",
    ]
    if not chosen.batch_invariant:
        limits.append("Answers depend slightly on the other rows of a batch (activations are quantized at run time).")
    return "\n".join(f"- {limit}" for limit in limits)


def _lineage(lineage: Lineage, export: Export) -> str:
    dirty = " with uncommitted changes" if lineage.git_dirty else ""
    parent = f"v{lineage.parent_version}" if lineage.parent_version is not None else "none"
    rows = [
        ("pipeline run", lineage.pipeline_id),
        ("git commit", f"`{lineage.git_commit}`{dirty}"),
        ("dataset sha256", f"`{lineage.dataset_sha256}`"),
        ("configuration sha256", f"`{lineage.config_sha256}`"),
        ("requirements sha256", f"`{lineage.requirements_sha256}`"),
        ("ONNX graph sha256", f"`{export.onnx.sha256}`"),
        ("parent version", parent),
    ]
    return _table(("what", "value"), rows)


def model_card(
    project_doc: str,
    config: ProjectConfig,
    dataset: DatasetRecord,
    validation: Validation,
    trained: TrainedModel,
    compression: Compression,
    export: Export,
    evaluation: Evaluation,
    lineage: Lineage,
) -> str:
    """Write the card; project_doc is the docstring of the user's Project class."""
    about = inspect.cleandoc(project_doc).strip() or f"The project {config.name} has no docstring."
    facts = (
        f"A {dataset.task} model, served as an ONNX graph ({export.candidate}, {_size(export.onnx.bytes)}). "
        f"Trained in Keras: {trained.parameters:,} parameters, {trained.epochs} epochs, {trained.seconds:.1f} s "
        f"on {trained.device}."
    )
    gates = "\n".join(f"- {gate.name}: {gate.detail}" for gate in export.gates)
    found = evaluation.found_slices
    sections = [
        ("What it is", f"{about}\n\n{facts}"),
        ("Figures", _figures(evaluation)),
        *([("Slices", _found(found))] if found else []),
        *([("Fairness", _fairness(evaluation.fairness))] if evaluation.fairness else []),
        ("Data", _data(dataset, validation)),
        *([("Labels", _labels(evaluation.label_quality))] if evaluation.label_quality else []),
        *([("Leakage", _leakage(validation.leakage))] if validation.leakage else []),
        ("Candidates", _candidates(config, compression)),
        ("Gates passed", gates or "none"),
        ("Limits", _limits(config, compression)),
        ("Lineage", _lineage(lineage, export)),
    ]
    return f"# {config.name}\n\n" + "\n\n".join(f"## {title}\n\n{text}" for title, text in sections) + "\n"


def description(card: str) -> str:
    """Return the card as the description of an MLflow version: cut where its database would refuse it."""
    if len(card) <= DESCRIPTION_LIMIT:
        return card
    more = "\n\n... the whole card: model_card.md of the run\n"
    return card[: DESCRIPTION_LIMIT - len(more)] + more


def version_tags(
    dataset: DatasetRecord, compression: Compression, export: Export, evaluation: Evaluation, lineage: Lineage
) -> dict[str, str]:
    """Return the tags of an MLflow version: digest, candidate, primary metric and lineage."""
    primary = evaluation.metrics[evaluation.primary]
    facts = {
        "sha256": export.onnx.sha256,
        "bytes": export.onnx.bytes,
        "candidate": export.candidate,
        "task": dataset.task,
        "fp32_bytes": next((c.onnx.bytes for c in compression.candidates if c.name == "fp32"), ""),
        "metric": evaluation.primary,
        "metric_value": f"{primary.value:.6g}",
        "metric_low": f"{primary.low:.6g}",
        "metric_high": f"{primary.high:.6g}",
    }
    return {name: str(value) for name, value in facts.items()} | lineage_tags(lineage)


def lineage_tags(lineage: Lineage) -> dict[str, str]:
    """Return the tags of an MLflow version that say where it comes from."""
    return {name: str(value) for name, value in asdict(lineage).items()}
