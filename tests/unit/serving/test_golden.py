"""Golden requests and answers of each protocol: what a client sees changes only together with these files.

`UPDATE_GOLDEN=1 pytest tests/unit/serving/test_golden.py` writes the answers anew; read the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from homeostat import __version__
from homeostat.serving.protos import POOL, message, service
from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "golden" / "serving"
FILES = sorted(FOLDER.glob("*.json"))


def rest(zoo: Any, case: dict[str, Any]) -> dict[str, Any]:
    method, path = case["rest"].split()
    answer = zoo.call(method, path, json=case["request"]) if "request" in case else zoo.call(method, path)
    assert answer.headers["content-type"] == "application/json"
    return {"status": answer.status_code, "answer": answer.json()}


def rpc(client: Any, case: dict[str, Any]) -> dict[str, Any]:
    name, method = case["grpc"].split("/")
    kind = message(service(name).methods_by_name[method].input_type.full_name)
    data = json_format.ParseDict(case["request"], kind(), descriptor_pool=POOL).SerializeToString()
    try:
        answer, _ = client.send(name, method, data)
    except grpc.RpcError as error:
        return {"status": error.code().name, "answer": error.details()}
    options = {"preserving_proto_field_name": True, "descriptor_pool": POOL}
    return {"status": "OK", "answer": json_format.MessageToDict(answer, **options)}


def without_digests(found: dict[str, Any], zoo: Any) -> dict[str, Any]:
    """The answer without what another version of ONNX or of homeostat changes."""
    text = json.dumps(found).replace(f'"{__version__}"', '"VERSION"')
    for state in zoo.repository.models.values():
        for served in state.loaded():
            text = text.replace(served.ref.sha256, f"SHA256-{state.name}-{served.ref.version}")
    return json.loads(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(zoo, client, path: Path) -> None:
    case = json.loads(path.read_text())
    found = without_digests(rest(zoo, case) if "rest" in case else rpc(client, case), zoo)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps({**case, **found}, indent=1) + "\n")
    else:
        assert found == {"status": case["status"], "answer": case["answer"]}


def test_there_is_a_golden_file_for_every_method() -> None:
    called = {json.loads(path.read_text()).get("grpc") for path in FILES}
    for name in ("inference.GRPCInferenceService", "tensorflow.serving.PredictionService"):
        assert {f"{name}/{method.name}" for method in service(name).methods} <= called
    assert "tensorflow.serving.ModelService/GetModelStatus" in called
