"""Faults on purpose: what can go wrong with the columns of requests, and with their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from homeostat.dataset import Array, Dataset
from homeostat.errors import ConfigError

Change = Callable[[Array, float, np.random.Generator], Array]
"""(values of one column [n, ...], amount, rng) -> the values with the fault."""


@dataclass(frozen=True)
class Fault:
    """One fault: what, of which column or input (empty: of the labels), and how much."""

    kind: str
    column: str
    amount: float


def _shift(values: Array, amount: float, rng: np.random.Generator) -> Array:
    del rng
    return values + amount * float(np.nanstd(values))


def _unit(values: Array, amount: float, rng: np.random.Generator) -> Array:
    del rng
    return values * amount


def _zero(values: Array, amount: float, rng: np.random.Generator) -> Array:
    return np.where(rng.random(values.shape) < amount, 0.0, values)


def _nan(values: Array, amount: float, rng: np.random.Generator) -> Array:
    return np.where(rng.random(values.shape) < amount, np.nan, values)


def _shuffle(values: Array, amount: float, rng: np.random.Generator) -> Array:
    chosen = np.flatnonzero(rng.random(len(values)) < amount)
    mixed = values.copy()
    mixed[chosen] = values[rng.permutation(chosen)]
    return mixed


COLUMN_FAULTS: Mapping[str, Change] = {"shift": _shift, "unit": _unit, "zero": _zero, "nan": _nan, "shuffle": _shuffle}
ABSENT, CONCEPT, POISON = "absent", "concept", "poison"
SHARES = ("zero", "nan", "shuffle", POISON)


def read_fault(text: str) -> Fault:
    """Return a fault given as KIND:COLUMN:AMOUNT, absent:COLUMN or poison:SHARE; raises ConfigError."""
    kind, *rest = text.split(":")
    if kind == ABSENT and len(rest) == 1 and rest[0]:
        return Fault(kind, rest[0], 1.0)
    column = ":".join(rest[:-1])
    if kind not in (*COLUMN_FAULTS, CONCEPT, POISON) or not rest or bool(column) == (kind == POISON):
        kinds = ", ".join((*COLUMN_FAULTS, CONCEPT))
        raise ConfigError(
            f"fault {text!r:.80}: write KIND:COLUMN:AMOUNT with one of {kinds}, or absent:COLUMN, or poison:SHARE; "
            "`homeostat simulate --help` says what each does"
        )
    try:
        amount = float(rest[-1])
    except ValueError as error:
        raise ConfigError(f"fault {text!r:.80}: {rest[-1]!r:.40} is no number") from error
    if not math.isfinite(amount) or (kind in SHARES and not 0 <= amount <= 1):
        raise ConfigError(f"fault {text!r:.80}: {rest[-1]} is no {'share from 0 to 1' if kind in SHARES else 'number'}")
    return Fault(kind, column, amount)


def add_faults(data: Dataset, faults: Sequence[Fault], classes: int, rng: np.random.Generator) -> Dataset:
    """Return the rows with all faults, in their order, and with the labels that they have then.

    classes: 0 for a regression. Raises ConfigError that names the columns there are.
    """
    for fault in faults:
        data = _add(data, fault, classes, rng)
    return data


def column_names(data: Dataset) -> list[str]:
    """Return what a fault can be of: columns [n] and [n, d] by name, else inputs."""
    names: list[str] = []
    for name, values in data.inputs.items():
        own = _columns(data, name, values)
        names += own or [name]
    return names


def _add(data: Dataset, fault: Fault, classes: int, rng: np.random.Generator) -> Dataset:
    if fault.kind == POISON:
        chosen = rng.random(len(data)) < fault.amount
        return replace(data, target=_wrong(data.target, chosen, classes, 1.0, rng))
    name, place = _find(data, fault.column)
    values = data.inputs[name]
    if fault.kind == CONCEPT:
        column = values if place is None else values[:, place]
        size = column.reshape(len(data), -1).mean(axis=1)
        above = size > np.median(size)
        return replace(data, target=_wrong(data.target, above, classes, fault.amount, rng))
    if fault.kind == ABSENT and (place is None or values.ndim < 2 or values.shape[1] == 1):
        return replace(data, inputs={other: array for other, array in data.inputs.items() if other != name})
    change = COLUMN_FAULTS["nan" if fault.kind == ABSENT else fault.kind]
    if values.dtype.kind != "f" and change is _nan:
        raise ConfigError(f"fault {fault.kind}: {fault.column} holds whole numbers ({values.dtype}), which have no NaN")
    changed = values.astype(np.float64)
    if place is None:
        changed = change(changed, fault.amount, rng)
    else:
        changed[:, place] = change(changed[:, place], fault.amount, rng)
    if values.dtype.kind != "f":
        limits = np.iinfo(values.dtype)
        changed = np.clip(np.rint(changed), limits.min, limits.max)
    return replace(data, inputs={**data.inputs, name: changed.astype(values.dtype)})


def _wrong(target: Array, chosen: Array, classes: int, amount: float, rng: np.random.Generator) -> Array:
    """Return other labels for the chosen rows: another class; or the target and so much of it more."""
    if classes:
        return np.where(chosen, (target + rng.integers(1, max(classes, 2), len(target))) % max(classes, 2), target)
    return np.where(chosen, target * (1 + amount), target)


def _columns(data: Dataset, name: str, values: Array) -> list[str]:
    if values.ndim == 1:
        return [name]
    if values.ndim != 2 or (name not in data.columns and values.shape[1] == 1):
        return []
    return list(data.columns.get(name) or (f"{name}_{i}" for i in range(values.shape[1])))


def _find(data: Dataset, column: str) -> tuple[str, int | None]:
    for name, values in data.inputs.items():
        if column == name:
            return name, None
        own = _columns(data, name, values)
        if column in own:
            return name, own.index(column)
    known = column_names(data)
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    raise ConfigError(f"no column {column!r:.60}; the rows have: {listed}")
