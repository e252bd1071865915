"""A small graph, and the records that a version of it is registered from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from homeostat.config import ProjectConfig
from homeostat.dataset import artifact_of
from homeostat.records import (
    Artifact,
    Candidate,
    Compression,
    DatasetRecord,
    Evaluation,
    Export,
    Gate,
    Interval,
    Lineage,
    Validation,
)

EXAMPLE = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "code": np.array([[1], [2]], dtype=np.int64)}


def graph() -> bytes:
    weights = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Cast", ["code"], ["shift"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["scores", "shift"], ["output"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
        helper.make_tensor_value_info("code", TensorProto.INT64, ["n", 1]),
    ]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 2])]
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [weights]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    # an unknown field (number 15) in front: parsing and writing again moves it, and the bytes must stay
    return b"\x7a\x03abc" + made.SerializeToString()


def write(path: Path, data: bytes) -> Artifact:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return artifact_of(path)


def make_parts(tmp_path: Path, model: str) -> dict:
    file = write(tmp_path / "file.json", b"{}")
    onnx_file = write(tmp_path / "model.onnx", graph())
    keras = write(tmp_path / "model.keras", b"keras")
    write(tmp_path / "saved" / "saved_model.pb", b"pb")
    candidate = Candidate("fp32", onnx_file, keras, {"accuracy": 0.9}, (), 0.0, True)
    return {
        "config": ProjectConfig(name=model, project="projects.digits.project:Digits", task="classification"),
        "dataset": DatasetRecord(model, "classification", "d" * 64, {"train": 10}, {}),
        "validation": Validation(file, write(tmp_path / "profile.json", b"[]"), file, str(tmp_path), 5, "inferred"),
        "compression": Compression((candidate,), "fp32", "only one", file, write(tmp_path / "plot.png", b"png")),
        "export": Export(onnx_file, keras, str(tmp_path / "saved"), "fp32", (Gate("parity", "0"),)),
        "evaluation": Evaluation("accuracy", {"accuracy": Interval(0.9, 0.8, 1.0)}, 100, (file,)),
        "lineage": Lineage("p1", "d" * 64, "e" * 64, "f" * 64, "a" * 40, False, 7),
        "card": "# card\n" + "long " * 2000,
        "example": EXAMPLE,
    }
