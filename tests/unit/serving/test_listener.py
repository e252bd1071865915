"""The gRPC port between the server's start and gRPC's."""

from __future__ import annotations

import asyncio
import socket

import pytest

from homeostat.errors import ConfigError
from homeostat.serving.access.authorization import Access
from homeostat.serving.grpc.listener import GrpcListener
from homeostat.serving.listening import bind_all
from homeostat.settings import Settings


def shared() -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def test_a_port_taken_while_grpc_is_imported_is_an_error(zoo) -> None:
    """The bound socket keeps the port from all but those who ask to share it, and then listen first."""

    async def start() -> None:
        listener = GrpcListener(zoo.plane, Access(Settings(home=zoo.home), open_metrics=True), bound, 1024)
        try:
            await listener.start()
        finally:
            await listener.stop(0)

    with shared() as bound, shared() as thief:
        bound.bind(("127.0.0.1", 0))
        thief.bind(bound.getsockname())
        thief.listen()
        with pytest.raises(ConfigError, match="HOMEOSTAT_GRPC_PORT"):
            asyncio.run(start())
        assert bound.fileno() == -1


def test_stop_ends_a_server_that_is_still_starting(zoo) -> None:
    async def start_and_stop() -> None:
        listener = GrpcListener(zoo.plane, Access(Settings(home=zoo.home), open_metrics=True), bound, 1024)
        task = listener.start()
        await listener.stop(1)
        assert task.done()

    with shared() as bound:
        bound.bind(("127.0.0.1", 0))
        place = bound.getsockname()
        asyncio.run(start_and_stop())
    with shared() as again:
        again.bind(place)
        again.listen()


def test_an_address_of_another_machine_is_an_error_that_names_the_setting(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"HOMEOSTAT_HOST=203\.0\.113\.1: Cannot assign .*an address of this machine"):
        bind_all(Settings(home=tmp_path, host="203.0.113.1", port=0))
