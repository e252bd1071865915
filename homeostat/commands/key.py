"""`homeostat key`: make, list and revoke the API keys of the model server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import click

from homeostat.client import SCOPES

# Heavy imports stand in the commands: `homeostat --help` must be quick.

CLOSED = "The server stays closed; on loopback it is open again when {path} is deleted."


def _expiry(value: str | None) -> datetime | None:
    if value is None:
        return None
    now = datetime.now(UTC)
    try:
        expires = now + timedelta(days=int(value[:-1])) if value.endswith("d") else datetime.fromisoformat(value)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is no time; write 90d or 2027-01-31", param_hint="--expires") from error
    expires = expires if expires.tzinfo else expires.replace(tzinfo=UTC)
    if expires <= now:
        raise click.BadParameter(f"{value!r} is in the past", param_hint="--expires")
    return expires.replace(microsecond=0)


@click.group()
def key() -> None:
    """Make, list and revoke API keys of the model server."""


@key.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", type=click.Choice(SCOPES), multiple=True, default=("infer",), show_default=True,
    help="what it may do; repeat for several",
)  # fmt: skip
@click.option("--model", "models", multiple=True, help="the only model it may use; repeat for several")
@click.option("--expires", metavar="TIME", help="90d, or an ISO 8601 time (UTC unless it has an offset)")
def create(name: str, scopes: tuple[str, ...], models: tuple[str, ...], expires: str | None) -> None:
    """Make a key called NAME, and print it: this once, for it is kept nowhere."""
    from homeostat.apikeys import FILE, create_key
    from homeostat.settings import load_settings

    path = load_settings().home / FILE
    text, record = create_key(path, name, scopes, models or None, _expiry(expires))
    click.echo(text)
    click.echo(f"key {record.id} ({', '.join(record.scopes)}) is in {path} as a digest; keep the line above", err=True)


@key.command("list")
@click.option("--json", "as_json", is_flag=True, help="print every field but the digests, as JSON")
def show(as_json: bool) -> None:
    """List the keys: id, name, scopes, models, expiry."""
    from homeostat.apikeys import FILE, read_keys
    from homeostat.settings import load_settings

    path = load_settings().home / FILE
    keys = [record.model_dump(mode="json", exclude={"salt", "digest"}) for record in read_keys(path)]
    if as_json:
        click.echo(json.dumps(keys, indent=1))
        return
    for one in keys:
        models = "all models" if one["models"] is None else ", ".join(one["models"])
        until = f"until {one['expires']}" if one["expires"] else "does not expire"
        click.echo(f"{one['id']}  {one['name']}: {', '.join(one['scopes'])}; {models}; {until}")
    if not keys:
        click.echo("There is no key.")
        if path.exists():
            click.echo(CLOSED.format(path=path))


@key.command()
@click.argument("identity", metavar="ID")
def revoke(identity: str) -> None:
    """Revoke the key ID; the server refuses it within a second."""
    from homeostat.apikeys import FILE, read_keys, revoke_key
    from homeostat.settings import load_settings

    path = load_settings().home / FILE
    record = revoke_key(path, identity)
    click.echo(f"revoked {record.id} ({record.name})")
    if not read_keys(path):
        click.echo(f"That was the last key. {CLOSED.format(path=path)}")
