"""Where training runs: every GPU of the machine through tf.distribute, else the CPU."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def choose_strategy() -> tuple[Any, str]:
    """Return a tf.distribute strategy and a name for the record, such as `CPU` or `2 GPUs`."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy(), f"{len(gpus)} GPUs"
    return tf.distribute.get_strategy(), "GPU" if gpus else "CPU"
