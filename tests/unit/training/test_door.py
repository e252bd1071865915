"""Models that would train and be of no use are stopped before the first epoch."""

import random

import keras
import numpy as np
import pytest
from keras import layers

from homeostat.dataset import Dataset
from homeostat.errors import ConfigError
from homeostat.training.fit import _check_loadable, train
from homeostat.training.regularization import dense
from tests.keras_projects import Made, blobs, config, mlp, record


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return record(tmp_path_factory.mktemp("parts"), blobs)


def refused(build, rows, tmp_path, message):
    with pytest.raises(ConfigError, match=message):
        train(Made(build), config(), rows, tmp_path, lambda *_: pytest.fail("an epoch ran"))
    assert not list(tmp_path.rglob("model.keras"))


def test_logits_are_no_probabilities(data, tmp_path):
    refused(mlp(3, None), data, tmp_path, r'which are no probabilities: end in Dense\(3, activation="softmax"\)')


def test_one_logit_is_no_probability(tmp_path):
    rows = record(tmp_path, lambda n, seed: blobs(n, seed, classes=2))
    refused(mlp(1, None), rows, tmp_path, r'which are no probabilities: end in activation="sigmoid"')


def test_sigmoids_of_several_classes_do_not_sum_to_one(data, tmp_path):
    refused(mlp(3, "sigmoid"), data, tmp_path, "which are no probabilities")


def test_an_input_of_another_dtype_is_named_with_the_remedy(tmp_path):
    def whole(n, seed):
        return Dataset.from_arrays(np.random.default_rng(seed).integers(0, 9, (n, 4)), np.arange(n) % 3)

    rows = record(tmp_path, whole)
    refused(
        mlp(normalize=False),
        rows,
        tmp_path,
        r'input \'x\': build_model takes float32, the dataset has int64: keras.Input\(shape, name="x", dtype="int64"\)',
    )


class Tripled(layers.Layer):
    """A layer of one's own that Keras is not told of."""

    def call(self, inputs):
        return 3 * inputs


@pytest.mark.parametrize("layer", [layers.Lambda(lambda inputs: 3 * inputs), Tripled()])
def test_a_model_that_could_not_be_loaded_again(data, tmp_path, layer):
    def build(_train):
        x = keras.Input((4,), name="x")
        return keras.Model(x, layers.Dense(3, activation="softmax")(layer(x)))

    refused(build, data, tmp_path, r"(?s)could not be loaded again .*register_keras_serializable\(\)$")


def test_a_dict_of_outputs(data, tmp_path):
    def build(_train):
        x = keras.Input((4,), name="x")
        return keras.Model(x, {"class": layers.Dense(3, activation="softmax")(x)})

    refused(build, data, tmp_path, "answers a dict of outputs")


def test_the_check_leaves_the_seed_alone():
    model = mlp(normalize=False)(None)
    random.seed(3)
    expected = random.random()
    random.seed(3)
    _check_loadable(model)
    assert random.random() == expected


def test_a_class_that_only_validation_has_counts(tmp_path):
    def late(n, seed):
        rows = blobs(n, seed)
        return rows if seed == 2 else Dataset.from_arrays(dict(rows.inputs), np.minimum(rows.target, 1))

    refused(mlp(2), record(tmp_path, late), tmp_path, r"ends in \(None, 2\), the target has 3 classes")


def test_two_dense_layers_need_no_names():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(1)(dense(8, dropout=0.1)(dense(8, l2=0.1, dropout=0.1)(x))))
    assert len({layer.name for layer in model.layers}) == 6
