"""AES-GCM of what is captured, under keys that can change."""

from __future__ import annotations

import base64
import hmac
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from homeostat.errors import ConfigError, DataInvalid
from homeostat.keys import check_private
from homeostat.settings import Settings

MAGIC = b"HSA1"
"""No packed tensors (their header would have 800 MB) and no JSON begin like this."""
KEY_BYTES, ID_BYTES, SALT_BYTES = 32, 8, 16
_COUNT = struct.Struct(">4xQ")  # a nonce of 96 bits
HEAD = len(MAGIC) + ID_BYTES + SALT_BYTES + _COUNT.size


def key_id(key: bytes) -> bytes:
    """Return what names a key without telling it."""
    return hmac.digest(key, b"homeostat traffic key id", "sha256")[:ID_BYTES]


def _subkey(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt, b"homeostat traffic").derive(key))


def _about(head: bytes, model: str, request_id: str, name: str) -> bytes:
    """Return what a sealed value is bound to: it cannot be moved to another request or column."""
    return head + b"\0".join((model.encode(), request_id.encode(), name.encode()))


class Sealer:
    """Seals values under a key of its own, derived from the key and 16 random bytes; nonces count up.

    So no nonce comes twice under a key, however many processes write, and however much: random nonces
    of 96 bits under one key would be good for 2^32 values (NIST SP 800-38D, 8.3), which is days.
    """

    def __init__(self, key: bytes) -> None:
        salt = os.urandom(SALT_BYTES)
        self._head = MAGIC + key_id(key) + salt
        self._cipher = _subkey(key, salt)
        self._count = 0

    def seal(self, value: bytes, model: str, request_id: str, name: str) -> bytes:
        """Return magic, key id, salt, nonce, and the value encrypted with its tag."""
        nonce = _COUNT.pack(self._count)
        self._count += 1
        head = self._head + nonce
        return head + self._cipher.encrypt(nonce, value, _about(head, model, request_id, name))


class Keyring:
    """Keys by their id; the first one seals."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = {key_id(key): key for key in keys}
        self.current = keys[0] if keys else None
        self._cipher = lru_cache(maxsize=1024)(self._derive)

    def _derive(self, name: bytes, salt: bytes) -> AESGCM:
        return _subkey(self._keys[name], salt)

    def open(self, value: Any, model: str, request_id: str, name: str) -> Any:
        """Return a value as it was before it was sealed; one that is not sealed comes back as it is.

        Raises ConfigError when its key is not here, DataInvalid when it was changed or moved.
        """
        if not isinstance(value, bytes) or not value.startswith(MAGIC):
            return value
        head, rest = value[:HEAD], value[HEAD:]
        used, salt = head[len(MAGIC) :][:ID_BYTES], head[len(MAGIC) + ID_BYTES :][:SALT_BYTES]
        if used not in self._keys:
            have = ", ".join(one.hex() for one in self._keys) or "none"
            raise ConfigError(
                f"captured traffic is encrypted with the key {used.hex()}, and there is {have}: "
                "add it to HOMEOSTAT_TRAFFIC_KEY or the file of HOMEOSTAT_TRAFFIC_KEY_FILE"
            )
        try:
            return self._cipher(used, salt).decrypt(head[-_COUNT.size :], rest, _about(head, model, request_id, name))
        except InvalidTag as error:
            raise DataInvalid(f"{name}: its encryption does not hold: it was changed, or belongs elsewhere") from error


def load_keyring(settings: Settings) -> Keyring:
    """Return the keys of the environment and of the file, in this order; raises ConfigError that says what is wrong.

    A key is 32 random bytes in base64; several stand on lines of their own or with commas between.
    """
    found: list[bytes] = []
    sources = {"HOMEOSTAT_TRAFFIC_KEY": settings.traffic_key.get_secret_value() if settings.traffic_key else ""}
    path = settings.traffic_key_file
    if path is not None:
        try:
            check_private(path)
            sources[str(path)] = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as keys: {error}") from error
    for where, text in sources.items():
        for word in text.replace(",", " ").split():
            try:
                key = base64.b64decode(word, validate=True)
            except ValueError:
                key = b""
            if len(key) != KEY_BYTES:
                raise ConfigError(f"{where}: a key is {KEY_BYTES} bytes in base64; `openssl rand -base64 32` makes one")
            found.append(key)
    if path is not None and not found:
        raise ConfigError(f"{path} holds no key; `openssl rand -base64 32` makes one")
    return Keyring(found)
