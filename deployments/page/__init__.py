"""The page of `make run`: what happened when, and what it did to the answers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deployments.timeline import Row
from deployments.traffic import Answered
from homeostat.dataset import Array
from homeostat.monitoring.page.words import clip, sentence
from homeostat.records import LedgerEntry

BIN = 2.0
"""Seconds of one bar, and of one point."""
COLORS = ("#0068a8", "#00705a", "#b53d00", "#8a5bb5", "#a07800", "#c04f86")
SHOWN = (
    "promote",
    "start",
    "step",
    "finish",
    "abort",
    "rollback",
    "retrain",
    "hold",
    "inconclusive",
    "verdict",
    "drift",
)
REASON = 220


def make_page(
    record: dict[str, Any], rows: Sequence[Row], answers: Sequence[Answered], events: Sequence[LedgerEntry], unit: str
) -> str:
    """Return one self-contained HTML page. unit: of an answer's loss, such as `share of wrong answers`."""
    told = [event for event in events if event.action in SHOWN]
    first = min([one.at for one in answers] + [_seconds(event) for event in told])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(
        "page.html"
    ).render(
        record=record,
        faults=record["faults"],
        picture=Markup(_draw(answers, told, first, unit)),  # noqa: S704 - matplotlib escapes what it draws
        events=[
            {
                "number": number,
                "after": f"{_seconds(event) - first:.1f} s",
                "what": event.evidence.get("conclusion", event.action),
                "version": f"v{event.version}" if event.version else "",
                "why": sentence(clip(event.reason, REASON)),
                "who": event.actor.split(":")[0].replace("_", " ").split(" ")[0],
            }
            for number, event in enumerate(told, 1)
        ],
        sentence=lambda act: f"{act[:1].upper()}{act[1:]}",
        acts=[(act, list(stages)) for act, stages in groupby(rows, key=lambda row: row.act)],
    )


def _draw(answers: Sequence[Answered], events: Sequence[LedgerEntry], first: float, unit: str) -> str:
    """Return an SVG: the mean loss of the answers over time, and how many each version gave, with the events."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    end = max(when - first for when in [*(one.at for one in answers), *map(_seconds, events)])
    seen = binned(answers, first, end)
    middles = (np.arange(len(next(iter(seen.values()))[0])) + 0.5) * BIN
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    below = np.zeros(len(middles))
    for place, (version, (count, total)) in enumerate(seen.items()):
        color, some = COLORS[place % len(COLORS)], count > 0
        mean = total[some] / count[some]
        upper.scatter(middles[some], mean, s=22, color=color, label=f"v{version}", zorder=3)
        lower.bar(middles, count / BIN, BIN, bottom=below / BIN, color=color)
        below += count
    for number, event in enumerate(events, 1):
        when, alarm = _seconds(event) - first, event.action in ("abort", "rollback") or _harms(event)
        color = "#b53d00" if alarm else "#9aa3af"
        for axes in (upper, lower):
            axes.axvline(when, color=color, linewidth=1, linestyle="--", zorder=1)
        level = 1.02 + 0.06 * (number % 3)
        upper.text(
            when, level, str(number), transform=upper.get_xaxis_transform(), ha="center", fontsize=9, color=color
        )
    upper.set(ylabel=unit, ylim=(0, None))
    lower.set(ylabel="answers a second", xlabel=f"seconds since the first answer; points and bars are of {BIN:g} s")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    upper.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "homeostat"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def binned(answers: Sequence[Answered], first: float, end: float) -> dict[int, tuple[Array, Array]]:
    """Return of each version its answers [k], and the sum of their losses [k], in each BIN of seconds from first on."""
    places = np.array([int((one.at - first) // BIN) for one in answers])
    seen = {}
    for version in sorted({one.version for one in answers}):
        losses = np.array([one.loss if one.version == version else 0.0 for one in answers])
        mine = np.array([float(one.version == version) for one in answers])
        count, total = (np.bincount(places, weights, int(end // BIN) + 1) for weights in (mine, losses))
        seen[version] = count, total
    return seen


def _harms(event: LedgerEntry) -> bool:
    return event.evidence.get("conclusion") == "harm"


def _seconds(event: LedgerEntry) -> float:
    return datetime.fromisoformat(event.time).timestamp()
