"""The whole stack on one machine until Ctrl-C: Prefect, MLflow, model server, gateway, and a worker."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import httpx
import psutil
from honcho.manager import Manager
from honcho.printer import Printer

from deployments.places import HOST, Ports, choose_ports, environment, local_settings
from homeostat.errors import HomeostatError
from homeostat.settings import Settings

READY = "the stack is ready"


def commands(ports: Ports, settings: Settings) -> dict[str, list[str]]:
    """Return the command of each process, by name."""
    python, root = sys.executable, settings.root
    database = f"sqlite:///{root}/mlruns/mlflow.db" if "://" not in settings.mlflow_url else settings.mlflow_url
    return {
        "prefect": ["prefect", "server", "start", "--host", HOST, "--port", str(ports.prefect)],
        "mlflow": [
            *(python, "-m", "mlflow", "server", "--host", HOST, "--port", str(ports.mlflow), "--workers", "1"),
            *("--backend-store-uri", database, "--artifacts-destination", str(root / "mlruns" / "artifacts")),
            *("--uvicorn-opts", "--log-level warning"),  # else a line for each request
        ],
        "server": ["homeostat", "serve", "--host", HOST, "--port", str(ports.server)],
        "gateway": ["homeostat", "gateway", "--host", HOST, "--port", str(ports.gateway)],
        "worker": [python, "-m", "deployments.worker"],
    }


def wait_ready(ports: Ports, seconds: float, alive: Callable[[], bool] = lambda: True) -> list[str]:
    """Wait until every server answers and the worker is online, or the stack is no longer alive.

    Returns the names that do not answer.
    """
    probes = {
        "prefect": f"{ports.urls['prefect']}/api/health",
        "mlflow": f"{ports.urls['mlflow']}/health",
        "server": f"{ports.urls['server']}/v2/health/live",
        "gateway": f"{ports.urls['gateway']}/health",
    }
    deadline = time.monotonic() + seconds
    began = datetime.now(UTC) - timedelta(seconds=30)  # a worker of an earlier stack may still count as online
    waiting = set(probes) | {"worker"}
    with httpx.Client(timeout=2, trust_env=False) as client:
        while waiting and alive() and time.monotonic() < deadline:
            for name in sorted(waiting):
                try:
                    if name == "worker":
                        found = client.post(f"{ports.urls['prefect']}/api/work_pools/homeostat/workers/filter", json={})
                        up = found.is_success and any(
                            datetime.fromisoformat(worker["last_heartbeat_time"]) > began for worker in found.json()
                        )
                    else:
                        up = client.get(probes[name]).is_success
                except httpx.TransportError:
                    up = False
                if up:
                    waiting.discard(name)
            time.sleep(0.2)
    return sorted(waiting)


def _announce(ports: Ports, shared: dict[str, str], root: Path) -> None:
    """Say that everything answers, and repair what a crash has left between the control store and MLflow."""
    late = wait_ready(ports, 180)
    if late:
        click.echo(f"not ready after 180 s: {', '.join(late)}; see the lines above", err=True)
        return
    click.echo(f"{READY}: " + "  ".join(f"{name} {url}" for name, url in ports.urls.items()) + f"  grpc {ports.grpc}")
    click.echo("prefect deployment run 'lifecycle/digits'  starts a life; Ctrl-C stops everything")
    done = subprocess.run(["homeostat", "reconcile"], env=shared, cwd=root, capture_output=True, text=True, check=False)
    repaired = [line for line in done.stdout.splitlines() if line.startswith("@")]
    for line in repaired if done.returncode == 0 else [done.stderr.strip()]:
        click.echo(f"reconcile: {line}", err=True)


def run_stack(ports: Ports, settings: Settings) -> int:
    """Run every process until a signal or until one ends; leave none behind; return the exit code."""
    (settings.root / "mlruns").mkdir(exist_ok=True)
    (settings.home / "prefect").mkdir(parents=True, exist_ok=True)
    shared = environment(ports, settings)
    manager = Manager(Printer(sys.stdout, colour=sys.stdout.isatty()))
    for name, command in commands(ports, settings).items():
        manager.add_process(name, shlex.join(["exec", *command]), env=shared, cwd=str(settings.root))
    threading.Thread(target=_announce, args=(ports, shared, settings.root), daemon=True).start()
    with _no_orphans():
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))  # the terminal was closed
        manager.loop()
    return int(manager.returncode or 0)


@contextmanager
def _no_orphans() -> Iterator[None]:
    """Remember every descendant while the block runs, flow runs too, and end those that outlive it."""
    family: dict[int, psutil.Process] = {}
    done = threading.Event()

    def remember() -> None:
        me = psutil.Process()
        while not done.wait(0.5):
            for child in me.children(recursive=True):
                family.setdefault(child.pid, child)

    threading.Thread(target=remember, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        family |= {child.pid: child for child in psutil.Process().children(recursive=True)}
        for stop in (psutil.Process.terminate, psutil.Process.kill):
            left = [process for process in list(family.values()) if process.is_running()]
            for process in left:
                with suppress(psutil.NoSuchProcess):  # it has just ended
                    stop(process)
            if not psutil.wait_procs(left, timeout=5)[1]:
                break


@click.command()
def main() -> None:
    """Run Prefect, MLflow, the model server, the gateway and a worker until Ctrl-C.

    HOMEOSTAT_PREFECT_PORT, HOMEOSTAT_MLFLOW_PORT, HOMEOSTAT_PORT, HOMEOSTAT_GRPC_PORT and
    HOMEOSTAT_GATEWAY_PORT choose other ports.
    """
    try:
        settings = local_settings()
        ports = choose_ports(take_free=False)
    except HomeostatError as error:
        raise click.ClickException(str(error)) from error
    code = run_stack(ports, settings)
    sys.exit(0 if code in (130, 143) else code)


if __name__ == "__main__":
    main()
