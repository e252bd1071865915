"""Magnitude pruning with fine-tuning: W_pruned = W - W * mask, at a rate that rises by schedule."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset
from homeostat.project import Project
from homeostat.training.fit import fit_model, make_reproducible

log = logging.getLogger(__name__)

UPDATES = 16
"""How often the masks are chosen anew while the rate rises."""


def rate_at(progress: float, final: float) -> float:
    """Return the rate R in [0, final] at progress in [0, 1]: R = final * (1 - (1 - progress)^3).

    Zhu & Gupta 2017, "To prune, or not to prune", equation 1 with initial sparsity 0.
    """
    return float(final * (1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3))


def prune_mask(weights: Array, rate: float) -> Array:
    """Return a mask of `weights`' shape and dtype, 1 at the share `rate` of smallest magnitude, else 0."""
    count = round(rate * weights.size)
    mask = np.zeros(weights.size, dtype=weights.dtype)
    if count:
        mask[np.argpartition(np.abs(weights).ravel(), count - 1)[:count]] = 1
    return mask.reshape(weights.shape)


class Prune(keras.callbacks.Callback):
    """Raise the rate over the first three quarters of the steps, and hold the pruned weights at zero."""

    def __init__(self, final: float, steps: int) -> None:
        super().__init__()
        self._final, self._ramp, self._step = final, max(1, int(steps * 0.75)), 0
        self._every = max(1, self._ramp // UPDATES)
        self._masks: list[tuple[Any, Array]] = []

    def _kernels(self) -> list[Any]:
        return [v for v in self.model.trainable_variables if len(v.shape) >= 2 and v.path.endswith("kernel")]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Choose the masks anew while the rate rises; apply them after every step."""
        self._step += 1
        if self._step == self._ramp or (self._step < self._ramp and self._step % self._every == 0):
            rate = rate_at(self._step / self._ramp, self._final)
            self._masks = [(kernel, prune_mask(kernel.numpy(), rate)) for kernel in self._kernels()]
        for kernel, mask in self._masks:
            kernel.assign(kernel - kernel * mask)


def prune(
    model: keras.Model, project: Project, config: ProjectConfig, train: Dataset, validation: Dataset
) -> keras.Model:
    """Fine-tune the model in place while its kernels are pruned to `compress.sparsity`; return it.

    The learning rate is a third of training's, constant: a tenth does not recover what the masks
    take. Early stopping is off: it could restore weights of before the pruning. Give a model that
    was loaded for this alone, not a clone: set_weights does not restore what a Normalization
    layer was adapted to, and the clone would see features that are not scaled.
    """
    options = config.train.model_copy(
        update={
            "epochs": config.compress.pruning_epochs,
            "learning_rate": config.train.learning_rate / 3,
            "schedule": type(config.train.schedule)(),
            "early_stopping": None,
        }
    )
    tuned = config.model_copy(update={"train": options})
    make_reproducible(options.seed)
    steps = options.epochs * -(-len(train) // options.batch_size)
    fit_model(model, project, tuned, train, validation, callbacks=[Prune(config.compress.sparsity, steps)])
    log.info("%.1f %% of the kernels' weights are zero", 100 * sparsity(model))
    return model


def sparsity(model: keras.Model) -> float:
    """Return the share of kernel weights that are exactly zero."""
    kernels = [v.numpy() for v in model.trainable_variables if len(v.shape) >= 2 and v.path.endswith("kernel")]
    size = sum(kernel.size for kernel in kernels)
    return float(sum(np.count_nonzero(kernel == 0) for kernel in kernels) / size) if size else 0.0
