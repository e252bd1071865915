"""to_onnx: our names, an open batch dimension, every weight inside, and the converter's own gaps closed."""

import keras
import numpy as np
import onnx
import pytest
from keras import layers

from homeostat.errors import ExportUnsupported
from homeostat.export.onnx import to_onnx
from homeostat.inference import predict_all, session
from homeostat.model import answer
from tests.keras_projects import blobs, mlp


def exported(model, tmp_path, opset=17):
    return (tmp_path / "m.onnx", to_onnx(model, tmp_path / "m.onnx", opset))[0].read_bytes()


def signature(data):
    graph = onnx.load_from_string(data).graph
    return [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*graph.input, *graph.output)
    ]


def assert_parity(model, data, inputs):
    loaded, expected = session(data), answer(model, inputs)
    for rows in (1, 2, len(expected)):
        found = predict_all(loaded, {k: v[:rows] for k, v in inputs.items()})["output"]
        np.testing.assert_allclose(found, expected[:rows], rtol=1e-4, atol=1e-5)


def test_a_normalization_layer_is_frozen_and_names_are_ours(tmp_path):
    rows = blobs(32, 1)
    model = mlp()(rows)
    data = exported(model, tmp_path)
    assert signature(data) == [("x", ["batch", 4]), ("output", ["batch", 3])]
    assert_parity(model, data, rows.inputs)


def test_a_sequential_model(tmp_path):
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(5, activation="tanh"), layers.Dense(2)])
    data = exported(model, tmp_path)
    assert signature(data) == [("x", ["batch", 4]), ("output", ["batch", 2])]
    assert_parity(model, data, blobs(16, 1).inputs)


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_of_several_types(tmp_path, as_dict):
    one, two = keras.Input((2,), name="one"), keras.Input((1,), name="two", dtype="int64")
    embedded = layers.Flatten()(layers.Embedding(5, 3)(two))
    joined = layers.Dense(1)(layers.concatenate([one, embedded]))
    model = keras.Model({"two": two, "one": one} if as_dict else [two, one], joined)
    data = exported(model, tmp_path)
    assert sorted(signature(data)[:2]) == [("one", ["batch", 2]), ("two", ["batch", 1])]
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.load_from_string(data).graph.input}
    assert types == {"one": onnx.TensorProto.FLOAT, "two": onnx.TensorProto.INT64}
    rng = np.random.default_rng(1)
    rows = {"one": rng.normal(size=(9, 2)).astype(np.float32), "two": rng.integers(0, 5, (9, 1))}
    assert_parity(model, data, rows)


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_exact_gelu_is_written_with_erf(tmp_path, opset):
    x = keras.Input((4,), name="x")
    gelu = layers.Activation(lambda v: keras.ops.gelu(v, approximate=False))(layers.Dense(6)(x))
    model = keras.Model(x, gelu)
    data = exported(model, tmp_path, opset)
    kinds = {node.op_type for node in onnx.load_from_string(data).graph.node}
    assert "Erf" in kinds
    assert "Erfc" not in kinds
    assert_parity(model, data, {"x": np.random.default_rng(1).normal(0, 2, (16, 4)).astype(np.float32)})


def test_layers_of_a_sequence_model(tmp_path):
    x = keras.Input((6, 3), name="x")
    model = keras.Model(x, layers.Dense(2)(layers.GRU(4)(layers.LSTM(5, return_sequences=True)(x))))
    rows = {"x": np.random.default_rng(1).normal(size=(5, 6, 3)).astype(np.float32)}
    assert_parity(model, exported(model, tmp_path), rows)


def test_several_outputs_are_numbered(tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, [layers.Dense(3)(x), layers.Dense(1)(x)])
    assert [name for name, _ in signature(exported(model, tmp_path))] == ["x", "output_0", "output_1"]


@keras.saving.register_keras_serializable("tests")
class InverseError(layers.Layer):
    def call(self, x):
        return keras.ops.erfinv(x)


@keras.saving.register_keras_serializable("tests")
class Factor(layers.Layer):
    def call(self, x):
        return keras.ops.cholesky(keras.ops.reshape(x, (-1, 2, 2)))


@pytest.mark.parametrize(
    ("layer", "op"), [(InverseError(name="strange"), "Erfinv"), (Factor(name="strange"), "Cholesky")]
)
def test_an_operator_that_onnx_has_not_is_named_with_its_layer(tmp_path, layer, op):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layer(x), name="odd")
    with pytest.raises(
        ExportUnsupported, match=rf"odd uses operators that ONNX opset 17 does not have: {op} \(.*strange"
    ):
        to_onnx(model, tmp_path / "m.onnx", 17)
    assert list(tmp_path.iterdir()) == []


def test_text_inputs_are_refused(tmp_path):
    x = keras.Input((1,), name="x", dtype="string")
    model = keras.Model(x, layers.StringLookup(vocabulary=["a", "b"], name="words")(x))
    with pytest.raises(ExportUnsupported, match="functional"):
        to_onnx(model, tmp_path / "m.onnx", 17)
    assert list(tmp_path.iterdir()) == []
