"""`homeostat profile`: what a version was trained on and how it answered, and how far other rows are from that."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from homeostat.commands.console import named_version, open_version, show
from homeostat.commands.contract import MODEL

if TYPE_CHECKING:
    from homeostat.bundle import Bundle
    from homeostat.data.comparison import ColumnDistance
    from homeostat.data.profile import ColumnProfile, Profile

# Heavy imports stand in the commands: `homeostat --help` must be quick.

MOST = 40
"""Columns that are printed; --json has all."""


@click.group()
def profile() -> None:
    """See the profile of a version's training rows and answers, and hold other rows against it.

    The profile travels with the version, so that neither command reads the training data.
    """


@profile.command("show")
@click.argument("what", metavar="[MODEL|VERSION]", required=False)
@MODEL
@click.option("--json", "as_json", is_flag=True, help="print the whole profile, as JSON")
def show_profile(what: str | None, model: str | None, as_json: bool) -> None:
    """Show the profile of a VERSION, or of a MODEL's champion."""
    bundle = open_version(*named_version(what, model))
    found = _read(bundle)
    if as_json:
        click.echo(found.to_json())
        return
    from rich.table import Table

    click.echo(f"{bundle.ref.model} v{bundle.ref.version}: {found.rows:,} training rows, {len(found.columns)} columns")
    table = Table("column", "dtype", "missing", "mean", "std", "1 % to 99 %")
    rows = [*found.columns, *([found.target] if found.target else [])]
    for column in rows[:MOST]:
        table.add_row(column.name, column.dtype, f"{column.null_share:.1%}", *_numbers(column))
    show(table)
    if len(rows) > MOST:
        click.echo(f"{len(rows) - MOST} more columns: --json has all")
    if found.model is not None:
        click.echo(f"on {found.model.rows:,} held-out rows:")
        table = Table("rows of", "rows", *found.model.metrics)
        table.add_row("all", f"{found.model.rows:,}", *(f"{m.value:.4g}" for m in found.model.metrics.values()))
        for part in found.model.slices[:MOST]:
            values = (part.metrics.get(name) for name in found.model.metrics)
            table.add_row(part.name, f"{part.rows:,}", *("-" if m is None else f"{m.value:.4g}" for m in values))
        show(table)


@profile.command()
@click.argument("source")
@click.argument("what", metavar="[MODEL|VERSION]", required=False)
@MODEL
@click.option("--json", "as_json", is_flag=True, help="print every figure, as JSON")
def compare(source: str, what: str | None, model: str | None, as_json: bool) -> None:
    """Say how far the rows of SOURCE are from the training rows of a VERSION, or of a MODEL's champion.

    SOURCE: a Parquet or CSV file, a folder or a glob of either, or URL#TABLE of a database, with the
    columns of the project's frame. These are sizes, counted in seconds over any number of rows, and
    no tests: `homeostat monitor` says whether live traffic has changed.
    """
    from dataclasses import asdict

    from homeostat.data.comparison import compare as compare_rows

    bundle = open_version(*named_version(what, model))
    found = compare_rows(_read(bundle), source)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    from rich.table import Table

    farthest = sorted(found, key=lambda one: (not one.fault, -(one.jensen_shannon or 0.0)))
    click.echo(f"{source} beside the training rows of {bundle.ref.model} v{bundle.ref.version}, the farthest first:")
    table = Table("column", "rows", "missing", "Jensen-Shannon", "PSI", "mean (sd)", "")
    for one in farthest[:MOST]:
        sizes = (_size(one.jensen_shannon), _size(one.psi), _size(one.mean_shift, "+.2f"))
        table.add_row(one.column, f"{one.rows:,}", f"{one.null_share:.1%}", *sizes, _said(one))
    show(table)
    if len(found) > MOST:
        click.echo(f"{len(found) - MOST} more columns: --json has all")


def _read(bundle: Bundle) -> Profile:
    from homeostat.data.profile import Profile

    return Profile.from_json(bundle.profile, f"profile of {bundle.ref.model} v{bundle.ref.version}")


def _numbers(column: ColumnProfile) -> tuple[str, str, str]:
    if column.mean is None or column.std is None:
        listed = ", ".join(str(value) for value, _ in (column.categories or ())[:4])
        return "", "", listed
    low, high = column.quantiles.get("0.01"), column.quantiles.get("0.99")
    ends = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
    return f"{column.mean:.4g}", f"{column.std:.4g}", ends


def _size(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def _said(one: ColumnDistance) -> str:
    if one.fault:
        return one.fault
    return f"{one.unseen:.1%} in new categories" if one.unseen else ""
