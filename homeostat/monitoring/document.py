"""A monitored window as strict JSON, and back."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from homeostat.errors import DataInvalid
from homeostat.records import Monitoring

SCHEMA_VERSION = 1
_MONITORING = TypeAdapter(Monitoring)


def write_monitoring(monitoring: Monitoring) -> bytes:
    """Return the record as JSON, `schema_version` first; a number that is not finite becomes null."""
    content = {"schema_version": SCHEMA_VERSION, **_finite(asdict(monitoring))}
    return json.dumps(content, indent=1, allow_nan=False).encode()


def read_monitoring(content: Mapping[str, Any]) -> Monitoring:
    """Return the record of a parsed document; null, or "nan", where a number must be is NaN. Raises DataInvalid."""
    values = dict(content)
    version = values.pop("schema_version", SCHEMA_VERSION)  # looks in the control store carry none
    if version != SCHEMA_VERSION:
        raise DataInvalid(f"a monitored window of schema version {version!r:.60}, not {SCHEMA_VERSION}; look again")
    try:
        return _MONITORING.validate_python(_numbered(values))
    except ValidationError as error:
        raise DataInvalid(f"no monitored window: {error!s:.300}; look again") from error


def _numbered(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with NaN at each place where the record needs a number and finds null."""
    try:
        _MONITORING.validate_python(values)
    except ValidationError as error:
        values = copy.deepcopy(values)
        for *path, last in (e["loc"] for e in error.errors() if e["type"] == "float_type" and e["input"] is None):
            place: Any = values
            for key in path:
                place = place[key]
            place[last] = math.nan
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
