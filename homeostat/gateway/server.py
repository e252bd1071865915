"""The gateway's process: reads gateway.toml and the secrets, binds, and runs until a signal."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from homeostat.control.deliveries import Deliveries
from homeostat.control.store import ControlStore
from homeostat.errors import ConfigError
from homeostat.gateway.app import Gateway, Sender
from homeostat.gateway.config import GatewayConfig, load_gateway, read_address, read_keys, read_secret
from homeostat.gateway.dispatcher import Dispatcher
from homeostat.gateway.notices import (
    PREFECTS,
    AppriseSender,
    Follower,
    NoticeRefused,
    Notifier,
    PrefectSender,
    WebhookSender,
)
from homeostat.gateway.prefect import Prefect
from homeostat.gateway.signatures import PERMANENT
from homeostat.settings import Settings

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10
MAX_CONNECTIONS = 200
HEAD_SECONDS = 10.0
"""How long the head of a request may take to come."""
PREFECT = "prefect"
"""The target that is always there."""


class _Connection(H11Protocol):  # type: ignore[misc]
    """A connection for one request, whose head must come soon; h11 keeps it to 64 KiB."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._close_without_a_request)

    def _close_without_a_request(self) -> None:
        if self.cycle is None:
            self.transport.close()


class _Server(uvicorn.Server):  # type: ignore[misc]
    """uvicorn raises a signal again after it has drained; here a drained stop is a success."""

    should_exit: bool

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del frame
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def leave(self) -> None:
        """End, as a signal would."""
        self.should_exit = True


class Work(threading.Thread):
    """A thread without which the gateway would be a trap: it would take webhooks, and do nothing with them."""

    def __init__(self, run: Callable[[], None], stop: Callable[[], None], failed: Callable[[], None]) -> None:
        """Do not begin yet. failed: called when `run` raises; stop: what lets it return."""
        super().__init__(daemon=True)
        self._run, self.stop, self._failed = run, stop, failed
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Do the work; what it raises is kept, and ends the gateway."""
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - it is not swallowed: `serve` raises it again
            self.failure = error
            self._failed()


def serve(settings: Settings, file: Path, prefect_url: str, environ: Mapping[str, str] = os.environ) -> None:
    """Run until SIGINT or SIGTERM; raises ConfigError for what is wrong in the file, a secret or the address."""
    config = load_gateway(file)
    senders = {name: Sender(source, read_keys(name, source.form, environ)) for name, source in config.sources.items()}
    user, _, password = read_secret("PREFECT_API_AUTH_STRING", environ).partition(":")
    prefect = Prefect(prefect_url, auth=(user, password) if user else None)
    followers = _followers(config, prefect, environ)
    store, deliveries = ControlStore(settings.control_url), Deliveries(settings.control_url)
    give_up = timedelta(hours=config.give_up_hours)
    permanent = tuple(name for name, source in config.sources.items() if source.form in PERMANENT)
    dispatcher = Dispatcher(deliveries, prefect, give_up, permanent)
    notifier = Notifier(store, deliveries, followers, give_up.total_seconds())
    gateway = Gateway(senders, deliveries, store, prefect, max_body=config.max_body_bytes, wake=dispatcher.wake)
    bound = _bind(settings)
    log.info(
        "on http://%s:%d, Prefect at %s; webhooks of: %s; told: %s",
        *bound.getsockname()[:2],
        prefect.url,
        ", ".join(senders) or f"nobody ({file} has no sources)",
        ", ".join(follower.name for follower in followers),
    )
    server = _Server(_uvicorn(gateway, settings))
    works = [Work(one.run, one.stop, server.leave) for one in (dispatcher, notifier)]
    for work in works:
        work.start()
    try:
        server.run([bound])
    finally:
        for work in works:
            work.stop()
        for work in works:
            work.join(DRAIN_SECONDS)
        prefect.close()
        bound.close()
    for work in works:
        if work.failure is not None:
            raise work.failure


def _followers(config: GatewayConfig, prefect: Prefect, environ: Mapping[str, str]) -> list[Follower]:
    found = [Follower(PREFECT, PREFECTS, (), PrefectSender(prefect))]
    for name, target in config.targets.items():
        if name == PREFECT:
            raise ConfigError(f"targets.{name}: Prefect is told by itself; choose another name")
        address = read_address(name, environ)
        try:
            send = (
                AppriseSender(address)
                if target.form == "apprise"
                else WebhookSender(address, read_keys(name, "standard", environ)[0])
            )
        except NoticeRefused as error:
            raise ConfigError(f"HOMEOSTAT_NOTICE_{name.upper()}_URL: {error}") from error
        found.append(Follower(name, target.on, target.models, send))
    return found


def _uvicorn(gateway: Gateway, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        gateway.app(),
        http=_Connection,
        headers=[("connection", "close")],
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        proxy_headers=bool(settings.behind_proxy),
        forwarded_allow_ips=settings.behind_proxy or None,
    )


def _bind(settings: Settings) -> socket.socket:
    host, port = settings.gateway_host, settings.gateway_port
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise ConfigError(f"HOMEOSTAT_GATEWAY_HOST={host!r} is not an IP address; use 127.0.0.1") from error
    if not address.is_loopback and not settings.behind_proxy:
        raise ConfigError(
            f"HOMEOSTAT_GATEWAY_HOST={host}: webhooks would cross the network unencrypted; let a proxy end TLS, and "
            "set HOMEOSTAT_BEHIND_PROXY to its address; or use 127.0.0.1"
        )
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        return socket.create_server((str(address), port), family=family, backlog=128)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
        raise ConfigError(f"port {port} on {address} {why}; set HOMEOSTAT_GATEWAY_PORT to another one") from error
