"""The benchmark of bad challengers, small: it judges as the server does, and the same seed says the same."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.challengers import DEFECTS, PASSING, STAYING, TWIN, main, simulate, summary
from benchmarks.rollout_models import classifier
from benchmarks.rollout_simulation import Traffic, run
from homeostat.serving.session import Session

SEEDS = [1, 2]
GUARDS = {
    "slice": "labels",
    "slow": "latency",
    "raises": "errors",
    "nan": "errors",
    "contract": "contract",
}


@pytest.mark.parametrize("name", GUARDS)
def test_a_defect_is_out_by_its_guard(name):
    (defect,) = [one for one in DEFECTS if one.name == name]
    outcomes = run(defect.behavior, STAYING, Traffic(500), 60, SEEDS)
    assert [(one.end, one.reason.partition(":")[0]) for one in outcomes] == [("out", GUARDS[name])] * 2
    assert all(0 < one.seconds < 60 and 0 < one.asked < one.requests / 5 for one in outcomes)
    assert (max(one.failures for one in outcomes) > 0) == (GUARDS[name] in ("errors", "contract"))
    assert summary(outcomes)["in_time"] == 2


def test_the_same_seed_says_the_same():
    (defect,) = [one for one in DEFECTS if one.name == "nan"]
    first, second = (run(defect.behavior, STAYING, Traffic(500), 60, [7]) for _ in range(2))
    assert first == second


def test_a_twin_goes_through_and_time_is_not_ours():
    """180 s of steps and 60 s of bake, with nothing that must pass."""
    guards = PASSING.guards.model_copy(update={"required": ()})
    config = PASSING.model_copy(update={"guards": guards})
    (outcome,) = simulate(TWIN, config, Traffic(40), 400, [3], processes=1)
    assert (outcome.end, outcome.failures) == ("promoted", 0)
    assert 240 <= outcome.seconds < 400


def test_what_the_command_prints(capsys, tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    words = "--runs 1 --twins 0 --real 0 --only nan --processes 1 --json"
    monkeypatch.setattr("sys.argv", ["challengers", *words.split(), str(path)])
    main()
    assert "answers NaN for 5 % of the rows" in capsys.readouterr().out
    assert '"guards": {' in path.read_text()


def test_every_graph_answers_what_its_neighbours_do_where_it_is_good():
    rows = np.array([[0.5, 0, 0, 0], [-0.5, 0, 0, 0]], np.float32)
    for how in ("good", "wrong", "slice", "nan", "raises", "kills", "time"):
        (scores,) = Session(classifier(how, -0.9, products=1)).run({"x": rows})
        assert scores.argmax(axis=1).tolist() == [1, 0], how
