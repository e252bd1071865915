"""One version on trial: who is asked, what the client gets, and what counts as evidence."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from homeostat.config import GuardConfig, RolloutConfig
from homeostat.guards import Evidence
from homeostat.serving.rollout import counts as counting
from homeostat.serving.rollout.counts import Assignment, Counts, draw, is_finite
from homeostat.serving.rollout.lane import Lane
from tests.bundles import linear
from tests.challengers import classifier, slow
from tests.rollouts import CANARY, SHADOW, Process, World

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0]}]}
ALONE = Assignment(0.5, None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


@pytest.fixture
def process(world: World) -> Process:
    """One process, without a rollout in progress."""
    row = world.control.row("toy")
    if row.mode != "live":
        from homeostat.control import progress
        from tests.rollouts import WHY

        progress.abort(world.control, "toy", WHY, expected_generation=row.generation)
    for one in world.control.quarantined():
        world.control.release("toy", one["version"], actor="t", reason="t")
    if not world.processes:
        world.process()
    (made,) = world.processes
    made.sync()
    return made


VERSIONS = iter(range(2, 100))


def start(world: World, onnx: bytes, config: RolloutConfig = CANARY, **more: object) -> str:
    version = next(VERSIONS)
    world.start(onnx, config, version, **more)
    return str(version)


def version_of(response: object) -> str:
    return str(response.served.ref.version)


# -- which arm --------------------------------------------------------------------------------------------------------


def test_a_request_keeps_its_arm_and_the_arms_get_their_shares(world, process):
    challenger = start(world, classifier(), CANARY.model_copy(update={"steps": (0.2,)}))
    first = [version_of(process.ask(key=f"r{place}")) for place in range(400)]
    assert first == [version_of(process.ask(key=f"r{place}")) for place in range(400)]
    assert 40 <= first.count(challenger) <= 120
    assert process.trial.evidence.requests == 2 * first.count(challenger)


def test_an_entity_keeps_its_arm_by_parameter_and_by_header(world, process):
    start(world, classifier())
    seen = set()
    for place in range(30):
        name = f"customer-{place}"
        versions = {version_of(process.ask(entity=name)) for _ in range(3)}
        value = ROW | {"parameters": {"entity_id": name}}
        versions.add(process.call("/v2/models/toy/infer", value).json()["model_version"])
        answer = process.call("/v2/models/toy/infer", ROW, **{"X-Entity-Id": name})
        versions.add(answer.json()["model_version"])
        assert len(versions) == 1
        seen |= versions
    assert len(seen) == 2
    # whatever the body says comes first
    both = ROW | {"parameters": {"entity_id": "customer-1"}}
    alone = process.call("/v2/models/toy/infer", both).json()["model_version"]
    for other in ("customer-2", "customer-3", "customer-4"):
        assert process.call("/v2/models/toy/infer", both, **{"X-Entity-Id": other}).json()["model_version"] == alone
    refused = process.call("/v2/models/toy/infer", ROW, **{"X-Entity-Id": "x" * 300})
    assert (refused.status_code, "X-Entity-Id" in refused.text) == (400, True)


def test_an_entity_says_nothing_where_each_request_is_drawn(world, process):
    start(world, classifier(), CANARY.model_copy(update={"sticky": "request"}))
    assert len({version_of(process.ask(entity="one")) for _ in range(40)}) == 2


def test_another_rollout_draws_anew():
    places = [[draw(f"r{place}", salt)[0] < 0.5 for place in range(200)] for salt in ("a", "b")]
    assert 60 < sum(a == b for a, b in zip(*places, strict=True)) < 140


def test_a_version_that_was_asked_for_answers_itself(world, process):
    start(world, classifier())
    before = process.trial.evidence.to_json()
    for _ in range(20):
        assert process.call("/v2/models/toy/versions/1/infer", ROW).json()["model_version"] == "1"
        answer = process.call("/v1/models/toy/versions/1:predict", {"instances": [[1, 0, 0, 0]]})
        assert answer.json() == {"predictions": [[-1.0, 1.0]]}
        process.call("/v1/models/toy/labels/champion:predict", {"instances": [[1, 0, 0, 0]]}).raise_for_status()
        process.call("/invocations?model=toy&version=1", {"inputs": [[1, 0, 0, 0]]}).raise_for_status()
    assert process.trial.evidence.to_json() == before
    process.call("/invocations?model=toy", {"inputs": [[1, 0, 0, 0]]}).raise_for_status()
    assert process.trial.evidence.to_json() != before


def test_a_version_that_was_asked_for_over_grpc_is_pinned_too(world, process):
    from homeostat.serving.grpc.inference import decode
    from homeostat.serving.protos import message

    served = process.plane.find("toy")
    for version in ("", "1"):
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 0, 0, 0]}}
        call = message("inference.ModelInferRequest")(model_name="toy", model_version=version, inputs=[tensor])
        assert decode(served, call).pinned is bool(version)


# -- a canary that fails ----------------------------------------------------------------------------------------------


def test_the_control_answers_when_the_candidate_says_nan(world, process):
    challenger = start(world, classifier(nan_over=1.5))
    versions = {version_of(process.ask(key=f"n{place}", x1=2.0)) for place in range(20)}
    assert versions == {"1"}
    tally = process.trial.evidence.tallies["errors"]
    assert tally.total()[1] == tally.trials[1] > 3
    assert process.metrics.version("toy", int(challenger)).statuses == {500: tally.trials[1]}
    good = {version_of(process.ask(key=f"n{place}")) for place in range(20)}
    assert good == {"1", challenger}


def test_the_control_answers_when_the_candidate_takes_too_long(world, process):
    start(world, slow(500, 12), CANARY.model_copy(update={"guards": GuardConfig(timeout_ms=1.0)}))
    assert process.trial.candidate.inline_rows == 0
    assert {version_of(process.ask(key=f"t{place}")) for place in range(6)} == {"1"}
    tally = process.trial.evidence.tallies["errors"]
    assert tally.total()[1] == tally.trials[1] > 0


def test_the_control_answers_what_the_candidates_contract_refuses(world, process):
    from tests.bundles import contract_of

    narrow = contract_of(classifier(), low=-0.5, high=0.5)
    start(world, classifier(), contract=narrow, out_of_range="reject")
    assert {version_of(process.ask(key=f"c{place}")) for place in range(20)} == {"1"}
    contract = process.trial.evidence.tallies["contract"]
    assert contract.total() == (0, contract.trials[1])
    assert process.trial.evidence.tallies["errors"].trials[1] == 0


def test_what_clients_could_not_read_is_out_at_once(world, process):
    start(world, linear(2.0))
    assert process.trial.out == (
        "its outputs are {'output': ('float32', [1])}, and clients know {'output': ('float32', [2])}"
    )
    assert {version_of(process.ask(key=f"u{place}")) for place in range(20)} == {"1"}


# -- shadow -----------------------------------------------------------------------------------------------------------


def finished(process: Process, requests: int) -> Evidence:
    deadline = time.monotonic() + 20
    while process.trial.evidence.requests < requests or process.trial.lane.busy_seconds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process.trial.evidence


def test_a_shadow_is_compared_and_never_returned(world, process):
    challenger = start(world, classifier(wrong_over=0.5), SHADOW)
    answers = [process.ask(key=f"s{place}", x1=place % 2) for place in range(40)]
    evidence = finished(process, 40)
    assert {version_of(answer) for answer in answers} == {"1"}
    assert evidence.tallies["disagreement"].total()[1] == 20
    assert evidence.tallies["disagreement"].trials == (0, 40)
    assert evidence.tallies["errors"].trials == (40, 40)
    assert {arm for arm, _ in process.metrics.version("toy", int(challenger)).series} == {"shadow"}
    assert process.metrics.version("toy", int(challenger)).statuses == {200: 40}


def test_a_shadow_that_fails_is_an_error_of_the_candidate_alone(world, process):
    start(world, classifier(nan_over=1.5), SHADOW)
    for place in range(10):
        process.ask(key=f"s{place}", x1=2.0)
    assert finished(process, 10).tallies["errors"].total() == (0, 10)


def test_labels_of_a_shadow_compare_both_answers(world, process):
    start(world, classifier(wrong_over=0.5), SHADOW)
    for place in range(30):
        process.ask(key=f"l{place}", x1=2.0)
    finished(process, 30)
    for place in range(30):
        process.plane.feedback([{"id": f"l{place}", "labels": [1]}])
    assert process.trial.evidence.tallies["labels"].total() == (0, 30)


def test_a_lane_that_is_full_drops_and_one_that_hangs_is_noticed():
    lane, gate = Lane("test", 2), threading.Event()
    futures = [lane.submit(gate.wait, 20)]
    deadline = time.monotonic() + 20
    while not lane.busy_seconds():
        assert time.monotonic() < deadline
    futures += [lane.submit(int, "7"), lane.submit(int, "x")]
    assert lane.submit(int, "8") is None
    assert lane.dropped == 1
    gate.set()
    assert futures[1].result(20) == 7
    with pytest.raises(ValueError, match="invalid literal"):
        futures[2].result(20)
    lane.close()
    assert lane.submit(int, "9") is None


# -- labels and counts ------------------------------------------------------------------------------------------------


def test_labels_are_joined_once_and_to_their_model_alone(world, process):
    start(world, classifier())
    for place in range(40):
        process.ask(key=f"k{place}", x0=-1.0)
    process.plane.feedback([{"id": "k0", "labels": [1], "model": "other"}])
    for _ in range(2):  # the second is a correction
        process.plane.feedback([{"id": f"k{place}", "labels": [place % 2]} for place in range(40)])
    process.plane.feedback([{"id": "unknown", "labels": [1]}])
    tally = process.trial.evidence.tallies["labels"]
    assert (sum(tally.trials), sum(tally.total())) == (40, 20)
    assert process.trial.evidence.source_errors == 0
    process.ask(key="k99")
    process.plane.feedback([{"id": "k99", "labels": [1, 0]}])
    assert process.trial.evidence.source_errors == 1


def counts(*, classes: bool = True, **guards: object) -> Counts:
    return Counts(Evidence(), GuardConfig(**guards), "y", classes=classes)


def test_a_client_that_keeps_its_arm_counts_once():
    made = counts()
    for _ in range(50):
        made.count("errors", candidate=True, bad=False, at=Assignment(0.1, 7))
    for _ in range(50):
        made.count("errors", candidate=True, bad=True, at=Assignment(0.1, 7))
        made.count_pair("contract", control=False, candidate=True, at=Assignment(0.5, 7))
    assert made.evidence.tallies["errors"].to_json() == {"trials": [0, 1], "bad": [[0.1, 0, 1]]}
    assert made.evidence.tallies["contract"].total() == (0, 1)


def test_too_many_clients_are_thinned_in_both_arms_alike(monkeypatch):
    monkeypatch.setattr(counting, "CLIENTS", 100)
    made = counts()
    for name in range(3000):
        place, number = draw(f"c{name}", "salt")
        for _ in range(2):
            made.count("errors", candidate=place < 0.1, bad=True, at=Assignment(0.1, number))
    control, candidate = made.evidence.tallies["errors"].total()
    assert control < 1000
    assert 0.04 < candidate / (control + candidate) < 0.2
    assert max(map(len, made._clients.values())) <= 100


def test_a_slow_request_is_one_over_what_was_known_before():
    made = counts(latency_ratio=2.0, latency_floor_ms=1.0)
    for _ in range(300):
        made.count_latency(0.01, candidate=False, at=ALONE)
        made.evidence.observe(made.evidence.latency, 0.01)
    assert made.evidence.tallies == {}
    made.learn()
    made.count_latency(0.019, candidate=True, at=ALONE)
    made.count_latency(0.03, candidate=True, at=ALONE)
    made.count_latency(0.011, candidate=False, at=ALONE)
    assert {tally.total() for tally in made.evidence.tallies.values()} == {(1, 1)}
    fast = counts(latency_floor_ms=1.0)
    for _ in range(300):
        fast.evidence.observe(fast.evidence.latency, 0.00001)
    fast.learn()
    fast.count_latency(0.0009, candidate=True, at=ALONE)
    assert {tally.total() for tally in fast.evidence.tallies.values()} == {(0, 0)}


def test_errors_of_a_regression_are_held_against_the_controls():
    made = counts(classes=False, label_ratio=1.5)
    for place in range(250):
        made.remember(f"a{place}", ALONE, {"y": np.array([[1.0]])}, candidate=False)
        made.label(f"a{place}", [2.0])
    made.learn()
    for name, candidate, said in (("b", True, 3.4), ("c", True, 4.0), ("d", False, 3.4)):
        made.remember(name, ALONE, {"y": np.array([[said]])}, candidate=candidate)
        made.label(name, [2.0])
    assert {tally.total() for tally in made.evidence.tallies.values()} == {(1, 1)}


@pytest.mark.parametrize(
    ("a", "b", "differs"),
    [
        ([[0.1, 0.9]], [[0.4, 0.6]], False),
        ([[0.1, 0.9]], [[0.6, 0.4]], True),
        ([[0.1, 0.9], [0.9, 0.1]], [[0.1, 0.9], [0.1, 0.9]], True),
        ([[0.4]], [[0.6]], True),
        ([[0.6]], [[0.9]], False),
        ([[0.5, 0.5]], [[0.5]], True),
    ],
)
def test_classes_differ(a, b, differs):
    assert counts().differ({"y": np.array(a)}, {"y": np.array(b)}) is differs


def test_numbers_differ_beyond_the_tolerance():
    made = counts(classes=False, disagreement_tolerance=0.1)
    assert made.differ({"y": np.array([[10.0]])}, {"y": np.array([[11.0]])}) is False
    assert made.differ({"y": np.array([[10.0]])}, {"y": np.array([[11.2]])}) is True


def test_nan_and_infinity_are_no_answers():
    assert is_finite([np.array([1, 2]), np.array([1.0])])
    assert not is_finite([np.array([1.0]), np.array([np.nan])])
    assert not is_finite([np.array([np.inf], np.float32)])
