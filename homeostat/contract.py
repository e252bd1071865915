"""What a row may be: the pure definition and its fast check, shared by validate, monitor and the server's door."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from homeostat.dataset import Array
from homeostat.errors import DataInvalid, RequestInvalid
from homeostat.tensors import DATATYPES

MAX_CATEGORIES = 20
"""An integer column with at most this many distinct values is a category."""
MAX_COLUMNS = 128
"""An input of shape [n, d] with more columns than this is a tensor without names, as images are."""


class Strict(BaseModel):
    """Frozen, and nothing but the keys it declares."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def whole(value: Any) -> Any:
    """Return a whole float as an integer, and anything else as it is: JSON has one kind of number, and 2.0 is 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)
"""Before a strict integer of JSON: Annotated[int, Field(strict=True), WHOLE]."""


class TensorSpec(Strict):
    """One model input: its numpy dtype, its shape without the batch dimension, and the allowed range.

    minimum and maximum hold one number for the whole tensor, or one for each of d columns;
    columns hold the names of these, where the project gave some.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    columns: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _range_fits_shape(self) -> TensorSpec:
        fitting = {1, self.shape[-1] if len(self.shape) == 1 else 1}
        if len(self.minimum) != len(self.maximum) or len(self.minimum) not in fitting:
            raise ValueError(f"a range of {len(self.minimum)} and {len(self.maximum)} values for shape {self.shape}")
        if self.columns and self.shape != (len(self.columns),):
            raise ValueError(f"{len(self.columns)} names of columns for shape {self.shape}")
        return self

    def column_names(self) -> tuple[str, ...]:
        """Return the name of each column as a frame has it; none for a tensor that is not made of columns."""
        if self.columns:
            return self.columns
        if self.shape in ((), (1,)):
            return (self.name,)
        if len(self.shape) == 1 and self.shape[0] <= MAX_COLUMNS:
            return tuple(f"{self.name}_{i}" for i in range(self.shape[0]))
        return ()


class ColumnSpec(Strict):
    """One column of the project's frame, as the training rows had it; the range is widened by data.range_slack."""

    name: str
    dtype: str
    null_share: float
    minimum: float | None
    maximum: float | None
    categories: tuple[int, ...] | tuple[str, ...] | None = None


class Contract(Strict):
    """What a row, and a table of rows, may be."""

    inputs: tuple[TensorSpec, ...]
    columns: tuple[ColumnSpec, ...]
    target: ColumnSpec
    min_rows: int
    mostly: float
    """Share of rows that must be in range or among the categories."""
    null_slack: float
    """How much larger a column's null share may be than `null_share`."""

    def check_tensors(self, tensors: Mapping[str, Array], *, nan: str = "reject", out_of_range: str = "accept") -> int:
        """Check a request's tensors and return how many of their values are out of range.

        tensors: input name -> array [n, ...]. Raises RequestInvalid that names the input and
        what was expected: names, dtypes, shapes, one n for all, NaN or Inf (unless nan is
        `accept`), range (if out_of_range is `reject`).
        """
        expected = {spec.name: spec for spec in self.inputs}
        if tensors.keys() != expected.keys():
            missing = ", ".join(sorted(expected.keys() - tensors.keys())) or "none"
            unknown = ", ".join(sorted(tensors.keys() - expected.keys())) or "none"
            raise RequestInvalid(f"inputs must be {', '.join(expected)}; missing: {missing}; unknown: {unknown}")
        rows, outside = -1, 0
        for name, values in tensors.items():
            spec = expected[name]
            if values.dtype != np.dtype(spec.dtype):
                datatype = DATATYPES[np.dtype(spec.dtype)]
                raise RequestInvalid(f"input {name!r}: dtype {values.dtype}, expected {spec.dtype} ({datatype})")
            if values.ndim == 0 or values.shape[1:] != spec.shape:
                wanted = ", ".join(("n", *map(str, spec.shape)))
                raise RequestInvalid(f"input {name!r}: shape {list(values.shape)}, expected [{wanted}]")
            if len(values) == 0:
                raise RequestInvalid(f"input {name!r} has no rows")
            if rows not in (-1, len(values)):
                raise RequestInvalid(f"input {name!r} has {len(values)} rows where another input has {rows}")
            rows = len(values)
            if nan == "reject" and values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RequestInvalid(f"input {name!r}: NaN or Inf, which the contract forbids")
            low, high = np.asarray(spec.minimum), np.asarray(spec.maximum)
            beyond = int(np.count_nonzero((values < low) | (values > high)))
            if beyond and out_of_range == "reject":
                raise RequestInvalid(
                    f"input {name!r}: {beyond} values outside [{low.min():g}, {high.max():g}], the contract's range"
                )
            outside += beyond
        return outside

    def to_json(self) -> str:
        """Return the contract as indented JSON."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, where: str | Path = "contract") -> Contract:
        """Read a contract; raises DataInvalid that names the key."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise DataInvalid(f"{where} is not a contract: {error}") from error
