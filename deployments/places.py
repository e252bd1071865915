"""Ports, URLs and the environment that every process of the stack is given."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from homeostat.errors import ConfigError
from homeostat.settings import Settings, load_settings

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """One port for each server, and a second one for the model server's gRPC; all on loopback."""

    prefect: int
    mlflow: int
    server: int
    grpc: int
    gateway: int

    @property
    def urls(self) -> dict[str, str]:
        """Return what a person opens, by name."""
        return {
            "prefect": f"http://{HOST}:{self.prefect}",
            "mlflow": f"http://{HOST}:{self.mlflow}",
            "server": f"http://{HOST}:{self.server}",
            "gateway": f"http://{HOST}:{self.gateway}",
        }


_VARIABLES = {
    "prefect": ("HOMEOSTAT_PREFECT_PORT", 4200),
    "mlflow": ("HOMEOSTAT_MLFLOW_PORT", 5000),
    "server": ("HOMEOSTAT_PORT", 8080),
    "grpc": ("HOMEOSTAT_GRPC_PORT", 8081),
    "gateway": ("HOMEOSTAT_GATEWAY_PORT", 8090),
}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def choose_ports(*, take_free: bool) -> Ports:
    """Read the ports from the environment; a busy one is replaced if `take_free`, else a ConfigError."""
    chosen: dict[str, int] = {}
    busy: list[str] = []
    for name, (variable, default) in _VARIABLES.items():
        text = os.environ.get(variable, str(default))
        if not text.isdigit() or not 0 < int(text) < 65536:
            raise ConfigError(f"{variable}={text!r} is not a port (1 to 65535)")
        port = int(text)
        same = next((other for other, taken in chosen.items() if taken == port), None)
        if same is not None:
            raise ConfigError(f"port {port} is given to both {same} and {name}; set {variable} to another one")
        if not _is_free(port):
            busy.append(name)
            port = _any_free_port() if take_free else port
        chosen[name] = port
    if busy and not take_free:
        raise ConfigError(_advise(chosen, busy))
    return Ports(**chosen)


def _advise(chosen: dict[str, int], busy: list[str]) -> str:
    """Say which ports are in use, and give one command that works."""
    taken, ports = set(chosen.values()), dict(chosen)
    for name in busy:
        ports[name] = next(port for port in count(chosen[name] + 1) if port not in taken and _is_free(port))
        taken.add(ports[name])
    asked = [f"{variable}={ports[name]}" for name, (variable, default) in _VARIABLES.items() if ports[name] != default]
    found = ", ".join(f"port {chosen[name]} ({name})" for name in busy)
    return f"in use: {found}; stop what listens there (ss -ltnp), or choose others: {' '.join(asked)} make up"


def environment(ports: Ports, settings: Settings) -> dict[str, str]:
    """Return the environment of every process: absolute places, local URLs, no telemetry."""
    urls = ports.urls
    binaries = str(Path(sys.executable).parent)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "HOMEOSTAT_ROOT": str(settings.root),
        "HOMEOSTAT_HOME": str(settings.home),
        "HOMEOSTAT_MLFLOW_URL": urls["mlflow"],
        "HOMEOSTAT_SERVER_URL": urls["server"],
        "HOMEOSTAT_PORT": str(ports.server),
        "HOMEOSTAT_GRPC_PORT": str(ports.grpc),
        "HOMEOSTAT_GATEWAY_PORT": str(ports.gateway),
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_PROFILES_PATH": str(settings.home / "prefect" / "profiles.toml"),
        "PREFECT_API_URL": f"{urls['prefect']}/api",
        "PREFECT_UI_URL": urls["prefect"],
        "PREFECT_LOCAL_STORAGE_PATH": str(settings.home / "prefect" / "storage"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_COLORS": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_TRACKING_URI": urls["mlflow"],
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def local_settings() -> Settings:
    """Return the settings of this checkout, whichever folder the command is given in."""
    here = Path(__file__).resolve().parent.parent
    return load_settings(root=os.environ.get("HOMEOSTAT_ROOT", str(here)))
