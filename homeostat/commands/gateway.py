"""`homeostat gateway`: take webhooks, start flow runs, and tell of decisions."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from homeostat.commands.console import read_settings

# Heavy imports stand in the commands: `homeostat --help` must be quick.


@click.command()
@click.option("--host", help="address to bind to  [default: HOMEOSTAT_GATEWAY_HOST or 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="port  [default: HOMEOSTAT_GATEWAY_PORT or 8090]")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="[default: gateway.toml in the checkout, if it is there]"
)
@click.option(
    "--prefect-url", envvar="PREFECT_API_URL", default="http://127.0.0.1:4200/api", show_default=True,
    help="Prefect's API; also by PREFECT_API_URL",
)  # fmt: skip
@click.option("--check", is_flag=True, help="read gateway.toml and the secrets, say what they mean, and end")
def gateway(host: str | None, port: int | None, file: Path | None, prefect_url: str, check: bool) -> None:
    """Take signed webhooks and start the flow runs that gateway.toml maps them to, until it is stopped.

    It also tells Prefect, and the targets of gateway.toml, of each decision in the ledger. docs/gateway.md
    has examples.
    """
    from homeostat.errors import ConfigError
    from homeostat.gateway.config import FILE

    settings = read_settings()
    given = {"gateway_host": host, "gateway_port": port}
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    path = file or settings.root / FILE
    if file is not None and not file.exists():
        raise ConfigError(f"{file}: no such file; docs/gateway.md has an example")
    if check:
        _check(path)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s gateway %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request, with its URL
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        from homeostat.gateway.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"the gateway needs {error.name}: pip install 'homeostat[gateway]'") from error
    serve(settings, path, prefect_url)


def _check(path: Path) -> None:
    from homeostat.gateway.config import load_gateway, read_address, read_keys

    config = load_gateway(path)
    for name, source in config.sources.items():
        keys = len(read_keys(name, source.form))
        click.echo(f"POST /hooks/{name}: {source.form}, {keys} secret{'s'[: keys != 1]}")
        for rule in source.rules:
            fits = " and ".join(f"{key} = {value!r}" for key, value in rule.when.items()) or "any body"
            click.echo(f"  {fits}: {rule.deployment}")
    for name, target in config.targets.items():
        read_address(name)
        if target.form == "standard":
            read_keys(name, "standard")
        click.echo(f"told: {name} ({target.form}), of {', '.join(target.on)}")
    if not config.sources:
        click.echo(f"{path} names no source: no webhook is taken; docs/gateway.md has an example")
