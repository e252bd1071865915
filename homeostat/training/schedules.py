"""The learning rate at each step: warm-up, then constant, exponential, cosine, or reduced on a plateau.

Keras' own schedules cannot warm up (but for CosineDecay) and cannot be joined with
ReduceLROnPlateau, so the rate is one pure function and one callback that sets it.
"""

from __future__ import annotations

import math
from typing import Any

import keras

from homeostat.config import TrainConfig


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Return the learning rate at a moment of training, in epochs since its begin (fractions allowed).

    Warm-up rises linearly from 0 (Goyal et al. 2017, section 2.2); exponential multiplies by
    decay_rate each epoch; cosine falls to min_learning_rate at the last step (Loshchilov &
    Hutter 2017, equation 5). reduce_on_plateau is constant here: PlateauFactor scales it.
    """
    schedule = config.schedule
    if epoch < schedule.warmup_epochs:
        return config.learning_rate * epoch / schedule.warmup_epochs
    since = epoch - schedule.warmup_epochs
    if schedule.kind == "exponential":
        return config.learning_rate * float(schedule.decay_rate**since)
    if schedule.kind == "cosine":
        share = min(1.0, since / (config.epochs - schedule.warmup_epochs))
        floor = min(schedule.min_learning_rate, config.learning_rate)
        return floor + (config.learning_rate - floor) * (1 + math.cos(math.pi * share)) / 2
    return config.learning_rate


class SetLearningRate(keras.callbacks.Callback):
    """Set the optimizer's learning rate before each batch; on a plateau of val_loss, scale it down."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        super().__init__()
        self._config, self._steps = config, steps_per_epoch
        self._epoch, self._best, self._waited, self._factor = 0, math.inf, 0, 1.0
        self._set: float | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of this batch."""
        rate = learning_rate(self._config, self._epoch + (batch + 1) / self._steps) * self._factor
        if rate != self._set:  # setting it costs as much as a small step
            self.model.optimizer.learning_rate = self._set = rate

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the last rate; lower the factor when val_loss has not improved for `patience` epochs."""
        if logs is not None and self._set is not None:
            logs["learning_rate"] = self._set
        schedule = self._config.schedule
        if schedule.kind != "reduce_on_plateau":
            return
        loss = float((logs or {})["val_loss"])
        if loss < self._best:
            self._best, self._waited = loss, 0
            return
        self._waited += 1
        if self._waited >= schedule.patience:
            floor = schedule.min_learning_rate / self._config.learning_rate
            self._factor, self._waited = max(self._factor * schedule.decay_rate, min(floor, 1.0)), 0
