"""float16: whatever trained it, what is kept is one float32 model that passes the gates."""

import keras
import pytest
from keras import layers

from homeostat.errors import ConfigError
from homeostat.training.fit import train
from tests.keras_projects import Made, check_kept, config, mlp, record, uneven

TRAIN = {"epochs": 4, "learning_rate": 0.03}


@pytest.fixture
def data(tmp_path):
    return record(tmp_path, uneven)


def test_float16_trains_and_a_float32_model_is_kept(data, tmp_path):
    before, seen, losses = keras.config.dtype_policy(), [], []

    def build(rows):
        seen.append(keras.config.dtype_policy().name)
        return mlp()(rows)

    options = config(train=TRAIN | {"mixed_precision": True})
    trained = train(Made(build), options, data, tmp_path, lambda _, figures: losses.append(figures["loss"]))
    assert seen == ["mixed_float16", "float32"]
    assert keras.config.dtype_policy() == before
    assert losses[-1] < 0.5 * losses[0]
    check_kept(trained.keras, data, tmp_path, trained.metrics)


def test_the_policy_of_before_holds_again_when_training_fails(data, tmp_path):
    def build(_):
        assert keras.config.dtype_policy().name == "mixed_float16"
        x = keras.Input((4,), name="x")
        return keras.Model(x, layers.Dense(2, activation="softmax")(x))

    keras.config.set_dtype_policy("bfloat16")
    try:
        with pytest.raises(ConfigError, match="the target has 3 classes"):
            train(Made(build), config(train={"mixed_precision": True}), data, tmp_path)
        assert keras.config.dtype_policy().name == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
