"""The `homeostat` command: look at models, promote them and roll them back, start projects and the server."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from homeostat import __version__
from homeostat.commands.backtest import backtest
from homeostat.commands.console import (
    actor,
    find_store,
    mirror_aliases,
    open_store,
    read_settings,
    read_time,
    read_version,
    short_time,
    show,
)
from homeostat.commands.contract import contract
from homeostat.commands.explain import explain
from homeostat.commands.gateway import gateway
from homeostat.commands.key import key
from homeostat.commands.monitor import monitor
from homeostat.commands.profile import profile
from homeostat.commands.push_faulty import push_faulty
from homeostat.commands.rollout import rollout
from homeostat.commands.scorecard import scorecard
from homeostat.commands.simulate import simulate
from homeostat.commands.traffic import traffic
from homeostat.errors import HomeostatError, NotFound, Unavailable

if TYPE_CHECKING:
    from homeostat.control.store import ControlStore
    from homeostat.records import LedgerEntry, LedgerHead, Rollout
    from homeostat.settings import Settings

# Heavy imports stand in the commands: `homeostat --help` must be quick.


class Commands(click.Group):
    """A group whose errors of our tree are one message on stderr and exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except HomeostatError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="homeostat")
def main() -> None:
    """Keep machine-learning models in production healthy.

    Places come from the environment (HOMEOSTAT_HOME, HOMEOSTAT_CONTROL_URL, ...); what to do
    with a model from its project.toml.
    """


main.add_command(backtest)
main.add_command(contract)
main.add_command(explain)
main.add_command(gateway)
main.add_command(key)
main.add_command(monitor)
main.add_command(profile)
main.add_command(scorecard)
main.add_command(simulate)
main.add_command(push_faulty)
main.add_command(traffic)


# -- projects and the server ---------------------------------------------------------------------


@main.command()
@click.argument("name")
@click.option(
    "--task", type=click.Choice(["classification", "regression"]), default="classification", show_default=True
)
def init(name: str, task: str) -> None:
    """Write a new project that runs at once."""
    from homeostat.scaffold import init_project

    settings = read_settings()
    for path in init_project(name, settings.root, task):
        click.echo(f"wrote {path.relative_to(settings.root) if path.is_relative_to(settings.root) else path}")


@main.command()
@click.option("--host", help="address to bind to  [default: HOMEOSTAT_HOST or 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="REST port  [default: HOMEOSTAT_PORT or 8080]")
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="gRPC port  [default: HOMEOSTAT_GRPC_PORT or 8081]")
def serve(host: str | None, port: int | None, grpc_port: int | None) -> None:
    """Run the model server until it is stopped."""
    from homeostat.serving.supervisor import supervise

    given = {"HOMEOSTAT_HOST": host, "HOMEOSTAT_PORT": port, "HOMEOSTAT_GRPC_PORT": grpc_port}
    raise SystemExit(supervise({name: str(value) for name, value in given.items() if value is not None}))


# -- looking -------------------------------------------------------------------------------------


def _version_cell(standing: dict[str, Any] | None, *, since: bool = True) -> str:
    if standing is None:
        return "-"
    text = f"v{standing['version']} {standing['sha256'][:8]}"
    return f"{text}\n{short_time(standing['since'])}" if since else text


def _last_lines(status: dict[str, Any]) -> list[str]:
    lines = []
    for title, name in (("verdict", "last_verdict"), ("drift report", "last_drift")):
        entry = status[name]
        if entry is None:
            lines.append(f"{status['model']}: no {title} yet")
            continue
        kind = entry["evidence"].get("verdict") or entry["evidence"].get("kind")
        said = f"{kind}: {entry['reason']}" if isinstance(kind, str) else entry["reason"]
        lines.append(f"{status['model']}: last {title} {short_time(entry['time'])}: {said}")
    return lines


@main.command()
@click.option("--json", "as_json", is_flag=True, help="print everything, as JSON")
def status(as_json: bool) -> None:
    """Show each model's champion, challenger and last evidence."""
    try:
        store = find_store(read_settings())
        found = {row.model: store.status(row.model).to_json() for row in store.rows()}
    except NotFound as error:  # a fresh checkout is no failure
        click.echo(str(error), err=True)
        found = {}
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    if not found:
        click.echo("No model has been rolled out yet; `make run` or a lifecycle flow does that.")
        return
    from rich.table import Table

    table = Table("model", "champion, since (UTC)", "challenger", "previous", "mode", "gen.")
    for name, model in found.items():
        champion = _version_cell(model["champion"])
        others = [_version_cell(model[role], since=False) for role in ("challenger", "previous")]
        mode = model["mode"] + (f" {model['weight']:.0%}" if model["weight"] else "")
        table.add_row(name, champion, *others, mode, str(model["generation"]))
    show(table)
    for model in found.values():
        for line in _last_lines(model):
            click.echo(click.wrap_text(line, width=80, subsequent_indent="  "))


@main.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="print every field, as JSON")
def history(model: str, as_json: bool) -> None:
    """Show every decision about MODEL, oldest first."""
    from dataclasses import asdict

    entries = find_store(read_settings()).history(model)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=1))
        return
    for entry in entries:
        version = f"v{entry.version}" if entry.version else "-"
        time = short_time(entry.time)
        click.secho(
            f"{entry.sequence:4}  {time}  {entry.action:10} {version:>5}  generation {entry.generation}", bold=True
        )
        text = f"{entry.reason} ({entry.actor})"
        click.echo(click.wrap_text(text, width=80, initial_indent=" " * 6, subsequent_indent=" " * 6))


@main.command()
@click.argument("model", required=False)
@click.option(
    "--at", "time", type=read_time, metavar="TIME", help="ISO 8601, UTC unless it has an offset  [default: now]"
)
@click.option("--json", "as_json", is_flag=True, help="print the whole decisions, as JSON")
def champion(model: str | None, time: datetime | None, as_json: bool) -> None:
    """Say which version was champion at a time, of MODEL or of all."""
    from dataclasses import asdict

    store = find_store(read_settings())
    models = [model] if model else [row.model for row in store.rows()]
    at = time or datetime.now(UTC)
    found: dict[str, LedgerEntry | None] = {}
    for name in models:
        try:
            found[name] = store.champion_at(name, at)
        except NotFound:
            if model:
                raise
            found[name] = None
    if as_json:
        click.echo(json.dumps({name: entry and asdict(entry) for name, entry in found.items()}, indent=1))
        return
    for name, entry in found.items():
        if entry is None:
            click.echo(f"{name}: no champion yet")
        else:
            click.echo(f"{name}: v{entry.version} {(entry.sha256 or '')[:12]} since {short_time(entry.time)} UTC")
            click.echo(f"  {entry.action} by {entry.actor}, ledger entry {entry.sequence}")
    if not found:
        click.echo("No model has been rolled out yet.")


# -- changing ------------------------------------------------------------------------------------


def _change(model: str, change: Callable[[ControlStore, Rollout], Rollout]) -> None:
    settings = read_settings()
    store = open_store(settings)
    before = store.row(model)
    after = change(store, before)
    names = [f"v{row.champion.version}" if row.champion else "none" for row in (before, after)]
    if after.on_trial is not None and before.on_trial is None:
        click.echo(f"{model}: {after.mode} of v{after.on_trial.version} has begun (generation {after.generation})")
    elif after.generation == before.generation:
        click.echo(f"{model}: {names[1]} is champion already (generation {after.generation})")
    else:
        click.echo(f"{model}: champion {names[0]} -> {names[1]} (generation {after.generation})")
    mirror_aliases(settings, after)


@main.command()
@click.argument("model")
@click.argument("version", type=read_version)
@click.option("--reason", default="promoted by hand", show_default=True)
def promote(model: str, version: int, reason: str) -> None:
    """Make VERSION the champion of MODEL once its bundle is verified."""
    from homeostat.bundle import load_public_key, open_bundle

    settings = read_settings()
    store = open_store(settings)
    store.row(model)
    open_bundle(store.bundle(model, version), load_public_key(settings.home))
    _change(
        model,
        lambda store, row: store.promote(
            model, version, expected_generation=row.generation, actor=actor(), reason=reason
        ),
    )


@main.command()
@click.argument("model")
@click.argument("version", type=read_version, required=False)
@click.option("--reason", default="by hand", show_default=True)
def approve(model: str, version: int | None, reason: str) -> None:
    """Say yes to the promotion of MODEL that waits for it (rollout.approval_hours).

    VERSION: only if it is this one that waits. It is promoted, or its shadow or canary begins.
    """
    from homeostat.approval import approve as say_yes

    settings = read_settings()
    _change(model, lambda store, _: say_yes(store, settings.home, model, version, actor(), reason, datetime.now(UTC)))


@main.command()
@click.argument("model")
@click.argument("version", type=read_version, required=False)
@click.option("--reason", default="by hand", show_default=True)
def reject(model: str, version: int | None, reason: str) -> None:
    """Say no to the promotion of MODEL that waits: its champion stays, its challenger goes."""
    from homeostat.approval import reject as say_no

    settings = read_settings()
    row = say_no(open_store(settings), model, version, actor(), reason)
    click.echo(
        f"{model}: v{row.champion.version if row.champion else '-'} stays champion (generation {row.generation})"
    )
    mirror_aliases(settings, row)


@main.command()
@click.argument("model")
@click.option("--reason", default="rolled back by hand", show_default=True)
def rollback(model: str, reason: str) -> None:
    """Bring the previous champion of MODEL back."""
    _change(
        model,
        lambda store, row: store.rollback(
            model, bad_version=row.champion.version if row.champion else None, actor=actor(), reason=reason
        ),
    )


@main.command()
def reconcile() -> None:
    """Let the MLflow aliases mirror the rollout rows, and anchor the ledger."""
    from homeostat.reconciliation import reconcile as reconcile_model
    from homeostat.registry import Registry

    settings = read_settings()
    store, registry = open_store(settings), Registry(settings.mlflow_url)
    rows = store.rows()
    for row in rows:
        repairs = reconcile_model(store, registry, row.model, actor())
        click.echo("\n".join(repairs) or f"{row.model}: the aliases agree")
    if not rows:
        click.echo("No model has been rolled out yet.")


main.add_command(rollout)


@main.group()
def ledger() -> None:
    """Look after the decision ledger."""


@ledger.command()
def verify() -> None:
    """Check the ledger's hash chain, the rollout rows, and what the server here and MLflow remember."""
    from homeostat.serving.memory import Memory

    settings = read_settings()
    anchors = _anchors(settings)
    count = open_store(settings).verify(Memory(settings.home / "serving").read(), anchors)
    of_mlflow = f", with {len(anchors)} in MLflow's tags" if anchors else ""
    click.echo(f"The ledger holds: {count} {'entry' if count == 1 else 'entries'}{of_mlflow}.")


def _anchors(settings: Settings) -> list[LedgerHead]:
    """Return what MLflow remembers of the ledger; none, and say so, when it does not answer."""
    from homeostat.registry import Registry

    registry = Registry(settings.mlflow_url)
    try:
        if not registry.exists():
            return []
        registry.ping(timeout_seconds=2)
        return registry.anchors()
    except Unavailable as error:
        click.echo(f"What MLflow remembers of the ledger is not checked: {error}", err=True)
        return []


if __name__ == "__main__":
    main()
