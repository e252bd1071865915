"""What a webhook's body means: its envelope, the rule that fits, and the parameters that are taken from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from homeostat.errors import RequestInvalid
from homeostat.gateway.config import Form, Rule

MAX_VALUE = 200
"""Characters of a text that is taken from a body."""


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Standard(_Envelope):
    type: str
    data: JsonValue


class _Mlflow(_Envelope):
    entity: str
    action: str
    data: dict[str, JsonValue]


_ENVELOPES: Mapping[Form, type[_Envelope]] = {"standard": _Standard, "mlflow": _Mlflow, "github": _Envelope}


class Started(NamedTuple):
    """The flow run that a rule asks for."""

    deployment: str
    parameters: dict[str, JsonValue]


def read_body(form: Form, body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; raises RequestInvalid that says what the form has and the body has not."""
    try:
        return _ENVELOPES[form].model_validate_json(body).model_dump()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise RequestInvalid(f"{where}: {first['msg']}: a webhook of the form {form} has it", status=422) from error


def find_rule(rules: Sequence[Rule], body: Mapping[str, Any]) -> Started | None:
    """Return what the first rule that fits starts, None when none does; raises RequestInvalid for what it cannot take.

    A value fits when it is equal and of the same type: 1 is not true, and not "1".
    """
    for rule in rules:
        if all(_same(_at(body, path), value) for path, value in rule.when.items()):
            taken = {name: _take(body, path, name) for name, path in rule.take.items()}
            return Started(rule.deployment, {**rule.parameters, **taken})
    return None


def _at(body: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(body, Mapping) or part not in body:
            return None
        body = body[part]
    return body


def _same(found: Any, value: Any) -> bool:
    return type(found) is type(value) and found == value


def _take(body: Mapping[str, Any], path: str, name: str) -> JsonValue:
    found = _at(body, path)
    if not isinstance(found, str | int | float | bool):
        raise RequestInvalid(f"{path}: parameter {name!r} is taken from it, and it is no text or number", status=422)
    if isinstance(found, float) and not math.isfinite(found):
        raise RequestInvalid(f"{path}: parameter {name!r} is taken from it, and it is {found}", status=422)
    if isinstance(found, str) and len(found) > MAX_VALUE:
        raise RequestInvalid(f"{path}: {len(found)} characters; parameter {name!r} takes {MAX_VALUE}", status=422)
    return found
