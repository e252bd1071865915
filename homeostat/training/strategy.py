"""Where training runs and how precisely: every GPU of the machine through tf.distribute, else the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


def choose_strategy() -> tuple[Any, str]:
    """Return a tf.distribute strategy and a name for the record, such as `CPU` or `2 GPUs`."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy(), f"{len(gpus)} GPUs"
    return tf.distribute.get_strategy(), "GPU" if gpus else "CPU"


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Set Keras' global policy, such as `mixed_float16`, for the layers built inside; afterwards it is as before."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def round_up(batch_size: int, replicas: int) -> int:
    """Return the next batch size that every replica has an equal share of."""
    return -(-batch_size // replicas) * replicas
