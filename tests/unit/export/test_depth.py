"""Gates look into subgraphs, at the output's name, and at Keras' own answers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from homeostat.errors import ExportMismatch, ExportUnsupported, GateFailed
from homeostat.export import gates

ROWS = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)}


def branching(op: str = "Neg", domain: str = "", output: str = "output") -> onnx.ModelProto:
    """x [batch, 4] -> If(true): one operator and a weight, both inside the branch."""
    branches = []
    for name in ("then", "else"):
        weight = numpy_helper.from_array(np.ones(4, np.float32), f"{name}_w")
        nodes = [
            helper.make_node(op, ["x"], [f"{name}_a"], domain=domain),
            helper.make_node("Mul", [f"{name}_a", f"{name}_w"], [f"{name}_y"]),
        ]
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 4])
        branches.append(helper.make_graph(nodes, name, [], [value], [weight]))
    node = helper.make_node("If", ["yes"], [output], then_branch=branches[0], else_branch=branches[1])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("x", output))
    yes = numpy_helper.from_array(np.array(True), "yes")
    opsets = [
        helper.make_opsetid("", 17),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("ai.onnx.ml", 3),
    ]
    return helper.make_model(helper.make_graph([node], "g", [x], [y], [yes]), opset_imports=opsets, ir_version=8)


def test_a_branch_is_sound_and_still_not_served():
    data = branching().SerializeToString()
    gates.check_structure(data)
    gates.check_inputs(data, ROWS)
    gates.check_parity(data, ROWS, -ROWS["x"], 1e-6)
    with pytest.raises(ExportUnsupported, match=r"operators that are not served: ai.onnx.If"):
        gates.check_operators(data)


@pytest.mark.parametrize(
    ("op", "domain", "said"),
    [("Inverse", "com.microsoft", r"com\.microsoft\.Inverse"), ("Adam", "ai.onnx.preview.training", "Adam")],
)
def test_an_operator_in_a_branch_that_is_not_served(op, domain, said):
    proto = branching(op, domain)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.preview.training", 1))
    with pytest.raises(ExportUnsupported, match=said):
        gates.check_operators(proto.SerializeToString())


def test_a_weight_of_a_branch_in_another_file():
    proto = branching()
    weight = proto.graph.node[0].attribute[0].g.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../weights.bin")
    with pytest.raises(GateFailed, match=r"weight '(then|else)_w' is in another file"):
        gates.check_structure(proto.SerializeToString())


def test_an_output_of_another_name():
    with pytest.raises(GateFailed, match=r"the graph has outputs answer; it must have one, 'output'"):
        gates.check_inputs(branching(output="answer").SerializeToString(), ROWS)


def test_keras_own_nan_is_not_blamed_on_the_graph():
    expected = -ROWS["x"]
    expected[1, 2] = np.nan
    data = branching().SerializeToString()
    with pytest.raises(GateFailed, match=r"Keras itself answers NaN or Inf on 1 of 3 rows, first on row 1"):
        gates.check_parity(data, ROWS, expected, 1e-6)
    with pytest.raises(GateFailed, match="Keras itself answers NaN"):
        gates.check_agreement(data, ROWS, expected, "classification", 0.9)


def test_disagreement_names_the_worst_row():
    expected = -ROWS["x"]
    expected[2] = expected[2, ::-1]
    with pytest.raises(ExportMismatch, match=r"classes equal Keras': 0\.6667 on 3 rows, .*; worst in row 2, output \d"):
        gates.check_agreement(branching().SerializeToString(), ROWS, expected, "classification", 0.9)
