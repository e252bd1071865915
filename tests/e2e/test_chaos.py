"""Chaos in its short form: a fault every few seconds on a server under load, and what clients and capture lose."""

from __future__ import annotations

import math
import os
from collections import Counter

import numpy as np
import pytest

from benchmarks import chaos
from benchmarks.chaos_faults import FAULTS
from benchmarks.steady_load import FIELDS
from benchmarks.swaps import Swap

pytestmark = pytest.mark.e2e

SECONDS = float(os.environ.get("HOMEOSTAT_CHAOS_SECONDS", "180"))
EVERY_SECONDS = 6.0
SEED = 0


@pytest.mark.timeout(SECONDS + 240)
def test_valid_requests_are_answered_whatever_happens(tmp_path):
    found = chaos.measure(tmp_path, SECONDS, EVERY_SECONDS, rate=100, connections=8, seed=SEED)
    chaos.show(found)
    assert found["requests"] > 80 * SECONDS
    assert found["answered_share"] >= 0.999
    assert found["first_try_share"] >= 0.99
    assert set(found["wrong"].values()) == {0}
    assert found["unexpected"] == []
    assert found["captured"]["lost_elsewhere"] == 0
    assert found["captured"]["double"] == 0
    for fault, one in found["faults"].items():
        assert one["whole_seconds"]["max"] < 15, fault
    if len(FAULTS) * EVERY_SECONDS <= SECONDS:
        assert found["faults"].keys() == FAULTS.keys()


def test_every_fault_comes_before_one_comes_again():
    kinds = chaos.deal(seed=3)
    for _ in range(3):
        assert {next(kinds) for _ in FAULTS} == FAULTS.keys()


def test_the_ledger_is_held_against_answers_and_captured():
    """v1, promoted to v2 at 2 s (confirmed at 3 s), back at 6 s (7 s); a worker killed at 10 s."""
    rows = [
        (0, 0.5, 0.6, 200, 1, 4.0),
        (0, 1.0, 1.1, 200, 2, 8.0),  # too early
        (0, 2.5, 2.6, 200, 1, 4.0),
        (0, 2.5, 2.6, 200, 2, 8.0),
        (0, 3.1, 3.2, 200, 1, 4.0),  # too late
        (0, 6.5, 6.6, 200, 1, 4.0),
        (0, 7.1, 7.2, 200, 2, 8.0),  # too late
        (0, 8.0, 8.1, 200, 1, 8.0),  # of no version
        (0, 9.9, 9.95, 200, 1, 4.0),
        (0, 9.9, 10.4, 0, 0, 0.0),
    ]
    records = np.array([(*row, place, 1 + (place == 8)) for place, row in enumerate(rows)], FIELDS)
    swaps = [Swap(2, 2.0, 2.0, 2.0, 3.0), Swap(1, 6.0, 6.0, 6.0, 7.0)]
    assert chaos.count_wrong(records, swaps) == {"torn": 1, "of a version that was not live": 3}
    done = [
        chaos.Done(("promotion or rollback",), 6.0, 7.0, 7.0),
        chaos.Done(("kill -9 of a worker",), 10.0, 10.0, 11.5),
    ]
    captured = Counter({f"chaos-{place}": 1 for place in (1, 2, 3, 4, 6, 7, 9)} | {"chaos-0": 2, "other": 3})
    found = chaos.count_captured(records, captured, done)
    assert (found["answered"], found["captured"], found["lost"], found["double"]) == (9, 8, 2, 1)
    assert found["lost_by_fault"] == {"promotion or rollback": 1, "kill -9 of a worker": 1}
    assert found["lost_elsewhere"] == 1
    assert chaos.count_captured(records, captured, done[1:])["lost_by_fault"][chaos.NOTHING] == 1
    assert found["unanswered"] == 1
    scene = chaos.Scene(chaos.Serving(chaos.Path()), chaos.random.Random(0), swaps)
    summary = chaos.summary(records, scene, done, captured)
    assert math.isclose(summary["answered_share"], 0.9)
    assert math.isclose(summary["first_try_share"], 0.8)
    assert summary["faults"]["kill -9 of a worker"]["whole_seconds"] == {"p50": 1.5, "max": 1.5}
    assert summary["faults"]["kill -9 of a worker"]["not_answered"] == 1
