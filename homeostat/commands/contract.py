"""`homeostat contract`: what rows a version takes, and what changed between two versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from homeostat.commands.console import named_version, open_version, read_version, show
from homeostat.errors import HomeostatError

if TYPE_CHECKING:
    from homeostat.contract import ColumnSpec
    from homeostat.data.difference import Change

# Heavy imports stand in the commands: `homeostat --help` must be quick.

MODEL = click.option("--model", "--project", "model", help="name of the model  [default: the only one]")
TROUBLE = 2
"""Exit code of `diff` when it cannot compare, as diff(1) has it."""


@click.group()
def contract() -> None:
    """See what rows a version takes, and what changed.

    The contract is inferred at training; projects/NAME/contract.toml overrides it from the next
    training on.
    """


@contract.command("show")
@click.argument("what", metavar="[MODEL|VERSION]", required=False)
@MODEL
@click.option("--json", "as_json", is_flag=True, help="print the whole contract, as JSON")
def show_contract(what: str | None, model: str | None, as_json: bool) -> None:
    """Show the contract of a VERSION, or of a MODEL's champion."""
    bundle = open_version(*named_version(what, model))
    found = bundle.contract
    if as_json:
        click.echo(found.to_json())
        return
    from rich.table import Table

    who = f"{bundle.ref.model} v{bundle.ref.version}"
    title = f"{who}: {found.mostly:.0%} of the rows keep these; gaps {found.null_slack:.0%} above the share"
    click.echo(click.wrap_text(title, width=80))
    table = Table("column", "dtype", "gaps", "may be")
    for column in (*found.columns, found.target):
        table.add_row(column.name, column.dtype, f"{column.null_share:.1%}", _may_be(column))
    show(table)


@contract.command()
@click.argument("old", type=read_version)
@click.argument("new", type=read_version)
@MODEL
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="ranges that moved by up to this share of the old one, and null shares by up to this, are the same",
)
@click.option("--json", "as_json", is_flag=True, help="print every change, as JSON")
def diff(old: int, new: int, model: str | None, tolerance: float, as_json: bool) -> None:
    """Say what changed from the contract of version OLD to NEW.

    Exits with 0 when nothing did, 1 when something did, 2 when they cannot be compared.
    """
    from dataclasses import asdict

    from homeostat.data.difference import differ

    try:
        before = open_version(model, old)
        name = before.ref.model
        after = open_version(name, new)
    except HomeostatError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(TROUBLE) from error
    changes = differ(before.contract, after.contract, tolerance)
    if as_json:
        click.echo(json.dumps([asdict(change) for change in changes], indent=1))
    elif not changes:
        click.echo(f"{name}: the contracts of v{old} and v{new} are the same")
    else:
        _show_changes(changes, f"v{old}", f"v{new}")
    raise SystemExit(1 if changes else 0)


def _may_be(column: ColumnSpec) -> str:
    return _words(column.categories) if column.categories else _words((column.minimum, column.maximum), "range")


def _words(value: Any, rule: str = "") -> str:
    if value is None:
        return "-"
    if rule == "range":
        low, high = ("any" if end is None else f"{end:.6g}" for end in value)
        return f"{low} to {high}"
    if rule == "null_share":
        return f"{value:.2%}"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value[:8])) + (f", ... ({len(value)})" if len(value) > 8 else "")
    return str(value)


def _show_changes(changes: tuple[Change, ...], old: str, new: str) -> None:
    from rich.table import Table

    table = Table("where", "what", old, new, "")
    for change in changes:
        words = (_words(value, change.rule) for value in (change.old, change.new))
        table.add_row(change.place, change.rule, *words, change.effect)
    show(table)
