"""A look at live traffic as JSON keeps it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from homeostat.errors import DataInvalid
from homeostat.records import Monitoring

_MONITORING = TypeAdapter(Monitoring)


def read_look(found: Mapping[str, Any]) -> Monitoring:
    """Return the record that JSON has kept; numbers that are not finite stand as text. Raises DataInvalid."""
    try:
        return _MONITORING.validate_python(found)
    except ValidationError as error:
        raise DataInvalid(f"a kept look at live traffic cannot be read: {error}") from error
