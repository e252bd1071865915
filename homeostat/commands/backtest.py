"""`homeostat backtest`: replay a labelled history: when each alarm would have come, and whether it was right."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from homeostat.commands.console import find_store, read_settings, read_version, short_time, show
from homeostat.errors import ConfigError

if TYPE_CHECKING:
    from homeostat.monitoring.backtest import Backtest, ReplayedWindow, Score

# Heavy imports stand in the command: `homeostat --help` must be quick.

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_span(value: str) -> timedelta:
    """Return a time span given as 30s, 15m, 6h, 1d or 2w; 0 needs no unit."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smhdw])", value)
    if value == "0":
        return timedelta(0)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time span; write 30s, 15m, 6h, 1d or 2w")
    return timedelta(**{UNITS[found[2]]: float(found[1])})


def read_window(value: str) -> timedelta | int:
    """Return a window given as a time span, or as a number of rows."""
    if value.isdecimal():
        if not 1 <= int(value) <= 10**9:
            raise click.BadParameter(f"a window of {value} rows: at least 1")
        return int(value)
    span = read_span(value)
    if span < timedelta(seconds=1):
        raise click.BadParameter(f"a window of {value}: at least 1s")
    return span


@click.command()
@click.argument("project")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--version", type=read_version, help="version to replay  [default: the champion]")
@click.option("--window", type=read_window, default="7d", show_default=True, help="time span, or number of rows")
@click.option("--label-delay", type=read_span, default="0", show_default=True, help="from an answer to its label")
@click.option("--coverage", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="share labelled at all")
@click.option("--points", type=click.FloatRange(0, 100), default=5.0, show_default=True, help="loss that is harm")
@click.option("--time", default="time", show_default=True, help="column of the time")
@click.option("--label", default="label", show_default=True, help="column of the label")
@click.option("--slice", "slices", multiple=True, help="column to follow harm on, too; may be repeated")
@click.option("--no-drift", is_flag=True, help="follow harm alone, which takes seconds")
@click.option("--json", "as_json", is_flag=True, help="print every window, as JSON")
def backtest(
    project: str,
    data: Path,
    version: int | None,
    window: timedelta | int,
    label_delay: timedelta,
    coverage: float,
    points: float,
    time: str,
    label: str,
    slices: tuple[str, ...],
    no_drift: bool,
    as_json: bool,
) -> None:
    """Replay DATA, a Parquet file, as traffic of PROJECT that is looked at window by window."""
    from homeostat.bundle import load_public_key, open_bundle
    from homeostat.monitoring.backtest import Labels, Replay, window_edges
    from homeostat.monitoring.history import Columns, read_history
    from homeostat.monitoring.reference import load_reference
    from homeostat.project import find_project, load_project

    settings = read_settings()
    mine, config = load_project(find_project(project, settings.root), settings.root)
    store = find_store(settings)
    ref = store.bundle(config.name, version) if version else store.champion(config.name)
    if ref is None:
        raise ConfigError(f"{config.name} has no champion to replay; give --version")
    bundle = open_bundle(ref, load_public_key(settings.home))
    reference = load_reference(bundle.reference)
    columns = Columns(time, label, slices)
    history = read_history(data, columns, config, reference, bundle.onnx, ref.version, bundle.manifest.classes)
    replay = Replay(
        mine,
        config,
        reference,
        ref.version,
        history.rows,
        window_edges(history.rows.times, window),
        Labels(label_delay, coverage),
        points,
        drift=not no_drift,
    )
    count = len(replay.edges) - 1
    with click.progressbar(replay.windows(), length=count, label=f"{count} windows", file=sys.stderr) as bar:
        found = replay.finish(list(bar), history.notes)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
    else:
        _print(found)


def _print(found: Backtest) -> None:
    from rich.table import Table

    table = Table("window from", "rows", "labels", "loss", "drift", "harm", "", title=f"{found.model} v{found.version}")
    windows = found.windows
    before: ReplayedWindow | None = None
    for window in windows:
        loss = "-" if window.loss is None else f"{window.loss.value:.3f}"
        drift = "-" if window.drifted is None else "drift" if window.drifted else ""
        harm = f"since {short_time(window.since)[:16]}" if window.standing else "this look" if window.harmed else ""
        harm = "\n".join([harm, *window.slices]).strip()
        table.add_row(
            short_time(window.start)[:16],
            str(window.rows),
            str(window.known),
            loss,
            drift,
            harm,
            _judged(before, window),
        )
        before = window
    show(table)
    lines = [
        f"Loss of the reference {found.reference_loss:.3f}, tolerated {found.tolerated:.3f}; harmful: more than "
        f"{found.points:g} points over the reference.",
        _line("harm", found.harm),
        *([_line("drift", found.drift)] if found.drift else []),
        *found.notes,
    ]
    for line in lines:
        click.echo(click.wrap_text(line, width=80, subsequent_indent="  "))


def _judged(before: ReplayedWindow | None, window: ReplayedWindow) -> str:
    right = window.harmful or (before is not None and before.harmful)
    if window.harmed:
        return "right" if right else "cannot tell" if window.harmful is None else "wrong"
    return "harmful" if window.harmful else ""


def _line(name: str, score: Score) -> str:
    share = f"{score.caught / score.harmful:.0%}" if score.harmful else "-"
    elsewhere = f"{score.elsewhere / score.alarms:.0%}" if score.alarms else "-"
    unknown = f", {score.unknown} cannot be judged" if score.unknown else ""
    return (
        f"{name}: {score.caught} of {score.harmful} harmful windows caught in the same or the next window ({share}); "
        f"{score.elsewhere} of {score.alarms} alarms elsewhere ({elsewhere}){unknown}."
    )
