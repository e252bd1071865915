"""A window's report by the contract."""

import time

import numpy as np
import pandas as pd
import pytest

from homeostat.contract import ColumnSpec, Contract
from homeostat.data.violations import check_window, plain_value

COLUMNS = (
    ColumnSpec(name="age", dtype="float32", null_share=0.1, minimum=0.0, maximum=100.0),
    ColumnSpec(name="sex", dtype="int64", null_share=0.0, minimum=0.0, maximum=1.0, categories=(0, 1)),
    ColumnSpec(name="kind", dtype="object", null_share=0.0, minimum=None, maximum=None, categories=("cat", "dog")),
)
TARGET = ColumnSpec(name="target", dtype="float64", null_share=0.0, minimum=0.0, maximum=1.0)
CONTRACT = Contract(inputs=(), columns=COLUMNS, target=TARGET, min_rows=50, mostly=0.9, null_slack=0.05)


def window(rows: int = 20, **columns) -> pd.DataFrame:
    good = {"age": np.full(rows, 50.0), "sex": np.arange(rows) % 2, "kind": ["cat", "dog"] * (rows // 2)}
    return pd.DataFrame(good | columns)


def test_good_rows_break_nothing():
    assert check_window(CONTRACT, window()) == ()
    assert check_window(CONTRACT, window().head(0)) == ()
    assert check_window(CONTRACT, window(sex=(np.arange(20) % 2).astype("float32"), target=0.5)) == ()


def test_each_rule_with_counts_and_examples():
    age = np.r_[[-1.0, 101.0, 200.0, 300.0], np.full(16, 50.0)]
    found = {v.column: v for v in check_window(CONTRACT, window(age=age, kind=["cow"] + ["cat"] * 19))}
    assert (found["age"].rule, found["age"].rows, found["age"].share, found["age"].broken) == ("range", 4, 0.2, True)
    assert found["age"].examples == ((0, -1.0), (1, 101.0), (2, 200.0))
    assert str(found["age"]) == (
        "age: expected 0 to 100: 4 rows (20.0%, allowed 10.0%): row 0 is -1.0, row 1 is 101.0, row 2 is 200.0"
    )
    assert (found["kind"].rule, found["kind"].broken) == ("categories", False)  # 5 % of 10 %
    assert found["kind"].examples == ((0, "cow"),)


def test_missing_values():
    (found,) = check_window(CONTRACT, window(age=np.r_[np.full(4, np.nan), np.full(16, 50.0)]))
    assert (found.rule, found.rows, found.allowed, found.examples) == ("null_share", 4, pytest.approx(0.15), ())
    assert check_window(CONTRACT, window(age=np.r_[np.full(3, np.nan), np.full(17, 50.0)])) == ()
    assert [v.rule for v in check_window(CONTRACT, window(age=[None] * 20))] == ["null_share"]


def test_infinite_values_are_out_of_range():
    assert check_window(CONTRACT, window(age=np.inf))[0].rule == "range"


def test_absent_new_and_retyped_columns():
    found = check_window(CONTRACT, window(kind=3.5, more=1).drop(columns="age"))
    assert [(v.column, v.rule, v.broken) for v in found] == [
        ("age", "absent", True),
        ("kind", "dtype", True),
        ("more", "new", False),
    ]
    assert str(found[1]) == "kind: expected object: 20 rows (100.0%, allowed 0.0%): row 0 is float64"


def test_examples_are_plain_and_short():
    kinds = [pd.Timestamp("2026-03-01"), "x" * 5000, np.int64(3), float("inf")]
    values = [plain_value(value) for value in kinds]
    assert values == ["2026-03-01 00:00:00", "x" * 200 + "…", 3, float("inf")]
    assert plain_value(None) is None


def test_the_target_is_held_when_it_is_there():
    assert check_window(CONTRACT, window(target=7.0))[0].column == "target"


def test_a_hundred_thousand_rows_take_a_moment():
    frame = window(100_000)
    start = time.perf_counter()
    check_window(CONTRACT, frame)
    assert time.perf_counter() - start < 2  # 0.02 s alone on the machine
