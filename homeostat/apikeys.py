"""API keys: a file of salted digests, changed by `homeostat key` and followed by the server.

A key is `hs_<id>_<secret>`: 12 hex digits that name it in lists, logs and captured traffic, and
32 random bytes. What is kept is HMAC-SHA-256 of the key under a salt of its own, compared in
constant time. One fast keyed hash is right here: slow hashes (scrypt, argon2) make the guessing
of what people choose expensive, but nobody guesses 256 random bits, and a slow hash for each
request would let anyone exhaust the server by sending wrong keys. The salt makes tables of
digests useless, and hides that two files hold the same key.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from homeostat.client import SCOPES, Client
from homeostat.contract import Strict
from homeostat.errors import ConfigError, NotFound

FILE = "keys.json"
FORM = re.compile(r"hs_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


class ApiKey(Strict):
    """One key as it is kept: everything but the key itself."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(min_length=1, max_length=80)
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Literal["infer", "label", "operate", "admin"], ...] = Field(min_length=1)
    models: tuple[str, ...] | None = None
    created: datetime
    expires: datetime | None = None

    def client(self) -> Client:
        """Return the client that has this key."""
        models = None if self.models is None else frozenset(self.models)
        expires = self.expires.timestamp() if self.expires else float("inf")
        return Client(self.id, frozenset(self.scopes), models, expires)


class _File(Strict):
    format: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


def _digest(key: str, salt: str) -> str:
    return hmac.digest(bytes.fromhex(salt), key.encode(), "sha256").hex()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file, none when there is no file.

    Raises ConfigError when others may read or write it, or when it is not such a file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; it must be a plain file of this user") from error
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(f"{path} has mode {mode:o}: others may use it; chmod 600 {path}")
        data = file.read()
    try:
        return _File.model_validate_json(data).keys
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ConfigError(f"{path} is not a file of API keys: {where}: {problem['msg']}; restore it") from error


@contextmanager
def _changed(path: Path) -> Iterator[list[ApiKey]]:
    """Yield the keys, and write them back whole when the block ends well; one change at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list(read_keys(path))
        yield keys
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_File(keys=tuple(keys)).model_dump_json(indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        os.close(lock)


def create_key(
    path: Path,
    name: str,
    scopes: Sequence[str],
    models: Sequence[str] | None = None,
    expires: datetime | None = None,
) -> tuple[str, ApiKey]:
    """Make a key, and return it with its record; it is kept nowhere. Raises ConfigError for a record that is none."""
    identity = secrets.token_hex(6)
    key, salt = f"hs_{identity}_{secrets.token_urlsafe(32)}", secrets.token_hex(16)
    values = {
        "id": identity,
        "name": name,
        "salt": salt,
        "digest": _digest(key, salt),
        "scopes": tuple(sorted(set(scopes), key=lambda scope: SCOPES.index(scope) if scope in SCOPES else -1)),
        "models": None if models is None else tuple(models),
        "created": datetime.now(UTC).replace(microsecond=0),
        "expires": expires,
    }
    try:
        record = ApiKey.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        raise ConfigError(f"key {name!r:.80}: {problem['loc'][0]}: {problem['msg']}") from error
    with _changed(path) as keys:
        keys.append(record)
    return key, record


def revoke_key(path: Path, identity: str) -> ApiKey:
    """Forget a key, and return what was kept of it; raises NotFound that names the ids there are."""
    with _changed(path) as keys:
        for place, key in enumerate(keys):
            if key.id == identity:
                return keys.pop(place)
        known = ", ".join(key.id for key in keys) or "none"
        raise NotFound(f"no key {identity!r:.40}; there is: {known}")


class KeyTable:
    """The keys of one reading of the file, for looking up."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._entries: Mapping[str, tuple[bytes, bytes, Client]] = {
            key.id: (bytes.fromhex(key.salt), bytes.fromhex(key.digest), key.client()) for key in keys
        }

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self._entries)

    def find(self, key: str) -> Client | None:
        """Return the client of a key, whether it has expired or not; None when there is no such key."""
        form = FORM.fullmatch(key)
        entry = self._entries.get(form[1]) if form else None
        if entry is None:
            return None
        salt, digest, client = entry
        return client if hmac.compare_digest(hmac.digest(salt, key.encode(), "sha256"), digest) else None
