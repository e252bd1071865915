"""`homeostat traffic`: what is captured, and moving or deleting it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from homeostat.errors import ConfigError, Unavailable

# Heavy imports stand in the commands: `homeostat --help` must be quick.

BUSY = "another process, most likely the model server's, moves or deletes captured requests now; try again in a minute"


@click.group()
def traffic() -> None:
    """See, move and delete captured requests."""


@traffic.command()
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def status(as_json: bool) -> None:
    """Say how many requests of each model are kept, since when, and what they take of the disk."""
    from homeostat.serving.capture.rolling import summarize
    from homeostat.settings import load_settings

    settings = load_settings()
    found = summarize(settings.traffic_path)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for model in found["models"]:
        click.echo(
            f"{model['model']} v{model['version']}: {model['requests']} requests, {model['rolled']} of them in "
            f"{model['files']} Parquet files, since {model['since']}"
        )
    limit = f"of {settings.traffic_gigabytes:g} GB" if settings.traffic_gigabytes else "without a limit"
    click.echo(f"{found['bytes'] / 1e9:.3f} GB {limit} in {settings.traffic_path} and its Parquet files")


@traffic.command()
def roll() -> None:
    """Move what is captured to Parquet now, and delete what is too old or too much."""
    from homeostat.serving.capture.rolling import roll
    from homeostat.settings import load_settings

    settings = load_settings()
    done = roll(settings.traffic_path, settings.traffic_days, settings.traffic_gigabytes * 1e9)
    if done is None:
        raise Unavailable(BUSY)
    click.echo(str(done))


@traffic.command()
@click.argument("model")
@click.option("--before", required=True, metavar="DATE", help="an ISO 8601 date: days before it (UTC) are deleted")
@click.confirmation_option(prompt="Captured requests cannot be brought back. Delete them?")
def delete(model: str, before: str) -> None:
    """Delete the captured requests of MODEL that came before a day."""
    from homeostat.serving.capture.rolling import delete
    from homeostat.settings import load_settings

    try:
        moment = datetime.fromisoformat(before).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise ConfigError(f"--before {before!r} is no date; write 2027-01-31") from error
    gone = delete(load_settings().traffic_path, model, moment)
    if gone is None:
        raise Unavailable(BUSY)
    click.echo(f"{gone} requests deleted")
