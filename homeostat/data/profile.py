"""The reference profile: what the training rows looked like, and how the model answered, in a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from homeostat.contract import Strict
from homeostat.dataset import Dataset
from homeostat.errors import DataInvalid
from homeostat.project import Project
from homeostat.records import Interval

if TYPE_CHECKING:
    import pandas as pd

TARGET = "target"
"""Name of the target beside the columns of `Project.to_frame`."""
FORMAT: Literal[2] = 2
BINS = 20
MAX_COUNTED = 100
"""Categories that are counted by name; the rows of all others are one number."""


class ColumnProfile(Strict):
    """One column: moments and quantiles of its finite values, None where there is none.

    edges [21] span the 0.5 % to 99.5 % quantiles; counts [20] take what lies beyond into the outer bins.
    """

    name: str
    dtype: str
    """As pandas names it."""
    null_share: float
    """Missing and NaN; infinite values are neither missing nor counted elsewhere."""
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    """Of the population."""
    quantiles: dict[str, float] = Field(default_factory=dict)
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    distinct: int | None = None
    """Different values, about; None in a profile of format 1."""
    categories: tuple[tuple[int | str, int], ...] | None = None
    """Value and rows, for text, flags and integers of few values: at most 100, the most frequent."""
    rest: int = 0
    """Rows of the categories that are not listed."""


class Dependence(Strict):
    """Spearman's rank correlation of each pair of numeric columns, the target last; None with a constant."""

    columns: tuple[str, ...]
    spearman: tuple[tuple[float | None, ...], ...]


class CalibrationBin(Strict):
    """Rows whose confidence is in (low, high], and how many of them were right."""

    low: float
    high: float
    rows: int
    confidence: float | None
    """Mean; None without rows."""
    right: float | None
    """Share; None without rows."""


class SliceProfile(Strict):
    """The rows of one slice, and the model's metrics on them."""

    name: str
    """`slice=value`."""
    rows: int
    metrics: dict[str, Interval]


class ModelProfile(Strict):
    """How the model answered held-out rows: added to a profile at evaluation."""

    rows: int
    scores: tuple[ColumnProfile, ...]
    """Of the columns that monitoring watches: prediction and scores."""
    calibration: tuple[CalibrationBin, ...] = ()
    """Of a classifier's confidence in its answer."""
    metrics: dict[str, Interval] = Field(default_factory=dict)
    slices: tuple[SliceProfile, ...] = ()


class Profile(Strict):
    """What the training rows looked like, column by column."""

    format: Literal[2] = FORMAT
    rows: int
    columns: tuple[ColumnProfile, ...]
    target: ColumnProfile | None = None
    """None for rows without a target."""
    sampled: int | None = None
    """Rows that quantiles and dependence rest on; all other figures rest on all rows."""
    dependence: Dependence | None = None
    model: ModelProfile | None = None

    def with_model(self, model: ModelProfile) -> Profile:
        """Return the profile with how the model answered."""
        return self.model_copy(update={"model": model})

    def to_json(self) -> str:
        """Return the profile as indented JSON."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, where: str | Path = "profile") -> Profile:
        """Read a profile of format 1 or 2; raises DataInvalid that names the key, or the format."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataInvalid(f"{where} is not a profile: {error}") from error
        known = isinstance(values, dict) and values.get("format", 1)
        if isinstance(values, dict) and known not in (1, FORMAT):
            raise DataInvalid(
                f"{where} is a profile of format {known}, and this homeostat reads 1 and {FORMAT}: "
                "use the homeostat that wrote it, or train the version again"
            )
        if isinstance(values, dict) and known == 1:
            values = _from_first(values)
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise DataInvalid(f"{where} is not a profile: {error}") from error


def _from_first(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of format 1, whose categories were an object of integers, as format 2 has them."""

    def column(found: Any) -> Any:
        if not isinstance(found, dict) or not isinstance(found.get("categories"), dict):
            return found
        return found | {"categories": [[int(value), rows] for value, rows in found["categories"].items()]}

    columns = values.get("columns")
    upgraded = values | {"format": FORMAT, "target": column(values.get("target"))}
    return upgraded | ({"columns": [column(one) for one in columns]} if isinstance(columns, list) else {})


def frame_of(project: Project, data: Dataset) -> pd.DataFrame:
    """Return the project's frame [n rows] with the target as its last column, `target`."""
    frame = project.to_frame(data.inputs, data.columns)
    if len(frame) != len(data):
        raise DataInvalid(f"to_frame gave {len(frame)} rows for {len(data)}; it must give one for each")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataInvalid(f"to_frame gave two columns named {', '.join(map(str, twice))}; rename one")
    if TARGET in frame.columns:
        raise DataInvalid(f"to_frame gave a column named {TARGET!r}, which is the target's; rename it")
    return frame.assign(**{TARGET: data.target})
