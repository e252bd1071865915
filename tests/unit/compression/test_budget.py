"""The budget as a pure function: each refusal in its words, ties, and fp32 when nothing else is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.compression.budget import choose, refusal
from homeostat.config import CompressConfig
from tests.keras_projects import candidate

FP32 = candidate("fp32", size=4000, accuracy=0.95, p50=10.0, p99=20.0)


def budget(**values):
    return CompressConfig.model_validate({"max_metric_drop": 0.01, "max_latency_ratio": 1.5} | values)


@pytest.mark.parametrize(
    ("values", "limits", "text"),
    [
        ({"accuracy": 0.94}, {}, ""),
        ({"accuracy": 0.99}, {}, ""),
        ({"accuracy": 0.929}, {}, "accuracy 0.0210 worse (allowed 0.01)"),
        ({"accuracy": 0.95, "p50": 15.0}, {}, ""),
        ({"accuracy": 0.95, "p50": 21.0}, {}, "p50 2.10x fp32's (allowed 1.5x)"),
        ({"accuracy": 0.95, "p99": 1500.0}, {"max_latency_ms": 1.0}, "p99 1.500 ms (allowed 1 ms)"),
        ({"accuracy": 0.95, "p99": 900.0}, {"max_latency_ms": 1.0}, ""),
        ({"accuracy": 0.5, "invariant": False}, {}, "not batch-invariant"),
        ({"accuracy": float("nan")}, {}, "it answers NaN or Inf on validation rows"),
    ],
)
def test_each_refusal(values, limits, text):
    assert refusal(candidate("static_int8", **values), FP32, "accuracy", True, budget(**limits)) == text


def test_a_metric_where_less_is_better():
    fp32 = candidate("fp32", metric="rmse", accuracy=50.0)
    worse, better = (candidate("static_int8", metric="rmse", accuracy=v) for v in (51.5, 40.0))
    assert refusal(worse, fp32, "rmse", False, budget()) == "rmse 1.5000 worse (allowed 0.01)"
    assert refusal(better, fp32, "rmse", False, budget()) == ""


def test_the_smallest_within_the_budget_wins():
    others = [
        candidate("dynamic_int8", size=900, accuracy=0.95, invariant=False),
        candidate("static_int8", size=1000, accuracy=0.95),
        candidate("pruned", size=3000, accuracy=0.95),
    ]
    judged, winner, reason = choose([FP32, *others], "accuracy", True, budget())
    assert winner == "static_int8"
    assert reason == "4.0x smaller than fp32, accuracy 0.9500 on validation"
    assert [bool(one.refused) for one in judged] == [False, True, False, False]


def test_of_two_of_one_size_the_faster_wins_and_fp32_before_both():
    slow, fast = (candidate(name, size=1000, accuracy=0.95, p50=p) for name, p in (("static_int8", 9), ("pruned", 8)))
    assert choose([FP32, slow, fast], "accuracy", True, budget())[1] == "pruned"
    equal = candidate("pruned", size=4000, accuracy=0.95, p50=1.0)
    assert choose([FP32, equal], "accuracy", True, budget())[1] == "fp32"


def test_fp32_remains_when_nothing_else_keeps_the_budget_even_if_it_breaks_it():
    slow = candidate("fp32", size=4000, accuracy=0.95, p99=9000.0)
    poor, large = candidate("static_int8", accuracy=0.5), candidate("pruned", size=5000, accuracy=0.95)
    judged, winner, reason = choose([slow, poor, large], "accuracy", True, budget(max_latency_ms=8.0))
    assert winner == "fp32"
    assert judged[0].refused == ""
    assert reason == (
        "no other candidate is smaller within the budget "
        "(static_int8: accuracy 0.4500 worse (allowed 0.01); pruned: not smaller)"
        "; fp32 itself is over it: p99 9.000 ms (allowed 8 ms)"
    )
    assert choose([FP32], "accuracy", True, budget())[2].endswith("(none was asked for)")


some = st.builds(
    candidate,
    st.sampled_from(["static_int8", "dynamic_int8", "pruned"]),
    size=st.integers(1, 8000),
    accuracy=st.floats(0, 1),
    p50=st.floats(1, 100),
    p99=st.floats(1, 1000),
    invariant=st.booleans(),
)


@given(st.lists(some, max_size=3, unique_by=lambda c: c.name))
def test_no_eligible_candidate_is_smaller_than_the_winner(others):
    judged, winner, _ = choose([FP32, *others], "accuracy", True, budget())
    chosen = next(one for one in judged if one.name == winner)
    assert not chosen.refused
    assert all(one.refused or one.onnx.bytes >= chosen.onnx.bytes for one in judged)
    assert chosen.metrics["accuracy"] >= 0.94 - 1e-9
