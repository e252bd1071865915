"""A labelled history replayed: what is known when, which alarm comes, whether it was right; and files that are bad."""

import dataclasses
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from homeostat.config import ProjectConfig, ServeConfig
from homeostat.errors import ConfigError, DataInvalid
from homeostat.monitoring import backtest as module
from homeostat.monitoring.backtest import Labels, Replay, score, window_edges
from homeostat.monitoring.drift import Drift
from homeostat.monitoring.history import Columns, read_history
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.sequence import DriftState
from homeostat.project import Project
from tests.bundles import softmax

CONFIG = ProjectConfig(name="toy", project="toy:Toy", task="classification")
START = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("a", "b", "c")


class Toy(Project):
    """Which of three columns is the largest."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError


def drawn(n, seed, wrong):
    """x [n, 3] and its largest column, of which a share is another."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return x, np.where(rng.random(n) < wrong, (x.argmax(axis=1) + 1) % 3, x.argmax(axis=1))


def reference(columns=NAMES):
    x, y = drawn(3000, 0, 0.1)
    scores = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    return Reference({"x": x}, {"scores": scores}, {"x": columns} if columns else {}, y)


def history(errors=(0.1, 0.1, 0.3, 0.1, 0.1), rows=500):
    """A day of rows for each share of errors."""
    parts = [drawn(rows, 10 + day, wrong) for day, wrong in enumerate(errors)]
    frame = pd.DataFrame(np.concatenate([x for x, _ in parts]), columns=list(NAMES))
    frame["label"] = np.concatenate([y for _, y in parts])
    frame["time"] = START + pd.to_timedelta(np.arange(len(frame)) * 86400 / rows, unit="s")
    frame["kind"] = np.where(np.arange(len(frame)) % 2, "odd", "even")
    return frame


def read(frame, tmp_path, columns=Columns(), expected=None, config=CONFIG, classes=()):  # noqa: B008
    path = tmp_path / "history.parquet"
    frame.to_parquet(path)
    return read_history(path, columns, config, expected or reference(), softmax(), 3, classes)


def replay(tmp_path, frame=None, labels=Labels(), window=timedelta(days=1), drift=False):  # noqa: B008
    found = read(history() if frame is None else frame, tmp_path)
    edges = window_edges(found.rows.times, window)
    again = Replay(Toy(), CONFIG, reference(), 3, found.rows, edges, labels, drift=drift)
    return again.finish(list(again.windows()), found.notes)


def test_harm_is_caught_in_its_window(tmp_path):
    found = replay(tmp_path)
    assert [window.harmful for window in found.windows] == [False, False, True, False, False]
    assert [window.harmed for window in found.windows] == [False, False, True, False, False]
    assert [window.known for window in found.windows] == [500] * 5
    assert dataclasses.astuple(found.harm) == (1, 1, 1, 0, 0)
    assert found.windows[2].since.startswith("2026-01-0")
    assert found.drift is None
    assert found.tolerated > found.reference_loss + 0.01


def test_labels_that_come_a_day_late(tmp_path):
    found = replay(tmp_path, labels=Labels(timedelta(days=1), 0.8))
    assert [window.known for window in found.windows] == [0, 0, 0, 0, 0]
    assert [window.counted > 350 for window in found.windows] == [False, True, True, True, True]
    assert [window.harmed for window in found.windows] == [False, False, False, True, False]
    assert (found.harm.caught, found.harm.elsewhere) == (1, 0)


def test_windows_by_count_and_without_enough_labels(tmp_path):
    frame = history()
    frame.loc[1000:1490, "label"] = np.nan
    found = replay(tmp_path, frame, window=250)
    assert [window.rows for window in found.windows] == [250] * 10
    assert [window.harmful for window in found.windows][4:6] == [None, None]
    assert found.harm.harmful == 0


def test_each_window_is_tested_for_drift(tmp_path, monkeypatch):
    seen = []

    def find(expected, current, config, workspace, *, state, times, seed, importance):
        assert (len(times), seed, importance) == (len(current), "toy v3", {})
        assert state.checks == len(seen), "each look goes on from the one before"
        seen.append((len(expected), len(current), list(current.columns)[:3]))
        return Drift(drifted=len(seen) == 2, reason=f"look {len(seen)}", state=DriftState(len(seen)))

    monkeypatch.setattr(module, "find_drift", find)
    frame = history(errors=(0.1, 0.1, 0.3)).iloc[:1050]
    found = replay(tmp_path, frame, drift=True)
    assert [window.drifted for window in found.windows] == [False, True, None]
    assert seen == [(3000, 500, list(NAMES))] * 2
    assert "drift not tested" in found.windows[2].reason
    assert (found.drift.alarms, found.drift.harmful) == (1, 1)


def test_score():
    found = score([None, False, True, False, False, None, True], [True, True, False, True, True, False, True])
    assert dataclasses.astuple(found) == (2, 2, 5, 2, 1)


def test_too_many_windows():
    with pytest.raises(ConfigError, match="choose a longer --window"):
        window_edges(np.array([0.0, 1e9]), timedelta(seconds=1))
    assert window_edges(np.array([5.0, 5.0, 5.0]), 2).tolist() == pytest.approx([5, 5])
    assert len(window_edges(np.array([5.0]), timedelta(days=1))) == 2


def test_rows_out_of_order_and_unusable_ones(tmp_path):
    frame = history(errors=(0.1,), rows=40).iloc[::-1]
    frame.iloc[3, 0] = np.nan
    frame.iloc[5, 4] = pd.NaT
    found = read(frame, tmp_path)
    assert len(found.rows) == 38
    assert (np.diff(found.rows.times) > 0).all()
    assert found.notes == (
        "1 rows have no time in 'time'",
        "1 rows have missing or infinite inputs, which the server refuses",
        "37 times go back: rows were put in order",
    )
    accepting = CONFIG.model_copy(update={"serve": ServeConfig(nan="accept")})
    assert len(read(frame, tmp_path, config=accepting).rows) == 39


def test_other_ways_to_write_it(tmp_path):
    frame = history(errors=(0.1,), rows=40)
    numbered = frame.rename(columns={name: f"x_{i}" for i, name in enumerate(NAMES)})
    numbered = numbered.assign(time=numbered["time"].astype(str), label=numbered["label"].map(lambda c: "xyz"[c]))
    found = read(numbered, tmp_path, Columns(slices=("kind",)), reference(columns=()), classes=tuple("xyz"))
    lists = pd.DataFrame(
        {"x": frame[list(NAMES)].to_numpy().tolist(), "when": np.arange(40.0), "label": frame["label"]}
    )
    same = read(lists, tmp_path, Columns(time="when"), reference(columns=()))
    assert found.rows.labels.tolist() == same.rows.labels.tolist() == frame["label"].tolist()
    np.testing.assert_allclose(found.rows.outputs["scores"], same.rows.outputs["scores"])
    assert found.rows.slices["kind"].tolist() == frame["kind"].tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns=["b", "time", "label"]), "(?s)no column 'b', of input 'x'.*--time.*--label"),
        (lambda f: f.assign(label=np.nan), "holds no label"),
        (lambda f: f.assign(label="cat"), "holds no labels"),
        (lambda f: f.assign(time="yesterday"), "holds no times"),
        (lambda f: f.assign(time=pd.NaT), "none of 40 rows can be replayed"),
        (lambda f: f.assign(a="high"), "cannot be made from a, b, c"),
        (lambda f: f.iloc[:0], "none of 0 rows can be replayed"),
    ],
)
def test_a_file_that_does_not_hold_what_is_needed(tmp_path, change, said):
    with pytest.raises(DataInvalid, match=said):
        read(change(history(errors=(0.1,), rows=40)), tmp_path)


def test_a_file_that_is_no_parquet(tmp_path):
    path = tmp_path / "half.parquet"
    history(errors=(0.1,), rows=40).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataInvalid, match="is no whole Parquet file"):
        read_history(path, Columns(), CONFIG, reference(), softmax(), 3)
    with pytest.raises(DataInvalid, match="no such file"):
        read_history(tmp_path / "none.parquet", Columns(), CONFIG, reference(), softmax(), 3)
    with pytest.raises(DataInvalid, match="is no whole Parquet file"):
        read_history(tmp_path, Columns(), CONFIG, reference(), softmax(), 3)
