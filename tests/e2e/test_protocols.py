"""Real clients of each protocol against a real server, and the gRPC port's life: start, drain, a busy port."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper

from homeostat.apikeys import FILE, create_key
from homeostat.control.store import ControlStore
from homeostat.serving.protos import POOL, message, service
from tests.bundles import WIDTH, graph_bytes, identity, make_bundle, patients, sigmoid
from tests.conftest import ROOT
from tests.e2e.test_server import Server, start_and_fail
from tests.grpc_client import INFERENCE, GrpcClient

pytestmark = pytest.mark.e2e

CLIENTS = ROOT / "tests" / "clients"
X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4]}}


def grpc_port(server: Server) -> int:
    return int(server.wait(lambda: server.line("gRPC answers on")).rsplit(":", 1)[1])


def promote(store: ControlStore, *refs) -> None:
    said = {"actor": "t", "reason": "t", "evidence": {}}
    for ref in refs:
        row = store.set_challenger(ref.model, ref, expected_generation=store.generation(ref.model), **said)
        store.promote(ref.model, ref.version, expected_generation=row.generation, **said)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with `toy` v2 (v1 before it) and `kinds`."""
    server = Server(tmp_path_factory.mktemp("protocols") / "home")
    try:
        promote(server.control, make_bundle(server.home, 1), make_bundle(server.home, 2))
        promote(server.control, make_bundle(server.home, model="kinds", onnx_bytes=identity()))
        server.wait(lambda: server.get("/v2/models/kinds/ready")[0] == 200)
        server.wait(lambda: server.get("/v2/models/toy/versions/1/ready")[0] == 200)
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


def uv(*words: str) -> None:
    done = subprocess.run([Path(sys.executable).with_name("uv"), *words], capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"the client is not to be had here: {done.stderr[-300:]}")


@pytest.fixture(scope="session")
def client_folder(request: pytest.FixtureRequest) -> Path:
    """Where the clients' packages are kept from one run of the tests to the next."""
    return request.config.cache.mkdir(f"clients-{sys.version_info[0]}.{sys.version_info[1]}")


def run_client(python: Path | str, script: str, *words: object, **environment: str) -> None:
    done = subprocess.run(
        [python, CLIENTS / script, *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_tritonclient_over_http_and_grpc_sync_and_async(models, client_folder) -> None:
    place = client_folder / "triton"
    if not (place / "made").exists():
        uv("venv", "--quiet", "--allow-existing", "--python", sys.executable, str(place))
        uv("pip", "install", "--quiet", "--python", str(place / "bin" / "python"), "tritonclient[grpc,http]>=2.60")
        (place / "made").touch()
    run_client(place / "bin" / "python", "triton.py", models.port, grpc_port(models))


def test_the_client_package_of_tensorflow_serving(models, client_folder) -> None:
    place = client_folder / "tensorflow-serving"
    if not (place / "made").exists():
        uv("pip", "install", "--quiet", "--no-deps", "--target", str(place), "tensorflow-serving-api>=2.19,<2.22")
        (place / "made").touch()
    names = ("tails", "heads")
    promote(
        models.control,
        make_bundle(models.home, model="coin", onnx_bytes=sigmoid(), task="classification", classes=names),
    )
    models.wait(lambda: models.get("/v2/models/coin/ready")[0] == 200)
    run_client(sys.executable, "serving_api.py", grpc_port(models), PYTHONPATH=str(place))


def blocks(language: str) -> list[str]:
    """The code in docs/serving.md of one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.S)


def documented(command: str) -> list[str]:
    """Each example in docs/serving.md that calls `command`, alone or at the end of a pipe."""
    examples = [one for block in blocks("sh") for one in re.split(r"^(?=curl |grpcurl |gzip )", block, flags=re.M)]
    return [one for one in examples if re.match(rf"(gzip [^|]*\| )?{command} ", one)]


COLUMNS = {"body": ("age", "bmi", "bp"), "sex": ("sex",), "serum": ("s1", "s2", "s3", "s4", "s5", "s6")}


def promote_diabetes(server: Server) -> None:
    """Serve a model that has the inputs of the documentation's examples."""
    promote(
        server.control, make_bundle(server.home, model="diabetes", onnx_bytes=patients(), columns=COLUMNS, explain=True)
    )
    server.wait(lambda: server.get("/v2/models/diabetes/ready")[0] == 200)


@pytest.fixture(scope="module")
def diabetes(models) -> Server:
    """The same server, with `diabetes` too."""
    promote_diabetes(models)
    return models


def test_the_curl_examples_of_the_documentation(diabetes, tmp_path) -> None:
    examples = documented("curl")
    assert len(examples) >= 12
    (table,) = blocks("csv")
    (tmp_path / "rows.csv").write_text(table)
    for example in examples:
        here = example.replace("localhost:8080", f"127.0.0.1:{diabetes.port}")
        here = here.replace("curl -s ", "curl -s --fail-with-body --max-time 20 ")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", here], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (example, done.stdout, done.stderr)
        answer = json.loads(done.stdout)
        if "explain" in example:
            (one,) = answer["explanations"]
            assert len(answer["columns"]) == len(one["contributions"]) == 10
            assert one["base"] + sum(one["contributions"]) == pytest.approx(one["prediction"]) == 130.05
        elif ":regress" in example:
            assert answer["result"] == pytest.approx([130.05], abs=0.01)
        elif "predict" in example or "invocations" in example:
            rows = answer.get("predictions") or answer["outputs"]
            assert len(rows) == (2 if "rows.csv" in example else 1)
            assert rows[0] == pytest.approx([130.05], abs=0.01)


@pytest.fixture
def only_diabetes(tmp_path) -> Iterator[Server]:
    """A server that has no other model."""
    server = Server(tmp_path / "home")
    try:
        promote_diabetes(server)
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


def test_the_clients_of_mlflow(only_diabetes) -> None:
    run_client(sys.executable, "scoring.py", only_diabetes.port)
    only_diabetes.wait(lambda: "visit-19" in {row[0] for row in only_diabetes.captured()})


def test_the_python_example_of_the_documentation_with_a_key(only_diabetes, tmp_path) -> None:
    key, _ = create_key(only_diabetes.home / FILE, "mlflow", ["infer"], ["diabetes"])
    only_diabetes.wait(lambda: only_diabetes.get("/v2/models/diabetes")[0] == 401)
    (example,) = blocks("python")
    here = example.replace("localhost:8080", f"127.0.0.1:{only_diabetes.port}")
    script = tmp_path / "example.py"
    script.write_text(f"{here}assert abs(answer['predictions'][0][0] - 130.05) < 0.01, answer\nprint('ok')\n")
    run_client(sys.executable, script, MLFLOW_TRACKING_TOKEN=key)


def test_the_grpcurl_examples_of_the_documentation(diabetes) -> None:
    """grpcurl comes by no package that we use: its words are read, and sent by our own client."""
    examples = documented("grpcurl")
    assert len(examples) >= 4
    client = GrpcClient(grpc_port(diabetes))
    for words in (shlex.split(example.replace("\\\n", " ")) for example in examples):
        options = dict(zip(words[2:-2:2], words[3:-2:2], strict=True))
        name, method = words[-1].split("/")
        folder = ROOT / options["-import-path"]
        assert f"service {name.rsplit('.', 1)[1]} " in (folder / options["-proto"]).read_text()
        assert words[-2] == "localhost:8081"
        kind = message(service(name).methods_by_name[method].input_type.full_name)
        request = json_format.Parse(options.get("-d", "{}"), kind(), descriptor_pool=POOL)
        assert client.send(name, method, request.SerializeToString())[0].ListFields()
    client.close()


SIZE = 2048
"""Of a square matrix that a row is multiplied with, DEEP times: a call of 512 rows takes about a second."""
DEEP, ROWS = 12, 512


def slow() -> bytes:
    """x [n, 4] float32 -> output [n, 2048], after many products."""
    products = [helper.make_node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"]) for i in range(DEEP)]
    first = helper.make_node("MatMul", ["x", "wide"], ["h0"])
    last = helper.make_node("ReduceMean", [f"h{DEEP}"], ["output"], axes=[1])
    return graph_bytes(
        [first, *products, last],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 1])],
        [
            numpy_helper.from_array(np.ones((WIDTH, SIZE), np.float32), "wide"),
            numpy_helper.from_array(np.full((SIZE, SIZE), 1 / SIZE, np.float32), "w"),
        ],
    )


def test_sigterm_lets_a_call_in_flight_finish(tmp_path) -> None:
    server = Server(tmp_path / "home")
    promote(server.control, make_bundle(server.home, onnx_bytes=slow()))
    server.wait(lambda: server.get("/v2/models/toy/ready")[0] == 200)
    client = GrpcClient(grpc_port(server))
    tensor = {"name": "x", "datatype": "FP32", "shape": [ROWS, 4], "contents": {"fp32_contents": [1] * 4 * ROWS}}
    calls: list[tuple[float, float, str]] = []

    def call_on() -> None:
        """Call after call, until one fails; the time of each start is noted before it ends."""
        while not calls or calls[-1][2] == "OK":
            started.append(time.monotonic())
            try:
                client.call(INFERENCE, "ModelInfer", model_name="toy", inputs=[tensor])
                status = "OK"
            except grpc.RpcError as error:
                status = error.code().name
            calls.append((started[-1], time.monotonic(), status))

    started: list[float] = []
    thread = threading.Thread(target=call_on)
    thread.start()
    server.wait(lambda: len(started) == 2 and time.monotonic() > started[1] + 0.1)
    signalled = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    thread.join(20)
    client.close()
    assert [status for _, _, status in calls] == ["OK", "OK", "UNAVAILABLE"]
    assert calls[1][0] < signalled < calls[1][1], "the second call was in flight"
    assert len(server.captured()) == 2


def test_a_busy_grpc_port_is_an_error_at_once(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, text = start_and_fail(tmp_path, HOMEOSTAT_PORT="0", HOMEOSTAT_GRPC_PORT=port)
    assert (code, f"port {port}" in text, "HOMEOSTAT_GRPC_PORT" in text) == (2, True, True)


def test_two_servers_never_share_a_grpc_port(tmp_path) -> None:
    server = Server(tmp_path / "first")
    port = str(grpc_port(server))
    code, text = start_and_fail(tmp_path / "second", HOMEOSTAT_PORT="0", HOMEOSTAT_GRPC_PORT=port)
    assert (code, "HOMEOSTAT_GRPC_PORT" in text) == (2, True)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


def test_grpc_that_is_not_installed_leaves_rest_and_says_so(tmp_path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as util\nfound = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'grpc' else found(name, package)\n"
    )
    code, text = start_and_fail(tmp_path, HOMEOSTAT_PORT="0", HOMEOSTAT_GRPC_PORT="0", PYTHONPATH=str(hidden))
    assert (code, "homeostat[serve,grpc]" in text) == (2, True)
