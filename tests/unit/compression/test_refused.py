"""What the search must never choose, and what it must say: answers that are not finite, graphs that cannot be built."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from homeostat.compression import search
from homeostat.compression.budget import choose
from homeostat.config import CompressConfig
from homeostat.dataset import Dataset, write_artifact
from homeostat.errors import ConfigError, ExportMismatch
from homeostat.model import save_model
from homeostat.records import TrainedModel
from homeostat.training.fit import make_reproducible
from tests.keras_projects import Made, blobs, candidate, config, mlp, record


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    data = record(folder, blobs)
    make_reproducible(1)
    model = mlp()(Dataset.load(data.parts["train"]))
    return data, TrainedModel(save_model(model, folder / "m.keras"), 1, 0.0, {}, 1)


def compress(made, folder, names, **compression):
    told = []
    options = config(compress={"candidates": ["fp32", *names], "timing_runs": 20, **compression})
    return search.compress(Made(mlp()), options, *made, folder, told.append), told


@pytest.mark.parametrize("broken", [{"max_difference": float("nan")}, {"metrics": {"rmse": float("nan")}}])
def test_a_smaller_candidate_that_answers_nan_is_refused(broken):
    fp32 = candidate("fp32", size=1000, metric="rmse")
    small = replace(candidate("static_int8", size=100, metric="rmse"), **broken)
    judged, winner, _ = choose([fp32, small], "rmse", False, CompressConfig())
    assert winner == "fp32"
    assert judged[1].refused == "it answers NaN or Inf on validation rows"


def test_the_reason_says_when_even_fp32_is_too_slow():
    fp32 = candidate("fp32", p99=3000.0)
    _, winner, reason = choose([fp32], "accuracy", True, CompressConfig(max_latency_ms=2.0))
    assert winner == "fp32"
    assert reason.endswith("fp32 itself is over it: p99 3.000 ms (allowed 2 ms)")


def spoil(graph, path, change):
    proto = onnx.load(graph.path)
    change(proto)
    return write_artifact(path, proto.SerializeToString())


def _nan(proto):
    weight = max(proto.graph.initializer, key=lambda t: np.prod(t.dims))
    weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), np.nan), weight.name))


def _unloadable(proto):
    proto.graph.node[0].op_type = "NoSuchOperator"


def _fixed_batch(proto):
    proto.graph.initializer.append(numpy_helper.from_array(np.array([7, 3]), "shape"))
    proto.graph.node[-1].output[0] = "inner"
    proto.graph.node.append(helper.make_node("Reshape", ["inner", "shape"], ["output"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_nan, r"static_int8: ExportMismatch: the graph answers NaN or Inf"),
        (_unloadable, r"static_int8: BundleInvalid: .*does not load"),
        (_fixed_batch, r"static_int8: \w+: "),
    ],
)
def test_a_candidate_that_does_not_answer_is_named_and_the_search_goes_on(made, tmp_path, monkeypatch, change, said):
    monkeypatch.setattr(search, "to_static_int8", lambda graph, path, _: spoil(graph, path, change))
    found, told = compress(made, tmp_path, ["static_int8"])
    assert found.winner == "fp32"
    assert [one.name for one in found.candidates] == ["fp32"]
    (line,) = found.failed
    assert re.match(said, line), line
    assert f"Not built: {line}" in Path(found.table.path).read_text()
    assert any("static_int8 cannot be built" in text for text in told)


def test_an_fp32_graph_that_answers_nan_stops_the_stage(made, tmp_path, monkeypatch):
    real = search.to_onnx
    monkeypatch.setattr(search, "to_onnx", lambda model, path, opset: spoil(real(model, path, opset), path, _nan))
    with pytest.raises(ExportMismatch, match="NaN or Inf on validation rows; look for log"):
        compress(made, tmp_path, [])


def test_nan_that_the_model_is_given_is_named_column_by_column():
    x = np.ones((5, 2), np.float32)
    x[1:4, 1] = np.nan
    image = np.full((5, 3, 3), np.nan, np.float32)
    data = Dataset.from_arrays({"x": x, "image": image}, np.zeros(5), columns={"x": ("age", "income")})
    assert "NaN stands in column 'income' in 3 rows, input 'image' in 5 rows" in search._blame(data)
    whole = Dataset.from_arrays(np.ones((5, 2)), np.zeros(5))
    assert "look for log(0)" in search._blame(whole)


def test_a_misspelt_primary_metric_is_found_before_anything_is_pruned(made, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "prune", lambda *_: pytest.fail("pruned first"))
    options = config(metric="acuracy")
    with pytest.raises(ConfigError, match="'acuracy' of tiny is not measured: use accuracy"):
        search.compress(Made(mlp()), options, *made, tmp_path)


def test_the_table_stands_as_json_too(made, tmp_path):
    found, _ = compress(made, tmp_path, ["dynamic_int8"])
    kept = json.loads(Path(found.table.path).with_suffix(".json").read_text())
    assert (kept["winner"], [one["name"] for one in kept["candidates"]]) == ("fp32", ["fp32", "dynamic_int8"])
    assert kept["candidates"][1]["batch_invariant"] is False
    assert "batch-invariant" in kept["candidates"][1]["refused"]
