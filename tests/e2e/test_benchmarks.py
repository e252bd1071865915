"""The benchmarks of real servers, each once and small: they run, and count nothing that is not there."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import rollback, swaps
from benchmarks.steady_load import FIELDS

pytestmark = pytest.mark.e2e


def test_swaps_under_load_lose_nothing(tmp_path, capsys):
    found = swaps.measure(tmp_path, swaps=2, rate=100, connections=2, pause=0.1)
    assert (found["swaps"], found["failed"], found["lost"]) == (2, 0, 0)
    assert found["wrong"] == {"torn": 0, "early": 0, "late": 0}
    parts = found["milliseconds"]
    assert min(one["requests"] for one in parts.values()) > 0
    assert parts["inside"]["requests"] + parts["outside"]["requests"] == found["requests"]
    swaps.show(found)
    assert "2 swaps" in capsys.readouterr().out


def test_wrong_answers_are_seen():
    """v1, then v2: announced at 1 s, promoted at 2 s, and confirmed at 3 s."""
    rows = [
        (0, 0.5, 0.6, 200, 1, 4.0),
        (0, 0.6, 0.7, 200, 1, 8.0),  # torn
        (0, 1.0, 1.1, 200, 2, 8.0),  # early
        (0, 1.9, 2.1, 200, 2, 8.0),
        (0, 2.5, 2.6, 200, 1, 4.0),
        (0, 2.9, 3.4, 200, 1, 4.0),
        (0, 3.1, 3.2, 200, 1, 4.0),  # late
        (0, 3.3, 3.4, 500, 0, 0.0),
        (0, 3.5, 3.6, 0, 0, 0.0),
        (0, 3.7, 3.8, 200, 2, 8.0),
    ]
    done = [swaps.Swap(2, 1.0, 1.5, 2.0, 3.0)]
    found = swaps.summary(np.array(rows, FIELDS), done)
    assert found["wrong"] == {"torn": 1, "early": 1, "late": 1}
    assert (found["failed"], found["lost"], found["requests"]) == (1, 1, 10)
    assert found["milliseconds"]["while loading"]["requests"] == 1
    assert found["milliseconds"]["at the swap"]["requests"] == 4


def test_rollbacks_are_timed_to_the_last_bad_answer(tmp_path, capsys):
    found = rollback.measure(tmp_path, repetitions=1, rate=100, connections=2, seed=1)
    assert (found["failed"], found["lost"]) == (0, 0)
    assert found["requests"] > 20
    for way in rollback.WAYS:
        assert 0 < found["last_bad_answer"][way]["max"] < 5
    rollback.show(found)
    assert "command, to the last bad answer" in capsys.readouterr().out
