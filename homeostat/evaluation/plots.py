"""Pictures of a graph's answers on the test part: a confusion matrix, or predictions and residuals."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset, write_artifact
from homeostat.evaluation.metrics import decisions
from homeostat.records import Artifact

MAX_LABELLED = 20
"""With more classes than this, cells carry no numbers and classes no names."""
BLUE = "#1f5a92"


def draw_plot(config: ProjectConfig, data: Dataset, outputs: Array, folder: Path) -> Artifact:
    """Write confusion_matrix.png, or residuals.png for a regression; outputs: [n, k]."""
    decided = decisions(outputs, config.task)
    if config.task == "regression":
        return _save(draw_residuals(config.name, data.target.astype(np.float64), decided), folder / "residuals.png")
    classes = max(2, outputs.shape[1], int(data.target.max()) + 1)
    names = data.classes if len(data.classes) == classes else tuple(map(str, range(classes)))
    return _save(draw_confusion(config.name, data.target, decided, names), folder / "confusion_matrix.png")


def draw_confusion(title: str, target: Array, decided: Array, names: tuple[str, ...]) -> Figure:
    """Return counts of target class against answered class; colors are shares of the target class."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(target, decided, labels=np.arange(len(names)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(12.0, 3.6 + 0.45 * len(names))
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the target class", fraction=0.046)
    if len(names) <= MAX_LABELLED:
        turned = 45 if max(map(len, names)) > 3 else 0
        places = np.arange(len(names))
        axes.set_xticks(places, names, rotation=turned, ha="right" if turned else "center")
        axes.set_yticks(places, names)
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    right = int(np.trace(counts))
    axes.set(xlabel="answered", ylabel="target", title=f"{title}: {right} of {len(target)} test rows right")
    return figure


def draw_residuals(title: str, target: Array, decided: Array) -> Figure:
    """Return answers over targets, and residuals (answer - target) over answers."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = [float(min(target.min(), decided.min())), float(max(target.max(), decided.max()))]
    left.plot(ends, ends, color="0.5", linewidth=1, label="answer = target")
    left.scatter(target, decided, s=14, alpha=0.6, color=BLUE, edgecolors="none")
    left.set(xlabel="target", ylabel="answer", title=f"{title}: {len(target)} test rows")
    left.legend(loc="upper left", frameon=False)
    right.axhline(0, color="0.5", linewidth=1)
    right.scatter(decided, decided - target, s=14, alpha=0.6, color=BLUE, edgecolors="none")
    right.set(xlabel="answer", ylabel="answer - target", title="residuals")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def _save(figure: Figure, path: Path) -> Artifact:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", bbox_inches="tight")  # a square matrix can push its labels over the edge
    return write_artifact(path, buffer.getvalue())
