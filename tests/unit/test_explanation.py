"""Shapley values: the axioms, what is known of linear models, and what happens when time runs out."""

from itertools import permutations as orders

import numpy as np
import pytest

from homeostat.contract import TensorSpec
from homeostat.explanation import OutOfTime, Players, attribute


def spec(name, *shape, columns=()):
    return TensorSpec(name=name, dtype="float32", shape=shape, minimum=(-1,), maximum=(1,), columns=columns)


FLAT = Players.of([spec("x", 4, columns=("north", "east", "south", "west"))])


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=4)}, {"x": rng.normal(size=(7, 4))}


def rng(seed=1):
    return np.random.default_rng(seed)


def curved(inputs):
    """Three at once, for of two any pair of permutations says all; something of x2 alone, and nothing of x3."""
    x = inputs["x"]
    return x[:, 0] * x[:, 1] * x[:, 2] + np.tanh(x[:, 2])


def exact(function, row, background):
    """The mean over all orders, from the definition."""
    count, found = len(row), np.zeros(len(row))
    for order in list(orders(range(count))):
        mixed = background.copy()
        before = function({"x": mixed}).mean()
        for player in order:
            mixed[:, player] = row[player]
            now = function({"x": mixed}).mean()
            found[player] += now - before
            before = now
    return found / len(list(orders(range(count))))


def test_a_linear_model_is_exact_at_once(rows):
    row, background = rows
    weights = np.array([1.0, -2.0, 0.5, 0.0])
    found = attribute(lambda i: i["x"] @ weights + 3, row, background, FLAT, permutations=2, rng=rng())
    np.testing.assert_allclose(found.contributions, weights * (row["x"] - background["x"].mean(axis=0)), atol=1e-12)
    assert (found.permutations, found.errors) == (2, None)


def test_the_contributions_and_the_base_are_the_prediction(rows):
    found = attribute(curved, *rows, FLAT, permutations=6, rng=rng())
    assert found.base == pytest.approx(curved(rows[1]).mean())
    assert found.prediction == pytest.approx(curved({"x": rows[0]["x"][None]})[0])
    assert found.base + found.contributions.sum() == pytest.approx(found.prediction, abs=1e-12)
    assert found.contributions[3] == pytest.approx(0, abs=1e-12)


def test_many_permutations_come_near_the_definition_as_near_as_their_errors_say(rows):
    found = attribute(curved, *rows, FLAT, permutations=200, rng=rng())
    wanted = exact(curved, rows[0]["x"], rows[1]["x"])
    assert np.all(np.abs(found.contributions - wanted) <= 4 * found.errors + 1e-12)
    assert 0.001 < np.max(found.errors) < 0.1


def test_columns_that_do_the_same_get_the_same(rows):
    _, background = rows
    row = {"x": np.array([0.5, 0.5, 1.0, 2.0])}
    background["x"][:, 1] = background["x"][:, 0]
    found = attribute(lambda i: np.tanh(i["x"] @ [1, 1, 0, 0]), row, background, FLAT, permutations=2, rng=rng())
    assert found.contributions[0] == pytest.approx(found.contributions[1])


def test_one_seed_says_the_same(rows):
    first, again, other = (
        attribute(curved, *rows, FLAT, permutations=4, rng=rng(seed)).contributions for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_size_of_a_chunk_changes_nothing(rows):
    seen = []

    def watched(inputs):
        seen.append(len(inputs["x"]))
        return curved(inputs)

    small = attribute(watched, *rows, FLAT, permutations=4, rng=rng(), chunk_rows=1)
    assert set(seen) == {1, 7}
    whole = attribute(curved, *rows, FLAT, permutations=4, rng=rng())
    np.testing.assert_allclose(small.contributions, whole.contributions, atol=1e-12)


def test_time_ends_it_after_whole_pairs(rows):
    left = iter([True] * 5)
    found = attribute(curved, *rows, FLAT, permutations=100, rng=rng(), in_time=lambda: next(left, False))
    assert found.permutations == 4
    assert found.base + found.contributions.sum() == pytest.approx(found.prediction, abs=1e-12)
    with pytest.raises(OutOfTime):
        attribute(curved, *rows, FLAT, permutations=100, rng=rng(), in_time=lambda: False)


def test_one_player_gets_everything():
    players = Players.of([spec("x")])
    found = attribute(
        lambda i: i["x"] ** 2, {"x": np.array(3.0)}, {"x": np.array([1.0, 2.0])}, players, permutations=2, rng=rng()
    )
    assert (players.names, found.contributions.tolist()) == (("x",), [9 - 2.5])


def test_players_are_columns_values_or_blocks():
    specs = [spec("body", 2, columns=("age", "bmi")), spec("pixels", 2, 2), spec("image", 28, 28, 3), spec("wave", 300)]
    players = Players.of(specs)
    assert players.names[:6] == ("age", "bmi", "pixels[0, 0]", "pixels[0, 1]", "pixels[1, 0]", "pixels[1, 1]")
    assert players.names[6] == "image[0:3, 0:3, 0:3]"
    assert len(players.names) == 6 + 64 + 64
    assert players.names[-1] == "wave[295:300]"
    for one in specs:
        numbers = players.places[one.name]
        assert numbers.shape == one.shape
        assert len(np.unique(numbers)) == sum(1 for name in players.names if name in one.columns or one.name in name)
    assert sorted(np.unique(np.concatenate([v.ravel() for v in players.places.values()]))) == list(
        range(len(players.names))
    )


def test_several_inputs_share():
    players = Players.of([spec("a", 2), spec("b")])
    row = {"a": np.array([1.0, 2.0]), "b": np.array(4.0)}
    background = {"a": np.zeros((3, 2)), "b": np.array([0.0, 1.0, 2.0])}
    found = attribute(lambda i: i["a"].sum(axis=1) + i["b"], row, background, players, permutations=2, rng=rng())
    assert players.names == ("a_0", "a_1", "b")
    np.testing.assert_allclose(found.contributions, [1, 2, 3])
