"""The candidates for a person: a table in markdown, and the trade-off as a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from homeostat.dataset import write_artifact
from homeostat.records import Artifact, Candidate


def write_table(
    candidates: Sequence[Candidate], winner: str, reason: str, failed: Sequence[str], path: Path
) -> Artifact:
    """Write one row a candidate: metrics on validation, bytes, latency, and why it was refused.

    The same as JSON, with all digits, stands beside it as `path` with the suffix .json.
    """
    figures = {
        "winner": winner,
        "reason": reason,
        "candidates": [asdict(one) for one in candidates],
        "failed": list(failed),
    }
    write_artifact(path.with_suffix(".json"), json.dumps(figures, indent=1).encode())
    metrics, batches = list(candidates[0].metrics), [latency.batch for latency in candidates[0].latency]
    heads = ["candidate", *metrics, "off fp32 by", "bytes", *(f"p50 / p99 us at batch {b}" for b in batches), ""]
    lines = [f"**{winner}**: {reason}", "", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 2)}---|"]
    for one in candidates:
        cells = [
            one.name,
            *(f"{one.metrics[name]:.4f}" for name in metrics),
            f"{one.max_difference:.1e}",
            f"{one.onnx.bytes:,}",
            *(f"{latency.p50_us:.1f} / {latency.p99_us:.1f}" for latency in one.latency),
            "chosen" if one.name == winner else one.refused,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"Not built: {text}" for text in failed)]
    return write_artifact(path, ("\n".join(lines).rstrip() + "\n").encode())


def _color(one: Candidate, winner: str) -> str:
    return "#1a7f37" if one.name == winner else "#9a9a9a" if one.refused else "#1f5fa8"


def write_plot(candidates: Sequence[Candidate], winner: str, primary: str, path: Path) -> Artifact:
    """Write a PNG: bytes against the primary metric and against latency at batch 1, a point a candidate.

    Names stand in one legend, with a marker each: candidates of nearly one size or one metric
    would write over each other.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, label in ((left, f"{primary} on validation"), (right, "p50 at batch 1 (us)")):
        for marker, one in zip("osD^vPX*", candidates, strict=False):
            y = one.metrics[primary] if axes is left else one.latency[0].p50_us
            edge = {"facecolors": "none", "linewidths": 2, "edgecolors": _color(one, winner)}
            axes.scatter(one.onnx.bytes / 1000, y, s=90, marker=marker, label=_label(one, winner), zorder=3, **edge)
        axes.set_xlabel("ONNX file (kB)")
        axes.set_ylabel(label)
        axes.margins(x=0.1, y=0.15)
        axes.ticklabel_format(useOffset=False)
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
    right.set_ylim(bottom=0)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    figure.suptitle("Candidates: green chosen, grey refused", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return write_artifact(path, buffer.getvalue())


def _label(one: Candidate, winner: str) -> str:
    state = "chosen" if one.name == winner else "refused" if one.refused else ""
    return f"{one.name} ({state})" if state else one.name
