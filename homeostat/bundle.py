"""What is deployed: one signed folder with the ONNX graph, its contract, profile and reference; build, sign, verify."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import posixpath
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import fsspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from fsspec.implementations.local import LocalFileSystem
from pydantic import Field, ValidationError

from homeostat.config import ProjectConfig, RolloutConfig, ServeConfig
from homeostat.contract import Contract, Strict
from homeostat.dataset import Array
from homeostat.errors import BundleInvalid, DataInvalid, Unavailable
from homeostat.golden import GOLDEN_BYTES, make_golden
from homeostat.graph import check_graph
from homeostat.keys import load_key, load_public_key
from homeostat.masking import Mask
from homeostat.records import BundleRef, Lineage, Task

log = logging.getLogger(__name__)

MIB = 1024 * 1024
SIZE_CAPS = {
    "model.onnx": 2048 * MIB,  # protobuf's own limit
    "contract.json": 16 * MIB,
    "profile.json": 64 * MIB,
    "reference.npz": 1024 * MIB,
    "golden.npz": GOLDEN_BYTES,
}
"""The files of a bundle and the most bytes that each may have. No other name is ever opened."""
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MANIFEST_CAP, SIGNATURE_BYTES = MIB, 64
BUNDLE_CAP = 2560 * MIB
"""The most bytes of all files together: they are held in memory while they are verified."""


class FileRecord(Strict):
    """A file of the bundle, pinned."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(Strict):
    """What the signature stands for: who, when, from what, and the digest of every file."""

    format: Literal[1]
    model: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    version: int = Field(ge=1)
    task: Task
    created: str
    """UTC time, ISO 8601."""
    serve: ServeConfig
    rollout: RolloutConfig = RolloutConfig()
    lineage: Lineage
    classes: tuple[str, ...] = ()
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose signature and digests hold; the bytes are the verified ones."""

    ref: BundleRef
    manifest: Manifest
    onnx: bytes
    contract: Contract
    profile: bytes
    reference: bytes
    """npz of the reference rows (Evidently's reference dataset)."""
    golden: bytes
    """npz of the golden rows (homeostat.golden)."""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _twins(fs: Any, folder: str, manifest: Manifest, key: Ed25519PublicKey) -> Iterator[tuple[str, bytes]]:
    """Committed bundles under `folder` that say the same as `manifest`, but for the time of their making."""
    if not fs.exists(folder):
        return
    for path in sorted(fs.ls(folder, detail=False)):
        if posixpath.basename(path).startswith(f"v{manifest.version}-") and fs.exists(f"{path}/{SIGNATURE}"):
            data = _read(fs, path, MANIFEST, MANIFEST_CAP)
            found = _verify_manifest(fs, path, data, key)
            if found.model_copy(update={"created": manifest.created}) == manifest:
                yield path, data


def _write(fs: Any, target: str, files: Mapping[str, bytes]) -> None:
    """Write all files, the signature last; on a local disk under a temporary name that is then renamed."""
    if not isinstance(fs, LocalFileSystem):
        for name, data in files.items():
            fs.pipe_file(f"{target}/{name}", data)
        return
    parent, name = posixpath.split(target)
    temporary = Path(parent) / f".{name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir(parents=True)
    try:
        for file, data in files.items():
            (temporary / file).write_bytes(data)
        try:
            temporary.rename(target)
        except OSError:
            if not (Path(target) / SIGNATURE).exists():  # else: the same bytes, written by another process just now
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def build(
    model: str,
    version: int,
    onnx: bytes,
    contract: Contract,
    profile_json: bytes,
    config: ProjectConfig,
    lineage: Lineage,
    reference: bytes,
    golden: Mapping[str, Array],
    key: Ed25519PrivateKey,
    store_url: str,
    classes: tuple[str, ...] = (),
) -> BundleRef:
    """Write one signed bundle to `<store>/<model>/v<version>-<12 digits of its manifest>/` and return its record.

    reference: npz bytes. golden: input name -> rows [n, ...]; the first 16 are kept with the
    graph's answer. Building the same again returns the bundle that is there. Raises
    BundleInvalid when the graph has what is not served (homeostat.graph) or a file passes its cap,
    ConfigError when serve.masking names what is no column.
    """
    check_graph(onnx, "model.onnx")
    Mask.make(config.serve, contract, bytes)  # its names are the contract's
    contents = {
        "model.onnx": onnx,
        "contract.json": contract.to_json().encode(),
        "profile.json": profile_json,
        "reference.npz": reference,
        "golden.npz": make_golden(onnx, golden),
    }
    for name, data in contents.items():
        if len(data) > SIZE_CAPS[name]:
            raise BundleInvalid(f"{name} has {len(data)} bytes, at most {SIZE_CAPS[name]}; keep fewer rows in it")
    manifest = Manifest(
        format=1,
        model=model,
        version=version,
        task=config.task,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        serve=config.serve,
        rollout=config.rollout,
        lineage=lineage,
        classes=classes,
        files={name: FileRecord(sha256=_digest(data), bytes=len(data)) for name, data in contents.items()},
    )
    _check_size(manifest, MANIFEST)
    fs, root = fsspec.core.url_to_fs(store_url)
    folder = f"{root.rstrip('/')}/{model}"
    for path, data in _twins(fs, folder, manifest, key.public_key()):
        return BundleRef(model, version, fs.unstrip_protocol(path), _digest(data), manifest.files["model.onnx"].sha256)
    signed = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True).encode()
    if len(signed) > MANIFEST_CAP:
        raise BundleInvalid(
            f"{MANIFEST} has {len(signed)} bytes, at most {MANIFEST_CAP}; give the classes shorter names"
        )
    target = f"{folder}/v{version}-{_digest(signed)[:12]}"
    _write(fs, target, contents | {MANIFEST: signed, SIGNATURE: key.sign(signed)})
    log.info("bundle %s v%d written to %s", model, version, target)
    return BundleRef(model, version, fs.unstrip_protocol(target), _digest(signed), _digest(onnx))


def _read_local(path: str, cap: int) -> bytes:
    """Read a file that is plain and has no other name; what is looked at is what is read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a fifo must not block
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BundleInvalid(f"{path} is not a plain file; deploy the version again")
        if found.st_nlink > 1:
            raise BundleInvalid(
                f"{path} is not a plain file: it has {found.st_nlink} names (hard links), and may be changed by each; "
                "replace it by a copy, or deploy the version again"
            )
        if found.st_size > cap:
            raise BundleInvalid(f"{path} has {found.st_size} bytes, expected at most {cap}; deploy the version again")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(cap + 1)
    finally:
        os.close(descriptor)


def _read(fs: Any, folder: str, name: str, cap: int) -> bytes:
    """Read one file of the fixed list, once, and never more than its cap."""
    path = f"{folder}/{name}"
    try:
        if isinstance(fs, LocalFileSystem):
            data = _read_local(path, cap)
        else:
            info = fs.info(path)
            size = info["size"]
            if info["type"] != "file":
                raise BundleInvalid(f"{path} is not a plain file; deploy the version again")
            if size > cap:
                raise BundleInvalid(f"{path} has {size} bytes, expected at most {cap}; deploy the version again")
            with fs.open(path, "rb", cache_type="none") as file:
                data = file.read(cap + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise BundleInvalid(
            f"{path}: {error.strerror or 'not found'}; the bundle is incomplete: deploy the version again"
        ) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            raise BundleInvalid(f"{path} is not a plain file; deploy the version again") from error
        raise Unavailable(f"{path} cannot be read: {error}") from error
    if len(data) > cap:
        raise BundleInvalid(f"{path} has more than {cap} bytes; deploy the version again")
    return data


def _check_size(manifest: Manifest, where: str) -> None:
    size = sum(record.bytes for record in manifest.files.values())
    if size > BUNDLE_CAP:
        raise BundleInvalid(f"{where} lists files of {size} bytes in all, at most {BUNDLE_CAP}; keep fewer rows in it")


def _verify_manifest(fs: Any, folder: str, data: bytes, key: Ed25519PublicKey) -> Manifest:
    signature = _read(fs, folder, SIGNATURE, SIGNATURE_BYTES)
    try:
        key.verify(signature, data)
    except InvalidSignature as error:
        raise BundleInvalid(
            f"{folder}/{SIGNATURE}: the signature does not hold for {MANIFEST} (found sha256 {_digest(data)}) and "
            "this machine's signing.pub: it was changed, or signed with another key; deploy the version again"
        ) from error
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleInvalid(f"{folder}/{MANIFEST} is not a manifest of format 1: {error}") from error
    if manifest.files.keys() != SIZE_CAPS.keys():
        raise BundleInvalid(f"{folder}/{MANIFEST} lists {', '.join(manifest.files)}; expected {', '.join(SIZE_CAPS)}")
    _check_size(manifest, f"{folder}/{MANIFEST}")
    return manifest


def _check_ref(folder: str, manifest: Manifest, digest: str, ref: BundleRef | None, expected: str | None) -> None:
    if expected is not None and digest != expected:
        raise BundleInvalid(
            f"{folder}/{MANIFEST}: found sha256 {digest}, expected {expected}; deploy the version again"
        )
    if ref is None:
        return
    found = (manifest.model, manifest.version, manifest.files["model.onnx"].sha256)
    if found != (ref.model, ref.version, ref.sha256):
        raise BundleInvalid(
            f"{folder}/{MANIFEST} is {found[0]} v{found[1]} with model.onnx {found[2]}; "
            f"expected {ref.model} v{ref.version} with {ref.sha256}; deploy the version again"
        )


def open_bundle(
    ref_or_url: BundleRef | str, public_key: Ed25519PublicKey, expected_manifest_sha256: str | None = None
) -> Bundle:
    """Read a bundle, each file once, and return it when the signature and every sha256 hold for those very bytes.

    Raises BundleInvalid that names the file, the digest found and the one expected; Unavailable
    when the store does not answer.
    """
    ref = ref_or_url if isinstance(ref_or_url, BundleRef) else None
    url = ref.url if ref else str(ref_or_url)
    expected = expected_manifest_sha256 or (ref.manifest_sha256 if ref else None)
    fs, folder = fsspec.core.url_to_fs(url)
    folder = folder.rstrip("/")
    signed = _read(fs, folder, MANIFEST, MANIFEST_CAP)
    manifest = _verify_manifest(fs, folder, signed, public_key)
    _check_ref(folder, manifest, _digest(signed), ref, expected)
    contents: dict[str, bytes] = {}
    for name, cap in SIZE_CAPS.items():
        record = manifest.files[name]
        data = _read(fs, folder, name, min(cap, record.bytes))
        found = _digest(data)
        if found != record.sha256:
            raise BundleInvalid(
                f"{folder}/{name}: found sha256 {found} ({len(data)} bytes), expected {record.sha256} "
                f"({record.bytes} bytes); deploy the version again"
            )
        contents[name] = data
    check_graph(contents["model.onnx"], f"{folder}/model.onnx")
    try:
        contract = Contract.from_json(contents["contract.json"], f"{folder}/contract.json")
    except DataInvalid as error:
        raise BundleInvalid(str(error)) from error
    made = BundleRef(manifest.model, manifest.version, url, _digest(signed), manifest.files["model.onnx"].sha256)
    return Bundle(
        ref=ref or made,
        manifest=manifest,
        onnx=contents["model.onnx"],
        contract=contract,
        profile=contents["profile.json"],
        reference=contents["reference.npz"],
        golden=contents["golden.npz"],
    )


__all__ = ["Bundle", "Manifest", "build", "load_key", "load_public_key", "open_bundle"]
