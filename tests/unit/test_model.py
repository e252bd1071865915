"""A Keras model as the rooms share it: structures of inputs, and a file that is what it was."""

import keras
import numpy as np
import pytest
from keras import layers

from homeostat.errors import ConfigError, TrainingFailed
from homeostat.model import answer, arrange, load_model, save_model
from tests.keras_projects import blobs, mlp

ROWS = {"one": np.ones((5, 2), np.float32), "two": np.zeros((5, 1), np.float32)}


def joined(wrap):
    one, two = keras.Input((2,), name="one"), keras.Input((1,), name="two")
    return keras.Model(wrap(one, two), layers.concatenate([one, two]))


def test_inputs_are_arranged_as_the_model_was_built():
    as_list = arrange(joined(lambda one, two: [two, one]), ROWS)
    assert isinstance(as_list, tuple)
    assert [part is ROWS[name] for part, name in zip(as_list, ("two", "one"), strict=True)] == [True, True]
    as_dict = arrange(joined(lambda one, two: {"two": two, "one": one}), ROWS)
    assert as_dict["one"] is ROWS["one"]
    assert as_dict["two"] is ROWS["two"]
    single = keras.Sequential([keras.Input((2,), name="one"), layers.Dense(1)])
    assert arrange(single, {"one": ROWS["one"]}) is ROWS["one"]


def test_a_missing_input_is_named():
    with pytest.raises(ConfigError, match=r"build_model has inputs one, two; the dataset has one: name them alike"):
        arrange(joined(lambda one, two: [one, two]), {"one": ROWS["one"]})


def test_an_open_dimension_takes_any_length():
    x = keras.Input((None, 3), name="x")
    model = keras.Model(x, layers.GlobalAveragePooling1D()(x))
    assert answer(model, {"x": np.ones((4, 7, 3), np.float32)}).shape == (4, 3)


def test_a_saved_model_answers_equally_and_keeps_its_optimizer_in_memory(tmp_path):
    rows = blobs(32, 1)
    model = mlp()(rows)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    optimizer = model.optimizer
    kept = save_model(model, tmp_path / "m.keras")
    assert model.optimizer is optimizer
    assert model.compiled
    np.testing.assert_array_equal(answer(load_model(kept), rows.inputs), answer(model, rows.inputs))
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def test_a_changed_file_is_refused(tmp_path):
    kept = save_model(mlp()(blobs(32, 1)), tmp_path / "m.keras")
    with (tmp_path / "m.keras").open("ab") as file:
        file.write(b"x")
    with pytest.raises(TrainingFailed, match=r"m\.keras is not the recorded model; run the pipeline again"):
        load_model(kept)
