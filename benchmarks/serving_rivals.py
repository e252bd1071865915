"""Our server and every rival: what is installed for it, and how it is started.

TorchServe needs Java, and torch, whose CUDA libraries `UV_TORCH_BACKEND=cpu` spares.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks.serving_models import Workload
from benchmarks.serving_protocols import MLFLOW, PLAIN, PLAIN_IN_THREAD, TORCHSERVE, V2, V2_BINARY, V2_GRPC
from benchmarks.serving_server import Server, Skipped, free_port
from homeostat.control.store import ControlStore
from homeostat.records import BundleRef

RIVALS = Path(__file__).parent / "rivals"
ORT = f"onnxruntime=={version('onnxruntime')}"
"""The same for everybody."""
FASTAPI = ("fastapi<0.155", "uvicorn[standard]", ORT, "numpy")
MLSERVER = ("mlserver>=1.7,<2", ORT)
KSERVE = ("kserve>=0.21,<0.22", ORT)
QUIET = '<Configuration><Loggers><Root level="warn"/></Loggers></Configuration>\n'

Command = tuple[list[str], dict[str, str]]


def make_live(home: Path, ref: BundleRef) -> None:
    """Make a bundle the champion of its model."""
    store = ControlStore(f"sqlite:///{home}/control.db")
    said = {"actor": "bench", "reason": "bench", "evidence": {}}
    row = store.set_challenger(ref.model, ref, expected_generation=0, **said)
    store.promote(ref.model, ref.version, expected_generation=row.generation, **said)


def settings_of(home: Path, port: int, grpc_port: int) -> dict[str, str]:
    """The environment of our server."""
    return {
        "HOMEOSTAT_HOME": str(home),
        "HOMEOSTAT_PORT": str(port),
        "HOMEOSTAT_GRPC_PORT": str(grpc_port),
        "HOMEOSTAT_CONTROL_URL": "",
        "HOMEOSTAT_TRAFFIC": "",
    }


def _ours(folder: Path, workload: Workload, port: int) -> Command:
    home = Path(tempfile.mkdtemp(prefix=f"{workload.name}-", dir=folder))
    make_live(home, workload.bundle(home))
    return [sys.executable, "-m", "homeostat.serving"], settings_of(home, port, 0)


def _ours_grpc(folder: Path, workload: Workload, port: int) -> Command:
    command, environment = _ours(folder, workload, 0)
    return command, environment | {"HOMEOSTAT_GRPC_PORT": str(port)}


def _rival(folder: Path, name: str, workload: Workload, *command: str) -> Command:
    """A command of a rival's virtual environment, which finds the graph and our few lines of code for it."""
    graph, tools = folder / f"{workload.name}.onnx", folder / "venv" / name / "bin"
    graph.write_bytes(workload.onnx())
    environment = {"BENCH_ONNX": str(graph), "PYTHONPATH": str(RIVALS), "PATH": f"{tools}:{os.environ['PATH']}"}
    return [str(tools / command[0]), *command[1:]], environment


def run_once(command: list[str], environment: dict[str, str]) -> None:
    """Run what a rival needs beforehand; raises Skipped."""
    try:
        subprocess.run(
            command, env={**os.environ, **environment}, check=True, capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        raise Skipped(f"the model cannot be saved: {why.strip()[-300:]}") from error


def _asgi(folder: Path, workload: Workload, port: int) -> Command:
    return _rival(folder, "asgi", workload, "uvicorn", "asgi_app:app", "--port", str(port), "--no-access-log")


def _fastapi(folder: Path, workload: Workload, port: int) -> Command:
    return _rival(folder, "fastapi", workload, "uvicorn", "fastapi_app:app", "--port", str(port), "--no-access-log")


def _mlserver(folder: Path, workload: Workload, port: int, grpc_port: int = 0) -> Command:
    place = folder / "mlserver" / workload.name
    place.mkdir(parents=True, exist_ok=True)
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc_port or free_port(),
        "metrics_endpoint": None,
        "parallel_workers": 0,
    }
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "model-settings.json").write_text(
        json.dumps({"name": workload.name, "implementation": "mlserver_runtime.Onnx"})
    )
    return _rival(folder, "mlserver", workload, "mlserver", "start", str(place))


def _mlserver_grpc(folder: Path, workload: Workload, port: int) -> Command:
    return _mlserver(folder, workload, free_port(), port)


def _kserve(folder: Path, workload: Workload, port: int, grpc_port: int = 0) -> Command:
    ports = str(port), str(grpc_port or free_port())
    return _rival(folder, "kserve", workload, "python", str(RIVALS / "kserve_model.py"), workload.name, *ports)


def _kserve_grpc(folder: Path, workload: Workload, port: int) -> Command:
    return _kserve(folder, workload, free_port(), port)


def _litserve(folder: Path, workload: Workload, port: int) -> Command:
    return _rival(folder, "litserve", workload, "python", str(RIVALS / "litserve_model.py"), str(port))


def _bentoml(folder: Path, workload: Workload, port: int) -> Command:
    served = ["serve", "bentoml_service:Onnx", "--working-dir", str(RIVALS), "--host", "127.0.0.1", "--port", str(port)]
    command, environment = _rival(folder, "bentoml", workload, "bentoml", *served)
    return command, environment | {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(folder / "bentoml")}


def _ray(folder: Path, workload: Workload, port: int) -> Command:
    scratch = tempfile.mkdtemp(prefix="ray-")  # the names of its sockets have to be short
    command, environment = _rival(folder, "ray", workload, "python", str(RIVALS / "ray_app.py"), str(port), scratch)
    quick = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return command, environment | quick | {"HOME": scratch, "BENCH_SCRATCH": scratch}  # a key of its own is in HOME


def _torchserve(folder: Path, workload: Workload, port: int) -> Command:
    place = folder / "torchserve" / workload.name
    place.mkdir(parents=True, exist_ok=True)
    graph, handler = folder / f"{workload.name}.onnx", RIVALS / "torchserve_handler.py"
    archive = ["--model-name", workload.name, "--version", "1", "--serialized-file", str(graph)]
    archive += ["--handler", str(handler), "--export-path", str(place), "--force"]
    run_once(*_rival(folder, "torchserve", workload, "torch-model-archiver", *archive))
    local = "http://127.0.0.1"
    settings = {
        "inference_address": f"{local}:{port}",
        "management_address": f"{local}:{free_port()}",
        "metrics_address": f"{local}:{free_port()}",
        "grpc_inference_port": free_port(),
        "grpc_management_port": free_port(),
        "default_workers_per_model": 1,
        "disable_token_authorization": "true",
        "disable_system_metrics": "true",
    }
    (place / "config.properties").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    (place / "log4j2.xml").write_text(QUIET)  # it writes some lines for each request else
    served = ["--start", "--foreground", "--ncs", "--ts-config", str(place / "config.properties")]
    served += ["--log-config", str(place / "log4j2.xml")]
    served += ["--model-store", str(place), "--models", f"{workload.name}={workload.name}.mar"]
    command, environment = _rival(folder, "torchserve", workload, "torchserve", *served)
    return command, environment | {"LOG_LOCATION": str(place), "METRICS_LOCATION": str(place)}


def _mlflow(folder: Path, workload: Workload, port: int) -> Command:
    model = folder / "mlflow" / workload.name
    shutil.rmtree(model, ignore_errors=True)
    graph = folder / f"{workload.name}.onnx"
    script, environment = _rival(
        folder, "mlflow", workload, "python", str(RIVALS / "mlflow_model.py"), str(graph), str(model)
    )
    run_once(script, environment)
    served = ["models", "serve", "-m", str(model), "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    command, _ = _rival(folder, "mlflow", workload, "mlflow", *served)
    return command, environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


SERVERS = (
    Server("homeostat", _ours, V2),
    Server("homeostat binary", _ours, V2_BINARY),
    Server("homeostat grpc", _ours_grpc, V2_GRPC),
    Server("asgi", _asgi, V2, ("uvicorn[standard]", "orjson", ORT, "numpy")),
    Server("asgi binary", _asgi, V2_BINARY, ("uvicorn[standard]", "orjson", ORT, "numpy")),
    Server("fastapi", _fastapi, PLAIN, FASTAPI),
    Server("fastapi def", _fastapi, PLAIN_IN_THREAD, FASTAPI),
    Server("mlserver", _mlserver, V2, MLSERVER),
    Server("mlserver grpc", _mlserver_grpc, V2_GRPC, MLSERVER),
    Server("kserve", _kserve, V2, KSERVE),
    Server("kserve binary", _kserve, V2_BINARY, KSERVE),
    Server("kserve grpc", _kserve_grpc, V2_GRPC, KSERVE),
    Server("litserve", _litserve, PLAIN, ("litserve>=0.2.19,<0.3", ORT, "numpy")),
    Server("bentoml", _bentoml, PLAIN, ("bentoml>=1.4,<1.5", ORT, "numpy")),
    Server("ray", _ray, PLAIN, ("ray[serve]>=2.60,<3", ORT, "numpy")),
    Server(
        "torchserve",
        _torchserve,
        TORCHSERVE,
        ("torchserve==0.12.0", "torch-model-archiver", "torch==2.13.0", "packaging", "psutil", "pyyaml", ORT, "numpy"),
    ),
    Server("mlflow", _mlflow, MLFLOW, ("mlflow>=3.10,<3.18", "fastapi<0.155", "onnx", ORT, "pandas<3")),
)
