"""Regularization that a user's build_model can call: L1 and L2 penalties, and dropout after dense layers."""

from __future__ import annotations

from typing import Any

import keras


def dense(
    units: int,
    *,
    activation: str = "relu",
    l1: float = 0.0,
    l2: float = 0.0,
    dropout: float = 0.0,
    name: str | None = None,
) -> Any:
    """Return a dense layer with L1 and L2 penalties on its kernel, followed by dropout.

    units: outputs. l1, l2: weights of sum |w| and sum w^2 in the loss. dropout: share of outputs
    set to zero in training, 0 to leave it out. name: of the layer, by default one that Keras finds.
    Call it as a layer: `dense(64, l2=1e-4)(x)`.
    """
    penalty = keras.regularizers.L1L2(l1=l1, l2=l2) if l1 or l2 else None
    layer = keras.layers.Dense(units, activation=activation, kernel_regularizer=penalty, name=name)
    if not dropout:
        return layer
    drop = keras.layers.Dropout(dropout, name=f"{layer.name}_dropout")
    return lambda x: drop(layer(x))
