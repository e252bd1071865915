"""The server process: binds, wires repository, capture and data plane together, and runs until a signal."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib.util
import logging
import os
import signal
import socket
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from homeostat.bundle import load_public_key
from homeostat.errors import ConfigError
from homeostat.keys import load_salt
from homeostat.sealing import load_keyring
from homeostat.serving.access.authorization import Access
from homeostat.serving.access.exposure import check_exposure, make_tls, parse_host, read_certificate, trusted_proxies
from homeostat.serving.accesslog import AccessLog
from homeostat.serving.blackbox import Guard, Killers
from homeostat.serving.board import Board
from homeostat.serving.capture.recorder import Recorder, Retention
from homeostat.serving.dataplane import DataPlane
from homeostat.serving.gauges import Gauges
from homeostat.serving.grpc.listener import GrpcListener
from homeostat.serving.jsonlog import log_to_stderr
from homeostat.serving.metrics import Metrics
from homeostat.serving.observer import Observer
from homeostat.serving.operators import Operators
from homeostat.serving.post import Post
from homeostat.serving.repository import Repository
from homeostat.serving.rest.app import MAX_BODY, App
from homeostat.serving.rest.connection import Connection
from homeostat.serving.rest.connections import Connections, allow_connections
from homeostat.serving.rest.gate import Gate
from homeostat.serving.rest.observed import Observed
from homeostat.serving.rollout.controller import Rollouts
from homeostat.serving.tracing import Tracing
from homeostat.serving.tracing import connect as connect_traces
from homeostat.settings import Settings

if TYPE_CHECKING:
    from homeostat.control.store import ControlStore

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10
"""How long requests in flight may take after SIGTERM."""
KEEP_ALIVE_SECONDS = 75
RESTORE_SECONDS = 10
"""How long a worker that comes back may load before it answers for what it has."""
BACKLOG = 2048


class _Server(uvicorn.Server):  # type: ignore[misc]
    """uvicorn raises a signal again after it has drained; here a drained stop is a success, exit code 0."""

    should_exit: bool
    grpc: GrpcListener | None = None
    post: Post
    killers: Killers
    connections: Connections
    failure: BaseException | None = None
    """Why the server ended by itself."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        asyncio.get_running_loop().add_reader(self.post.control, self._leave)
        if self.grpc is not None:
            self.grpc.start().add_done_callback(self._started)
        else:
            self.post.ready()

    def _started(self, task: asyncio.Task[None]) -> None:
        self.failure = task.exception()
        if self.failure is None:
            self.post.ready()
        else:
            self.should_exit = True

    def _leave(self) -> None:
        """End when the supervisor has: nobody would end this process otherwise."""
        asyncio.get_running_loop().remove_reader(self.post.control)
        log.error("the supervisor is gone; draining")
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        self.post.box.beat()
        if counter % 10 == 0:
            self.killers.read()
            self.connections.sweep(asyncio.get_running_loop().time())
        stop: bool = await super().on_tick(counter)
        return stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drained = super().shutdown(sockets)
        await (asyncio.gather(drained, self.grpc.stop(DRAIN_SECONDS)) if self.grpc else drained)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del frame
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def _bind(host: str, port: int, variable: str, backlog: int = 0) -> socket.socket:
    """Return a bound socket, which listens if there is a backlog.

    Raises ConfigError when the host is no address or the port is taken.
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
            raise
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


def _connect(url: str) -> ControlStore:
    from homeostat.control.store import ControlStore  # in the thread: the server answers before SQLAlchemy is loaded

    return ControlStore(url)


def _bind_all(settings: Settings) -> list[socket.socket]:
    rest = _bind(settings.host, settings.port, "HOMEOSTAT_PORT", BACKLOG)
    grpc = _bind_grpc(settings)
    return [rest] if grpc is None else [rest, grpc]


def serve(settings: Settings, post: Post) -> None:
    """Serve until SIGTERM or SIGINT, then drain; raises ConfigError when it cannot bind."""
    log_to_stderr()
    proxies = trusted_proxies(settings)
    access = Access(settings, open_metrics=parse_host(settings.host).is_loopback and not proxies)
    check_exposure(settings, authenticated=access.required)
    tls, certificate = make_tls(settings), read_certificate(settings)
    place = settings.home / "serving" / "workers" / "killers.json"
    killers = Killers(place)
    killers.read()
    listening = post.listening or _bind_all(settings)
    bound, bound_grpc = listening[0], listening[1] if len(listening) > 1 else None
    if not post.listening:
        post.announce(listening, settings.workers, place)
    http_connections, grpc_connections = allow_connections(settings.max_connections, grpc=bound_grpc is not None)
    connections = Connections(http_connections)
    metrics = Metrics()
    recorder = Recorder(
        settings.traffic_path,
        key=load_keyring(settings).current,
        retention=Retention(settings.traffic_days, settings.traffic_gigabytes * 1e9),
    )
    repository = Repository(
        connect=lambda: _connect(settings.control_url),
        public_key=lambda: load_public_key(settings.home),
        folder=settings.home / "serving",
        metrics=metrics,
        salt=lambda: load_salt(settings.home),
    )
    plane = DataPlane(repository, recorder, metrics, Guard(post.box, killers))
    rollouts = Rollouts(plane, lambda: _connect(settings.control_url), settings.home / "serving", slot=post.index)
    access_log = AccessLog() if settings.access_log else None
    tracing = Tracing(connect_traces()) if settings.traces else None
    observer = Observer(access_log, tracing) if access_log or tracing else None
    operators = Operators(lambda: _connect(settings.control_url), settings.home, repository.poke)
    app = App(plane, crowded=connections.crowded, asked=access.asked, operators=operators)
    gate = Gate(app, access, metrics.refuse)
    config = uvicorn.Config(
        Observed(gate, observer) if observer else gate,
        http=partial(Connection, connections),
        loop="uvloop",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config)
    server.post, server.killers, server.connections = post, killers, connections
    metrics.add(Gauges(plane, connections, lambda: len(server.server_state.tasks), access_log))
    if bound_grpc:
        server.grpc = GrpcListener(
            plane, access, bound_grpc, MAX_BODY, certificate, observer, max_connections=grpc_connections
        )
    config.load()
    config.ssl = tls
    if access_log is not None:
        access_log.start()
    recorder.start()
    if settings.workers > 1:
        plane.board = Board(place.parent, post.index, lambda: list(repository.models.values()), metrics.render)
        plane.board.start(first=not post.listening)
        repository.changed = plane.board.publish
    repository.start()
    rollouts.start()
    if post.listening:  # the others answer meanwhile, or clients wait in the socket: better than a 404
        repository.wait_restored(RESTORE_SECONDS)
    gc.collect()
    gc.freeze()  # what is loaded by now stays: the collector need not walk it under traffic
    host, port = bound.getsockname()[:2]
    asked = "a key is asked for" if access.required else "open"
    log.info("listening on %s://%s:%d, process %d; %s", "https" if tls else "http", host, port, os.getpid(), asked)
    try:
        server.run(sockets=[bound])
    finally:
        operators.close()
        rollouts.close()
        repository.close()
        plane.close()
        recorder.close()
        if plane.board is not None:
            plane.board.close()
        if tracing is not None:
            tracing.close()
        if access_log is not None:
            access_log.close()
        log.info(
            "stopped; %d captured = %d written + %d duplicates + %d dropped",
            recorder.captured,
            recorder.written,
            recorder.duplicates,
            recorder.dropped,
        )
    if server.failure is not None:
        raise server.failure
