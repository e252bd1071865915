"""A stream lived in the order of time: each rule does what its name says, and a changed world is recovered from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.lived import DAY, RULES, Stream, live
from benchmarks.streams import BY_TIME, Source
from homeostat.config import ProjectConfig

DAYS, ROWS = 60, 24


def changing(folder: Path) -> pd.DataFrame:
    """Three columns of noise; after half of the days the label is the other one, and a second column tells so."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(DAYS * ROWS, 3))
    later = np.arange(len(x)) >= len(x) // 2
    x[later, 1] += 5
    label = (x[:, 0] > 0) ^ later
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(x)) / ROWS, unit="D")
    return pd.DataFrame(x, columns=["a", "b", "c"]).assign(label=label.astype(int), time=times)


SOURCE = Source("changing", ProjectConfig(name="s", project="s:S", task="classification", data=BY_TIME), changing)


def test_labels_come_a_day_late(tmp_path: Path):
    from benchmarks.lived import Rule, Version

    stream = Stream(SOURCE, tmp_path, 0)
    rule = Rule(stream, Version(1, 0.0, lambda rows: rows))
    now = float(stream.times[0]) + 30 * DAY
    known = rule.known(now)
    assert known.max() == 29 * ROWS - 1
    assert set(range(stream.first)) <= set(known.tolist())


@pytest.mark.parametrize("name", list(RULES))
def test_each_rule(tmp_path: Path, name: str):
    loss, counts, daily = live((SOURCE, tmp_path, 0, name))
    assert len(daily) == 48  # the days behind the first fifth
    assert daily[:10].mean() < 0.1
    if name == "never":
        assert counts.trainings == 0
        assert daily[20:].mean() > 0.9
    if name == "weekly":
        assert counts.trainings == counts.promotions == 6
    if name == "homeostat":
        assert 1 <= counts.trainings <= 8
        assert counts.promotions >= 1
        assert daily[-10:].mean() < 0.3
        assert loss < 0.3
