"""Listens for gRPC beside REST: takes the port at once, and starts the server when its libraries are imported."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from homeostat.errors import ConfigError
from homeostat.serving.access.authorization import Access
from homeostat.serving.access.exposure import Certificate
from homeostat.serving.dataplane import DataPlane
from homeostat.serving.observer import Observer
from homeostat.serving.rest.connections import GRPC_CONNECTIONS

log = logging.getLogger(__name__)


class GrpcListener:
    """A gRPC server on a port that is already bound.

    Importing grpc takes a good part of what starting REST takes: it is done in a thread while
    REST answers. The bound socket, which does not listen, keeps the port until then.
    """

    def __init__(
        self,
        plane: DataPlane,
        access: Access,
        bound: socket.socket,
        max_message: int,
        certificate: Certificate | None = None,
        observer: Observer | None = None,
        *,
        max_connections: int = GRPC_CONNECTIONS,
    ) -> None:
        self._plane, self._access, self._bound = plane, access, bound
        self._max_message, self._certificate, self._observer = max_message, certificate, observer
        self._max_connections = max_connections
        self._server: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to start in the running event loop; the task raises ConfigError when the port was taken meanwhile."""
        self._task = asyncio.create_task(self._start())
        return self._task

    async def _start(self) -> None:
        host, port = self._bound.getsockname()[:2]
        start = await asyncio.to_thread(_import)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self._server = await start(
                self._plane,
                self._access,
                address,
                self._max_message,
                self._certificate,
                self._observer,
                max_connections=self._max_connections,
            )
        except RuntimeError as error:
            raise ConfigError(f"port {port} on {host} is taken; set HOMEOSTAT_GRPC_PORT to another one") from error
        finally:
            self._bound.close()
        log.info("gRPC answers on %s", address)

    async def stop(self, seconds: float) -> None:
        """Take no further calls, and wait for those in flight, at most `seconds`."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._server is not None:
            await self._server.stop(seconds)


def _import() -> Any:
    from homeostat.serving.grpc.server import start

    return start
