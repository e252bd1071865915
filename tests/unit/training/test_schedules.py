"""The learning rate as a pure function, and the callback that sets it."""

import keras
import numpy as np
import pytest

from homeostat.training.schedules import SetLearningRate, learning_rate
from tests.keras_projects import config


def train_config(epochs: int = 10, rate: float = 0.1, **schedule: object) -> object:
    return config(train={"epochs": epochs, "learning_rate": rate, "schedule": schedule}).train


@pytest.mark.parametrize(
    ("schedule", "epoch", "expected"),
    [
        ({"kind": "constant"}, 7.5, 0.1),
        ({"kind": "exponential", "decay_rate": 0.5}, 0, 0.1),
        ({"kind": "exponential", "decay_rate": 0.5}, 3, 0.0125),
        ({"kind": "cosine", "min_learning_rate": 0.02}, 0, 0.1),
        ({"kind": "cosine", "min_learning_rate": 0.02}, 5, 0.06),
        ({"kind": "cosine", "min_learning_rate": 0.02}, 10, 0.02),
        ({"kind": "cosine", "min_learning_rate": 0.5}, 10, 0.1),
        ({"kind": "constant", "warmup_epochs": 2.0}, 0.5, 0.025),
        ({"kind": "constant", "warmup_epochs": 2.0}, 2.0, 0.1),
        ({"kind": "exponential", "decay_rate": 0.5, "warmup_epochs": 2.0}, 3.0, 0.05),
        ({"kind": "cosine", "warmup_epochs": 2.0, "min_learning_rate": 0.02}, 6.0, 0.06),
        ({"kind": "reduce_on_plateau"}, 9.0, 0.1),
    ],
)
def test_the_rate_at_a_moment(schedule, epoch, expected):
    assert learning_rate(train_config(**schedule), epoch) == pytest.approx(expected)


def test_the_rate_never_jumps_at_the_end_of_the_warm_up():
    options = train_config(kind="cosine", warmup_epochs=1.5)
    rates = [learning_rate(options, e) for e in np.linspace(0, 10, 2001)]
    assert max(abs(np.diff(rates))) < 0.1 / 250


class FakeModel:
    def __init__(self) -> None:
        self.optimizer = keras.optimizers.SGD(1.0)


def play(options, losses):
    callback, rates = SetLearningRate(options, steps_per_epoch=1), []
    model = FakeModel()
    callback._model = model
    for epoch, loss in enumerate(losses):
        callback.on_epoch_begin(epoch)
        callback.on_train_batch_begin(0)
        rates.append(float(model.optimizer.learning_rate))
        callback.on_epoch_end(epoch, {"val_loss": loss})
    return rates


def test_the_rate_is_reduced_after_patience_epochs_without_improvement():
    options = train_config(kind="reduce_on_plateau", patience=2, decay_rate=0.5, min_learning_rate=0.03)
    rates = play(options, [1.0, 0.9, 0.9, 0.95, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8])
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.03, 0.03, 0.03])


def test_a_plateau_changes_nothing_with_another_schedule():
    assert play(train_config(kind="constant"), [1.0] * 6) == pytest.approx([0.1] * 6)
