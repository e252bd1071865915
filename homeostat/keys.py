"""The ed25519 key that signs bundles, and the salt of masked columns: made on first use, private to their owner."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from homeostat.errors import ConfigError

PRIVATE, PUBLIC, SALT = "signing.pem", "signing.pub", "masking.salt"
SALT_BYTES = 32


def _place(path: Path, data: bytes, mode: int) -> None:
    """Write under a temporary name and link into place, unless somebody else was first."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return  # the other process's key is the key
    finally:
        temporary.unlink()


def _public_bytes(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_key(home: Path) -> Ed25519PrivateKey:
    """Return the private key HOME/keys/signing.pem, made on first use (mode 600, in a folder of mode 700).

    Two processes at once get the same key. Raises ConfigError when others may read it, when it
    is not an ed25519 key, or when signing.pub beside it belongs to another one.
    """
    folder = home / "keys"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, public = folder / PRIVATE, folder / PUBLIC
    if not path.exists():
        made = Ed25519PrivateKey.generate()
        _place(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    check_private(path)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is not a private key in PEM form; restore it, or remove it to make another"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a {type(key).__name__}; bundles are signed with ed25519")
    if not public.exists():
        _place(public, _public_bytes(key.public_key()), 0o644)
    if _public_bytes(load_public_key(home)) != _public_bytes(key.public_key()):
        raise ConfigError(f"{public} does not belong to {path}; remove {public} and it is written anew")
    return key


def check_private(path: Path) -> None:
    """Raise ConfigError when others than its owner may read a file."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{path} has mode {mode:o}: others may read it; chmod 600 {path}")


def load_salt(home: Path) -> bytes:
    """Return HOME/keys/masking.salt, made on first use as the signing key is; raises ConfigError likewise.

    Hashes of captured columns are linked by it: a new one makes new hashes of the same values.
    """
    folder = home / "keys"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / SALT
    if not path.exists():
        _place(path, os.urandom(SALT_BYTES), 0o600)
    check_private(path)
    salt = path.read_bytes()
    if len(salt) != SALT_BYTES:
        raise ConfigError(f"{path} has {len(salt)} bytes, not {SALT_BYTES}; restore it, or remove it to make another")
    return salt


def load_public_key(home: Path) -> Ed25519PublicKey:
    """Return HOME/keys/signing.pub, all that a server needs; raises ConfigError when it is missing or another kind."""
    path = home / "keys" / PUBLIC
    try:
        key = load_pem_public_key(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; the first deployment makes it, or copy it from where bundles are signed"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a public key in PEM form") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is a {type(key).__name__}; bundles are signed with ed25519")
    return key
