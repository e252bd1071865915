"""`homeostat rollout`: what a version on trial or in quarantine may do."""

from __future__ import annotations

import click

from homeostat.console import actor, open_store, read_settings, read_version


@click.group()
def rollout() -> None:
    """Look after versions that were stopped or rolled back."""


@rollout.command()
@click.argument("model")
@click.argument("version", type=read_version)
@click.option("--reason", default="asked for by hand", show_default=True, help="for the ledger")
def release(model: str, version: int, reason: str) -> None:
    """Let VERSION of MODEL out of quarantine."""
    store = open_store(read_settings())
    if store.release(model, version, actor=actor(), reason=reason):
        click.echo(f"{model}: v{version} is out of quarantine")
    else:
        click.echo(f"{model}: v{version} was not in quarantine")
