"""JSON Web Tokens of an identity provider: signature by pinned keys and algorithms, issuer, audience, times."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from homeostat.client import SCOPES, Client
from homeostat.errors import ConfigError, Unauthenticated

CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
MIN_RSA_BITS = 2048
MAX_TOKEN = 8192
CACHED = 4096
"""Tokens whose signature was checked and is not checked again."""
CACHE_SECONDS = 60.0
MAX_SUBJECT = 128


@dataclass(frozen=True)
class TokenKey:
    """A public key and the algorithms that its tokens may be signed with: never what the token says."""

    identity: str | None
    key: Any
    algorithms: tuple[str, ...]


def _token_key(key: Any, identity: str | None, algorithm: str | None, where: str) -> TokenKey:
    if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        allowed: tuple[str, ...] = RSA_ALGORITHMS if algorithm else ("RS256",)
    elif isinstance(key, EllipticCurvePublicKey) and key.curve.name in CURVES:
        allowed = (CURVES[key.curve.name],)
    elif isinstance(key, Ed25519PublicKey):
        allowed = ("EdDSA",)
    else:
        raise ConfigError(
            f"{where}: a public key is needed: RSA of {MIN_RSA_BITS} bits or more, P-256 to P-521, ed25519"
        )
    if algorithm and algorithm not in allowed:
        raise ConfigError(f"{where}: its algorithm {algorithm!r:.20} is not one of {', '.join(allowed)}")
    return TokenKey(identity, key, (algorithm,) if algorithm else allowed)


def load_token_keys(path: Path) -> tuple[TokenKey, ...]:
    """Return the keys of a JWKS file, or the one of a PEM file; raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"HOMEOSTAT_JWT_KEYS: {path} cannot be read: {error.strerror}") from error
    if data.lstrip().startswith(b"-----"):
        try:
            return (_token_key(load_pem_public_key(data), None, None, str(path)),)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path} is not a public key in PEM form") from error
    try:
        entries = json.loads(data)["keys"]
        found = [
            _token_key(jwt.PyJWK(entry).key, entry.get("kid"), entry.get("alg"), f"{path}, key {place}")
            for place, entry in enumerate(entries)
            if entry.get("use", "sig") == "sig"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
        raise ConfigError(f"{path} is neither a JWKS nor a public key in PEM form ({type(error).__name__})") from error
    if not found:
        raise ConfigError(f"{path} holds no key for signatures")
    return tuple(found)


class Tokens:
    """Verifies tokens of one issuer for one audience."""

    def __init__(self, keys: tuple[TokenKey, ...], *, issuer: str, audience: str, leeway_seconds: float) -> None:
        self._keys, self._issuer, self._audience, self._leeway = keys, issuer, audience, leeway_seconds
        self._verified: OrderedDict[bytes, tuple[float, Client]] = OrderedDict()

    def find(self, token: str) -> Client:
        """Return the client of a token; raises Unauthenticated that says what does not hold, without the token."""
        if len(token) > MAX_TOKEN:
            raise Unauthenticated(f"the token has more than {MAX_TOKEN} characters")
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        until, client = self._verified.get(digest, (0.0, None))
        if client is not None and time.monotonic() < until:
            return client
        client = self._verify(token)
        self._verified[digest] = (time.monotonic() + CACHE_SECONDS, client)
        self._verified.move_to_end(digest)
        if len(self._verified) > CACHED:
            self._verified.popitem(last=False)
        return client

    def _verify(self, token: str) -> Client:
        try:
            identity = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError as error:
            raise Unauthenticated("that is neither an API key nor a JSON Web Token") from error
        keys = [key for key in self._keys if identity is None or key.identity in (None, identity)]
        if not keys:
            raise Unauthenticated("the token is signed with a key that this server does not know")
        problem: jwt.PyJWTError | None = None
        for key in keys:
            try:
                return self._client(self._decode(token, key))
            except jwt.InvalidSignatureError as error:
                problem = error
            except jwt.InvalidAlgorithmError as error:
                problem = problem or error
            except jwt.PyJWTError as error:
                raise Unauthenticated(f"the token does not hold: {error}") from error
        raise Unauthenticated(f"the token does not hold: {problem}") from problem

    def _decode(self, token: str, key: TokenKey) -> dict[str, Any]:
        return jwt.decode(
            token,
            key.key,
            algorithms=list(key.algorithms),
            audience=self._audience,
            issuer=self._issuer,
            leeway=self._leeway,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )

    def _client(self, claims: dict[str, Any]) -> Client:
        """Read RFC 9068's claims: client_id or sub, scope; and homeostat_models, a list."""
        subject, scope = claims.get("client_id", claims["sub"]), claims.get("scope", "")
        models = claims.get("homeostat_models")
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
            raise Unauthenticated(f"the token's client_id or sub must be 1 to {MAX_SUBJECT} printable characters")
        if not isinstance(scope, str):
            raise Unauthenticated("the token's scope must be text, with a space between scopes (RFC 9068)")
        if models is not None and not (isinstance(models, list) and all(isinstance(one, str) for one in models)):
            raise Unauthenticated("the token's homeostat_models must be a list of names")
        return Client(
            f"jwt:{subject}",
            frozenset(scope.split()) & frozenset(SCOPES),
            None if models is None else frozenset(models),
            float(claims["exp"]) + self._leeway,
        )
