"""What a gRPC client may hold of the server, spoken as HTTP/2 frames where no library would do it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from homeostat.apikeys import FILE, create_key
from homeostat.serving.access.authorization import Access
from homeostat.serving.grpc import calls as calls_module
from homeostat.serving.grpc import server as server_module
from homeostat.serving.protos import message
from homeostat.settings import Settings
from tests.conftest import free_port
from tests.grpc_client import INFERENCE, GrpcClient, grpc_server

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_HEADERS, END_STREAM = 4, 1
MAX_CONCURRENT_STREAMS = 3
ENHANCE_YOUR_CALM = 11
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4]}}
INFER = message("inference.ModelInferRequest")(model_name="toy", inputs=[TENSOR]).SerializeToString()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def head(stream: int, path: str = f"/{INFERENCE}/ModelInfer") -> bytes:
    """The head of a call: HPACK (RFC 7541) without Huffman and without the dynamic table."""
    text = lambda value: bytes([len(value)]) + value  # noqa: E731
    block = b"\x83\x86\x04" + text(path.encode()) + b"\x01" + text(b"test")  # POST, http, :path, :authority
    block += b"\x0f\x10" + text(b"application/grpc") + b"\x00" + text(b"te") + text(b"trailers")
    return frame(HEADERS, END_HEADERS, stream, block)


class Wire:
    """A connection that speaks frames."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._left = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def greet(self) -> None:
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))

    def frames_now(self) -> list[tuple[int, int, bytes]]:
        """Return what has come."""
        self.socket.settimeout(0.2)
        found = []
        with contextlib.suppress(TimeoutError):
            for one in self.frames():
                found.append(one)  # noqa: PERF402  what came before the silence counts
        return found

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield kind, stream and payload of each frame until the server closes the connection."""
        while True:
            while len(self._left) < 9 or len(self._left) < 9 + int.from_bytes(self._left[:3], "big"):
                try:
                    data = self.socket.recv(65536)
                except ConnectionResetError:
                    return
                if not data:
                    return
                self._left += data
            length = int.from_bytes(self._left[:3], "big")
            kind, stream = self._left[3], int.from_bytes(self._left[5:9], "big")
            yield kind, stream, self._left[9 : 9 + length]
            self._left = self._left[9 + length :]


@contextlib.contextmanager
def serving(zoo, tmp_path, **options: int) -> Iterator[int]:
    port = free_port()
    with grpc_server(zoo.plane, Access(Settings(home=tmp_path), open_metrics=True), port, **options):
        yield port


def limit(monkeypatch, **options: int) -> None:
    names = {f"grpc.{name}": value for name, value in options.items()}
    limits = [(name, names.get(name, value)) for name, value in server_module.LIMITS]
    assert {name for name, _ in limits} >= names.keys()
    monkeypatch.setattr(server_module, "LIMITS", limits)


def ask(port: int) -> float:
    """Ask on a connection of its own; return the seconds that it took."""
    client = GrpcClient(port)
    start = time.monotonic()
    try:
        answer, _ = client.send(INFERENCE, "ModelInfer", INFER)
        assert answer.model_name == "toy"
    finally:
        client.close()
    return time.monotonic() - start


def test_calls_whose_message_does_not_come_keep_nobody_out(zoo, tmp_path):
    """More of them than may be answered at once; the oldest are ended where there are many."""
    before, calls_before = zoo.metrics.refused.get(408, 0), zoo.metrics.calls
    streams = range(1, 2 * 120, 2)
    with serving(zoo, tmp_path) as port, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(10)]
        for wire in wires:
            wire.greet()
            wire.socket.sendall(b"".join(head(stream) for stream in streams))
        assert len(wires) * len(streams) > calls_module.MAX_CALLS
        for _ in range(5):
            assert ask(port) < 5
        deadline = time.monotonic() + 30
        while zoo.metrics.calls - calls_before > calls_module.MAX_COMING:
            assert time.monotonic() < deadline, (zoo.metrics.calls, calls_before)
            time.sleep(0.05)
        told = sum(kind == HEADERS for wire in wires for kind, _, _ in wire.frames_now())
        assert told > calls_module.MAX_CALLS
        assert ask(port) < 5
    assert zoo.metrics.refused[408] - before > calls_module.MAX_CALLS


def test_a_message_that_never_comes_is_given_up(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "Calls", lambda: calls_module.Calls(message_seconds=1.0))
    with serving(zoo, tmp_path) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        end = threading.Event()

        def half() -> Iterator[bytes]:
            end.wait(20)
            yield b""

        call = channel.stream_unary(f"/{INFERENCE}/ModelInfer")
        try:
            with pytest.raises(grpc.RpcError) as caught:
                call(half(), timeout=20)
        finally:
            end.set()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not come in time" in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert ask(port) < 5


def test_so_many_calls_are_answered_at_once(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "Calls", lambda: calls_module.Calls(max_calls=0))
    with serving(zoo, tmp_path) as port:
        client = GrpcClient(port)
        with pytest.raises(grpc.RpcError) as caught:
            client.send(INFERENCE, "ModelInfer", INFER)
        client.close()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_stranger_is_refused_before_it_has_sent_its_message(zoo, tmp_path):
    create_key(tmp_path / FILE, "first", ["admin"])
    with serving(zoo, tmp_path) as port, Wire(port) as wire:
        wire.greet()
        wire.socket.sendall(head(1))
        found = next(payload for kind, _, payload in wire.frames() if kind == HEADERS)
    assert b"a key is needed" in found


def test_streams_of_a_connection_are_bounded(zoo, tmp_path):
    with serving(zoo, tmp_path) as port, Wire(port) as wire:
        wire.greet()
        payload = next(payload for kind, _, payload in wire.frames() if kind == SETTINGS)
    settings = dict(struct.iter_unpack(">HI", payload))
    assert settings[MAX_CONCURRENT_STREAMS] == server_module.MAX_STREAMS


def test_connections_are_bounded_and_come_free_again(zoo, tmp_path):
    with serving(zoo, tmp_path, max_connections=10) as port:
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(Wire(port)) for _ in range(20)]
            taken = 0
            for wire in wires:
                with contextlib.suppress(ConnectionError):  # it may have been closed already
                    wire.greet()
                taken += any(kind == SETTINGS for kind, _, _ in [next(wire.frames(), (None, 0, b""))])
            assert 0 < taken <= 10
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(grpc.RpcError):
                ask(port)
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_clients_that_leave_in_the_middle_of_a_call_take_nothing_with_it(zoo, tmp_path):
    body = b"\0" + struct.pack(">I", len(INFER)) + INFER
    with serving(zoo, tmp_path) as port:
        for sent in (head(1), head(1) + frame(DATA, 0, 1, body[:20]), head(1) + frame(DATA, END_STREAM, 1, body)):
            for _ in range(50):
                with Wire(port) as wire:
                    wire.greet()
                    wire.socket.sendall(sent)
        assert ask(port) < 5
        deadline = time.monotonic() + 10
        while zoo.metrics.calls:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("name", ["../../etc/passwd", "toy/../toy", "a\0b", "", "TOY", "x" * 65536, "\N{SNOWMAN}"])
def test_names_that_no_model_has(zoo, tmp_path, name):
    with serving(zoo, tmp_path) as port:
        client = GrpcClient(port)
        with pytest.raises(grpc.RpcError) as caught:
            client.call(INFERENCE, "ModelInfer", model_name=name, inputs=[TENSOR])
        assert caught.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
        assert len(caught.value.details()) < 1000
        client.close()


def test_metadata_is_bounded(zoo, tmp_path):
    with serving(zoo, tmp_path) as port:
        client = GrpcClient(port)
        client.send(INFERENCE, "ModelInfer", INFER, (("x-large", "a" * 24_000),))
        with pytest.raises(grpc.RpcError) as caught:
            client.send(INFERENCE, "ModelInfer", INFER, (("x-large", "a" * 40_000),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        client.close()
        assert ask(port) < 5


def test_a_client_that_pings_without_end_is_cut_off(zoo, tmp_path):
    with serving(zoo, tmp_path) as port, Wire(port) as wire:
        wire.greet()
        with contextlib.suppress(ConnectionError):
            for number in range(1000):
                wire.socket.sendall(frame(PING, 0, 0, struct.pack(">Q", number)))
        told = [payload for kind, _, payload in wire.frames() if kind == GOAWAY]  # it ends: the connection is closed
        assert ask(port) < 5
    if told:  # a reset may overtake it
        assert int.from_bytes(told[-1][4:8], "big") == ENHANCE_YOUR_CALM


def test_a_client_that_takes_its_calls_back_at_once_is_survived(zoo, tmp_path):
    """Rapid reset (CVE-2023-44487)."""
    with serving(zoo, tmp_path) as port:
        for _ in range(5):
            with Wire(port) as wire:
                wire.greet()
                with contextlib.suppress(OSError):  # the server may have had enough
                    for stream in range(1, 8000, 2):
                        wire.socket.sendall(head(stream) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08"))
                assert ask(port) < 5
        deadline = time.monotonic() + 10
        while zoo.metrics.calls:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_connection_that_says_nothing_is_closed(zoo, tmp_path, monkeypatch):
    limit(monkeypatch, server_handshake_timeout_ms=500)
    with serving(zoo, tmp_path) as port, Wire(port) as wire:
        start = time.monotonic()
        assert HEADERS not in {kind for kind, _, _ in wire.frames()}
        assert time.monotonic() - start < 8
