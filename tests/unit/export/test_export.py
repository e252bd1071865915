"""export: what is kept loads and answers as the model did, and nothing is kept when a gate fails."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import numpy_helper

from homeostat.dataset import Dataset, read_artifact, write_artifact
from homeostat.errors import DataInvalid, ExportMismatch
from homeostat.export.export import export
from homeostat.export.onnx import to_onnx
from homeostat.inference import predict, session
from homeostat.model import answer, load_model, save_model
from homeostat.records import Compression
from tests.keras_projects import Made, blobs, candidate, config, mlp, record

PROJECT = Made(mlp())


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    data = record(folder, blobs)
    model = mlp()(Dataset.load(data.parts["train"]))
    kept, graph = save_model(model, folder / "m.keras"), to_onnx(model, folder / "m.onnx", 17)
    one = replace(candidate("fp32"), onnx=graph, keras=kept)
    return data, Compression((one,), "fp32", "", graph, graph)


def test_the_three_formats_answer_alike(made, tmp_path):
    data, compression = made
    found = export(PROJECT, config(), data, compression, tmp_path)
    rows = Dataset.load(data.parts["test"]).inputs
    expected = answer(load_model(found.keras), rows)
    np.testing.assert_allclose(predict(session(read_artifact(found.onnx)), rows), expected, atol=1e-5)
    served = tf.saved_model.load(found.saved_model)
    np.testing.assert_allclose(served.serve(tf.constant(rows["x"])).numpy(), expected, atol=1e-5)
    assert found.onnx.sha256 == compression.chosen.onnx.sha256
    assert (found.candidate, len(found.gates)) == ("fp32", 5)
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == ["model.keras", "model.onnx", "saved_model"]


def test_a_second_export_replaces_the_first(made, tmp_path):
    data, compression = made
    first = export(PROJECT, config(), data, compression, tmp_path)
    assert export(PROJECT, config(), data, compression, tmp_path) == first


def with_graph(compression, graph):
    return replace(compression, candidates=(replace(compression.chosen, onnx=graph),))


def test_nothing_is_kept_when_a_gate_fails(made, tmp_path):
    data, compression = made
    proto = onnx.load_from_string(read_artifact(compression.chosen.onnx))
    weight = max(proto.graph.initializer, key=lambda t: np.prod(t.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    broken = with_graph(compression, write_artifact(tmp_path / "in.onnx", proto.SerializeToString()))
    with pytest.raises(ExportMismatch, match="row"):
        export(PROJECT, config(), data, broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_graph_changed_on_disk_is_refused(made, tmp_path):
    data, compression = made
    changed = with_graph(compression, write_artifact(tmp_path / "in.onnx", read_artifact(compression.chosen.onnx)))
    (tmp_path / "in.onnx").write_bytes(b"x")
    with pytest.raises(DataInvalid, match="recorded was"):
        export(PROJECT, config(), data, changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
