"""The servers of the benchmark: each started on a free port of loopback, pinned to a core, and ended by its pid."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving_load import Request
from benchmarks.serving_models import Workload
from homeostat.control.store import ControlStore

RIVALS = Path(__file__).parent / "rivals"
JSON = {"Content-Type": "application/json"}
INSTALL_SECONDS, START_SECONDS = 600, 90


class Skipped(Exception):
    """A rival that cannot be installed or started, and why."""


@dataclass(frozen=True)
class Server:
    """How a server is started for one workload, and what is sent to it."""

    name: str
    command: Callable[[Path, Workload, int], tuple[list[str], dict[str, str]]]
    """(folder of the benchmark, workload, port) -> command and environment."""
    request: Callable[[Workload, str], Request]
    """(workload, base URL) -> what is sent."""
    packages: tuple[str, ...] = ()


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise Skipped("uv is not installed")
    return found


def environment_of(folder: Path, name: str, packages: tuple[str, ...]) -> Path:
    """Make a virtual environment of its own, once, and return its bin folder; raises Skipped."""
    place = folder / "venv" / name
    done = place / ".installed"
    if done.exists() and done.read_text() == repr(packages):
        return place / "bin"
    try:
        for command in (
            ["venv", "--quiet", "--clear", "--python", sys.executable, str(place)],
            ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(place / "bin" / "python"), *packages],
        ):
            subprocess.run([_uv(), *command], check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise Skipped(f"cannot be installed: {error.stderr.strip()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise Skipped(f"not installed within {INSTALL_SECONDS} s") from error
    done.write_text(repr(packages))
    return place / "bin"


def _ours(folder: Path, workload: Workload, port: int) -> tuple[list[str], dict[str, str]]:
    home = Path(tempfile.mkdtemp(prefix=f"{workload.name}-", dir=folder))
    store, ref = ControlStore(f"sqlite:///{home}/control.db"), workload.bundle(home)
    said = {"actor": "bench", "reason": "bench", "evidence": {}}
    row = store.set_challenger(workload.name, ref, expected_generation=0, **said)
    store.promote(workload.name, 1, expected_generation=row.generation, **said)
    settings = {
        "HOMEOSTAT_HOME": str(home),
        "HOMEOSTAT_PORT": str(port),
        "HOMEOSTAT_GRPC_PORT": "0",
        "HOMEOSTAT_CONTROL_URL": "",
        "HOMEOSTAT_TRAFFIC": "",
    }
    return [sys.executable, "-m", "homeostat.serving"], settings


def _v2(workload: Workload, url: str) -> Request:
    return Request(f"{url}/v2/models/{workload.name}/infer", workload.body("v2"), JSON)


def _v2_binary(workload: Workload, url: str) -> Request:
    body, length = workload.binary()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(length)}
    return Request(f"{url}/v2/models/{workload.name}/infer", body, headers)


def _graph(folder: Path, workload: Workload) -> Path:
    path = folder / f"{workload.name}.onnx"
    path.write_bytes(workload.onnx())
    return path


def _fastapi(folder: Path, workload: Workload, port: int) -> tuple[list[str], dict[str, str]]:
    uvicorn = folder / "venv" / "fastapi" / "bin" / "uvicorn"
    command = [str(uvicorn), "fastapi_app:app", "--app-dir", str(RIVALS), "--port", str(port), "--no-access-log"]
    return command, {"BENCH_ONNX": str(_graph(folder, workload))}


def _mlserver(folder: Path, workload: Workload, port: int) -> tuple[list[str], dict[str, str]]:
    place = folder / "mlserver" / workload.name
    place.mkdir(parents=True, exist_ok=True)
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_endpoint": None,
        "parallel_workers": 0,
    }
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "model-settings.json").write_text(
        json.dumps({"name": workload.name, "implementation": "mlserver_runtime.Onnx"})
    )
    environment = {"BENCH_ONNX": str(_graph(folder, workload)), "PYTHONPATH": str(RIVALS)}
    return [str(folder / "venv" / "mlserver" / "bin" / "mlserver"), "start", str(place)], environment


def _mlflow(folder: Path, workload: Workload, port: int) -> tuple[list[str], dict[str, str]]:
    tools, model = folder / "venv" / "mlflow" / "bin", folder / "mlflow" / workload.name
    shutil.rmtree(model, ignore_errors=True)
    script = [str(tools / "python"), str(RIVALS / "mlflow_model.py"), str(_graph(folder, workload)), str(model)]
    try:
        subprocess.run(script, check=True, capture_output=True, text=True, timeout=120)
    except subprocess.CalledProcessError as error:
        raise Skipped(f"the model cannot be saved: {error.stderr.strip()[-300:]}") from error
    command = [str(tools / "mlflow"), "models", "serve", "-m", str(model), "--env-manager", "local"]
    path = f"{tools}:{os.environ['PATH']}"
    return [*command, "-h", "127.0.0.1", "-p", str(port)], {
        "PATH": path,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }


def _to(path: str, protocol: str) -> Callable[[Workload, str], Request]:
    return lambda workload, url: Request(url + path, workload.body(protocol), JSON)


SERVERS = (
    Server("homeostat", _ours, _v2),
    Server("homeostat binary", _ours, _v2_binary),
    Server(
        "fastapi", _fastapi, _to("/predict", "plain"), ("fastapi<0.155", "uvicorn[standard]", "onnxruntime", "numpy")
    ),
    Server("mlserver", _mlserver, _v2, ("mlserver>=1.7,<2", "onnxruntime")),
    Server(
        "mlflow",
        _mlflow,
        _to("/invocations", "mlflow"),
        ("mlflow>=3.10,<3.18", "fastapi<0.155", "onnx", "onnxruntime", "pandas<3"),
    ),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(request: Request) -> bool:
    sent = urllib.request.Request(request.url, request.body, request.headers)
    try:
        with urllib.request.urlopen(sent, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def running(folder: Path, server: Server, workload: Workload, core: int | None) -> Iterator[tuple[Request, int]]:
    """Start a server, wait until it answers, yield the request and its pid, and end it with all that it started."""
    if server.packages:
        environment_of(folder, server.name, server.packages)
    port = free_port()
    command, environment = server.command(folder, workload, port)
    request = server.request(workload, f"http://127.0.0.1:{port}")
    log = folder / f"{server.name.replace(' ', '-')}-{workload.name}.log"
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
            cwd=folder,
            preexec_fn=pin,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(request):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Skipped(f"does not answer; see {log}: {log.read_text(errors='replace').strip()[-300:]}")
            time.sleep(0.1)
        yield request, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # its own session: the server and what it started, nothing else
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if "HOMEOSTAT_HOME" in environment:  # some hundred MB of captured requests
            shutil.rmtree(environment["HOMEOSTAT_HOME"], ignore_errors=True)
