"""Sampled Shapley values: how much each column of a row moves an answer away from that of background rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from homeostat.contract import TensorSpec
from homeostat.dataset import Array

MAX_ELEMENTS = 128
"""An input of more values than this is explained block by block, not value by value."""
BLOCKS = 8
"""So many blocks along each of the first two dimensions of such an input, at most."""
CHUNK_BYTES = 4 * 1024 * 1024

Evaluate = Callable[[Mapping[str, Array]], Array]
"""Inputs [n, ...] by name -> the value [n] that is explained."""


class OutOfTime(Exception):
    """Not even one pair of permutations was done in the time."""


class Players(NamedTuple):
    """What a value is shared among: the columns, values or blocks of all inputs, numbered through."""

    names: tuple[str, ...]
    places: dict[str, Array]
    """Input -> int64, of the input's shape: the number of the player that each value belongs to."""

    @classmethod
    def of(cls, specs: Sequence[TensorSpec]) -> Players:
        """Return a player for each named column, each value of a small input, and each block of a large one."""
        names: list[str] = []
        places = {}
        for spec in specs:
            places[spec.name] = numbers = np.zeros(spec.shape, np.int64)
            columns = spec.column_names()
            pieces = [_pieces(size, axis, spec.shape) for axis, size in enumerate(spec.shape)]
            for number, block in enumerate(product(*pieces)):
                numbers[tuple(slice(*ends) for ends in block)] = len(names)
                names.append(columns[number] if columns else f"{spec.name}[{', '.join(map(_label, block))}]")
        return cls(tuple(names), places)


def _pieces(size: int, axis: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the ends of the pieces that an axis is cut into."""
    if np.prod(shape) <= MAX_ELEMENTS:
        count = size
    else:
        count = min(size, BLOCKS * BLOCKS if len(shape) == 1 else BLOCKS) if axis < 2 else 1
    edges = [size * place // count for place in range(count + 1)]
    return list(pairwise(edges))


def _label(ends: tuple[int, int]) -> str:
    start, stop = ends
    return str(start) if stop == start + 1 else f"{start}:{stop}"


@dataclass(frozen=True)
class Attribution:
    """How an answer came about; base + the sum of the contributions is the prediction."""

    prediction: float
    base: float
    """Mean answer of the background rows."""
    contributions: Array
    """float64 [players]"""
    errors: Array | None
    """Standard error of each contribution, float64 [players]; None after one pair of permutations."""
    permutations: int


def attribute(
    evaluate: Evaluate,
    row: Mapping[str, Array],
    background: Mapping[str, Array],
    players: Players,
    *,
    permutations: int,
    rng: np.random.Generator,
    in_time: Callable[[], bool] = lambda: True,
    chunk_rows: int = 1024,
) -> Attribution:
    """Share the difference between a row's answer and the background's among the players.

    row: input -> [...]. background: input -> [b, ...]. permutations: even; each is followed by its
    reverse, whose errors are opposite (antithetic sampling). in_time: asked before each chunk;
    what is done by then is the answer. chunk_rows: rows of a call of `evaluate`, at most. A player's
    Shapley value is its mean marginal contribution over orders of all players, where players that
    have not come yet have a background row's values (Štrumbelj and Kononenko 2014, algorithm 1,
    with every background row in each order). Raises OutOfTime.
    """
    count = len(players.names)
    ends = _Ends(evaluate, row, background)
    pairs: list[Array] = []
    while 2 * len(pairs) < permutations:
        order = rng.permutation(count)
        try:
            there = _marginal(evaluate, row, background, players, order, ends, in_time, chunk_rows)
            back = _marginal(evaluate, row, background, players, order[::-1], ends, in_time, chunk_rows)
        except OutOfTime:
            if not pairs:
                raise
            break
        pairs.append((there + back) / 2)
    done = np.stack(pairs)
    errors = done.std(axis=0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Attribution(ends.prediction, ends.base, done.mean(axis=0), errors, 2 * len(pairs))


class _Ends:
    """The answers before the first player has come, and after the last."""

    def __init__(self, evaluate: Evaluate, row: Mapping[str, Array], background: Mapping[str, Array]) -> None:
        self.prediction = float(evaluate({name: values[None] for name, values in row.items()})[0])
        self.base = float(evaluate(background).mean())


def _marginal(
    evaluate: Evaluate,
    row: Mapping[str, Array],
    background: Mapping[str, Array],
    players: Players,
    order: Array,
    ends: _Ends,
    in_time: Callable[[], bool],
    chunk_rows: int,
) -> Array:
    """Return what each player [players] adds when they come in an order."""
    came = np.empty(len(order), np.int64)
    came[order] = np.arange(len(order))
    means = []
    for steps in _chunks(len(order), background, chunk_rows):
        if not in_time():
            raise OutOfTime
        means.append(_composed(evaluate, row, background, players, came, steps))
    values = np.concatenate([[ends.base], *means, [ends.prediction]])
    added = np.empty(len(order))
    added[order] = np.diff(values)
    return added


def _chunks(count: int, background: Mapping[str, Array], chunk_rows: int) -> Iterator[Array]:
    """Yield how many players have come, 1 to count - 1, so many steps at once that their rows fit into a chunk."""
    rows = len(next(iter(background.values())))
    size = sum(values.nbytes for values in background.values())
    step = max(1, min(chunk_rows // rows, CHUNK_BYTES // max(1, size)))
    for start in range(1, count, step):
        yield np.arange(start, min(start + step, count))


def _composed(
    evaluate: Evaluate,
    row: Mapping[str, Array],
    background: Mapping[str, Array],
    players: Players,
    came: Array,
    steps: Array,
) -> Array:
    """Return the mean answer [steps] over background rows whose first players have the row's values."""
    inputs = {}
    for name, values in background.items():
        own = came[players.places[name]] < steps.reshape(-1, *[1] * (values.ndim - 1))  # [steps, ...]
        mixed = np.where(own[:, None], row[name], values[None])  # [steps, b, ...]
        inputs[name] = mixed.reshape(-1, *values.shape[1:])
    means: Array = evaluate(inputs).reshape(len(steps), -1).mean(axis=1)
    return means
