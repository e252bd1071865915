"""Signatures of webhooks: HMAC-SHA-256 in three forms, which differ in their headers and in what is signed.

Standard Webhooks (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md) and MLflow's
registry (mlflow.org/docs/latest/ml/webhooks) sign `id.timestamp.body`; GitHub
(docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries) signs the body alone. The libraries that
there are know one form each, and are this size.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from homeostat.errors import RequestInvalid, Unauthenticated
from homeostat.gateway.config import Form

WINDOW_SECONDS = 300
"""How far a signed time may be from ours."""
MAX_SIGNATURES = 10


class _Headers(NamedTuple):
    """Where a form puts what; no identity and no time means that the body alone is signed."""

    signature: str
    identity: str = ""
    timestamp: str = ""


FORMS: Mapping[Form, _Headers] = {
    "standard": _Headers("webhook-signature", "webhook-id", "webhook-timestamp"),
    "mlflow": _Headers("x-mlflow-signature", "x-mlflow-delivery-id", "x-mlflow-timestamp"),
    "github": _Headers("x-hub-signature-256"),
}
PERMANENT = ("github",)
"""Forms without a signed time: a copy would be believed for ever, so its key is remembered for ever."""


def check_signature(form: Form, headers: Mapping[str, str], body: bytes, keys: Sequence[bytes], now: float) -> str:
    """Return what names this delivery, the same for each copy of it: its signed id, or the digest of its body.

    headers: names in lower case. keys: any of them may have signed. now: Unix time, s. Raises RequestInvalid
    when a header is missing or malformed, Unauthenticated when no key has signed or the time is too far away.
    """
    names = FORMS[form]
    given = _header(headers, names.signature)
    if names.identity:
        identity, stamp = _header(headers, names.identity), _header(headers, names.timestamp)
        if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 15:
            raise RequestInvalid(f"header {names.timestamp}: {stamp!r:.60} is no Unix time in whole seconds")
        signed, key = b".".join((identity.encode(), stamp.encode(), body)), identity
        found = [_base64(one.removeprefix("v1,")) for one in given.split(" ") if one.startswith("v1,")]
    else:
        stamp, signed, key = "", body, hashlib.sha256(body).hexdigest()
        found = [_hex(given.removeprefix("sha256="))] if given.startswith("sha256=") else []
    if not _is_signed(signed, found[:MAX_SIGNATURES], keys):
        raise Unauthenticated(f"header {names.signature}: no secret of this source has signed this body")
    if stamp and abs(int(stamp) - now) > WINDOW_SECONDS:
        apart = "before" if int(stamp) < now else "after"
        raise Unauthenticated(
            f"header {names.timestamp}: {abs(int(stamp) - now):.0f} s {apart} this clock; {WINDOW_SECONDS} s are let in"
        )
    return key


def sign(identity: str, timestamp: int, body: bytes, key: bytes) -> dict[str, str]:
    """Return the headers of a webhook in the Standard Webhooks form. timestamp: Unix time, s."""
    signed = f"{identity}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return {"webhook-id": identity, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise RequestInvalid(f"header {name} is missing: webhooks of this source are signed")
    if len(value) > 1024 or not value.isascii() or not value.isprintable():
        raise RequestInvalid(f"header {name} is not up to 1024 printable characters")
    return value


def _is_signed(signed: bytes, signatures: Sequence[bytes], keys: Sequence[bytes]) -> bool:
    good = False
    for key in keys:
        digest = hmac.digest(key, signed, "sha256")
        for signature in signatures:
            good |= hmac.compare_digest(digest, signature)
    return good


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
