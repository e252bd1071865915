"""Fit a project's model from its configuration, and keep it as one .keras file."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from homeostat.config import ProjectConfig, TrainConfig
from homeostat.dataset import Dataset
from homeostat.errors import ConfigError, TrainingFailed
from homeostat.model import arrange, save_model
from homeostat.project import Project
from homeostat.records import DatasetRecord, Task, TrainedModel
from homeostat.training.batches import Augmented, augments, balanced_weights, even_rows
from homeostat.training.schedules import SetLearningRate
from homeostat.training.strategy import choose_strategy, dtype_policy, round_up

OnEpoch = Callable[[int, dict[str, float]], None]


class _Watch(keras.callbacks.Callback):
    """Report each epoch, and stop at a loss that is not finite."""

    def __init__(self, on_epoch: OnEpoch | None) -> None:
        super().__init__()
        self._on_epoch, self._epoch = on_epoch, 0
        self.epochs = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember the epoch, for the error message."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Raise TrainingFailed as soon as the running loss is NaN or infinite."""
        if not math.isfinite(float((logs or {})["loss"])):
            raise TrainingFailed(
                f"the loss is {(logs or {})['loss']} in epoch {self._epoch + 1}, batch {batch + 1}: lower "
                "train.learning_rate, normalize the inputs inside the model, or look for log(0) and 0/0 in it"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass the epoch's figures on."""
        self.epochs = epoch + 1
        if self._on_epoch is not None:
            self._on_epoch(epoch, {name: float(value) for name, value in (logs or {}).items()})


def _check_inputs(model: keras.Model, data: Dataset) -> None:
    arrange(model, data.inputs)
    for tensor in model.inputs:
        declared, found = keras.backend.standardize_dtype(tensor.dtype), data.inputs[tensor.name].dtype.name
        if declared != found:
            raise ConfigError(
                f"input {tensor.name!r}: build_model takes {declared}, the dataset has {found}: "
                f'keras.Input(shape, name="{tensor.name}", dtype="{found}")'
            )


def _check_probabilities(model: keras.Model, data: Dataset) -> None:
    """Raise ConfigError when the untrained model already answers what cannot be probabilities, such as logits."""
    first = {name: values[:32] for name, values in data.inputs.items()}
    answers = np.asarray(model(arrange(model, first), training=False), dtype=np.float64)
    answers = answers[np.isfinite(answers).all(axis=1)]
    outside = (answers < -1e-3) | (answers > 1 + 1e-3)
    sums = np.abs(answers.sum(axis=1) - 1) if answers.shape[1] > 1 else np.zeros(len(answers))
    if outside.any() or (sums > 1e-2).any():
        last = f'Dense({answers.shape[1]}, activation="softmax")' if answers.shape[1] > 1 else 'activation="sigmoid"'
        raise ConfigError(
            f"build_model answers between {answers.min():.3g} and {answers.max():.3g}, which are no probabilities: "
            f"end in {last}"
        )


def _loss(model: keras.Model, task: Task, classes: int) -> str:
    if len(model.outputs) != 1:
        raise ConfigError(f"build_model has {len(model.outputs)} outputs; training takes one")
    if isinstance(getattr(model, "_outputs_struct", None), dict):
        raise ConfigError("build_model answers a dict of outputs; give keras.Model the one output by itself")
    shape = tuple(model.outputs[0].shape)
    if task == "regression":
        if len(shape) == 2 and shape[1] == 1:
            return "mean_squared_error"
        raise ConfigError(f"build_model ends in {shape}; a regression ends in [n, 1]: Dense(1)")
    if len(shape) == 2 and shape[1] == 1 and classes <= 2:
        return "binary_crossentropy"
    if len(shape) == 2 and shape[1] == max(classes, 2):
        return "sparse_categorical_crossentropy"
    raise ConfigError(
        f"build_model ends in {shape}, the target has {classes} classes: end in Dense({classes}, "
        'activation="softmax")'
        + (' or Dense(1, activation="sigmoid")' if classes == 2 else "")
        + ", or name every class (classes= of the Dataset) when the data has not all of them"
    )


def _check_loadable(model: keras.Model) -> None:
    """Raise ConfigError when Keras could not make the model again from its .keras file, before hours of training."""
    drawn = random.getstate()  # new layers draw seeds from it, and a seed must go on giving the same weights
    try:
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model), safe_mode=True)
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise ConfigError(
            f"the model of build_model could not be loaded again from its file: {error!s:.300}\nUse layers of Keras in "
            "place of Lambda; give layers of your own a get_config and @keras.saving.register_keras_serializable()"
        ) from error
    finally:
        random.setstate(drawn)


def _optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay or None
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=config.momentum, weight_decay=decay)
    if config.optimizer == "rmsprop":
        return keras.optimizers.RMSprop(rate, weight_decay=decay)
    if config.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    return keras.optimizers.Adam(rate, weight_decay=decay)


def make_reproducible(seed: int) -> None:
    """Seed Python, numpy and Keras, and make TensorFlow's ops deterministic."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def _build(project: Project, rows: Dataset) -> keras.Model:
    model = project.build_model(rows)
    if not isinstance(model, keras.Model):
        raise ConfigError(f"{type(project).__name__}.build_model returned {type(model).__name__}, not a keras.Model")
    return model


def _compile(model: keras.Model, config: ProjectConfig, train: Dataset, validation: Dataset) -> None:
    classes = max(len(train.classes), int(max(train.target.max(), validation.target.max())) + 1)
    loss = _loss(model, config.task, classes)
    if config.task == "classification":
        _check_probabilities(model, train)
    measures = ["accuracy"] if config.task == "classification" else ["mean_absolute_error"]
    jit: Any = "auto" if tf.config.list_physical_devices("GPU") else False  # XLA on a CPU costs seconds and gains none
    model.compile(optimizer=_optimizer(config.train), loss=loss, metrics=measures, jit_compile=jit)


def fit_model(
    model: keras.Model,
    project: Project,
    config: ProjectConfig,
    train: Dataset,
    validation: Dataset,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    on_epoch: OnEpoch | None = None,
) -> int:
    """Compile and fit in place; return the epochs that ran.

    Raises ConfigError when the model does not fit data and task, TrainingFailed at a loss that
    is not finite. With early stopping, the best weights are restored.
    """
    options, replicas = config.train, model.distribute_strategy.num_replicas_in_sync
    train, validation = even_rows(train, replicas), even_rows(validation, replicas)
    batch_size = round_up(options.batch_size, replicas)
    arranged = arrange(model, train.inputs)
    _check_inputs(model, train)
    _compile(model, config, train, validation)
    balanced = options.class_weights == "balanced" and config.task == "classification"
    weights = balanced_weights(train.target) if balanced else None
    if augments(project):
        augmented = Augmented(model, project, train, batch_size, options.seed, weights)
        rows: dict[str, Any] = {"x": augmented.dataset(), "shuffle": False}
    else:  # Keras' own way is a quarter faster than a generator
        rows = {"x": arranged, "y": train.target, "sample_weight": weights, "batch_size": batch_size}
    watch = _Watch(on_epoch)
    steps = math.ceil(len(train) / batch_size)
    every: list[keras.callbacks.Callback] = [SetLearningRate(options, steps), *callbacks, watch]
    if options.early_stopping is not None:
        stop = options.early_stopping
        every.append(
            keras.callbacks.EarlyStopping(
                patience=stop.patience, min_delta=stop.min_delta, restore_best_weights=True, monitor="val_loss"
            )
        )
    held_out = (arrange(model, validation.inputs), validation.target)
    try:
        model.fit(
            **rows,
            epochs=options.epochs,
            validation_data=held_out,
            validation_batch_size=round_up(1024, replicas),
            callbacks=every,
            verbose=0,
        )
    except tf.errors.OpError as error:  # what augment raises arrives as one too
        raise TrainingFailed(f"training stopped in epoch {watch.epochs + 1}: {error.message!s:.500}") from error
    return watch.epochs


def _plain_copy(
    model: keras.Model, project: Project, config: ProjectConfig, rows: Dataset, validation: Dataset
) -> keras.Model:
    """Return the model as it is kept and exported: float32 throughout, on one device, with the same weights."""
    make_reproducible(config.train.seed)
    with dtype_policy("float32"):
        plain = _build(project, rows)
    plain.set_weights(model.get_weights())
    _compile(plain, config, rows, validation)
    return plain


def train(
    project: Project, config: ProjectConfig, record: DatasetRecord, workspace: Path, on_epoch: OnEpoch | None = None
) -> TrainedModel:
    """Build and fit the project's model on the training part; keep workspace/train/model.keras.

    The metrics are those of the kept weights on the validation part. The same seed gives the
    same weights on the same machine. Raises ConfigError, TrainingFailed; nothing is left then.
    """
    rows, validation = Dataset.load(record.parts["train"]), Dataset.load(record.parts["validation"])
    make_reproducible(config.train.seed)
    strategy, device = choose_strategy()
    mixed = config.train.mixed_precision
    started = time.monotonic()
    with dtype_policy("mixed_float16" if mixed else "float32"), strategy.scope():
        model = _build(project, rows)
        _check_inputs(model, rows)
        _check_loadable(model)
        epochs = fit_model(model, project, config, rows, validation, on_epoch=on_epoch)
    if mixed or strategy.num_replicas_in_sync > 1:
        model = _plain_copy(model, project, config, rows, validation)
    found = model.evaluate(
        arrange(model, validation.inputs), validation.target, batch_size=1024, verbose=0, return_dict=True
    )
    if not all(np.isfinite(value) for value in found.values()):
        raise TrainingFailed(
            f"the trained model's figures on validation are not finite: {found}; lower train.learning_rate, or look "
            "for rows that the model cannot take (log(0), 0/0)"
        )
    return TrainedModel(
        keras=save_model(model, workspace / "train" / "model.keras"),
        epochs=epochs,
        seconds=time.monotonic() - started,
        metrics={f"val_{name}": float(value) for name, value in found.items()},
        parameters=int(model.count_params()),
        device=device,
    )
