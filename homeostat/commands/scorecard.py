"""`homeostat scorecard`: how maintainable a deployed model is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from homeostat.commands.console import find_store, read_settings, read_time, show

if TYPE_CHECKING:
    from homeostat.control.scorecard import Scorecard, Spread


@click.command()
@click.argument("model", required=False)
@click.option("--since", type=read_time, metavar="TIME", help="count from here on  [default: the first decision]")
@click.option("--json", "as_json", is_flag=True, help="print every figure, in seconds, as JSON")
def scorecard(model: str | None, since: datetime | None, as_json: bool) -> None:
    """Show how maintainable MODEL is, or each model: from its ledger.

    How often another version goes live, and is taken back; how long harm takes to be found, and to be
    mended; how many looks found drift without harm; how many rows have labels.
    """
    from homeostat.control.scorecard import make_scorecard

    now = datetime.now(UTC)
    if since is not None and since >= now:
        raise click.BadParameter(f"{since.isoformat()} has not come yet", param_hint="--since")
    store = find_store(read_settings())
    names = [model] if model else [row.model for row in store.rows()]
    found = [make_scorecard(name, store.history(name), now, since) for name in names]
    if as_json:
        click.echo(json.dumps({one.model: one.to_json() for one in found}, indent=1))
        return
    if not found:
        click.echo("No model has been rolled out yet.")
        return
    from rich.table import Table

    table = Table("", *(one.model for one in found))
    columns = [_figures(one) for one in found]
    for rows in zip(*columns, strict=True):
        table.add_row(rows[0][0], *(value for _, value in rows))
    show(table)


def _figures(found: Scorecard) -> list[tuple[str, str]]:
    """Return what is shown of a model: name and value."""
    weekly = found.promotions_per_week
    return [
        ("since (UTC)", f"{found.since[:16].replace('T', ' ')}, {found.days:.1f} days"),
        ("promotions", f"{found.promotions}" + ("" if weekly is None else f", {weekly:.2g} a week")),
        ("of them taken back", f"{found.taken_back}"),
        ("live until taken back", _spread(found.rollback)),
        ("harm until found", _spread(found.detection)),
        ("harm found until another champion", _spread(found.recovery)),
        ("harm that stands", "none" if found.open_harm is None else f"for {_time(found.open_harm)}"),
        ("retrainings; held", f"{found.retrainings}; {found.held}"),
        ("looks; drift without harm", f"{found.looks}; {found.harmless_drift}"),
        ("rows with a label", "-" if found.coverage is None else f"{found.coverage:.0%}"),
        ("age of the champion", "-" if found.champion_age is None else _time(found.champion_age)),
    ]


def _spread(found: Spread) -> str:
    if found.median is None or found.longest is None:
        return "-"
    if found.count == 1:
        return f"{_time(found.median)}, once"
    return f"median {_time(found.median)}, at most {_time(found.longest)}, {found.count} times"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
