"""Who may do what: keys and tokens to clients, paths and gRPC methods to scopes, rates to refusals."""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from homeostat.apikeys import FILE, KeyTable, read_keys
from homeostat.client import SCOPES, Client
from homeostat.errors import ConfigError, Unauthenticated
from homeostat.ratelimit import RateLimit
from homeostat.serving.access.tokens import Tokens, load_token_keys
from homeostat.settings import Settings

log = logging.getLogger(__name__)

RELOAD_SECONDS = 0.5
"""How often the files of keys are looked at: a revoked key is refused within a second."""
OPEN = re.compile(
    r"/v2/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready|/ping|/health|/version|/openapi\.json"
)
"""Paths that need no key, for load balancers and probes."""
OPERATE = re.compile(r"/v2/repository/models/.*|/v1/rollouts(/.*)?", re.DOTALL)
LABEL = "/v1/feedback"
METRICS = "/metrics"
ANY = "any"
"""No scope in particular: a key that is not limited to some models."""
MAX_PATH = 512
GRPC_OPEN = re.compile(r"/inference\.GRPCInferenceService/(Server(Live|Ready)|ModelReady)")
GRPC_OPERATE = re.compile(r"/inference\.GRPCInferenceService/RepositoryModel.*")


@lru_cache(maxsize=1024)
def scope_of(path: str) -> str | None:
    """Return the scope that a path needs, None for none; a path that nobody listed needs `infer`."""
    path = path.rstrip("/")
    if path == LABEL:
        return "label"
    if path == METRICS:
        return ANY
    if OPEN.fullmatch(path):
        return None
    return "operate" if OPERATE.fullmatch(path) else "infer"


@lru_cache(maxsize=256)
def scope_of_method(method: str) -> str | None:
    """Return the scope that a gRPC method (/package.Service/Method) needs, None for none."""
    if GRPC_OPEN.fullmatch(method):
        return None
    return "operate" if GRPC_OPERATE.fullmatch(method) else "infer"


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_mode


class Access:
    """The keys, the issuer and the rates of one server; read anew as the files change.

    A file that is damaged while the server runs leaves the last good keys in force. Once there
    were keys, the server stays closed, also when the file goes.
    """

    def __init__(self, settings: Settings, *, open_metrics: bool) -> None:
        """Read the files; raises ConfigError when one is damaged, or when the settings do not fit together."""
        self._keys_path, self._tokens_path = settings.home / FILE, settings.jwt_keys
        self._settings, self._open_metrics = settings, open_metrics
        self._stamps = (_stamp(self._keys_path), _stamp(self._tokens_path) if self._tokens_path else None)
        self._keys = KeyTable(read_keys(self._keys_path))
        self._tokens = self._read_tokens()
        self.required = self._stamps[0] is not None or self._tokens is not None
        """Whether a key or token is asked for."""
        rate = settings.rate_limit / settings.workers  # each worker has its share of the requests
        burst = settings.rate_burst // settings.workers or int(2 * rate)
        self._rates = RateLimit(rate, max(1, burst)) if rate else None
        self._due = time.monotonic() + RELOAD_SECONDS

    def idle(self) -> bool:
        """Return whether there is nothing to do for a request: no key asked for, no rate."""
        if time.monotonic() >= self._due:
            self._reload()
        return self._rates is None and not self.required

    def asked(self) -> frozenset[str]:
        """Return the scopes (ANY among them) for which a key is asked."""
        if not self.required:
            return frozenset()
        return frozenset({*SCOPES} if self._open_metrics else {*SCOPES, ANY})

    def admit(self, path: str, headers: Mapping[bytes, bytes], address: str) -> Client | None:
        """Return the client of an HTTP request, None when no key is asked for.

        headers: names in lower case. Raises Unauthenticated, Forbidden or TooManyRequests.
        """
        scope = scope_of(path) if len(path) <= MAX_PATH else "infer"
        if scope == ANY and self._open_metrics:
            scope = None
        client = self._admit(scope, headers.get(b"authorization"), headers.get(b"x-api-key"), address)
        if scope == ANY and client is not None:
            client.require_all_models()
        return client

    def admit_call(self, method: str, metadata: Mapping[str, str | bytes], address: str) -> Client | None:
        """Return the client of a gRPC call, None when no key is asked for.

        method: `/package.Service/Method`. metadata: names in lower case, as gRPC sends them.
        Raises as `admit` does; the status codes are UNAUTHENTICATED, PERMISSION_DENIED and
        RESOURCE_EXHAUSTED. The caller sets `homeostat.client.current`.
        """
        self.idle()
        given = [metadata.get(name) for name in ("authorization", "x-api-key")]
        encoded = [one.encode("utf-8", "replace") if isinstance(one, str) else one for one in given]
        return self._admit(scope_of_method(method), encoded[0], encoded[1], address)

    def _admit(
        self, scope: str | None, authorization: bytes | None, api_key: bytes | None, address: str
    ) -> Client | None:
        """Authenticate, count and authorize."""
        if scope is None:
            return None
        if not self.required:
            if self._rates is not None:
                self._rates.take(_network(address))
            return None
        try:
            client = self._find(_credential(authorization, api_key))
        except Unauthenticated:
            if self._rates is not None:
                self._rates.take(_network(address))
            raise
        if self._rates is not None:
            self._rates.take(f"client {client.id}")
        if scope != ANY:
            client.require_scope(scope)
        return client

    def _find(self, credential: str | None) -> Client:
        if credential is None:
            raise Unauthenticated("a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        if credential.startswith("hs_") or self._tokens is None:
            client = self._keys.find(credential)
            if client is None:
                raise Unauthenticated("the key is not one of this server, or was revoked")
        else:
            client = self._tokens.find(credential)
        if time.time() >= client.expires:
            raise Unauthenticated(f"the key or token of client {client.id} has expired")
        return client

    def _read_tokens(self) -> Tokens | None:
        settings = self._settings
        if self._tokens_path is None:
            return None
        if not settings.jwt_issuer or not settings.jwt_audience:
            raise ConfigError(
                "HOMEOSTAT_JWT_KEYS is set: HOMEOSTAT_JWT_ISSUER and HOMEOSTAT_JWT_AUDIENCE are needed too"
            )
        keys = load_token_keys(self._tokens_path)
        return Tokens(
            keys,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            leeway_seconds=settings.jwt_leeway_seconds,
        )

    def _reload(self) -> None:
        self._due = time.monotonic() + RELOAD_SECONDS
        stamps = (_stamp(self._keys_path), _stamp(self._tokens_path) if self._tokens_path else None)
        if stamps == self._stamps:
            return
        self._stamps = stamps
        self.required = self.required or stamps[0] is not None
        try:
            self._keys = KeyTable(read_keys(self._keys_path))
        except ConfigError as error:
            log.error("%s; the API keys read before stay in force", error)
        try:
            self._tokens = self._read_tokens()
        except ConfigError as error:
            log.error("%s; the token keys read before stay in force", error)
        log.info("%d API keys are in force", len(self._keys))


def _credential(authorization: bytes | None, api_key: bytes | None) -> str | None:
    if authorization is not None:
        kind, _, value = authorization.decode("latin-1").strip().partition(" ")
        if kind.lower() != "bearer" or not value.strip():
            raise Unauthenticated("Authorization: only Bearer is understood")
        return value.strip()
    return None if api_key is None else api_key.decode("latin-1").strip()


def _network(address: str) -> str:
    """Return what shares a bucket: an IPv4 address, or the /64 that one IPv6 host has to itself."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address
