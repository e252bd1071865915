"""The examples for proxies, systemd and containers before and around a real server, as far as their tools are here."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest

from homeostat.apikeys import FILE, create_key
from homeostat.serving.protos import message
from tests.certificates import Authority
from tests.conftest import ROOT, free_port
from tests.e2e.test_server import BODY, COMMAND, Server, children
from tests.programs import installed

pytestmark = pytest.mark.e2e

DEPLOYMENTS = ROOT / "deployments"
INFER = "/v2/models/toy/infer"
NGINX = """daemon off; {user} pid {folder}/nginx.pid; error_log stderr; worker_processes 1;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/homeostat.conf;
}}
"""
CADDY = """{{
    admin off
    auto_https disable_redirects
    storage file_system {folder}/caddy
"""
BURST = 40
"""Requests of one key at once: more than the tests before the last one send."""
ELSEWHERE = "127.0.0.2"
"""Where the client comes from: not from the address that the proxy has."""


@dataclass
class Proxied:
    """A server, the proxy before it, and a key."""

    server: Server
    port: int
    key: str
    client_id: str
    client: httpx.Client
    authority: Path


def replaced(name: str, *changes: tuple[str, str]) -> str:
    """The example's text with this machine's places."""
    text = (DEPLOYMENTS / "proxy" / name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def nginx_version() -> tuple[int, ...]:
    told = subprocess.run(["nginx", "-v"], capture_output=True, text=True, timeout=20).stderr
    return tuple(map(int, re.findall(r"\d+", told.split("/")[1])[:3]))


def nginx_commands(folder: Path, config: str) -> tuple[list[str], list[str]]:
    (folder / "homeostat.conf").write_text(config)
    main = folder / "nginx.conf"
    main.write_text(NGINX.format(folder=folder, user="user root;" if os.geteuid() == 0 else ""))
    command = ["nginx", "-p", str(folder), "-c", str(main)]
    return [*command, "-t"], command


def caddy_commands(folder: Path, config: str) -> tuple[list[str], list[str]]:
    file = folder / "Caddyfile"
    file.write_text(config)
    arguments = ["--adapter", "caddyfile", "--config", str(file)]
    return ["caddy", "validate", *arguments], ["caddy", "run", *arguments]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("nginx", marks=installed("nginx")),
        pytest.param("caddy", marks=installed("caddy")),
    ],
)
def proxied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp(request.param)
    home = folder / "home"
    key, record = create_key(home / FILE, "web", ["infer"])
    limits = {"HOMEOSTAT_RATE_LIMIT": "1", "HOMEOSTAT_RATE_BURST": str(BURST)}
    server = Server(home, HOMEOSTAT_BEHIND_PROXY="127.0.0.1", HOMEOSTAT_ACCESS_LOG="true", **limits)
    authority = Authority(folder / "certificates")
    certificate, private = authority.sign("proxy")
    port = free_port()
    proxy = None
    try:
        grpc_port = str(server.wait(lambda: server.line("gRPC answers on"))).rpartition(":")[2]
        server.promote(1)
        upstreams = ("127.0.0.1:8080", f"127.0.0.1:{server.port}"), ("127.0.0.1:8081", f"127.0.0.1:{grpc_port}")
        if request.param == "nginx":
            listen = ("listen 443", f"listen 127.0.0.1:{port}"), ("/etc/homeostat/tls.pem", str(certificate))
            config = replaced("nginx.conf", *upstreams, *listen, ("/etc/homeostat/tls.key", str(private)))
            if nginx_version() >= (1, 25, 1):
                config = config.replace("ssl http2;", "ssl; http2 on;", 1)
            check, run = nginx_commands(folder, config)
        else:
            site = f"https://127.0.0.1:{port} {{\n\ttls {certificate} {private}"
            options = ("\n{\n", "\n" + CADDY.format(folder=folder))
            check, run = caddy_commands(
                folder, replaced("Caddyfile", *upstreams, options, ("models.example.org {", site))
            )
        environment = {**os.environ, "HOME": str(folder)}
        checked = subprocess.run(check, capture_output=True, text=True, timeout=20, env=environment)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr
        proxy = subprocess.Popen(run, stderr=subprocess.DEVNULL, env=environment)
        server.wait(lambda: answers(port))
        trusted = ssl.create_default_context(cafile=authority.certificate)
        transport = httpx.HTTPTransport(verify=trusted, local_address=ELSEWHERE)
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", transport=transport, timeout=20) as client:
            yield Proxied(server, port, key, record.id, client, authority.certificate)
    finally:
        if proxy is not None:
            proxy.terminate()
            proxy.wait(10)
        server.process.terminate()
        server.process.wait(20)


class TestProxy:
    def test_a_request_comes_through_with_its_key_and_the_address_that_it_came_from(self, proxied: Proxied) -> None:
        headers = {"Authorization": f"Bearer {proxied.key}", "X-Forwarded-For": "203.0.113.9", "User-Agent": "proxied"}
        body = gzip.compress(BODY.encode())
        answer = proxied.client.post(INFER, content=body, headers={**headers, "Content-Encoding": "gzip"})
        assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [4.0])

        def line() -> dict[str, object] | None:
            lines = [json.loads(one) for one in proxied.server.out.read_text().splitlines()]
            return next((one for one in lines if one.get("user_agent.original") == "proxied"), None)

        told = proxied.server.wait(line)
        assert (told["client.address"], told["user.id"]) == (ELSEWHERE, proxied.client_id)

    def test_without_a_key_nothing_but_probes_is_answered(self, proxied: Proxied) -> None:
        assert proxied.client.post(INFER, content=BODY).status_code == 401
        assert proxied.client.get("/v2/health/live").status_code == 200
        assert proxied.client.get("/v2/health/ready").status_code == 200

    def test_a_body_over_the_limit_is_refused(self, proxied: Proxied) -> None:
        headers = {"X-API-Key": proxied.key}
        assert proxied.client.post(INFER, content=bytes(9 * 1024 * 1024), headers=headers).status_code == 413

    @pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/metrics//", "/./metrics"])
    def test_the_metrics_stay_inside(self, proxied: Proxied, path: str) -> None:
        context = ssl.create_default_context(cafile=proxied.authority)
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {proxied.key}\r\nConnection: close\r\n\r\n"
        with (
            socket.create_connection(("127.0.0.1", proxied.port)) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as stream,
        ):
            stream.sendall(request.encode())
            answer = b"".join(iter(lambda: stream.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 404"), answer[:200]
        assert b"homeostat_" not in answer

    def test_grpc_comes_through_the_same_port(self, proxied: Proxied) -> None:
        credentials = grpc.ssl_channel_credentials(proxied.authority.read_bytes())
        request = message("inference.ModelInferRequest")(
            model_name="toy",
            inputs=[{"name": "x", "shape": [1, 4], "datatype": "FP32", "contents": {"fp32_contents": [1, 1, 1, 1]}}],
        )
        with grpc.secure_channel(f"127.0.0.1:{proxied.port}", credentials) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                type(request).SerializeToString,
                message("inference.ModelInferResponse").FromString,
            )
            answer = call(request, timeout=20, metadata=(("x-api-key", proxied.key),))
            assert list(answer.outputs[0].contents.fp32_contents) == [4.0]
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                call(request, timeout=20)

    def test_what_a_limit_answers_comes_through_with_when_to_come_back(self, proxied: Proxied) -> None:
        headers = {"X-API-Key": proxied.key}
        answers = (proxied.client.get("/v2", headers=headers) for _ in range(2 * BURST))
        refused = next(one for one in answers if one.status_code != 200)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")


@contextmanager
def serving(home: Path, **environment: str) -> Iterator[Server]:
    server = Server(home, HOMEOSTAT_ACCESS_LOG="true", **environment)
    try:
        yield server
    finally:
        server.process.terminate()
        assert server.process.wait(20) == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("plain")) as server:
        yield server


def client_addresses(server: Server) -> list[str]:
    """Ask with a forged X-Forwarded-For, and return the addresses of the access log."""
    httpx.get(f"http://127.0.0.1:{server.port}/v2", headers={"X-Forwarded-For": "203.0.113.9"}, timeout=20)
    lines = server.wait(lambda: [json.loads(one) for one in server.out.read_text().splitlines() if '"/v2"' in one])
    return [one["client.address"] for one in lines]


def test_no_proxy_is_believed_that_the_server_was_not_told_of(plain: Server) -> None:
    assert client_addresses(plain) == ["127.0.0.1"]


def test_a_proxy_elsewhere_is_not_this_one(tmp_path: Path) -> None:
    with serving(tmp_path, HOMEOSTAT_BEHIND_PROXY="127.0.0.2, 192.0.2.0/24") as server:
        assert client_addresses(server) == ["127.0.0.1"]


def test_the_server_needs_no_memory_that_is_both_written_and_executed(tmp_path: Path) -> None:
    """What MemoryDenyWriteExecute of the unit forbids, by the kernel's own switch of that (Linux 6.3)."""
    forbid = (
        "import ctypes, os, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    probe = subprocess.run([sys.executable, "-c", forbid, "-c", "import mmap; mmap.mmap(-1, 4096, prot=7)"], stderr=-1)
    if probe.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE: Linux 6.3 or newer")
    assert b"PermissionError" in probe.stderr
    server = Server(tmp_path / "home", (sys.executable, "-c", forbid, "-m", "homeostat.serving"))
    try:
        server.promote(1)
        assert server.call("POST", INFER, BODY)[0] == 200
    finally:
        server.process.terminate()
        assert server.process.wait(20) == 0


def healthcheck(**environment: str) -> int:
    command = [sys.executable, str(DEPLOYMENTS / "container" / "healthcheck.py")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOMEOSTAT_")}
    return subprocess.run(command, env={**clean, **environment}, capture_output=True, timeout=20).returncode


def test_the_healthcheck_asks_over_loopback(plain: Server) -> None:
    assert healthcheck(HOMEOSTAT_HOST="0.0.0.0", HOMEOSTAT_PORT=str(plain.port)) == 0
    assert healthcheck(HOMEOSTAT_PORT=str(free_port())) == 1


@pytest.mark.parametrize("mutual", [False, True])
def test_the_healthcheck_asks_over_tls(tmp_path: Path, mutual: bool) -> None:
    authority = Authority(tmp_path / "certificates")
    certificate, private = authority.sign("server")
    place = {
        "HOMEOSTAT_PORT": str(free_port()),
        "HOMEOSTAT_TLS_CERTIFICATE": str(certificate),
        "HOMEOSTAT_TLS_KEY": str(private),
    }
    if mutual:
        place["HOMEOSTAT_TLS_CLIENT_CA"] = str(authority.certificate)
    home = {"HOMEOSTAT_HOME": str(tmp_path / "home"), "HOMEOSTAT_GRPC_PORT": "0"}
    process = subprocess.Popen(COMMAND, env={**os.environ, **home, **place}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while healthcheck(HOMEOSTAT_HOST="0.0.0.0", **place):
            assert process.poll() is None
            assert time.monotonic() < deadline
        if mutual:  # where no request is made
            (worker,) = children(process.pid)
            os.kill(worker, signal.SIGSTOP)  # the supervisor's socket goes on taking connections
            assert healthcheck(**place) == 1
            os.kill(worker, signal.SIGCONT)
            assert healthcheck(**place) == 0
    finally:
        process.terminate()
        assert process.wait(20) == 0


@installed("sqlite3")
@installed("flock", "util-linux")
def test_the_backup_of_the_docs_brings_a_server_back(tmp_path: Path) -> None:
    """Taken of a running server, by the very commands of docs/operating.md."""
    section = (ROOT / "docs" / "operating.md").read_text().split("## Backup")[1].split("\n## ")[0]
    backup, restore = re.findall(r"```sh\n(.*?)```", section, re.S)
    home, copy = tmp_path / "home", tmp_path / "copy"
    server = Server(home)

    def run(script: str) -> None:
        assert "/var/lib/homeostat" in script
        script = script.replace("/var/lib/homeostat", str(home)).replace("/backup/homeostat", str(copy))
        subprocess.run(["sh", "-eu", "-c", script], check=True, timeout=20)

    try:
        server.promote(1)
        for _ in range(20):
            assert server.call("POST", INFER, BODY)[0] == 200
        server.wait(lambda: len(server.captured()) == 20)
        create_key(home / FILE, "web", ["infer"])
        key = (home / FILE).read_bytes()
        run(backup)
        server.kill()
        shutil.rmtree(home)
        home.mkdir()
        run(restore)
        assert (home / FILE).read_bytes() == key
        assert server.control.verify() == 2
        server.start()
        server.wait(lambda: server.get("/v2/models/toy/ready")[1].get("version") == "1")
        assert len(server.captured()) == 20
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            server.process.wait(20)
