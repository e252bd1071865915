"""A whole look at a window: drift, quality, latency and the predecessor, from a capture file."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from homeostat.config import ProjectConfig
from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.dataset import Dataset
from homeostat.errors import BundleInvalid
from homeostat.inference import predict
from homeostat.monitoring.columns import answer_columns
from homeostat.monitoring.figures import figures, summary
from homeostat.monitoring.monitor import monitor
from homeostat.monitoring.reference import load_reference, make_reference
from homeostat.project import Project
from homeostat.records import ColumnDrift, Comparison, Interval, Monitoring, Window

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)  # the capture fixture's
NAMES = ("a", "b", "c")


class Toy(Project):
    """Which of three columns is the largest."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError


def graph(weights, last="Softmax", name="x") -> bytes:
    """x [n, 3] @ weights, then one last operation."""
    outputs = weights.shape[1]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", [name, "w"], ["y"]), helper.make_node(last, ["y"], ["output"])],
            "toy",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", outputs])],
            [numpy_helper.from_array(weights.astype(np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


GOOD = graph(np.eye(3) * 3)
BAD = graph(np.eye(3)[[1, 2, 0]] * 3)


def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3)).astype(np.float32)
    noisy = np.where(rng.random(count) < 0.1, rng.integers(0, 3, count), x.argmax(axis=1))
    return x, noisy


@pytest.fixture(scope="module")
def reference() -> bytes:
    config = ProjectConfig(name="toy", project="toy:Toy", task="classification")
    x, y = rows(400, 0)
    data = Dataset.from_arrays({"x": x}, y, columns={"x": NAMES})
    return make_reference(Toy(), config, data, GOOD, 1)


def look(
    config, capture, reference, tmp_path, onnx=GOOD, predecessor=(2, BAD), champion_days=7.0, contract=None
) -> Monitoring:
    return look_on(config, capture, reference, tmp_path, "", onnx, predecessor, champion_days, contract=contract)[0]


def look_on(
    config, capture, reference, tmp_path, state, onnx=GOOD, predecessor=None, champion_days=7.0, now=NOW, contract=None
) -> tuple[Monitoring, str]:
    return monitor(
        Toy(),
        config,
        version=3,
        onnx=onnx,
        reference=reference,
        predecessor=predecessor,
        traffic=capture.path,
        workspace=tmp_path / "work",
        since=now - timedelta(days=1),
        champion_since=NOW - timedelta(days=champion_days),
        now=now,
        seed=1,
        state=state,
        contract=contract,
    )


def send(capture, x, y=None, **options) -> None:
    """Answer the rows with the good graph, ten a request; label them, if y is given."""
    for first in range(0, len(x), 10):
        part = x[first : first + 10]
        request = capture.answer(part, predict(GOOD, {"x": part})["output"], **options)
        if y is not None:
            capture.label(request, y[first : first + 10].tolist())


def contract_of(low: float) -> Contract:
    columns = tuple(ColumnSpec(name=n, dtype="float32", null_share=0.0, minimum=low, maximum=9.0) for n in NAMES)
    x = TensorSpec(name="x", dtype="float32", shape=(3,), minimum=(low,), maximum=(9.0,), columns=NAMES)
    target = ColumnSpec(name="target", dtype="int64", null_share=0.0, minimum=0.0, maximum=2.0)
    return Contract(inputs=(x,), columns=columns, target=target, min_rows=50, mostly=0.95, null_slack=0.05)


def test_rows_are_held_against_the_contract_and_requests_are_replayed(config, capture, reference, tmp_path):
    x, _ = rows(300, 2)
    send(capture, x)
    kept = look(config, capture, reference, tmp_path, contract=contract_of(-9))
    assert kept.violations == ()
    assert (kept.skew.requests, kept.skew.skewed) == (30, 0), kept.skew
    assert figures(kept).items() >= {"monitor/contract_broken": 0, "skew/requests": 30, "skew/skewed": 0}.items()
    # a contract that half the rows break, and a graph that is not the one that answered
    broken = look(config, capture, reference, tmp_path, BAD, contract=contract_of(0))
    assert {(v.column, v.rule, v.broken) for v in broken.violations} == {(name, "range", True) for name in NAMES}
    assert broken.violations[0].share == pytest.approx(np.mean(x < 0, axis=0).max())
    assert broken.skew.skewed == 30
    assert figures(broken).items() >= {"monitor/contract_broken": 3, "skew/skewed": 30}.items()
    assert "- contract: " in summary(broken)
    assert "- skew: 30 of 30 replayed requests" in summary(broken)


def test_an_empty_window_breaks_no_rule(config, capture, reference, tmp_path):
    seen = look(config, capture, reference, tmp_path, contract=contract_of(0))
    assert (seen.violations, seen.skew.conclusive) == ((), False)
    assert "skew/requests" not in figures(seen)


def test_a_healthy_labelled_window(config, capture, reference, tmp_path):
    x, y = rows(300, 2)
    send(capture, x, y)
    send(capture, x[:50] + 9, y[:50], version=2)  # the window crosses the change of version
    seen = look(config, capture, reference, tmp_path)
    assert not seen.drifted, seen.reason
    assert (seen.version, seen.window.rows, seen.window.labelled) == (3, 300, 300)
    assert {c.column for c in seen.columns} == {*NAMES, "model.prediction", *(f"model.score_{i}" for i in range(3))}
    accuracy = seen.quality["accuracy"]
    assert accuracy.value == pytest.approx(np.mean(x.argmax(axis=1) == y))
    assert accuracy.low < accuracy.value < accuracy.high
    assert (seen.latency_p50_ms, seen.latency_p99_ms) == (2.0, 2.0)
    assert seen.predecessor.champion_version == 2
    assert seen.predecessor.gain.low > 0.5
    assert {Path(p).name for p in seen.reports} == {"drift.json", "quality.json", "quality.html"}
    assert all(Path(p).is_file() for p in seen.reports)
    shown = figures(seen)
    assert shown["monitor/drifted"] == 0
    assert shown["quality/accuracy.low"] == accuracy.low
    assert shown["predecessor/gain"] == seen.predecessor.gain.value
    assert 0 <= shown["drift/model.score_0"] <= 1
    assert f"| accuracy | {accuracy.value:.4g} [" in summary(seen)


def wrong(y: np.ndarray) -> np.ndarray:
    return (y + 1) % 3


def test_labels_count_once_over_looks_and_harm_goes_before_drift(config, capture, reference, tmp_path):
    x, y = rows(300, 5)
    send(capture, x, y)
    first, state = look_on(config, capture, reference, tmp_path, "")
    again, state = look_on(config, capture, reference, tmp_path, state)
    assert (first.conclusion, again.conclusion) == ("healthy", "healthy")
    assert (first.harm[0].labels, again.harm[0].labels) == (300, 300)
    x, y = rows(300, 6)
    send(capture, x + 3, wrong(y), minutes_ago=5.0)
    harmed, state = look_on(config, capture, reference, tmp_path, state)
    assert harmed.harm[0].labels == 600
    assert harmed.drifted
    assert harmed.conclusion == "harm"
    calm, _ = look_on(config, capture, reference, tmp_path, state)
    assert calm.conclusion == "harm"  # the alarm stands until the loss is tolerated again


def test_a_version_that_is_champion_again_begins_without_an_old_alarm(config, capture, reference, tmp_path):
    x, y = rows(300, 5)
    send(capture, x, wrong(y), minutes_ago=60.0)
    harmed, state = look_on(config, capture, reference, tmp_path, "", now=NOW - timedelta(minutes=30))
    assert harmed.conclusion == "harm"
    send(capture, x, y, minutes_ago=5.0)
    seen, _ = look_on(config, capture, reference, tmp_path, state, champion_days=10 / 24 / 60)
    assert (seen.conclusion, seen.harm[0].labels) == ("healthy", 300)


@pytest.mark.parametrize(
    "state", ["x", "{}", '{"format": 7}', '{"format": 1, "until": "soon", "harm": null, "drift": null}']
)
def test_evidence_that_cannot_be_read_begins_anew(state, config, capture, reference, tmp_path):
    x, y = rows(300, 5)
    send(capture, x, y)
    seen, after = look_on(config, capture, reference, tmp_path, state)
    assert "cannot be read" in seen.notes[-1]
    assert seen.harm[0].labels == 300
    assert look_on(config, capture, reference, tmp_path, after)[0].harm[0].labels == 300


def test_an_untested_window_is_inconclusive(config, capture, reference, tmp_path):
    x, _ = rows(20, 5)
    send(capture, x)
    assert look(config, capture, reference, tmp_path).conclusion == "inconclusive"


def test_a_shift_shows_in_inputs_and_answers(config, capture, reference, tmp_path):
    x, _ = rows(300, 2)
    x[:, 0] += 1
    send(capture, x)
    seen = look(config, capture, reference, tmp_path)
    drifted = {c.column for c in seen.columns if c.drifted}
    assert seen.drifted
    assert {"a", "model.prediction", "model.score_0"} <= drifted
    assert not {"b", "c"} & drifted
    assert (seen.quality, seen.predecessor) == ({}, None)
    assert {Path(p).name for p in seen.reports} == {"drift.json", "drift.html"}
    assert f"\n\nDrift: {seen.reason}" in summary(seen)


def test_without_traffic_there_is_nothing_to_say(config, reference, tmp_path):
    class Nowhere:
        path = tmp_path / "none.db"

    seen = look(config, Nowhere, reference, tmp_path)
    assert (seen.drifted, seen.window.rows, seen.reports) == (False, 0, ())
    assert "no captured request of this version" in seen.reason
    assert seen.latency_p50_ms is None
    assert figures(seen)["monitor/rows"] == 0
    assert f"\n\n{seen.reason}\n" in summary(seen)


def test_rows_from_before_the_version_became_champion_do_not_count(config, capture, reference, tmp_path):
    x, y = rows(60, 2)
    send(capture, x, y, minutes_ago=120)
    send(capture, x[:20], y[:20], minutes_ago=10)
    seen = look(config, capture, reference, tmp_path, champion_days=1 / 24)
    assert seen.window.rows == 20
    assert seen.predecessor is None
    assert "under monitor.min_rows" in seen.reason


def test_the_predecessor_is_compared_on_labels_older_than_the_window(config, capture, reference, tmp_path):
    x, y = rows(60, 2)
    send(capture, x, y, minutes_ago=60 * 48)
    seen = look(config, capture, reference, tmp_path)
    assert seen.window.rows == 0
    assert seen.predecessor.rows == 60


def test_a_challenger_is_tried_on_what_came_since_it_was_made(config, capture, reference, tmp_path):
    x, y = rows(200, 2)
    send(capture, x[:60], y[:60], minutes_ago=120)
    send(capture, x[60:], y[60:], version=3, minutes_ago=20)
    words = {
        "reference": reference, "predecessor": None, "traffic": capture.path, "workspace": tmp_path, "seed": 1,
        "since": NOW - timedelta(days=1), "champion_since": NOW - timedelta(days=7), "now": NOW,
    }  # fmt: skip
    made = NOW - timedelta(hours=1)
    seen, _ = monitor(Toy(), config, version=3, onnx=BAD, tried=(4, GOOD, made), **words)
    assert (seen.trial.version, seen.trial.since, seen.trial.comparison.rows) == (4, made.isoformat(), 140)
    assert seen.trial.comparison.gain.low > 0.3
    assert figures(seen)["challenger/gain.low"] == seen.trial.comparison.gain.low
    assert "challenger v4: accuracy gain, 140 rows" in summary(seen)
    other = graph(np.eye(3), name="z")
    seen, _ = monitor(Toy(), config, version=3, onnx=BAD, tried=(4, other, made), **words)
    assert seen.trial.comparison is None
    assert any("not compared with challenger v4" in note for note in seen.notes)


def test_a_predecessor_of_other_inputs_is_a_note(config, capture, reference, tmp_path):
    x, y = rows(60, 2)
    send(capture, x, y)
    seen = look(config, capture, reference, tmp_path, predecessor=(2, graph(np.eye(3), name="z")))
    assert seen.predecessor is None
    assert seen.quality["accuracy"].value > 0.8
    assert any("not compared with the predecessor" in note for note in seen.notes)


def test_a_masked_window_is_held_against_a_reference_masked_alike(config, capture, reference, tmp_path):
    x, y = rows(300, 2)
    masking = json.dumps({"x": {"a": "step 0.5", "b": "drop", "c": "hash"}})
    masked = np.column_stack([np.floor(x[:, 0] / 0.5) * 0.5, np.full((300, 2), np.nan)]).astype(np.float32)
    for first in range(0, 300, 10):
        part = slice(first, first + 10)
        answer = predict(GOOD, {"x": x[part]})["output"]
        capture.label(capture.answer(masked[part], answer, masking=masking), y[part].tolist())
    seen = look(config, capture, reference, tmp_path)
    assert (seen.drifted, seen.faults) == (False, ()), seen.reason
    assert {c.column for c in seen.columns} == {"a", "model.prediction", *(f"model.score_{i}" for i in range(3))}
    assert seen.quality["accuracy"].value > 0.8
    assert seen.predecessor is None
    assert any("captured inputs are masked" in note for note in seen.notes)
    for first in range(0, 300, 10):
        part = slice(first, first + 10)
        capture.answer(masked[part] + 1, predict(GOOD, {"x": x[part]})["output"], masking=masking, minutes_ago=5)
    assert "a" in {c.column for c in look(config, capture, reference, tmp_path).columns if c.drifted}


def test_rows_of_one_entity_are_not_independent(config, capture, reference, tmp_path):
    x, y = rows(60, 2)
    send(capture, x, y, entity="the same")
    accuracy = look(config, capture, reference, tmp_path).quality["accuracy"]
    assert np.isfinite(accuracy.value)
    assert np.isnan([accuracy.low, accuracy.high]).all()


def test_impossible_labels_and_damaged_requests_are_said(config, capture, reference, tmp_path):
    x, y = rows(40, 2)
    y[:5] = 7
    send(capture, x, y)
    capture.connection.execute("UPDATE request SET inputs = x'ff' WHERE request_id = 'r00003'")
    capture.connection.commit()
    seen = look(config, capture, reference, tmp_path)
    assert seen.window.unreadable == 1
    assert any("1 unreadable: r00003" in note for note in seen.notes)
    assert "5 labels are not one of the classes: left out" in seen.notes
    assert not seen.drifted


def test_labels_of_the_wrong_length_are_named_in_the_report(config, capture, reference, tmp_path):
    x, y = rows(100, 8)
    send(capture, x, y)
    capture.label("r00003", [0, 1])
    seen = look(config, capture, reference, tmp_path)
    assert (seen.window.rows, seen.window.labelled, seen.window.unreadable) == (100, 90, 1)
    assert "- note: 1 unreadable: r00003: labels: 2 of them for a request of 10 rows" in summary(seen)


def test_a_regression_has_errors_and_a_numeric_prediction(capture, tmp_path):
    config = ProjectConfig(name="toy", project="toy:Toy", task="regression")
    model = graph(np.ones((3, 1)), last="Identity")
    x, _ = rows(120, 2)
    data = Dataset.from_arrays({"x": x}, x.sum(axis=1) + 0.5, columns={"x": NAMES})
    part, _ = rows(120, 3)
    request = capture.answer(part, predict(model, {"x": part})["output"])
    capture.label(request, (part.sum(axis=1) + np.resize([0.5, -0.5], 120)).tolist())
    reference = make_reference(Toy(), config, data, model, 1)
    before = (2, graph(np.zeros((3, 1)), last="Identity"))
    seen = look(config, capture, reference, tmp_path, onnx=model, predecessor=before)
    assert seen.quality["rmse"].value == pytest.approx(0.5, abs=1e-6)
    assert seen.predecessor.gain.low > 0
    assert {c.column for c in seen.columns} == {*NAMES, "model.prediction"}
    assert "quality.html" in {Path(p).name for p in seen.reports}


def test_the_reference_is_bounded_repeatable_and_needs_no_pickle(config):
    small = config.model_copy(update={"monitor": config.monitor.model_copy(update={"reference_rows": 100})})
    x, y = rows(400, 0)
    data = Dataset.from_arrays({"x": x}, y, columns={"x": NAMES})
    packed = make_reference(Toy(), small, data, GOOD, 1)
    assert packed == make_reference(Toy(), small, data, GOOD, 1) != make_reference(Toy(), small, data, GOOD, 2)
    reference = load_reference(packed)
    assert len(reference) == 100
    assert reference.columns == {"x": NAMES}
    assert reference.outputs["output"].shape == (100, 3)
    np.testing.assert_array_equal(reference.outputs["output"], predict(GOOD, reference.inputs)["output"])


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not a zip", np.float32(1).tobytes()])
def test_a_reference_that_is_something_else_is_refused(data):
    with pytest.raises(BundleInvalid, match=r"reference\.npz"):
        load_reference(data)


@pytest.mark.parametrize(("classes", "scores"), [(1, 1), (2, 1), (3, 3), (20, 20), (21, 1)])
def test_scores_are_watched_beside_the_prediction(classes, scores):
    columns = answer_columns("classification", {"output": np.random.default_rng(0).random((5, classes))})
    assert len(columns) == 1 + scores
    assert columns["model.prediction"].dtype == np.int64


def test_figures_have_names_that_mlflow_takes_and_the_table_holds_odd_names():
    names = ["mean radius (cm)", "mean radius [cm]", "a|b\n<script>", "..", "x/../y"]
    columns = tuple(ColumnDrift(name, "ks", 0.5, 0.01, False) for name in names)
    window = Window("toy", "s", "e", 300, 0, "")
    gain = Comparison("accuracy", 2, 60, 0.9, 0.8, Interval(0.1, float("nan"), 0.2))
    seen = Monitoring("toy", 3, window, False, "no drift", columns, predecessor=gain)
    shown = figures(seen)
    drift = [name for name in shown if name.startswith("drift/")]
    assert drift == [
        "drift/mean radius _cm_",
        "drift/mean radius _cm__2",
        "drift/a_b__script_",
        "drift/_",
        "drift/x_.._y",
    ]
    assert "predecessor/gain.low" not in shown
    assert "| a\\|b &lt;script> | ks |" in summary(seen)
    assert dataclasses.asdict(seen)["notes"] == ()


def test_groups_of_people_among_live_rows(capture, reference, tmp_path):
    config = ProjectConfig(
        name="toy", project="toy:Toy", task="classification", gate={"sensitive": ["sex"], "max_group_gap": 0.1}
    )
    x, y = rows(800, 5)
    send(capture, x[:400], y[:400], slices={"sex": "f"})
    send(capture, x[400:], (y[400:] + 1) % 3, slices={"sex": "m"})
    found = look(config, capture, reference, tmp_path)
    (sex,) = found.fairness
    assert [(one.group, one.rows, one.labelled) for one in sex.groups] == [("f", 400, 400), ("m", 400, 400)]
    error = next(gap for gap in sex.gaps if gap.metric == "error")
    assert (error.high, error.low, error.verdict) == ("m", "f", "over")
    assert figures(found)["fairness/sex/error.low"] > 0.5
    assert "- sex: error: 0." in summary(found)


def test_labels_of_live_rows_that_are_probably_wrong(capture, reference, tmp_path):
    config = ProjectConfig(name="toy", project="toy:Toy", task="classification")
    x, y = rows(800, 5)
    send(capture, x, np.where(np.arange(800) % 5 == 0, (y + 1) % 3, y))
    found = look(config, capture, reference, tmp_path).label_quality
    assert found.rows == 800
    assert found.share.low > found.usual.value
    assert found.worst[0].row.startswith("request r")
    assert look(config, capture, reference, tmp_path / "again").label_quality == found


def test_rows_that_are_not_the_references_are_a_verdict(capture, reference, tmp_path):
    """Captured by another server, perhaps: fewer values than columns, all missing, and at the end of float32."""
    config = ProjectConfig(name="toy", project="toy:Toy", task="classification", gate={"sensitive": ["sex"]})
    x, y = rows(200, 5)
    for kind, wrong in (("absent", x[:, :2]), ("without any value", np.full_like(x, np.nan)), ("a (", x * 3e37)):
        for first in range(0, 200, 10):
            outputs = np.full((10, 3), 1 / 3, np.float32)
            request = capture.answer(wrong[first : first + 10], outputs, slices={"sex": "f"}, version=len(kind))
            capture.label(request, y[first : first + 10].tolist())
        found, _ = monitor(
            Toy(),
            config,
            version=len(kind),
            onnx=GOOD,
            reference=reference,
            predecessor=None,
            traffic=capture.path,
            workspace=tmp_path / kind,
            since=NOW - timedelta(days=1),
            champion_since=NOW - timedelta(days=1),
            now=NOW,
            seed=1,
        )
        assert found.drifted
        assert kind in found.reason
