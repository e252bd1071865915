"""One life in figures: what its records say, as JSON for programs and as markdown for people."""

from __future__ import annotations

from typing import Any

from homeostat.records import (
    Compression,
    DatasetRecord,
    Deployed,
    Evaluation,
    Export,
    ModelVersion,
    RunRef,
    TrainedModel,
    Validation,
)


def _candidate_rows(version: ModelVersion, compression: Compression, primary: str) -> list[dict[str, Any]]:
    return [
        {
            "version": f"v{version.version}",
            "name": candidate.name,
            "metric": f"{candidate.metrics[primary]:.4f}",
            "bytes": candidate.onnx.bytes,
            **{f"p50_{latency.batch}": f"{latency.p50_us:.0f} us" for latency in candidate.latency},
            "note": "chosen" if candidate.name == compression.winner else candidate.refused,
        }
        for candidate in compression.candidates
    ]


def summarize(
    run: RunRef,
    data: DatasetRecord,
    validation: Validation,
    trained: TrainedModel,
    compression: Compression,
    exported: Export,
    evaluation: Evaluation,
    version: ModelVersion,
    deployed: Deployed,
) -> dict[str, Any]:
    """Return the life as a JSON-able dict: a key figure a stage, the version, and its candidates."""
    primary, metric = evaluation.primary, evaluation.metrics[evaluation.primary]
    fp32 = next(c for c in compression.candidates if c.name == "fp32").onnx.bytes
    kilobytes = exported.onnx.bytes / 1000
    parts = ", ".join(f"{part} {rows}" for part, rows in data.rows.items())
    leaks = "" if validation.leakage is None else f", {len(validation.leakage.leaks) or 'no'} leaks found"
    compared = evaluation.comparison
    against = (
        f"; v{compared.champion_version} {compared.champion:.4f} on the same {compared.rows} rows" if compared else ""
    )
    return {
        "pipeline_id": run.pipeline_id,
        "version": version.version,
        "role": deployed.role,
        "figures": {
            "prepare": f"{sum(data.rows.values())} rows: {parts}",
            "validate": f"{validation.checks} checks passed, contract {validation.contract_from}{leaks}",
            "train": f"{trained.epochs} epochs, {trained.parameters} parameters, {trained.device}",
            "compress": f"{compression.winner}: {kilobytes:.1f} kB, {fp32 / exported.onnx.bytes:.1f}x under fp32",
            "export": f"{len(exported.gates)} gates passed: {', '.join(gate.name for gate in exported.gates)}",
            "evaluate": f"{primary} {metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]{against}",
            "register": f"v{version.version} in MLflow, bundle {version.bundle.manifest_sha256[:12]} signed",
            "deploy": deployed.reason
            or f"v{deployed.version} is {deployed.role}, reported by the server in {deployed.seconds:.2f} s",
        },
        "summary": {
            "version": version.version,
            primary: metric.value,
            "bytes": exported.onnx.bytes,
            "sha256": exported.onnx.sha256,
            "candidate": compression.winner,
        },
        "candidates": _candidate_rows(version, compression, primary),
    }


def to_markdown(life: dict[str, Any], run_url: str) -> str:
    """Return the summary for a Prefect artifact: a line a stage, the candidates, and a link."""
    figures = "".join(f"| {stage} | {figure} |\n" for stage, figure in life["figures"].items())
    rows = "".join(f"| {' | '.join(str(value) for value in row.values())} |\n" for row in life["candidates"])
    headings = list(life["candidates"][0])
    return (
        f"# Version {life['version']} is {life['role']}\n\n| stage | |\n|---|---|\n{figures}\n"
        f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}\n{rows}\n[Its MLflow run]({run_url})\n"
    )
