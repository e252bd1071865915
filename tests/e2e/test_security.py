"""A server with keys and mutual TLS over REST and gRPC; off loopback there is no other."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest

from tests.certificates import Authority

pytestmark = pytest.mark.e2e


@dataclass
class Secured:
    """A running server: its ports, and what a client needs."""

    home: Path
    authority: Authority
    rest: int
    grpc: int
    log: Path


def message(log: Path, text: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if text in line:
                return str(json.loads(line)["message"])
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"no {text!r} in {log.read_text()}")


def command(home: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "homeostat.cli", *words],
        env={**os.environ, "HOMEOSTAT_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.splitlines()[0]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server with mutual TLS and one key; stopped by its pid."""
    home = tmp_path_factory.mktemp("secured")
    authority = Authority(home / "ca")
    certificate, key = authority.sign("server")
    command(home, "key", "create", "first", "--scope", "admin")
    places = {
        "HOMEOSTAT_HOME": home,
        "HOMEOSTAT_PORT": 0,
        "HOMEOSTAT_GRPC_PORT": 0,
        "HOMEOSTAT_TLS_CERTIFICATE": certificate,
        "HOMEOSTAT_TLS_KEY": key,
        "HOMEOSTAT_TLS_CLIENT_CA": authority.certificate,
    }
    log = home / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "homeostat.serving"],
            env={**os.environ, **{name: str(value) for name, value in places.items()}},
            stderr=out,
        )
    try:
        rest = message(log, "listening on https", process).split(":")[2].split(",")[0]
        rpc = message(log, "gRPC answers on", process).rpartition(":")[2]
        yield Secured(home, authority, int(rest), int(rpc), log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def context(secured: Secured, name: str = "") -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(secured.authority.certificate))
    if name:
        made.load_cert_chain(*secured.authority.sign(name))
    return made


def get(secured: Secured, tls: ssl.SSLContext, path: str, key: str = "") -> httpx.Response:
    headers = {"X-API-Key": key} if key else {}
    with httpx.Client(verify=tls, trust_env=False, timeout=10) as client:
        return client.get(f"https://127.0.0.1:{secured.rest}{path}", headers=headers)


def test_rest_wants_a_certificate_and_a_key(secured: Secured) -> None:
    key = command(secured.home, "key", "create", "asks")
    time.sleep(1.1)  # a new key is in force within a second
    known = context(secured, "client")
    assert get(secured, known, "/v2/health/live").status_code == 200
    assert get(secured, known, "/v2").status_code == 401
    assert get(secured, known, "/v2", key).status_code == 200
    for stranger in (context(secured), ssl.create_default_context()):
        with pytest.raises(httpx.TransportError):
            get(secured, stranger, "/v2/health/live")
    with pytest.raises(httpx.TransportError), httpx.Client(trust_env=False) as client:
        client.get(f"http://127.0.0.1:{secured.rest}/v2/health/live")
    record = json.loads((secured.home / "keys.json").read_text())
    assert key not in json.dumps(record)
    assert key not in secured.log.read_text()
    identity = next(one["id"] for one in record["keys"] if one["name"] == "asks")
    command(secured.home, "key", "revoke", identity)
    time.sleep(1.1)
    assert get(secured, known, "/v2", key).status_code == 401


def test_grpc_wants_both_too(secured: Secured) -> None:
    certificate, key = secured.authority.sign("rpc")
    root = secured.authority.certificate.read_bytes()
    with_certificate = grpc.ssl_channel_credentials(root, key.read_bytes(), certificate.read_bytes())

    def call(credentials: grpc.ChannelCredentials, method: str) -> str:
        with grpc.secure_channel(f"127.0.0.1:{secured.grpc}", credentials) as channel:
            ask = channel.unary_unary(f"/inference.GRPCInferenceService/{method}", None, None)
            try:
                ask(b"", timeout=5)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    assert call(with_certificate, "ServerLive") == "OK"
    assert call(with_certificate, "ServerMetadata") == "UNAUTHENTICATED"
    assert call(grpc.ssl_channel_credentials(root), "ServerLive") == "UNAVAILABLE"


@pytest.mark.parametrize("keys", [False, True])
def test_off_loopback_without_keys_and_tls_it_does_not_start(tmp_path: Path, keys: bool) -> None:
    if keys:
        command(tmp_path, "key", "create", "one")
    done = subprocess.run(
        [sys.executable, "-m", "homeostat.serving"],
        env={**os.environ, "HOMEOSTAT_HOME": str(tmp_path), "HOMEOSTAT_PORT": "0", "HOMEOSTAT_HOST": "0.0.0.0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert ("HOMEOSTAT_TLS_CERTIFICATE" if keys else "homeostat key create") in done.stderr
