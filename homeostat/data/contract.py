"""The contract that is inferred from the training rows and their profile."""

from __future__ import annotations

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.contract import MAX_CATEGORIES, MAX_COLUMNS, ColumnSpec, Contract, TensorSpec
from homeostat.data.profile import ColumnProfile, Profile, frame_of
from homeostat.data.profiler import make_profile
from homeostat.dataset import Array, Dataset
from homeostat.errors import DataInvalid
from homeostat.project import Project


def infer_contract(project: Project, train: Dataset, config: ProjectConfig) -> tuple[Contract, Profile]:
    """Return what later rows may be, by what the training rows were, and their profile.

    Ranges are widened on both sides by data.range_slack of what was seen. Raises DataInvalid
    when a column has no value in the training part.
    """
    profile = make_profile(frame_of(project, train), seed=config.train.seed)
    assert profile.target is not None  # frame_of has it
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
        categories=_allowed(column),
    )


def _allowed(column: ColumnProfile) -> tuple[int, ...] | tuple[str, ...] | None:
    """Return the categories of a column, sorted; None where it has too many to be a rule."""
    values = [value for value, _ in column.categories or ()]
    if not values or column.rest or len(values) > MAX_CATEGORIES:
        return None
    if isinstance(values[0], int):
        return tuple(sorted(int(value) for value in values))
    return tuple(sorted(str(value) for value in values))


def _widened(low: float, high: float, slack: float) -> tuple[float, float]:
    """Widen by a share of the seen range; of the value itself where it never varied."""
    margin = slack * float((high - low) or abs(high) or 1.0)
    return float(low) - margin, float(high) + margin
