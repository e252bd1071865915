"""gateway.toml: which webhooks start which deployment, and who is told; secrets come from the environment alone."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from homeostat.config import Section, read_toml
from homeostat.errors import ConfigError
from homeostat.keys import check_private

FILE = "gateway.toml"
Form = Literal["standard", "github", "mlflow"]
Event = Literal["promoted", "rolled-back", "retraining", "held", "challenger", "approval", "drift", "harm"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
MIN_SECRET = 16
"""Bytes of the shortest secret that is taken."""


class Rule(Section):
    """The flow run that a webhook starts when its body holds all of `when`."""

    when: dict[str, str | int | float | bool] = Field(
        {}, description='dotted path into the body = value, such as "data.name" = "digits"; all must hold'
    )
    deployment: str = Field(pattern=r"^[^/\s]+/[^/\s]+$", description="FLOW/NAME, such as retrain/digits")
    parameters: dict[str, JsonValue] = Field({}, description="of the flow run")
    take: dict[str, str] = Field({}, description="parameter = dotted path into the body, whose value it gets")


class Source(Section):
    """Who may send webhooks to /hooks/NAME."""

    form: Form = Field(description="how they are signed: Standard Webhooks, GitHub's, or MLflow's registry")
    per_minute: float = Field(60.0, gt=0, le=60_000, description="webhooks that are taken in a minute")
    rules: tuple[Rule, ...] = Field(
        strict=False, min_length=1, max_length=100, description="the first that fits says what is started"
    )


class Target(Section):
    """Who is told of decisions."""

    form: Literal["apprise", "standard"] = Field(
        description="chat and e-mail through Apprise, or signed webhooks in the Standard Webhooks form"
    )
    on: tuple[Event, ...] = Field(("promoted", "rolled-back", "harm"), strict=False, min_length=1)
    models: tuple[str, ...] = Field((), strict=False, description="default: all")


class GatewayConfig(Section):
    """One gateway.toml."""

    max_body_bytes: int = Field(1_048_576, ge=1024, le=26_214_400, description="a larger webhook is refused")
    give_up_hours: float = Field(24.0, gt=0, le=24 * 30, description="how long Prefect or a target may not answer")
    sources: dict[Name, Source] = Field({}, description="who may send webhooks, by the NAME in /hooks/NAME")
    targets: dict[Name, Target] = Field({}, description="who is told, by name")


def load_gateway(path: Path) -> GatewayConfig:
    """Read gateway.toml, which need not be there: raises ConfigError with the file, the key and what is allowed."""
    return read_toml(path, GatewayConfig, "nothing to read") if path.exists() else GatewayConfig()


def read_secret(variable: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the text of a variable, or of the file (mode 600) that VARIABLE_FILE names; raises ConfigError."""
    name = environ.get(f"{variable}_FILE")
    if name:
        try:
            check_private(Path(name))
            return Path(name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{variable}_FILE: {name} cannot be read: {error}") from error
    return environ.get(variable, "").strip()


def read_keys(name: str, form: Form, environ: Mapping[str, str] = os.environ) -> tuple[bytes, ...]:
    """Return the signing keys of a source or target, of which any may sign; raises ConfigError when there is none.

    HOMEOSTAT_HOOK_<NAME>_SECRET, or a file that HOMEOSTAT_HOOK_<NAME>_SECRET_FILE names: several with commas or
    on lines of their own, so that a secret is changed without a gap. Standard Webhooks' are base64 behind
    `whsec_`; GitHub's and MLflow's are text.
    """
    variable = f"HOMEOSTAT_HOOK_{name.upper()}_SECRET"
    keys = []
    for word in read_secret(variable, environ).replace(",", " ").split():
        key = word.encode()
        if form == "standard":
            try:
                key = base64.b64decode(word.removeprefix("whsec_"), validate=True)
            except ValueError as error:
                raise ConfigError(
                    f'{variable}: a secret of Standard Webhooks is base64 behind "whsec_"; '
                    'echo "whsec_$(openssl rand -base64 32)" makes one'
                ) from error
        if len(key) < MIN_SECRET:
            raise ConfigError(f"{variable}: a secret of {len(key)} bytes can be guessed; `openssl rand -base64 32`")
        keys.append(key)
    if not keys:
        raise ConfigError(
            f"{variable} is not set: nothing that {name} sends or is sent could be believed; set it, or "
            f"{variable}_FILE to a file of mode 600"
        )
    return tuple(keys)


def read_address(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return a target's URL, which holds its password or token; raises ConfigError without one."""
    variable = f"HOMEOSTAT_NOTICE_{name.upper()}_URL"
    found = read_secret(variable, environ)
    if not found:
        raise ConfigError(f"{variable} is not set: where does target {name} listen? Or set {variable}_FILE")
    return found
