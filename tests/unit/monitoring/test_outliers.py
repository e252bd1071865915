"""Single requests unlike the reference: those that are named, at which rate of false ones, and when none can be."""

import numpy as np
import pytest

from homeostat.monitoring.outliers import benjamini_hochberg, conformal_p, find_outliers
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows
from tests.unit.monitoring.test_skew import COLUMNS, Plain

RATE = 0.1


def table(rows: int, seed: int) -> np.ndarray:
    """Columns that go with each other."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    return x.astype(np.float32)


def known(x: np.ndarray) -> Reference:
    return Reference({"x": x}, {"output": np.zeros((len(x), 1))}, COLUMNS, np.zeros(len(x)))


def asked(x: np.ndarray, masking: str | None = None) -> TrafficRows:
    n = len(x)
    return TrafficRows(
        inputs={"x": x},
        labels=np.full(n, np.nan),
        request_ids=np.array([f"r{i // 2}" for i in range(n)]),
        places=np.arange(n) % 2,
        masking=masking,
    )


def find(now: np.ndarray, before: np.ndarray | None = None, rate: float = RATE, seed: int = 0):
    return find_outliers(Plain(), known(table(2000, 1) if before is None else before), asked(now), rate, seed)


def test_the_conformal_p_value_is_the_share_of_scores_as_large():
    p_values = conformal_p(np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0, 9.0]))
    assert p_values.tolist() == [1.0, 0.75, 0.25]


def test_benjamini_and_hochberg_name_the_largest_set_that_keeps_the_rate():
    assert benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.9]), 0.06).tolist() == [True, True, True, False]
    assert not benjamini_hochberg(np.array([0.04, 0.5]), 0.06).any()


def test_what_is_far_out_is_named_with_what_is_unusual_of_it():
    now = table(200, 2)
    now[11] = [9, 9, 0, 0]
    now[40, 3] = np.inf
    now[41, 2] = np.nan
    found = find(now)
    assert found.method == "isolation forest"
    assert (found.scored, found.of_rows) == (200, 200)
    named = {(one.request_id, one.row): one for one in found.worst}
    assert {("r5", 1), ("r20", 0), ("r20", 1)} <= named.keys()
    assert named["r5", 1].columns[0].startswith(("a 9, mostly -2", "b 9, mostly -2"))
    assert named["r20", 0].columns[0].startswith("d inf")
    assert named["r20", 1].columns[0].startswith("c nan")
    assert f"{found.flagged} of 200 requests' rows are unlike" in found.reason


def test_of_rows_that_are_alike_none_is_named_in_most_windows():
    """Without an outlier each window with a name is a false discovery: a tenth of them at most, on average."""
    windows = [find(table(300, 100 + seed), table(1000, 500 + seed), seed=seed).flagged for seed in range(20)]
    assert sum(count > 0 for count in windows) <= 5  # 0.1 of 20 is 2; 6 and more have a chance of 1 %


def test_named_outliers_are_outliers_but_for_the_rate():
    false = []
    for seed in range(8):
        now = table(1000, 50 + seed)
        now[:50] *= 5
        found = find(now, table(4000, 80 + seed), seed=seed)
        assert found.flagged >= 20
        worst = [2 * int(one.request_id[1:]) + one.row for one in found.worst]
        false.append(np.mean([place >= 50 for place in worst]))
    assert np.mean(false) <= RATE


def test_a_window_that_has_changed_as_a_whole_is_no_outlier():
    found = find(table(300, 3) + 8)
    assert found.flagged == 300
    assert len(found.worst) == 20
    assert "the traffic has changed, these are no single outliers" in found.reason


def test_images_are_held_against_what_can_be_reconstructed():
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(3, 8, 8, 1))

    def images(count: int) -> np.ndarray:
        mixed = np.tensordot(rng.normal(size=(count, 3)), patterns, 1)
        return (mixed + 0.05 * rng.normal(size=mixed.shape)).astype(np.float32)

    now = images(200)
    now[7] = rng.permuted(now[7], axis=0)  # the same pixels, elsewhere
    now[8, 0, 0] = np.nan
    found = find(now, images(2400))
    assert found.method == "reconstruction"
    assert {("r3", 1), ("r4", 0)} <= {(one.request_id, one.row) for one in found.worst}
    assert found.flagged <= 6
    assert found.worst[0].columns == ()


def test_categories_that_were_never_seen_stand_out():
    rng = np.random.default_rng(4)
    before = np.column_stack([rng.integers(0, 3, size=(3000, 4))]).astype(np.int64)
    now = rng.integers(0, 3, size=(100, 4))
    now[9] = 77
    found = find(now, before)
    assert ("r4", 1) in {(one.request_id, one.row) for one in found.worst}
    assert "77, 0.0% of the reference" in found.worst[0].columns[0]


def test_the_same_window_is_judged_the_same():
    now = table(500, 9)
    now[:9] *= 6
    assert find(now) == find(now)


@pytest.mark.parametrize("rows", [1, 2])
def test_windows_of_a_row_or_two(rows):
    found = find(np.full((rows, 4), 50, np.float32))
    assert found.flagged == rows


def test_constant_and_empty_columns():
    before = table(800, 1)
    before[:, 2], before[:, 3] = 1, np.nan
    now = table(50, 2)
    now[:, 2], now[:, 3] = 1, np.nan
    now[3, 3] = 1
    assert find(now, before).scored == 50


def test_what_cannot_be_scored_says_so():
    x = table(60, 2)
    assert find(x, rate=0.0) is None
    assert find(x[:0]) is None
    assert "the reference has 200 rows, and 228 are needed" in find(x, table(200, 1)).reason
    masked = find_outliers(Plain(), known(table(800, 1)), asked(x, masking="{}"), RATE)
    assert (masked.scored, masked.flagged) == (0, 0)
    assert "masked" in masked.reason


def test_a_large_window_is_sampled_and_says_how_few_may_go_unnamed():
    found = find(table(12_000, 6), table(1000, 1))
    assert (found.scored, found.of_rows) == (10_000, 12_000)
    assert found.least == 134  # 10,000 / (0.1 x 751), rounded up
