"""How far a window is from a profile, from every kind of source."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from homeostat.data.comparison import compare, jensen_shannon, psi
from homeostat.data.profiler import make_profile

ROWS = 4000


def make_frame(seed: int = 0, rows: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "number": rng.normal(10, 2, rows),
            "flag": rng.integers(0, 3, rows),
            "text": np.array(["a", "b", "c"])[rng.integers(0, 3, rows)],
        }
    )


def distances(window: pd.DataFrame, reference: pd.DataFrame | None = None):
    profile = make_profile(make_frame() if reference is None else reference)
    return {found.column: found for found in compare(profile, window)}


def test_the_same_rows_are_at_no_distance():
    for found in distances(make_frame()).values():
        assert (found.jensen_shannon, found.psi, found.null_difference, found.fault) == (0, 0, 0, "")
        assert found.rows == ROWS
    assert distances(make_frame())["number"].wasserstein == 0


def test_a_moved_mean_is_as_large_as_it_is():
    found = distances(make_frame(1).assign(number=lambda f: f["number"] + 1.0))["number"]
    assert found.mean_shift == pytest.approx(0.5, abs=0.06)
    assert found.wasserstein == pytest.approx(0.5, abs=0.1)
    assert 0.1 < found.jensen_shannon < 0.4


def test_another_unit_is_at_the_end_of_the_scale():
    found = distances(make_frame(1).assign(number=lambda f: f["number"] * 1000))["number"]
    assert found.jensen_shannon > 0.9
    assert found.mean_shift > 1000


def test_new_categories_and_missing_values():
    window = make_frame(1)
    window.loc[:399, "text"] = "new"
    window.loc[:999, "number"] = np.nan
    window.loc[:1999, "flag"] = 7
    found = distances(window)
    assert found["text"].unseen == pytest.approx(0.1)
    assert found["flag"].unseen == pytest.approx(0.5)
    assert (found["number"].null_share, found["number"].null_difference) == (0.25, 0.25)
    assert found["number"].rows == 3000


def test_one_category_is_one_whatever_its_type():
    window = make_frame().assign(flag=lambda f: f["flag"].astype("float32"))
    assert distances(window)["flag"].jensen_shannon == 0
    flags = pd.DataFrame({"flag": [True, False] * 50})
    assert distances(flags.astype(int), flags)["flag"].jensen_shannon == 0


def test_columns_that_cannot_be_compared_say_why():
    window = make_frame().drop(columns="flag").assign(number="12", text=None, more=1)
    found = distances(window)
    assert found["flag"].fault == "absent"
    assert found["flag"].null_share == 1
    assert found["number"].fault.startswith("re-typed: string, was float64")
    assert found["text"].fault == "without any value"
    assert found["more"].fault == "new"
    assert all(one.jensen_shannon is None for one in found.values())
    infinite = distances(make_frame().assign(number=np.inf, text=3))
    assert infinite["number"].fault == "without any finite value"
    assert infinite["text"].fault == "re-typed: int64, was object"


def test_an_empty_window_is_no_crash():
    assert {found.fault for found in distances(make_frame().head(0)).values()} == {"without any value"}


def test_a_constant_column_that_moves():
    found = distances(pd.DataFrame({"c": np.full(50, 3.7)}), pd.DataFrame({"c": np.full(50, 2.5)}))["c"]
    assert found.jensen_shannon == 1
    assert found.mean_shift is None


def test_rare_categories_are_one(tmp_path: Path):
    many = pd.DataFrame({"text": [f"v{i % 150}" for i in range(300)] + ["often"] * 100})
    found = distances(many.assign(text=lambda f: f["text"].replace({"v1": "other"})), many)["text"]
    assert found.unseen is None  # the profile does not list all that it saw
    assert found.jensen_shannon < 0.1


def test_distances_by_hand():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.75, 0.0])
    assert psi(p, q) == pytest.approx(0.25 * np.log(2) + 0.25 * np.log(1.5))
    assert jensen_shannon(p, q) == pytest.approx(0.2209, abs=1e-4)  # scipy.spatial.distance.jensenshannon(p, q, 2)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1
