"""The server process: binds, wires repository, capture and data plane together, and runs until a signal."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from homeostat.bundle import load_public_key
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
from homeostat.serving.listening import BACKLOG, bind_all
from homeostat.serving.metrics import Metrics
from homeostat.serving.observer import Observer
from homeostat.serving.occupancy import occupy
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


def _connect(url: str) -> ControlStore:
    from homeostat.control.store import ControlStore  # in the thread: the server answers before SQLAlchemy is loaded

    return ControlStore(url)


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
    lock = None if post.listening else occupy(settings.home)
    listening = post.listening or bind_all(settings)
    if not post.listening:
        post.announce(listening, settings.workers, place, lock)
    bound, bound_grpc = listening[0], listening[1] if len(listening) > 1 else None
    http_connections, grpc_connections = allow_connections(settings.max_connections, grpc=bound_grpc is not None)
    connections = Connections(http_connections)
    with ExitStack() as closing:
        observer, access_log = _observe(settings, closing)
        plane = _plane(settings, Guard(post.box, killers))
        rollouts = Rollouts(plane, lambda: _connect(settings.control_url), settings.home / "serving", slot=post.index)
        operators = Operators(lambda: _connect(settings.control_url), settings.home, plane.repository.poke)
        app = App(plane, crowded=connections.crowded, asked=access.asked, operators=operators)
        gate = Gate(app, access, plane.metrics.refuse)
        config = _configure(Observed(gate, observer) if observer else gate, connections, proxies, tls)
        server = _Server(config)
        server.post, server.killers, server.connections = post, killers, connections
        plane.metrics.add(Gauges(plane, connections, lambda: len(server.server_state.tasks), access_log))
        if bound_grpc:
            server.grpc = GrpcListener(
                plane, access, bound_grpc, MAX_BODY, certificate, observer, max_connections=grpc_connections
            )
        _start(plane, settings, post, place.parent, closing)
        rollouts.start()
        closing.callback(rollouts.close)
        closing.callback(operators.close)
        if post.listening:  # the others answer meanwhile, or clients wait in the socket: better than a 404
            plane.repository.wait_restored(RESTORE_SECONDS)
        gc.collect()
        gc.freeze()  # what is loaded by now stays: the collector need not walk it under traffic
        host, port = bound.getsockname()[:2]
        asked = "a key is asked for" if access.required else "open"
        log.info("listening on %s://%s:%d, process %d; %s", "https" if tls else "http", host, port, os.getpid(), asked)
        server.run(sockets=[bound])
    if server.failure is not None:
        raise server.failure


def _observe(settings: Settings, closing: ExitStack) -> tuple[Observer | None, AccessLog | None]:
    """Return who writes down requests, if anyone is to."""
    access_log = AccessLog() if settings.access_log else None
    if access_log is not None:
        access_log.start()
        closing.callback(access_log.close)
    tracing = Tracing(connect_traces()) if settings.traces else None
    if tracing is not None:
        closing.callback(tracing.close)
    return Observer(access_log, tracing) if access_log or tracing else None, access_log


def _plane(settings: Settings, guard: Guard) -> DataPlane:
    """Return the data plane over its repository and its capture, which do not run yet."""
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
    return DataPlane(repository, recorder, metrics, guard)


def _configure(
    app: Callable[..., Any], connections: Connections, proxies: list[str], tls: ssl.SSLContext | None
) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
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
    config.load()
    config.ssl = tls
    return config


def _start(plane: DataPlane, settings: Settings, post: Post, folder: Path, closing: ExitStack) -> None:
    """Let capture and repository run; several workers tell each other through a folder what they have."""
    repository = plane.repository
    plane.recorder.start()
    if settings.workers > 1:
        plane.board = Board(folder, post.index, lambda: list(repository.models.values()), plane.metrics.render)
        plane.board.start(first=not post.listening)
        repository.changed = plane.board.publish
    repository.start()
    closing.callback(_close, plane)


def _close(plane: DataPlane) -> None:
    """End what answers, then what it has captured, and say what became of that."""
    recorder = plane.recorder
    plane.repository.close()
    plane.close()
    recorder.close()
    if plane.board is not None:
        plane.board.close()
    log.info(
        "stopped; %d captured = %d written + %d duplicates + %d dropped",
        recorder.captured,
        recorder.written,
        recorder.duplicates,
        recorder.dropped,
    )
