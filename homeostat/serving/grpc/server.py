"""The gRPC server: both protocols' services in the event loop of the REST server, over the same data plane."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C library writes lines that are no JSON to stderr
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # the server forks only to execute

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from homeostat.client import current
from homeostat.errors import RequestInvalid
from homeostat.serving.access.authorization import Access
from homeostat.serving.access.exposure import Certificate
from homeostat.serving.dataplane import DataPlane, InferenceFailed
from homeostat.serving.exchange import Exchange
from homeostat.serving.exchange import current as current_exchange
from homeostat.serving.grpc import inference, tensorflow
from homeostat.serving.grpc.calls import Calls
from homeostat.serving.observer import Observer
from homeostat.serving.protos import message, service
from homeostat.serving.rest.connections import GRPC_CONNECTIONS

log = logging.getLogger(__name__)

MAX_STREAMS = 128
"""Calls at once on one connection; the client's library holds more back."""
MAX_METADATA = 32 * 1024
"""Bytes of a call's metadata, as of an HTTP head."""
IDLE_SECONDS = 300
"""A connection without calls is closed after so long; clients connect anew when they need it."""
HANDSHAKE_SECONDS = 10
PING_SECONDS = 10
"""A client that pings more often than so, three times, is cut off."""
SILENT_SECONDS, DEAD_SECONDS = 60, 20
"""A client that says nothing is pinged, and cut off when it does not answer."""
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""HTTP status of an error -> gRPC status code."""

LIMITS = [
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_metadata_size", MAX_METADATA),
    ("grpc.absolute_max_metadata_size", MAX_METADATA),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
    ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
    ("grpc.keepalive_time_ms", SILENT_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", DEAD_SECONDS * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_SECONDS * 1000),
    ("grpc.http2.max_ping_strikes", 2),
]
"""As gRPC's library takes them."""

Method = Callable[[Any, Any], Awaitable[Any]]
Answer = Callable[[Any, Any], Awaitable[bytes]]


def _address(peer: str) -> str:
    """Return the address in `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`, as gRPC names a peer."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


async def _abort(context: Any, status: int, text: str) -> None:
    """End a call with the code of an HTTP status; raises what gRPC raises."""
    exchange = current_exchange.get()
    if exchange is not None:
        exchange.status = status
    await context.abort(CODES[status], text)


def _observed(answer: Answer, path: str, observer: Observer) -> Answer:
    """Return the handler of one method that tells the observer of each call."""

    async def observed(messages: Any, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        exchange = Exchange(
            transport="grpc",
            method="POST",
            path=path,
            address=_address(context.peer()),
            http_version="2",
            user_agent=str(metadata.get("user-agent", "")),
            traceparent=str(metadata.get("traceparent", "")),
        )
        observer.begin(exchange)
        if exchange.traceresponse:
            context.set_trailing_metadata((("traceresponse", exchange.traceresponse),))
        try:
            answered = await answer(messages, context)
            exchange.status = 200
            return answered
        except Exception:
            exchange.status = exchange.status or 500
            raise
        finally:
            observer.end(exchange)

    return observed


def _answer(
    plane: DataPlane, access: Access, calls: Calls, path: str, kind: Any, method: Method, *, counts: bool
) -> Answer:
    """Return the handler of one method: bytes in, bytes out, errors as status codes.

    path: `/package.Service/Method`. counts: whether the method counts its own refusals, by version.
    Whether the client may ask is known from the head of its call, before it sends anything else.
    """

    async def answer(messages: Any, context: Any) -> bytes:
        del messages  # what is awaited is in the context
        plane.metrics.calls += 1
        try:
            return await admitted(context)
        finally:
            plane.metrics.calls -= 1

    async def admitted(context: Any) -> bytes:
        if not access.idle():
            try:
                client = access.admit_call(path, dict(context.invocation_metadata()), _address(context.peer()))
            except RequestInvalid as error:
                plane.metrics.refuse(error.status)
                await _abort(context, error.status, str(error))
            current.set(client)  # each call is a task, with a context of its own
            exchange = current_exchange.get()
            if exchange is not None and client is not None:
                exchange.client = client.id
        try:
            data = await calls.receive(context)
            request = kind.FromString(data)
        except DecodeError:
            plane.metrics.refuse(400)
            await _abort(context, 400, f"the bytes are no {kind.DESCRIPTOR.full_name}")
        except RequestInvalid as error:
            plane.metrics.refuse(error.status)
            await _abort(context, error.status, str(error))
        calls.answered += 1
        try:
            encoded: bytes = (await method(request, context)).SerializeToString()
            return encoded
        except RequestInvalid as error:
            if not counts:
                plane.metrics.refuse(error.status)
            await _abort(context, error.status, str(error))
        except asyncio.CancelledError:  # the client left, or its deadline passed
            plane.metrics.refuse(499)
            raise
        except Exception as error:
            if not isinstance(error, InferenceFailed):
                plane.metrics.refuse(500)
            log.exception("%s failed", kind.DESCRIPTOR.full_name)
            text = f"{type(error.__cause__ or error).__name__} while answering; the server's log says where"
            await _abort(context, 500, text)
        finally:
            calls.answered -= 1
        raise AssertionError("abort raises")

    return answer


def _handler(
    plane: DataPlane,
    access: Access,
    calls: Calls,
    name: str,
    methods: Mapping[str, Method],
    counting: frozenset[str],
    observer: Observer | None,
) -> Any:
    handlers = {}
    for method in service(name).methods:
        kind = message(method.input_type.full_name)
        path, counts = f"/{name}/{method.name}", method.name in counting
        answer = _answer(plane, access, calls, path, kind, methods[method.name], counts=counts)
        if observer is not None:
            answer = _observed(answer, path, observer)
        # a stream of one message, the same on the wire: a unary handler waits for it outside of our code
        handlers[method.name] = grpc.stream_unary_rpc_method_handler(answer)
    return grpc.method_handlers_generic_handler(name, handlers)


async def start(
    plane: DataPlane,
    access: Access,
    address: str,
    max_message: int,
    certificate: Certificate | None = None,
    observer: Observer | None = None,
    *,
    max_connections: int = GRPC_CONNECTIONS,
) -> Any:
    """Start a server of both protocols, and return it; raises RuntimeError when it cannot bind.

    address: such as 127.0.0.1:8081. max_message: bytes of one request, also after decompression.
    certificate: calls come over TLS with it. observer: is told of each call.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 1),  # the other workers; a second server has found the port taken before
            ("grpc.max_allowed_incoming_connections", max_connections),
            *LIMITS,
        ],
    )
    calls = Calls()
    infer = inference.InferenceService(plane)
    prediction = tensorflow.PredictionService(plane)
    models = tensorflow.ModelService(plane)
    server.add_generic_rpc_handlers(
        (
            _handler(plane, access, calls, inference.SERVICE, infer.methods, inference.INFERENCES, observer),
            _handler(
                plane, access, calls, tensorflow.PREDICTION_SERVICE, prediction.methods, tensorflow.INFERENCES, observer
            ),
            _handler(plane, access, calls, tensorflow.MODEL_SERVICE, models.methods, frozenset(), observer),
        )
    )
    if certificate is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(
            address,
            grpc.ssl_server_credentials(
                [(certificate.key, certificate.chain)],
                root_certificates=certificate.client_authority,
                require_client_auth=certificate.client_authority is not None,
            ),
        )
    await server.start()
    return server
