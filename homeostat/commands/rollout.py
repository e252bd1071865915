"""`homeostat rollout`: move traffic to a version step by step, look at its guards, and stop it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from homeostat.commands.console import actor, mirror_aliases, open_store, read_settings, read_version, short_time, show

if TYPE_CHECKING:
    from homeostat.records import Rollout

REASON = click.option("--reason", default="asked for by hand", show_default=True, help="for the ledger")


@click.group()
def rollout() -> None:
    """Move traffic to a version step by step.

    The server compares the version with the champion at every step ([rollout] in project.toml,
    kept in the signed bundle), goes on when the evidence says pass, takes it out when a guard
    says fail, and pauses when a step stays inconclusive.
    """


@rollout.command()
@click.argument("model")
@click.argument("version", type=read_version, required=False)
@REASON
def start(model: str, version: int | None, reason: str) -> None:
    """Start with VERSION of MODEL  [default: its challenger], after its bundle was verified."""
    _change(model, "start", reason, version)


@rollout.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="print everything, as JSON")
def status(model: str | None, as_json: bool) -> None:
    """Show the step, and each guard with its figures, of MODEL or of all."""
    from homeostat.serving.rollout.actions import describe

    settings = read_settings()
    store = open_store(settings)
    rows = [store.row(model)] if model else store.rows()
    found = {row.model: describe(row, settings.home) for row in rows}
    if as_json:
        click.echo(json.dumps({"models": found, "quarantine": store.quarantined()}, indent=1))
        return
    for one in found.values():
        _show(one)
    if not found:
        click.echo("No model has been rolled out yet.")


@rollout.command()
@click.argument("model")
@REASON
def pause(model: str, reason: str) -> None:
    """Stay at this step; a guard can still stop the rollout."""
    _change(model, "pause", reason)


@rollout.command()
@click.argument("model")
@REASON
def resume(model: str, reason: str) -> None:
    """Go on after a pause; the step's time begins anew."""
    _change(model, "resume", reason)


@rollout.command()
@click.argument("model")
@REASON
def promote(model: str, reason: str) -> None:
    """Make the version on trial champion now, and bake it; in the bake: end it."""
    _change(model, "promote", reason)


@rollout.command()
@click.argument("model")
@REASON
def abort(model: str, reason: str) -> None:
    """Take the version on trial out, into quarantine; in the bake the old champion comes back."""
    _change(model, "abort", reason)


@rollout.command()
@click.argument("model")
@click.argument("version", type=read_version)
@REASON
def release(model: str, version: int, reason: str) -> None:
    """Let VERSION of MODEL out of quarantine."""
    store = open_store(read_settings())
    if store.release(model, version, actor=actor(), reason=reason):
        click.echo(f"{model}: v{version} is out of quarantine")
    else:
        click.echo(f"{model}: v{version} was not in quarantine")


def _change(model: str, action: str, reason: str, version: int | None = None) -> None:
    from homeostat.control.progress import Why
    from homeostat.serving.rollout.actions import act

    settings = read_settings()
    row = act(open_store(settings), settings.home, model, action, Why(actor(), reason), version=version)
    _say(row)
    mirror_aliases(settings, row)


def _say(row: Rollout) -> None:
    champion = f"champion v{row.champion.version}" if row.champion else "no champion"
    if row.on_trial is None:
        click.echo(f"{row.model}: {champion} has all traffic (generation {row.generation})")
        return
    share = "" if row.mode == "shadow" else f", {row.weight:.0%} of traffic"
    paused = ", paused" if row.paused else ""
    click.echo(f"{row.model}: {row.mode} of v{row.on_trial.version}{share}{paused} (generation {row.generation})")


def _show(one: dict[str, Any]) -> None:
    row = one["rollout"]
    if row["mode"] == "live":
        click.echo(
            f"{one['model']}: no rollout in progress, champion {one['champion']} (generation {one['generation']})"
        )
        return
    step = f"step {row['step'] + 1} of {row['steps']}, " if row["mode"] == "canary" else ""
    share = "" if row["mode"] == "shadow" else f"{row['weight']:.0%} of traffic, "
    paused = "PAUSED, " if row["paused"] else ""
    since = short_time(row["step_since"])
    click.echo(f"{one['model']}: {row['mode']} of v{row['version']}, {step}{share}{paused}since {since} UTC")
    if one["evidence"] is None:
        click.echo("  no evidence from a server of this HOMEOSTAT_HOME yet")
        return
    from rich.table import Table

    table = Table("guard", "says", "why", "evidence\nfail, pass")
    for guard, judgement in one["evidence"]["guards"].items():
        figures = judgement["figures"]
        logs = [figures.get(name) for name in ("log_e_fail", "log_e_pass")]
        marks = ", ".join("-" if value is None else f"{value:+.1f}" for value in logs)
        table.add_row(
            guard + ("*" if guard in row["required"] else ""), judgement["outcome"], judgement["reason"], marks
        )
    show(table)
    evidence = one["evidence"]
    click.echo(f"  {evidence['requests']} requests in this step; {evidence['next']}; * must pass")
    click.echo(f"  evidence is log(e): fail at {row['fail_at']:.1f}; counted until {short_time(evidence['time'])} UTC")
