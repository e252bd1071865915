"""The edge that the commands share: settings, store, who is asking, and how things are shown."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from homeostat.errors import HomeostatError, NotFound

if TYPE_CHECKING:
    from rich.table import Table

    from homeostat.bundle import Bundle
    from homeostat.control.store import ControlStore
    from homeostat.records import Rollout
    from homeostat.settings import Settings


def read_version(value: str) -> int:
    """Return a version given as 3 or v3."""
    digits = value.removeprefix("v")
    if not digits.isdecimal() or int(digits) < 1:
        raise click.BadParameter(f"{value!r} is no version; write 3 or v3")
    return int(digits)


def read_time(value: str) -> datetime:
    """Return an ISO 8601 time, UTC unless it has an offset."""
    try:
        time = datetime.fromisoformat(value)
    except ValueError as error:
        example = "2026-01-31T12:00 or 2026-01-31T12:00:00+01:00"
        raise click.BadParameter(f"{value!r} is no ISO 8601 time, such as {example}") from error
    try:
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except OverflowError as error:
        raise click.BadParameter(f"{value!r} is before the year 1 or after the year 9999 in UTC") from error


def read_settings() -> Settings:
    """Return the places of the environment."""
    from homeostat.settings import load_settings

    return load_settings()


def open_store(settings: Settings) -> ControlStore:
    """Return the control store, which is made if it is not there."""
    from homeostat.control.store import ControlStore

    return ControlStore(settings.control_url)


def find_store(settings: Settings) -> ControlStore:
    """Return the control store; raises NotFound when it is a file that is not there, for to look makes nothing."""
    path = settings.control_url.partition("sqlite:///")[2]
    if path and not os.path.exists(path):  # noqa: PTH110  a URL's text
        raise NotFound(
            f"there is no control store at {path}: nothing has been rolled out yet, or HOMEOSTAT_HOME or "
            "HOMEOSTAT_CONTROL_URL points elsewhere"
        )
    return open_store(settings)


def open_version(model: str | None, version: int | None) -> Bundle:
    """Return the verified bundle of a version, by default the champion's; of the only model where none is named."""
    from homeostat.bundle import load_public_key, open_bundle

    settings = read_settings()
    store = find_store(settings)
    if model is None:
        models = [row.model for row in store.rows()]
        if len(models) != 1:
            raise NotFound(f"say which model by --model; there are: {', '.join(models) or 'none'}")
        model = models[0]
    champion = store.row(model).champion
    ref = champion if version is None else store.bundle(model, version)
    if ref is None:
        raise NotFound(f"{model} has no champion yet; name a version")
    return open_bundle(ref, load_public_key(settings.home))


def named_version(what: str | None, model: str | None) -> tuple[str | None, int | None]:
    """Return model and version of an argument that is either, such as `digits`, `3` or `v3`."""
    version = read_version(what) if what is not None and what.removeprefix("v").isdecimal() else None
    return (model if version or what is None else what), version


def actor() -> str:
    """Return who is asking, for the ledger."""
    return f"cli:{os.environ.get('USER') or os.environ.get('LOGNAME') or f'uid {os.getuid()}'}"


def show(table: Table) -> None:
    """Print a table."""
    from rich.console import Console

    Console(highlight=False).print(table)


def short_time(time: str) -> str:
    """Return an ISO 8601 time to the second, for people."""
    return time[:19].replace("T", " ")


def mirror_aliases(settings: Settings, rollout: Rollout) -> None:
    """Let MLflow's aliases show a row, and anchor the ledger; the change holds also when MLflow does not answer."""
    from homeostat.registry import Registry

    registry = Registry(settings.mlflow_url)
    try:
        if not registry.exists():
            raise NotFound(f"there is no MLflow database at {settings.mlflow_url}")
        registry.ping(timeout_seconds=2)
        registry.mirror(rollout, open_store(settings).head())
    except HomeostatError as error:
        click.echo(f"The change holds, but MLflow's aliases do not show it yet: {error}", err=True)
        click.echo("`homeostat reconcile` sets them later.", err=True)
