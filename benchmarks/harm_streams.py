"""Streams of losses whose mean rises, or does not; numpy alone, so that a rival's environment draws the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Losses = npt.NDArray[np.float64]

REFERENCE_ROWS = 5_000
LABELS = 20_000
BEFORE = 1_000
"""Labels before a rise."""
TUNING = 1_000_000
"""Seeds from here on are for tuning alone."""


@dataclass(frozen=True)
class Scene:
    """A classifier's errors: `base` before, and so many points more after the first BEFORE labels."""

    base: float
    points: float = 0.0
    correlation: float = 0.0
    """Of an error with the one before it."""

    def draw(self, seed: int) -> tuple[Losses, Losses]:
        """Return the losses of the reference and of the stream."""
        rng = np.random.default_rng([seed, round(1000 * self.base), round(100 * self.points)])
        reference = (rng.random(REFERENCE_ROWS) < self.base).astype(np.float64)
        rate = np.full(LABELS, self.base)
        if self.points:
            rate[BEFORE:] += self.points / 100
        errors = (rng.random(LABELS) < rate).astype(np.float64)
        if self.correlation:  # an error like the one before it, now and then
            copied = rng.random(LABELS) < self.correlation
            copied[0] = False
            source = np.maximum.accumulate(np.where(copied, 0, np.arange(LABELS)))
            errors = errors[source]
        return reference, errors
