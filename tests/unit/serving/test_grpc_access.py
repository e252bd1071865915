"""Keys over gRPC: the scopes, models and rates of REST, with gRPC's status codes."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from homeostat.apikeys import FILE, create_key, revoke_key
from homeostat.serving.access import authorization as access_module
from homeostat.serving.access.authorization import Access
from homeostat.serving.protos import message
from homeostat.settings import Settings
from tests.conftest import free_port
from tests.grpc_client import INFERENCE, MODELS, PREDICTION, GrpcClient, grpc_server

TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4]}}
INFER = message("inference.ModelInferRequest")(model_name="toy", inputs=[TENSOR]).SerializeToString()
STATUS = message("tensorflow.serving.GetModelStatusRequest")(model_spec={"name": "pair"}).SerializeToString()


def status(client: GrpcClient, service: str, method: str, data: bytes = b"", *metadata: tuple[str, str]) -> str:
    try:
        client.send(service, method, data, metadata)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.fixture
def keyed(zoo: Any, tmp_path, monkeypatch):
    """Start a server that asks for keys; returns its client and the file of keys."""
    monkeypatch.setattr(access_module, "RELOAD_SECONDS", 0.0)
    path = tmp_path / FILE
    create_key(path, "first", ["admin"])
    port = free_port()
    with grpc_server(zoo.plane, Access(Settings(home=tmp_path, rate_limit=1000), open_metrics=False), port):
        client = GrpcClient(port)
        yield client, path
        client.close()


def test_every_call_but_probes_needs_a_key_with_its_scope(zoo, keyed):
    client, path = keyed
    before = zoo.metrics.refused.get(401, 0)
    assert status(client, INFERENCE, "ModelInfer", INFER) == "UNAUTHENTICATED"
    assert status(client, PREDICTION, "Predict") == "UNAUTHENTICATED"
    assert status(client, MODELS, "GetModelStatus", STATUS, ("x-api-key", "hs_wrong")) == "UNAUTHENTICATED"
    assert zoo.metrics.refused[401] == before + 3
    assert status(client, INFERENCE, "ServerLive") == "OK"
    key, record = create_key(path, "asks", ["infer"])
    for metadata in (("authorization", f"Bearer {key}"), ("x-api-key", key)):
        assert status(client, INFERENCE, "ModelInfer", INFER, metadata) == "OK"
    label, _ = create_key(path, "labels", ["label"])
    assert status(client, INFERENCE, "ModelInfer", INFER, ("x-api-key", label)) == "PERMISSION_DENIED"
    assert status(client, INFERENCE, "RepositoryModelLoad", b"", ("x-api-key", key)) == "PERMISSION_DENIED"
    revoke_key(path, record.id)
    assert status(client, INFERENCE, "ModelInfer", INFER, ("x-api-key", key)) == "UNAUTHENTICATED"


def test_a_key_of_one_model_sees_no_other(keyed):
    client, path = keyed
    key, _ = create_key(path, "pairs", ["infer"], models=["pair"])
    assert status(client, INFERENCE, "ModelInfer", INFER, ("x-api-key", key)) == "PERMISSION_DENIED"
    assert status(client, MODELS, "GetModelStatus", STATUS, ("x-api-key", key)) == "OK"
    answer, _ = client.send(INFERENCE, "RepositoryIndex", b"", (("x-api-key", key),))
    assert {one.name for one in answer.models} == {"pair"}


def test_the_rate_is_shared_by_a_key(zoo, tmp_path):
    key, _ = create_key(tmp_path / FILE, "fast", ["infer"])
    port = free_port()
    settings = Settings(home=tmp_path, rate_limit=0.001, rate_burst=2)
    with grpc_server(zoo.plane, Access(settings, open_metrics=False), port):
        client = GrpcClient(port)
        found = [status(client, INFERENCE, "ModelInfer", INFER, ("x-api-key", key)) for _ in range(3)]
        client.close()
    assert found == ["OK", "OK", "RESOURCE_EXHAUSTED"]
