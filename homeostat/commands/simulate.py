"""`homeostat simulate`: send a project's own rows to its model, with late labels, and with faults on purpose."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from homeostat.commands.backtest import read_span
from homeostat.commands.console import read_settings

if TYPE_CHECKING:
    from homeostat.dataset import Dataset
    from homeostat.simulation.sending import Sender, Sent

# Heavy imports stand in the command: `homeostat --help` must be quick.

KEY = "HOMEOSTAT_API_KEY"
FAULTS = """\b
FAULT is one of
  shift:COLUMN:SD       so many standard deviations higher (covariate drift)
  unit:COLUMN:FACTOR    times this (a unit changed)
  zero:COLUMN:SHARE     this share is 0
  nan:COLUMN:SHARE      this share is missing
  shuffle:COLUMN:SHARE  this share trades places among the rows
  absent:COLUMN         left out, or missing throughout
  concept:COLUMN:MORE   rows above its middle have another class, or a target
                        so much larger: the world has changed, not the inputs
  poison:SHARE          this share of the labels is wrong"""


@click.command(epilog=FAULTS)
@click.argument("project")
@click.option("--count", type=click.IntRange(1, 10_000_000), help="requests  [default: each row once]")
@click.option("--rate", type=click.FloatRange(0.01, 10_000), default=50.0, show_default=True, help="requests a second")
@click.option("--part", type=click.Choice(["test", "all"]), default="test", show_default=True, help="rows to send")
@click.option("--fault", "faults", multiple=True, metavar="FAULT", help="may be repeated; see below")
@click.option(
    "--fault-after", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="share of requests before it"
)
@click.option(
    "--label-delay",
    type=read_span,
    metavar="SPAN",
    default="0",
    show_default=True,
    help="mean time to a label, such as 5s",
)
@click.option("--coverage", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="share that is labelled")
@click.option(
    "--users", type=click.IntRange(1), default=100, show_default=True,
    help="entities that the rows belong to, where they have no ids",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="of order, faults and delays")
@click.option("--server", help="URL of the model server  [default: HOMEOSTAT_SERVER_URL]")
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
def simulate(
    project: str,
    count: int | None,
    rate: float,
    part: str,
    faults: tuple[str, ...],
    fault_after: float,
    label_delay: timedelta,
    coverage: float,
    users: int,
    seed: int,
    server: str | None,
    as_json: bool,
) -> None:
    """Send PROJECT's own rows to its model as clients would, and their labels when they are due.

    Only for a server whose traffic may be mixed with it: what is sent is captured, counted and, if retraining
    learns from traffic, learned from. Where the server asks for a key, HOMEOSTAT_API_KEY holds one with the scopes
    infer and label.
    """
    import numpy as np

    from homeostat.errors import ServingError
    from homeostat.project import find_project, load_project
    from homeostat.simulation.faults import add_faults, read_fault
    from homeostat.simulation.sending import Sender, make_plan

    wanted = [read_fault(text) for text in faults]
    settings = read_settings()
    mine, config = load_project(find_project(project, settings.root), settings.root)
    data = mine.load_data()
    classes = int(data.target.max()) + 1 if config.task == "classification" else 0
    if part == "test":
        from homeostat.data.splits import assign_parts

        data = data.take(assign_parts(data, config.data, config.task, config.train.seed)["test"])
    rng = np.random.default_rng(seed)
    plan = make_plan(
        config.name,
        data,
        add_faults(data, wanted, classes, rng),
        count=count or len(data),
        fault_after=fault_after,
        rate=rate,
        label_delay=label_delay.total_seconds(),
        coverage=coverage,
        users=users,
        rng=rng,
    )
    if len(plan.rows) > len(data):
        click.echo(f"{len(data)} rows are sent {len(plan.rows) / len(data):.1f} times: drift may be of that", err=True)
    sender = Sender(plan, server or settings.server_url, os.environ.get(KEY, ""))
    stopped = _run(sender, len(plan.rows), as_json)
    if as_json:
        click.echo(json.dumps(sender.sent.to_json() | {"stopped": stopped}, indent=1))
    else:
        _show(sender.sent, data, stopped)
    if stopped:
        raise SystemExit(130)
    if not sender.sent.answered:
        raise ServingError("no request was answered")


def _run(sender: Sender, count: int, as_json: bool) -> bool:
    """Send it all, and return whether it was stopped by Ctrl-C."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json, transient=True) as progress:
        task = progress.add_task("requests", total=count)

        def show(sent: Sent) -> None:
            about = "requests" if sent.sent < count else f"labels: {sent.labels}"
            progress.update(task, completed=sent.sent, description=about)

        sender.on_progress = show
        try:
            asyncio.run(sender.send())
        except KeyboardInterrupt:
            return True
    return False


def _show(sent: Sent, data: Dataset, stopped: bool) -> None:
    found = sent.to_json()
    versions = ", ".join(f"v{version}: {n}" for version, n in sorted(sent.versions.items()))
    latency = f"; p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms" if sent.milliseconds else ""
    click.echo(
        f"{'stopped: ' if stopped else ''}{sent.sent} sent of {len(data)} rows, {sent.answered} answered{latency}"
    )
    click.echo(f"{sent.labels} labels sent" + (f"; answered by {versions}" if versions else ""))
    for said, n in sent.refused.most_common(5):
        click.echo(click.wrap_text(f"{n} refused: {said}", width=80, subsequent_indent="  "))
