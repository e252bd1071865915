"""Logged requests replayed: what is equal, what is skewed, and what cannot be said."""

import numpy as np
import pandas as pd
import pytest

from homeostat.dataset import Dataset
from homeostat.monitoring.skew import check_skew
from homeostat.monitoring.traffic import TrafficRows
from homeostat.project import Project
from tests.bundles import linear

COLUMNS = {"x": ("a", "b", "c", "d")}


class Plain(Project):
    """Rows as they are."""

    def load_data(self) -> Dataset:
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError


class Centered(Plain):
    """A feature that depends on its neighbors."""

    def to_frame(self, inputs, columns):
        return super().to_frame(inputs, columns).assign(a=lambda frame: frame["a"] - frame["a"].mean())


def served(requests: int = 10, size: int = 3, seed: int = 0, version: int = 4) -> TrafficRows:
    x = np.random.default_rng(seed).normal(size=(requests * size, 4)).astype(np.float32)
    n = len(x)
    return TrafficRows(
        inputs={"x": x},
        outputs={"output": x.sum(axis=1, keepdims=True)},
        labels=np.full(n, np.nan),
        entity_ids=np.full(n, ""),
        request_ids=np.repeat([f"r{i:02d}" for i in range(requests)], size),
        versions=np.full(n, version),
        times=np.arange(n, dtype=float),
        milliseconds=np.ones(n),
        arms=np.full(n, "champion"),
        places=np.tile(np.arange(size), requests),
        label_times=np.full(n, np.nan),
    )


def check(rows: TrafficRows, project: Project | None = None, **options):
    return check_skew(project or Plain(), COLUMNS, linear(), rows, version=4, **options)


def test_what_was_served_is_what_is_replayed():
    found = check(served())
    assert (found.requests, found.rows, found.skewed, found.findings) == (10, 30, 0, ())
    assert found.reason == "10 requests replayed: equal features and equal answers"


def test_an_answer_that_the_graph_does_not_give():
    rows = served()
    rows.outputs["output"][7] += 0.5
    found = check(rows)
    (finding,) = found.findings
    assert (finding.request_id, finding.row, finding.kind, finding.column) == ("r02", 1, "answer", "output")
    assert finding.served - finding.replayed == pytest.approx(0.5, abs=1e-5)
    assert (found.skewed, found.conclusive) == (1, True)
    assert "1 of 10 replayed requests are skewed, first r02 row 1: answer output was" in found.reason


def test_what_another_processor_may_do_is_no_skew():
    rows = served()
    rows.outputs["output"] *= np.float32(1 + 1e-5)
    assert check(rows).skewed == 0


def test_a_feature_that_depends_on_its_neighbors():
    found = check(served(), Centered())
    assert found.skewed == 10
    assert {(f.kind, f.column) for f in found.findings} == {("feature", "a")}
    assert len(check(served(30), Centered()).findings) == 20


def test_a_column_that_is_not_always_there():
    class Odd(Plain):
        def to_frame(self, inputs, columns):
            frame = super().to_frame(inputs, columns)
            return frame.drop(columns="b") if len(frame) < 10 else frame

    assert {f.column: (f.served, f.replayed) for f in check(served(), Odd()).findings} == {"b": ("absent", "there")}


def test_gaps_and_text_are_compared_too():
    rows = served()
    rows.inputs["x"][0, 1] = np.nan
    rows.outputs["output"][0] = np.nan

    class Named(Plain):
        def to_frame(self, inputs, columns):
            frame = super().to_frame(inputs, columns)
            return frame.assign(t=["many" if len(frame) > 9 else "few"] * len(frame), u=[None] * len(frame))

    assert check(rows).skewed == 0
    finding = check(rows, Named()).findings[0]
    assert (finding.column, finding.served, finding.replayed) == ("t", "few", "many")


def test_few_requests_are_drawn_by_the_seed():
    rows = served(50)
    rows.outputs["output"] += 1
    found = check(rows, requests=5, seed=1)
    assert (found.requests, found.rows, found.skewed) == (5, 15, 5)
    assert check(rows, requests=5, seed=1) == found
    assert check(rows, requests=5, seed=2) != found


def test_what_cannot_be_replayed_is_inconclusive_or_said():
    other = check(served(version=3))
    assert (other.conclusive, other.requests) == (False, 0)
    assert "no request of version 4" in other.reason
    masked = TrafficRows(**{**served().__dict__, "masking": "{}"})
    assert "masked" in check(masked).reason
    wide = served()
    wide.inputs["x"] = wide.inputs["x"].astype(np.float64)
    assert "logged requests cannot be replayed: the graph does not take these rows" in check(wide).reason

    class Short(Plain):
        def to_frame(self, inputs, columns):
            return pd.DataFrame({"a": [1.0]})

    assert "to_frame gave 1 rows for 30" in check(served(), Short()).reason


def test_an_output_of_another_shape():
    rows = served()
    object.__setattr__(rows, "outputs", {"output": np.zeros((30, 2), np.float32)})
    finding = check(rows).findings[0]
    assert (finding.column, finding.served, finding.replayed) == ("output", [2], [1])
