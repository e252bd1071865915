"""The sockets that a server listens on: REST, and gRPC where it is installed."""

from __future__ import annotations

import errno
import importlib.util
import logging
import socket

from homeostat.errors import ConfigError
from homeostat.serving.access.exposure import parse_host
from homeostat.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048


def bind_all(settings: Settings) -> list[socket.socket]:
    """Return the socket of REST, which listens, and the one that keeps the gRPC port, if gRPC is installed.

    Raises ConfigError when a host is no address or a port is taken.
    """
    rest = _bind(settings.host, settings.port, "HOMEOSTAT_PORT", BACKLOG)
    grpc = _bind_grpc(settings)
    return [rest] if grpc is None else [rest, grpc]


def _bind(host: str, port: int, variable: str, backlog: int = 0) -> socket.socket:
    """Return a bound socket, which listens if there is a backlog.

    Raises ConfigError when the host is no address, or none of this machine, or the port cannot be had.
    """
    address = parse_host(host)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((str(address), port))
        if backlog:
            bound.listen(backlog)
    except OSError as error:
        bound.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(
                f"HOMEOSTAT_HOST={host}: {error.strerror}; use an address of this machine, or 0.0.0.0 for all"
            ) from error
        why = "is taken" if error.errno == errno.EADDRINUSE else "is not open to this user"
        raise ConfigError(f"port {port} on {address} {why}; set {variable} to another one") from error
    return bound


def _bind_grpc(settings: Settings) -> socket.socket | None:
    """Return the socket that keeps the gRPC port, or None when gRPC is not installed; raises ConfigError."""
    if importlib.util.find_spec("grpc") is not None:
        return _bind(settings.host, settings.grpc_port, "HOMEOSTAT_GRPC_PORT")
    if "grpc_port" in settings.model_fields_set:
        raise ConfigError("HOMEOSTAT_GRPC_PORT is set, but gRPC is not installed: pip install 'homeostat[serve,grpc]'")
    log.info("gRPC is not installed, REST alone answers: pip install 'homeostat[serve,grpc]'")
    return None
