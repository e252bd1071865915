"""Lists of JSON values to the arrays that a contract expects: nested rows, and columns of a frame."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from homeostat.contract import TensorSpec
from homeostat.dataset import Array
from homeostat.errors import RequestInvalid

_TYPECODES = {np.dtype(code).str: code for code in "bBhHiIqQfd"}
"""numpy dtype -> typecode of `array`, which takes numbers alone and refuses text, null and lists."""


def read_numbers(values: Sequence[Any], dtype: np.dtype[Any], where: str) -> Array:
    """Return JSON values as an array [n]; raises RequestInvalid that names the first one that does not fit.

    A missing value (null) becomes NaN, whole floats such as 2.0 become integers where the
    contract wants them: both are what a data frame makes of a column with a gap.
    """
    if dtype.kind == "b":
        if not all(type(value) is bool for value in values):
            raise RequestInvalid(f"{where}: true or false is expected")
        return np.array(values, dtype=dtype)
    code = _TYPECODES.get(dtype.str, "f")
    try:
        found: Array = np.frombuffer(array(code, values), dtype=code)
    except (TypeError, OverflowError):
        found = np.array([_number(value, dtype, f"{where}[{i}]") for i, value in enumerate(values)], dtype=code)
    if found.dtype != dtype:  # float16 has no typecode
        with np.errstate(over="ignore"):  # becomes Inf, which the contract judges
            found = found.astype(dtype)
    return found


def _number(value: Any, dtype: np.dtype[Any], where: str) -> float | int:
    if dtype.kind == "f" and value is None:
        return math.nan
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, int) or (isinstance(value, float) and (dtype.kind == "f" or whole)):
        if dtype.kind == "f":
            try:
                return float(value)
            except OverflowError:
                return math.copysign(math.inf, value)
        limits = np.iinfo(dtype)
        if limits.min <= value <= limits.max:
            return int(value)
    text = "missing" if value is None else f"{value!r:.40}"
    raise RequestInvalid(f"{where}: {text}, {dtype} is expected")


def read_rows(value: Any, spec: TensorSpec, where: str) -> Array:
    """Return rows, each nested as the input's shape says, as [n, *shape]; raises RequestInvalid."""
    if not isinstance(value, list):
        raise RequestInvalid(f"{where}: must be a list of rows, not {type(value).__name__}")
    level = value
    for depth, size in enumerate(spec.shape):
        for one in level:
            if not isinstance(one, list) or len(one) != size:
                found = f"{len(one)} values" if isinstance(one, list) else f"{one!r:.40}"
                wanted = ", ".join(("n", *map(str, spec.shape)))
                raise RequestInvalid(
                    f"{where}: {found} at depth {depth + 1}, {size} values are expected: "
                    f"input {spec.name!r} is [{wanted}]"
                )
        level = list(chain.from_iterable(level))
    return read_numbers(level, np.dtype(spec.dtype), where).reshape(len(value), *spec.shape)
