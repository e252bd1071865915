"""Sampled Shapley values: how much each column of a row moves an answer away from that of background rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    game = _Game(evaluate, row, background, players, in_time, chunk_rows)
    pairs: list[Array] = []
    while 2 * len(pairs) < permutations:
        order = rng.permutation(len(players.names))
        try:
            pairs.append((game.marginal(order) + game.marginal(order[::-1])) / 2)
        except OutOfTime:
            if not pairs:
                raise
            break
    done = np.stack(pairs)
    errors = done.std(axis=0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Attribution(game.prediction, game.base, done.mean(axis=0), errors, 2 * len(pairs))


class _Game:
    """What players add to an answer when they come in an order."""

    def __init__(
        self,
        evaluate: Evaluate,
        row: Mapping[str, Array],
        background: Mapping[str, Array],
        players: Players,
        in_time: Callable[[], bool],
        chunk_rows: int,
    ) -> None:
        self._evaluate, self._row, self._background, self._players = evaluate, row, background, players
        self._in_time = in_time
        rows = len(next(iter(background.values())))
        size = sum(values.nbytes for values in background.values())
        self._steps = max(1, min(chunk_rows // rows, CHUNK_BYTES // max(1, size)))
        """So many players come between two calls of `evaluate`."""
        self.prediction = float(evaluate({name: values[None] for name, values in row.items()})[0])
        self.base = float(evaluate(background).mean())

    def marginal(self, order: Array) -> Array:
        """Return what each player [players] adds; raises OutOfTime."""
        came = np.empty(len(order), np.int64)
        came[order] = np.arange(len(order))
        means = []
        for start in range(1, len(order), self._steps):
            if not self._in_time():
                raise OutOfTime
            means.append(self._composed(came, np.arange(start, min(start + self._steps, len(order)))))
        added = np.empty(len(order))
        added[order] = np.diff(np.concatenate([[self.base], *means, [self.prediction]]))
        return added

    def _composed(self, came: Array, steps: Array) -> Array:
        """Return the mean answer [steps] over background rows whose first players have the row's values."""
        inputs = {}
        for name, values in self._background.items():
            own = came[self._players.places[name]] < steps.reshape(-1, *[1] * (values.ndim - 1))  # [steps, ...]
            mixed = np.where(own[:, None], self._row[name], values[None])  # [steps, b, ...]
            inputs[name] = mixed.reshape(-1, *values.shape[1:])
        means: Array = self._evaluate(inputs).reshape(len(steps), -1).mean(axis=1)
        return means
