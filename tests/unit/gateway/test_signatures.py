"""Signatures: the vectors that their authors publish, and everything that must not pass."""

from __future__ import annotations

import base64
import json

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from homeostat.errors import RequestInvalid, Unauthenticated
from homeostat.gateway.config import Form
from homeostat.gateway.signatures import FORMS, WINDOW_SECONDS, check_signature, sign

KEY = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
OTHER = b"another key of 24 bytes."
STAMP = 1614265330
BODY = b'{"test": 2432232314}'
STANDARD = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(STAMP),
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
"""Made by the reference library, standardwebhooks 1.0."""
GITHUB = {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
"""From GitHub's documentation."""


def check(form: Form, headers: dict[str, str], body: bytes = BODY, *keys: bytes, now: float = STAMP) -> str:
    return check_signature(form, headers, body, keys or (KEY,), now)


def test_the_authors_vectors():
    assert check("standard", STANDARD) == STANDARD["webhook-id"]
    assert sign(STANDARD["webhook-id"], STAMP, BODY, KEY) == STANDARD
    assert len(check("github", GITHUB, b"Hello, World!", b"It's a Secret to Everybody")) == 64


def test_mlflows_own_signature():
    body, secret = json.dumps({"entity": "model_version"}), "mlflow-secret-of-the-team"
    signature = _generate_hmac_signature(secret, "an-id", str(STAMP), body)
    headers = {"x-mlflow-signature": signature, "x-mlflow-delivery-id": "an-id", "x-mlflow-timestamp": str(STAMP)}
    assert check("mlflow", headers, body.encode(), secret.encode()) == "an-id"
    with pytest.raises(Unauthenticated):
        check("mlflow", headers, body.encode() + b" ", secret.encode())


def test_any_of_several_secrets_and_signatures():
    assert check("standard", STANDARD, BODY, OTHER, KEY) == STANDARD["webhook-id"]
    others = "v1a,AAAA v1,AAAA " + STANDARD["webhook-signature"]
    assert check("standard", STANDARD | {"webhook-signature": others}) == STANDARD["webhook-id"]


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "msg_2"},
        {"webhook-timestamp": str(STAMP + 1)},
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,no base64!"},
        {"webhook-signature": "v2," + STANDARD["webhook-signature"][3:]},
        {"webhook-signature": STANDARD["webhook-signature"][3:]},
        {"webhook-signature": " ".join(["v1,AAAA"] * 10 + [STANDARD["webhook-signature"]])},
    ],
)
def test_what_is_forged(change: dict[str, str]):
    with pytest.raises(Unauthenticated, match="no secret of this source has signed"):
        check("standard", STANDARD | change)


@pytest.mark.parametrize("away", [-WINDOW_SECONDS - 1, WINDOW_SECONDS + 1])
def test_what_is_old_or_of_the_future(away: int):
    with pytest.raises(Unauthenticated, match=r"301 s (before|after) this clock"):
        check("standard", STANDARD, now=STAMP - away)
    assert check("standard", STANDARD, now=STAMP - (WINDOW_SECONDS - 1))


@pytest.mark.parametrize("form", FORMS)
def test_every_header_must_be_there(form: Form):
    names = [name for name in FORMS[form] if name]
    whole = dict.fromkeys(names, "1")
    for name in names:
        with pytest.raises(RequestInvalid, match=f"header {name} is missing"):
            check(form, {n: v for n, v in whole.items() if n != name})
        for bad in ("x" * 2000, "é", "a\tb"):
            with pytest.raises(RequestInvalid, match=f"header {name} is not"):
                check(form, whole | {name: bad})


@pytest.mark.parametrize("stamp", ["-1", "1.5", "now", "9" * 16, "²"])
def test_a_time_that_is_none(stamp: str):
    with pytest.raises(RequestInvalid):
        check("standard", STANDARD | {"webhook-timestamp": stamp})


@pytest.mark.parametrize("signature", ["sha256=", "sha256=zz", "sha1=" + "0" * 40, GITHUB["x-hub-signature-256"][7:]])
def test_githubs_other_forms(signature: str):
    with pytest.raises(Unauthenticated):
        check("github", {"x-hub-signature-256": signature}, b"Hello, World!", b"It's a Secret to Everybody")
