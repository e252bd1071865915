"""Pruning: masks by magnitude, a rate that rises to its end, and weights that stay at zero."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from homeostat.compression.pruning import Prune, prune, prune_mask, rate_at, sparsity
from homeostat.model import answer, load_model, save_model
from homeostat.training.fit import fit_model
from tests.keras_projects import Made, blobs, config, mlp

weights = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4), elements=st.floats(-9, 9, width=32))


@given(weights, st.floats(0, 1))
def test_a_mask_takes_the_smallest_share(values, rate):
    mask = prune_mask(values, rate)
    assert mask.shape == values.shape
    assert mask.dtype == values.dtype
    assert mask.sum() == round(rate * values.size)
    taken, kept = np.abs(values[mask == 1]), np.abs(values[mask == 0])
    if taken.size and kept.size:
        assert taken.max() <= kept.min()
    np.testing.assert_array_equal(values - values * mask, np.where(mask == 1, 0, values))


@given(st.floats(-1, 2), st.floats(-1, 2), st.floats(0.01, 0.99))
def test_the_rate_rises_from_zero_to_its_end(one, two, final):
    low, high = sorted((one, two))
    assert 0 <= rate_at(low, final) <= rate_at(high, final) <= final
    assert rate_at(0, final) == 0
    assert rate_at(1, final) == final


def test_the_rate_is_the_cubic_of_zhu_and_gupta():
    assert rate_at(0.5, 0.8) == pytest.approx(0.8 * (1 - 0.5**3))


class Zeros(keras.callbacks.Callback):
    """Note the share of zeros in each kernel after each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append([float(np.mean(v.numpy() == 0)) for v in self.model.trainable_variables if v.ndim == 2])


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    train, validation = blobs(96, 1), blobs(48, 2)
    keras.utils.set_random_seed(1)
    model = mlp()(train)
    fit_model(model, Made(mlp()), config(train={"epochs": 5}), train, validation)
    return save_model(model, tmp_path_factory.mktemp("pruning") / "m.keras"), train, validation


@pytest.fixture(scope="module")
def pruned(trained):
    kept, train, validation = trained
    options = config(compress={"sparsity": 0.75, "pruning_epochs": 3})
    return prune(load_model(kept), Made(mlp()), options, train, validation)


def test_every_kernel_reaches_the_sparsity_and_the_file_is_untouched(trained, pruned):
    for layer in ("hidden", "last"):
        kernel = pruned.get_layer(layer).kernel.numpy()
        assert np.count_nonzero(kernel == 0) == round(0.75 * kernel.size)
        assert np.count_nonzero(pruned.get_layer(layer).bias.numpy())
    assert sparsity(pruned) == 0.75
    assert sparsity(load_model(trained[0])) == 0.0


def test_a_pruned_model_still_sees_scaled_features(trained, pruned):
    kept, _, validation = trained
    before = load_model(kept)
    scaled = [
        keras.Model(m.inputs, next(la for la in m.layers if "normalization" in la.name).output)
        for m in (before, pruned)
    ]
    one, two = (answer(m, validation.inputs) for m in scaled)
    np.testing.assert_array_equal(one, two)
    assert abs(one.mean()) < 0.5
    assert 0.5 < one.std() < 2


def test_pruning_is_reproducible_and_ignores_early_stopping_and_schedule(trained):
    kept, train, validation = trained
    options = config(
        train={"epochs": 9, "early_stopping": {"patience": 1}, "schedule": {"kind": "cosine", "warmup_epochs": 4.0}},
        compress={"sparsity": 0.5, "pruning_epochs": 2},
    )
    one, two = (prune(load_model(kept), Made(mlp()), options, train, validation) for _ in range(2))
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sparsity(one) == 0.5


def test_masks_hold_after_the_rise(trained):
    kept, train, validation = trained
    model, zeros = load_model(kept), Zeros()
    fit_model(model, Made(mlp()), config(train={"epochs": 8}), train, validation, callbacks=[Prune(0.75, 48), zeros])
    totals = np.array(zeros.seen)
    assert (np.diff(totals, axis=0) >= 0).all()
    assert (totals[0] < 0.75).all()
    np.testing.assert_allclose(totals[6:], 0.75, atol=0.01)
