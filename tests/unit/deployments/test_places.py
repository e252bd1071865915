"""Ports: which are taken, and one command that works."""

import re
import socket
from contextlib import ExitStack

import pytest

from deployments.places import choose_ports
from homeostat.errors import ConfigError

VARIABLES = (
    "HOMEOSTAT_PREFECT_PORT",
    "HOMEOSTAT_MLFLOW_PORT",
    "HOMEOSTAT_PORT",
    "HOMEOSTAT_GRPC_PORT",
    "HOMEOSTAT_GATEWAY_PORT",
)


@pytest.fixture
def taken(monkeypatch):
    """Five ports, of which somebody else listens at the last three."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in VARIABLES]
        ports = [one.getsockname()[1] for one in sockets]
        for variable, port in zip(VARIABLES, ports, strict=True):
            monkeypatch.setenv(variable, str(port))
        for one in sockets[:2]:
            one.close()
        yield ports


def test_every_taken_port_is_named_and_the_command_works(taken, monkeypatch):
    with pytest.raises(ConfigError) as caught:
        choose_ports(take_free=False)
    text = str(caught.value)
    assert f"port {taken[2]} (server), port {taken[3]} (grpc), port {taken[4]} (gateway)" in text
    advice = dict(re.findall(r"(HOMEOSTAT_\w+)=(\d+)", text))
    assert advice.keys() == set(VARIABLES)
    assert len(set(advice.values())) == 5
    for variable, port in advice.items():
        monkeypatch.setenv(variable, port)
    ports = choose_ports(take_free=False)
    assert (str(ports.prefect), str(ports.mlflow)) == (str(taken[0]), str(taken[1]))


def test_make_run_takes_free_ones(taken):
    ports = choose_ports(take_free=True)
    assert (ports.prefect, ports.mlflow) == tuple(taken[:2])
    assert {ports.server, ports.grpc, ports.gateway}.isdisjoint(taken)


def test_two_servers_at_one_port_are_refused(taken, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_MLFLOW_PORT", str(taken[0]))
    with pytest.raises(ConfigError, match=rf"port {taken[0]} is given to both prefect and mlflow.*HOMEOSTAT_MLFLOW"):
        choose_ports(take_free=False)
