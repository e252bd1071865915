"""The gateway's process: a thread that fails ends it, and what it may not bind to is one message."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from homeostat.errors import ConfigError
from homeostat.gateway.dispatcher import Dispatcher
from homeostat.gateway.server import serve
from homeostat.settings import Settings, load_settings
from tests.conftest import free_port

NOWHERE = "http://127.0.0.1:9/api"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("GATEWAY_HOST", "BEHIND_PROXY", "CONTROL_URL"):
        monkeypatch.delenv(f"HOMEOSTAT_{name}", raising=False)
    return load_settings(home=tmp_path, gateway_port=free_port())


def run(settings: Settings, tmp_path: Path) -> None:
    serve(settings, tmp_path / "gateway.toml", NOWHERE, {})


@pytest.mark.timeout(30)
def test_a_thread_that_fails_ends_the_gateway(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise KeyError("id")

    monkeypatch.setattr(Dispatcher, "dispatch", broken)
    with pytest.raises(KeyError, match="id"):
        run(settings, tmp_path)
    with socket.create_server(("127.0.0.1", settings.gateway_port)):
        pass  # it has let go of its port


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gateway_host": "0.0.0.0"}, "set HOMEOSTAT_BEHIND_PROXY"),
        ({"gateway_host": "gateway.example.org"}, "is not an IP address"),
        ({"gateway_host": "203.0.113.9", "behind_proxy": "127.0.0.1"}, "cannot be had"),
    ],
)
def test_addresses_that_it_does_not_bind_to(
    settings: Settings, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(settings.model_copy(update=change), tmp_path)


def test_a_port_that_is_taken(settings: Settings, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", settings.gateway_port)),
        pytest.raises(
            ConfigError, match=f"port {settings.gateway_port} on 127.0.0.1 is taken; set HOMEOSTAT_GATEWAY_PORT"
        ),
    ):
        run(settings, tmp_path)
