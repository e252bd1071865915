"""What differs between two contracts."""

import pytest

from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.data.difference import differ

AGE = ColumnSpec(name="age", dtype="float32", null_share=0.0, minimum=0.0, maximum=10.0)
SEX = ColumnSpec(name="sex", dtype="int64", null_share=0.0, minimum=0.0, maximum=1.0, categories=(0, 1))
TARGET = SEX.model_copy(update={"name": "target"})
X = TensorSpec(name="x", dtype="float32", shape=(2,), minimum=(0,), maximum=(1,), columns=("age", "sex"))
OLD = Contract(inputs=(X,), columns=(AGE, SEX), target=TARGET, min_rows=50, mostly=0.95, null_slack=0.05)


def changes(tolerance: float = 0.0, **update) -> list[tuple]:
    found = differ(OLD, OLD.model_copy(update=update), tolerance)
    return [(change.place, change.rule, change.old, change.new, change.effect) for change in found]


def with_age(**update) -> tuple[ColumnSpec, ...]:
    return (AGE.model_copy(update=update), SEX)


def test_the_same_contract_has_no_change():
    assert changes() == []


@pytest.mark.parametrize(
    ("update", "rule", "old", "new", "effect"),
    [
        ({"maximum": 12.0}, "range", (0, 10), (0, 12), "wider"),
        ({"minimum": 1.0}, "range", (0, 10), (1, 10), "narrower"),
        ({"minimum": 1.0, "maximum": 12.0}, "range", (0, 10), (1, 12), "moved"),
        ({"maximum": None}, "range", (0, 10), (0, None), "wider"),
        ({"null_share": 0.1}, "null_share", 0.0, 0.1, "wider"),
        ({"dtype": "float64"}, "dtype", "float32", "float64", ""),
        ({"categories": (1, 2)}, "categories", None, (1, 2), "narrower"),
    ],
)
def test_a_rule_of_a_column(update, rule, old, new, effect):
    assert changes(columns=with_age(**update)) == [("column age", rule, old, new, effect)]


def test_categories():
    for values, effect in (((0, 1, 2), "wider"), ((1,), "narrower"), ((1, 2), "moved"), (None, "wider")):
        sex = SEX.model_copy(update={"categories": values})
        assert changes(columns=(AGE, sex)) == [("column sex", "categories", (0, 1), values, effect)]


def test_columns_inputs_and_figures_of_the_table():
    other = X.model_copy(update={"dtype": "float64", "columns": ("sex", "age")})
    new = AGE.model_copy(update={"name": "size"})
    assert changes(
        inputs=(other,), columns=(new, SEX), mostly=0.9, target=AGE.model_copy(update={"name": "target"})
    ) == [
        ("table", "mostly", 0.95, 0.9, ""),
        ("input x", "dtype", "float32", "float64", ""),
        ("input x", "columns", ("age", "sex"), ("sex", "age"), ""),
        ("column age", "removed", "age", None, ""),
        ("column size", "added", None, "size", ""),
        ("target", "dtype", "int64", "float32", ""),
        ("target", "categories", (0, 1), None, "wider"),
    ]
    assert changes(inputs=(X, X.model_copy(update={"name": "y"}))) == [("input y", "added", None, "y", "")]


def test_what_every_training_moves_a_little_is_the_same_within_the_tolerance():
    assert changes(0.05, columns=with_age(minimum=-0.4, maximum=10.5, null_share=0.04)) == []
    assert changes(0.05, columns=with_age(maximum=10.6))[0][1] == "range"
