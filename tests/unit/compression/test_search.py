"""The search: candidates are the graphs that would be served, and what cannot be built is said."""

import logging
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from keras import layers

from homeostat.compression import search
from homeostat.compression.report import write_plot, write_table
from homeostat.compression.search import compress
from homeostat.compression.timing import time_graphs
from homeostat.dataset import Dataset, artifact_of, read_artifact
from homeostat.errors import ExportMismatch
from homeostat.inference import predict, session
from homeostat.model import load_model, save_model
from homeostat.records import TrainedModel
from homeostat.training.fit import train
from tests.keras_projects import Made, blobs, candidate, config, mlp, record

PROJECT = Made(mlp())
OPTIONS = config(train={"epochs": 8, "learning_rate": 0.03}, compress={"pruning_epochs": 1, "timing_runs": 20})


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    data = record(folder, blobs)
    return data, train(PROJECT, OPTIONS, data, folder)


@pytest.fixture(scope="session")
def found(trained, tmp_path_factory):
    told = []
    return compress(PROJECT, OPTIONS, *trained, tmp_path_factory.mktemp("found"), told.append), told


def test_every_candidate_is_measured_as_its_graph(trained, found):
    data, model = trained
    compression, told = found
    assert [one.name for one in compression.candidates] == ["fp32", "dynamic_int8", "static_int8", "pruned"]
    assert compression.failed == ()
    rows = Dataset.load(data.parts["validation"])
    reference = predict(session(read_artifact(compression.candidates[0].onnx)), rows.inputs)
    for one in compression.candidates:
        answers = predict(session(read_artifact(one.onnx)), rows.inputs)
        assert one.metrics["accuracy"] == np.mean(answers.argmax(axis=1) == rows.target)
        assert one.max_difference == pytest.approx(np.abs(answers - reference).max(), abs=1e-6)
        assert [latency.batch for latency in one.latency] == [1, 32]
        assert all(0 < latency.p50_us <= latency.p99_us for latency in one.latency)
    assert {one.name: one.batch_invariant for one in compression.candidates} == {
        "fp32": True, "dynamic_int8": False, "static_int8": True, "pruned": True
    }  # fmt: skip
    assert compression.candidates[1].refused == "not batch-invariant"
    assert compression.candidates[3].keras != model.keras == compression.candidates[2].keras
    assert told[-1].startswith(f"{compression.winner} chosen: ")


def test_table_and_plot_are_kept(found):
    compression, _ = found
    table = Path(compression.table.path).read_text()
    assert all(f"| {one.name} |" in table for one in compression.candidates)
    assert read_artifact(compression.plot).startswith(b"\x89PNG")


def test_only_the_candidates_asked_for(trained, tmp_path):
    options = OPTIONS.model_copy(update={"compress": OPTIONS.compress.model_copy(update={"candidates": ("fp32",)})})
    compression = compress(PROJECT, options, *trained, tmp_path)
    assert [one.name for one in compression.candidates] == ["fp32"] == [compression.winner]


def test_the_trained_model_on_disk_is_untouched(trained, found):
    assert artifact_of(Path(trained[1].keras.path)) == trained[1].keras


def test_a_candidate_that_cannot_be_built_is_named(trained, tmp_path, monkeypatch):
    def broken(graph, path, calibration):
        path.write_bytes(b"no graph")
        return artifact_of(path)

    def refused(graph, path):
        raise ValueError("no MatMul here")

    monkeypatch.setattr(search, "to_static_int8", broken)
    monkeypatch.setattr(search, "to_dynamic_int8", refused)
    told = []
    compression = compress(PROJECT, OPTIONS, *trained, tmp_path, told.append)
    assert [one.name for one in compression.candidates] == ["fp32", "pruned"]
    assert [text.split(": ")[:2] for text in compression.failed] == [
        ["dynamic_int8", "ValueError"],
        ["static_int8", "BundleInvalid"],
    ]
    assert "Not built: dynamic_int8: ValueError: no MatMul here" in Path(compression.table.path).read_text()
    assert told[1] == "dynamic_int8 cannot be built: no MatMul here"


def test_a_model_whose_graph_answers_nan_is_a_mismatch(trained, tmp_path):
    x = keras.Input((4,), name="x")
    logarithm = layers.Rescaling(float("nan"))(x)
    model = keras.Model(x, layers.Dense(3, activation="softmax")(logarithm))
    broken = TrainedModel(save_model(model, tmp_path / "m.keras"), 1, 1.0, {}, 1)
    options = OPTIONS.model_copy(update={"compress": OPTIONS.compress.model_copy(update={"candidates": ("fp32",)})})
    with pytest.raises(ExportMismatch, match="the graph answers NaN or Inf on validation rows"):
        compress(PROJECT, options, trained[0], broken, tmp_path)


def test_quantizing_leaves_the_logging_as_it_was(found, tmp_path):
    root = logging.getLogger()
    before = root.level, root.handlers[:], root.filters[:]
    search.to_dynamic_int8(found[0].candidates[0].onnx, tmp_path / "again.onnx")
    assert (root.level, root.handlers, root.filters) == before


def test_static_int8_stores_its_weights_as_int8(found):
    proto = onnx.load(next(one for one in found[0].candidates if one.name == "static_int8").onnx.path)
    kinds = {tensor.data_type for tensor in proto.graph.initializer if np.prod(tensor.dims) >= 48}
    assert kinds == {onnx.TensorProto.INT8}


def test_timing_repeats_rows_where_there_are_few(trained, found):
    graph = read_artifact(found[0].candidates[0].onnx)
    rows = {"x": np.zeros((3, 4), np.float32)}
    times = time_graphs({"a": graph, "b": graph}, rows, 20)
    assert set(times) == {"a", "b"}
    assert [latency.batch for latency in times["a"]] == [1, 32]
    assert all(0 < one.p50_us <= one.p99_us < 1e6 for pair in times.values() for one in pair)


def test_a_model_changed_on_disk_is_refused(trained, tmp_path):
    data, model = trained
    (tmp_path / "m.keras").write_bytes(Path(model.keras.path).read_bytes())
    moved = artifact_of(tmp_path / "m.keras")
    load_model(moved)
    (tmp_path / "m.keras").write_bytes(b"x")
    with pytest.raises(Exception, match=r"m.keras is not the recorded model; run the pipeline again"):
        compress(PROJECT, OPTIONS, data, replace(model, keras=moved), tmp_path)


GOLDEN = """\
**static_int8**: because

| candidate | accuracy | off fp32 by | bytes | p50 / p99 us at batch 1 | p50 / p99 us at batch 32 |  |
|---|---:|---:|---:|---:|---:|---|
| fp32 | 0.9000 | 0.0e+00 | 4,000 | 10.0 / 20.0 | 100.0 / 200.0 |  |
| static_int8 | 0.8950 | 0.0e+00 | 1,000 | 5.0 / 20.0 | 50.0 / 200.0 | chosen |
| pruned | 0.5000 | 0.0e+00 | 4,000 | 10.0 / 20.0 | 100.0 / 200.0 | worse |

Not built: dynamic_int8: ValueError: no
"""


def three():
    return [
        candidate("fp32", size=4000),
        candidate("static_int8", size=1000, accuracy=0.895, p50=5.0),
        replace(candidate("pruned", size=4000, accuracy=0.5), refused="worse"),
    ]


def test_the_table_word_for_word(tmp_path):
    write_table(three(), "static_int8", "because", ["dynamic_int8: ValueError: no"], tmp_path / "t.md")
    assert (tmp_path / "t.md").read_text() == GOLDEN


def test_the_plot_is_a_picture_of_one_size(tmp_path):
    data = read_artifact(write_plot(three(), "static_int8", "accuracy", tmp_path / "p.png"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20]) == 1080
