"""tokens: only what the pinned keys signed, for this audience, by this issuer, now."""

from __future__ import annotations

import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from homeostat.errors import ConfigError, Unauthenticated
from homeostat.serving.access import tokens as tokens_module
from homeostat.serving.access.authorization import Access
from homeostat.serving.access.tokens import CACHED, Tokens, load_token_keys
from homeostat.settings import Settings

ISSUER, AUDIENCE = "https://idp.example", "homeostat"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def pem(key) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(key, kid, **members) -> dict:
    kinds = ((rsa.RSAPrivateKey, jwt.algorithms.RSAAlgorithm), (ec.EllipticCurvePrivateKey, jwt.algorithms.ECAlgorithm))
    algorithm = next((found for kind, found in kinds if isinstance(key, kind)), jwt.algorithms.OKPAlgorithm)
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **members}


def claims(**changes) -> dict:
    values = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "robot-7",
        "exp": int(time.time()) + 60,
        "scope": "infer label openid",
    }
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "jwks.json"
    keys = [jwk(RSA, "r"), jwk(EC, "e"), jwk(ED, "d"), jwk(RSA, "encryption", use="enc")]
    path.write_text(json.dumps({"keys": keys}))
    return Tokens(load_token_keys(path), issuer=ISSUER, audience=AUDIENCE, leeway_seconds=5.0)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d"), (EC, "ES256", None)]
)
def test_a_good_token(tokens, key, algorithm, kid):
    token = jwt.encode(claims(), key, algorithm, headers={"kid": kid} if kid else None)
    client = tokens.find(token)
    assert (client.id, client.scopes, client.models) == ("jwt:robot-7", {"infer", "label"}, None)
    assert 60 < client.expires - time.time() <= 65
    assert tokens.find(token) is client, "the signature is checked once"


def test_claims_of_rfc_9068(tokens):
    token = jwt.encode(claims(client_id="shop", homeostat_models=["toy"], aud=["x", AUDIENCE]), RSA, "RS256")
    client = tokens.find(token)
    assert (client.id, client.models) == ("jwt:shop", {"toy"})


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 129},
        {"sub": "a\nb"},
        {"nbf": 2**40},
        {"scope": ["infer"]},
        {"homeostat_models": "toy"},
        {"homeostat_models": [1]},
    ],
)
def test_claims_that_do_not_hold(tokens, changes):
    with pytest.raises(Unauthenticated):
        tokens.find(jwt.encode(claims(**changes), RSA, "RS256", headers={"kid": "r"}))


def test_the_leeway_is_kept(tokens):
    assert tokens.find(jwt.encode(claims(exp=int(time.time()) - 3), RSA, "RS256"))
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.find(jwt.encode(claims(exp=int(time.time()) - 7), RSA, "RS256"))


def test_forged_tokens(tokens):
    good = jwt.encode(claims(), RSA, "RS256", headers={"kid": "r"})
    head, body, signature = good.split(".")
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forged = [
        jwt.encode(claims(), None, "none"),
        jwt.encode(claims(), "x" * 32, "HS256", headers={"kid": "r"}),
        jwt.encode(claims(), RSA, "RS512", headers={"kid": "r"}),  # its own key, but not the pinned algorithm
        jwt.encode(claims(), EC, "ES256", headers={"kid": "r"}),
        jwt.encode(claims(), other, "RS256", headers={"kid": "r"}),
        jwt.encode(claims(), RSA, "RS256", headers={"kid": "encryption"}),
        jwt.encode(claims(), RSA, "RS256", headers={"kid": "unknown"}),
        f"{head}.{body}.",
        f"{head}.{body}",
        f"{head}.{body[:-4]}AAAA.{signature}",
        good + "x" * 9000,
        "",
        "...",
        "é.é.é",
    ]
    for token in forged:
        with pytest.raises(Unauthenticated) as caught:
            tokens.find(token)
        assert not signature or signature not in str(caught.value)


def test_hmac_with_the_public_key_is_refused(tmp_path):
    """The classic confusion: a token signed with HS256 under the public key, which everybody has."""
    path = tmp_path / "key.pem"
    path.write_bytes(pem(RSA))
    made = Tokens(load_token_keys(path), issuer=ISSUER, audience=AUDIENCE, leeway_seconds=0)
    assert made.find(jwt.encode(claims(), RSA, "RS256")).id == "jwt:robot-7"
    import base64
    import hashlib
    import hmac

    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims())]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.digest(pem(RSA), text, hashlib.sha256)).rstrip(b"=")
    with pytest.raises(Unauthenticated):
        made.find((text + b"." + signature).decode())


def test_the_cache_is_bounded_and_forgets(tokens, monkeypatch):
    token = jwt.encode(claims(), ED, "EdDSA", headers={"kid": "d"})
    first = tokens.find(token)
    now = time.monotonic()
    monkeypatch.setattr(tokens_module.time, "monotonic", lambda: now + 61)
    assert tokens.find(token) is not first
    monkeypatch.setattr(tokens, "_verify", lambda token: first)
    for number in range(CACHED + 10):
        tokens.find(str(number))
    assert len(tokens._verified) == CACHED


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys": []}',
        b'{"keys": [1]}',
        b'{"keys": [{"kty": "oct", "k": "AAAA"}]}',
        b'{"keys": [{"kty": "RSA"}]}',
        b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n",
        RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        json.dumps({"keys": [jwk(RSA, "r", alg="HS256")]}).encode(),
        json.dumps({"keys": [jwk(EC, "e", alg="RS256")]}).encode(),
    ],
)
def test_files_that_hold_no_usable_key(tmp_path, text):
    path = tmp_path / "keys"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match="keys"):
        load_token_keys(path)


def test_a_key_may_pin_its_algorithm(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk(RSA, "r", alg="PS256")]}))
    made = Tokens(load_token_keys(path), issuer=ISSUER, audience=AUDIENCE, leeway_seconds=0)
    assert made.find(jwt.encode(claims(), RSA, "PS256"))
    with pytest.raises(Unauthenticated):
        made.find(jwt.encode(claims(), RSA, "RS256"))


def test_tokens_and_api_keys_beside_each_other(tmp_path):
    path = tmp_path / "key.pem"
    path.write_bytes(pem(ED))
    token = jwt.encode(claims(), ED, "EdDSA")
    settings = Settings(home=tmp_path, jwt_keys=path, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    access = Access(settings, open_metrics=True)
    assert access.required
    assert access.admit("/v2", {b"authorization": b"Bearer " + token.encode()}, "").id == "jwt:robot-7"
    with pytest.raises(Unauthenticated, match="not one of this server"):
        access.admit("/v2", {b"x-api-key": b"hs_0"}, "")
    path.write_bytes(pem(ed25519.Ed25519PrivateKey.generate()))
    access._due = 0.0
    access.idle()
    with pytest.raises(Unauthenticated, match="Signature"):
        access.admit("/v2", {b"authorization": b"Bearer " + token.encode()}, "")


def test_half_a_setting_is_refused(tmp_path):
    (tmp_path / "key.pem").write_bytes(pem(ED))
    with pytest.raises(ConfigError, match="HOMEOSTAT_JWT_AUDIENCE"):
        Access(Settings(home=tmp_path, jwt_keys=tmp_path / "key.pem", jwt_issuer=ISSUER), open_metrics=True)
