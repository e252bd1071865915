"""train: reproducible, clear about what does not fit, and nothing left behind when it fails."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from homeostat.dataset import Dataset
from homeostat.errors import ConfigError, TrainingFailed
from homeostat.model import answer, load_model
from homeostat.training.batches import balanced_weights
from homeostat.training.fit import train
from homeostat.training.regularization import dense
from tests.keras_projects import Augmenting, Made, blobs, config, mlp, record


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return record(tmp_path_factory.mktemp("parts"), blobs)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """The defaults of these tests, trained once."""
    return train(Made(mlp()), config(), data, tmp_path_factory.mktemp("plain"))


def weights(trained):
    return np.concatenate([np.ravel(w) for w in load_model(trained.keras).get_weights()])


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_one_seed_gives_the_same_weights_and_another_does_not(data, plain, tmp_path):
    again = train(Made(mlp()), config(), data, tmp_path / "again")
    other = train(Made(mlp()), config(train={"seed": 2}), data, tmp_path / "other")
    np.testing.assert_array_equal(weights(plain), weights(again))
    assert not np.array_equal(weights(plain), weights(other))
    assert plain.metrics == again.metrics


def test_it_learns_and_the_record_tells_of_the_kept_file(data, tmp_path):
    told = []
    options = config(train={"epochs": 12, "learning_rate": 0.03})
    trained = train(Made(mlp()), options, data, tmp_path, on_epoch=lambda e, figures: told.append((e, figures)))
    rows = Dataset.load(data.parts["validation"])
    share = np.mean(answer(load_model(trained.keras), rows.inputs).argmax(axis=1) == rows.target)
    assert trained.metrics["val_accuracy"] == pytest.approx(share)
    assert share > 0.9
    assert trained.parameters == 4 * 16 + 16 + 16 * 3 + 3 + 9
    assert (trained.epochs, trained.device) == (12, "CPU")
    assert [epoch for epoch, _ in told] == list(range(12))
    assert set(told[0][1]) == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert told[0][1]["learning_rate"] == pytest.approx(0.03)
    assert told[-1][1]["val_loss"] == pytest.approx(trained.metrics["val_loss"], rel=1e-4)
    assert [path.name for path in files(tmp_path)] == ["model.keras"]


def test_the_kept_file_holds_no_optimizer(plain):
    assert not keras.models.load_model(plain.keras.path).compiled
    with zipfile.ZipFile(plain.keras.path) as parts, parts.open("model.weights.h5") as weights_file:
        assert set(h5py.File(weights_file)) == {"layers", "vars"}


def test_early_stopping_restores_the_best_weights(data, tmp_path):
    losses = []
    options = config(train={"epochs": 40, "learning_rate": 0.5, "early_stopping": {"patience": 2}})
    trained = train(
        Made(mlp()), options, data, tmp_path, on_epoch=lambda _, figures: losses.append(figures["val_loss"])
    )
    assert trained.epochs == len(losses) < 40
    assert int(np.argmin(losses)) == len(losses) - 3
    assert trained.metrics["val_loss"] == pytest.approx(min(losses), rel=1e-4)


def nan_loss(_):
    x = keras.Input((4,), name="x")
    return keras.Model(x, layers.Dense(3, activation="softmax")(layers.Rescaling(float("nan"))(x)))


def test_a_loss_that_is_not_finite_stops_and_leaves_nothing(data, tmp_path):
    with pytest.raises(TrainingFailed, match=r"the loss is nan in epoch 1, batch 1: lower train.learning_rate"):
        train(Made(nan_loss), config(), data, tmp_path)
    assert files(tmp_path) == []


def named(name, shape=(4,), outputs=3):
    def build(_):
        x = keras.Input(shape, name=name)
        return keras.Model(x, layers.Dense(outputs, activation="softmax")(layers.Flatten()(x)))

    return build


def two_outputs(_):
    x = keras.Input((4,), name="x")
    return keras.Model(x, [layers.Dense(3, activation="softmax")(x), layers.Dense(1)(x)])


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("build", "task", "message"),
    [
        (named("y"), "classification", r"build_model has inputs y; the dataset has x: name them alike, keras.Input"),
        (named("x", (5,)), "classification", r"input 'x': build_model takes \(5,\) a row, the dataset has \(4,\)"),
        (named("x", (2, 2)), "classification", r"takes \(2, 2\) a row, the dataset has \(4,\)"),
        (mlp(2), "classification", r"ends in \(None, 2\), the target has 3 classes: end in Dense\(3, activation"),
        (mlp(1, "sigmoid"), "classification", r"ends in \(None, 1\), the target has 3 classes"),
        (mlp(4), "classification", r"ends in \(None, 4\), the target has 3 classes.*name every class"),
        (mlp(3, None), "regression", r"ends in \(None, 3\); a regression ends in \[n, 1\]: Dense\(1\)"),
        (two_outputs, "classification", r"build_model has 2 outputs; training takes one"),
        (lambda _: "a model", "classification", r"Made.build_model returned str, not a keras.Model"),
        (lambda _: Subclassed(), "classification", r"Subclassed has no declared inputs; build a functional model"),
    ],
)
def test_a_model_that_does_not_fit_is_a_clear_error(data, tmp_path, build, task, message):
    with pytest.raises(ConfigError, match=message):
        train(Made(build), config(task), data, tmp_path)
    assert files(tmp_path) == []


def test_augment_is_called_once_for_each_batch_in_the_same_order_for_a_seed(data, tmp_path):
    one, two = Augmenting(mlp()), Augmenting(mlp())
    first = train(one, config(), data, tmp_path / "1")
    second = train(two, config(), data, tmp_path / "2")
    assert [rows for rows, _ in one.calls] == [16] * 12
    assert one.calls == two.calls
    assert len({total for _, total in one.calls}) == 12
    np.testing.assert_array_equal(weights(first), weights(second))
    third = Augmenting(mlp())
    train(third, config(train={"seed": 9}), data, tmp_path / "3")
    assert third.calls != one.calls


class Cropping(Made):
    def augment(self, inputs, target, rng):
        return {"x": inputs["x"][:, :3]}


def test_an_augment_that_changes_the_shape_is_named(data, tmp_path):
    with pytest.raises(TrainingFailed, match=r"augment of Cropping returned \{'x': \(16, 3\)\} for a batch of"):
        train(Cropping(mlp()), config(), data, tmp_path)


def test_balanced_weights_give_each_class_the_same_sum():
    target = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])
    found = balanced_weights(target)
    assert found.dtype == np.float32
    assert [found[target == c].sum() for c in range(3)] == pytest.approx([3.0] * 3)


@pytest.mark.parametrize("kind", [Made, Augmenting])
def test_class_weights_reach_the_loss(tmp_path, kind):
    def lopsided(rows, seed):
        rng = np.random.default_rng(seed)
        target = (rng.random(rows) < 0.1).astype(np.int64)
        target[:2] = 0, 1
        return Dataset.from_arrays(rng.normal(0, 1, (rows, 4)), target)

    rows = record(tmp_path, lopsided)
    means = []
    for mode in ("none", "balanced"):
        project = kind(mlp(1, "sigmoid"))
        options = config(train={"epochs": 4, "learning_rate": 0.05, "class_weights": mode})
        trained = train(project, options, rows, tmp_path / mode)
        means.append(float(answer(load_model(trained.keras), Dataset.load(rows.parts["train"]).inputs).mean()))
    assert means[1] > 1.5 * means[0]


def line(rows, seed):
    rng = np.random.default_rng(seed)
    one, two = rng.normal(0, 1, (rows, 2)), rng.integers(0, 3, (rows, 1))
    return Dataset.from_arrays({"one": one, "two": two}, one.sum(axis=1) + two[:, 0])


def two_inputs(as_dict):
    def build(_):
        one, two = keras.Input((2,), name="one"), keras.Input((1,), name="two", dtype="int64")
        joined = layers.concatenate([one, layers.Rescaling(1.0)(two)])
        # in another order than the dataset's
        inputs = {"two": two, "one": one} if as_dict else [two, one]
        return keras.Model(inputs, layers.Dense(1)(joined))

    return build


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_and_regression(tmp_path, as_dict):
    rows = record(tmp_path, line, "regression")
    options = config("regression", train={"epochs": 10, "learning_rate": 0.3})
    trained = train(Made(two_inputs(as_dict)), options, rows, tmp_path)
    assert trained.metrics["val_mean_absolute_error"] < 0.5


def test_dense_penalizes_and_drops():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, dense(8, l1=0.5, l2=0.25, dropout=0.5, name="d")(x))
    kernel = model.get_layer("d").kernel.numpy()
    expected = 0.5 * np.abs(kernel).sum() + 0.25 * (kernel**2).sum()
    assert float(sum(model.losses)) == pytest.approx(float(expected), rel=1e-5)
    assert model.get_layer("d_dropout").rate == 0.5
    assert len(keras.Model(x, dense(8)(x)).losses) == 0
