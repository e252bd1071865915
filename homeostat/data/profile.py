"""The reference profile of the training rows, and the contract that is inferred from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, ValidationError

from homeostat.config import ProjectConfig
from homeostat.contract import MAX_CATEGORIES, MAX_COLUMNS, ColumnSpec, Contract, Strict, TensorSpec
from homeostat.dataset import Array, Dataset
from homeostat.errors import DataInvalid
from homeostat.project import Project

if TYPE_CHECKING:
    import pandas as pd

TARGET = "target"
"""Name of the target beside the columns of `Project.to_frame`."""

BINS = 20
CLIP = (0.005, 0.995)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class ColumnProfile(Strict):
    """One column: moments and quantiles of its finite values, None where there is none.

    edges [21] span the 0.5 % to 99.5 % quantiles; counts [20] take what lies beyond into the outer bins.
    """

    name: str
    dtype: str
    null_share: float
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    quantiles: dict[str, float] = Field(default_factory=dict)
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    categories: dict[int, int] | None = None
    """Value -> rows, for an integer column with few distinct values."""


class Profile(Strict):
    """What the training rows looked like, column by column."""

    rows: int
    columns: tuple[ColumnProfile, ...]
    target: ColumnProfile

    def to_json(self) -> str:
        """Return the profile as indented JSON."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, where: str | Path = "profile") -> Profile:
        """Read a profile; raises DataInvalid that names the key."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise DataInvalid(f"{where} is not a profile: {error}") from error


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


def make_profile(frame: pd.DataFrame, target: Array) -> Profile:
    """Profile every column of a frame, and the target [n]."""
    return Profile(
        rows=len(frame),
        columns=tuple(_profile(str(name), frame[name].to_numpy()) for name in frame.columns if name != TARGET),
        target=_profile(TARGET, target),
    )


def _profile(name: str, values: Array) -> ColumnProfile:
    if values.dtype.kind not in "fiub":
        nulls = np.array([v is None or v != v for v in values.tolist()], dtype=bool)
        return ColumnProfile(name=name, dtype=values.dtype.name, null_share=float(nulls.mean()))
    numbers = values.astype(np.float64)
    null_share, numbers = float(np.isnan(numbers).mean()), numbers[np.isfinite(numbers)]
    if len(numbers) == 0:
        return ColumnProfile(name=name, dtype=values.dtype.name, null_share=null_share)
    low, high = np.quantile(numbers, CLIP)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    counts, _ = np.histogram(np.clip(numbers, low, high), edges)
    quantiles = np.quantile(numbers, QUANTILES)
    return ColumnProfile(
        name=name,
        dtype=values.dtype.name,
        null_share=null_share,
        minimum=float(numbers.min()),
        maximum=float(numbers.max()),
        mean=float(numbers.mean()),
        std=float(numbers.std()),
        quantiles={f"{q:g}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)},
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        categories=_categories(values),
    )


def _categories(values: Array) -> dict[int, int] | None:
    if values.dtype.kind not in "iub":
        return None
    seen, counts = np.unique(values.astype(np.int64), return_counts=True)
    return dict(zip(seen.tolist(), counts.tolist(), strict=True)) if len(seen) <= MAX_CATEGORIES else None


def infer_contract(project: Project, train: Dataset, config: ProjectConfig) -> tuple[Contract, Profile]:
    """Return what later rows may be, by what the training rows were, and their profile.

    Ranges are widened on both sides by data.range_slack of what was seen. Raises DataInvalid
    when a column has no value in the training part.
    """
    profile = make_profile(frame_of(project, train), train.target)
    slack = config.data.range_slack
    target = _column(profile.target, slack)
    if config.task == "classification":
        target = target.model_copy(update={"minimum": profile.target.minimum, "maximum": profile.target.maximum})
    contract = Contract(
        inputs=tuple(
            _tensor(name, values, slack, train.columns.get(name, ())) for name, values in train.inputs.items()
        ),
        columns=tuple(_column(column, slack) for column in profile.columns),
        target=target,
        min_rows=config.data.min_rows,
        mostly=config.data.mostly,
        null_slack=config.data.null_slack,
    )
    return contract, profile


def _tensor(name: str, values: Array, slack: float, columns: tuple[str, ...]) -> TensorSpec:
    by_column = values.ndim == 2 and values.shape[1] <= MAX_COLUMNS
    flat = (values if by_column else values.reshape(-1, 1)).astype(np.float64)
    empty = np.flatnonzero(np.isnan(flat).all(axis=0))
    if len(empty):
        where = f" column {empty[0]}" if by_column else ""
        raise DataInvalid(f"input {name!r}{where} has no value in the training part")
    ranges = [_widened(low, high, slack) for low, high in zip(np.nanmin(flat, 0), np.nanmax(flat, 0), strict=True)]
    return TensorSpec(
        name=name,
        dtype=values.dtype.name,
        shape=values.shape[1:],
        minimum=tuple(low for low, _ in ranges),
        maximum=tuple(high for _, high in ranges),
        columns=columns,
    )


def _column(column: ColumnProfile, slack: float) -> ColumnSpec:
    low, high = column.minimum, column.maximum
    if low is not None and high is not None:
        low, high = _widened(low, high, slack)
    return ColumnSpec(
        name=column.name,
        dtype=column.dtype,
        null_share=column.null_share,
        minimum=low,
        maximum=high,
        categories=None if column.categories is None else tuple(sorted(column.categories)),
    )


def _widened(low: float, high: float, slack: float) -> tuple[float, float]:
    """Widen by a share of the seen range; of the value itself where it never varied."""
    margin = slack * float((high - low) or abs(high) or 1.0)
    return float(low) - margin, float(high) + margin
