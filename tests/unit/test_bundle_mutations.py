"""5,000 bundles, each changed in one way after it was signed: none is opened."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from homeostat.bundle import SIZE_CAPS, load_key, load_public_key, open_bundle
from homeostat.errors import BundleInvalid
from tests.bundles import folder_of, linear, make_bundle

MUTATIONS = 5000
NAMES = [*SIZE_CAPS, "manifest.json", "manifest.sig"]
Files = dict[str, bytes]
Change = dict[str, bytes | Callable[[Path], object]]
"""File name -> its new bytes, or what puts something else in its place."""


class Mutations:
    """Ways to change a bundle; each method returns the files that it changes, with `random` as its only chance."""

    def __init__(self, seed: int, files: Files, other: Files, key: Ed25519PrivateKey, elsewhere: Path) -> None:
        self._random = random.Random(seed)
        self._files, self._other, self._elsewhere = files, other, elsewhere
        self._key, self._foreign = key, Ed25519PrivateKey.from_private_bytes(bytes(32))
        self._kinds = [getattr(self, name) for name in sorted(vars(Mutations)) if not name.startswith("_")]

    def __iter__(self) -> Iterator[tuple[str, Change]]:
        while True:
            kind = self._random.choice(self._kinds)
            changed = kind()
            if any(value != self._files.get(name) for name, value in changed.items()):
                yield kind.__name__, changed

    def _one(self) -> tuple[str, bytearray]:
        name = self._random.choice(NAMES)
        return name, bytearray(self._files[name])

    def flipped_bits(self) -> Change:
        name, data = self._one()
        for _ in range(self._random.randint(1, 8)):
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return {name: bytes(data)}

    def truncated(self) -> Change:
        name, data = self._one()
        return {name: bytes(data[: self._random.randrange(len(data))])}

    def longer(self) -> Change:
        name, data = self._one()
        return {name: bytes(data) + self._random.randbytes(self._random.randint(1, 64))}

    def cut_out(self) -> Change:
        name, data = self._one()
        at = self._random.randrange(len(data))
        del data[at : at + self._random.randint(1, 16)]
        return {name: bytes(data)}

    def random_bytes(self) -> Change:
        name, data = self._one()
        return {name: self._random.randbytes(len(data))}

    def swapped_within(self) -> Change:
        one, two = self._random.sample(NAMES, 2)
        return {one: self._files[two], two: self._files[one]}

    def swapped_with_another_bundle(self) -> Change:
        names = self._random.sample(NAMES, self._random.randint(1, len(NAMES)))
        return {name: self._other[name] for name in names}

    def removed(self) -> Change:
        return {self._one()[0]: lambda path: None}

    def symbolic_link(self) -> Change:
        name = self._one()[0]
        return {name: lambda path: path.symlink_to(self._elsewhere / name)}

    def hard_link(self) -> Change:
        name = self._one()[0]
        return {name: lambda path: path.hardlink_to(self._elsewhere / name)}

    def fifo(self) -> Change:
        return {self._one()[0]: os.mkfifo}

    def folder(self) -> Change:
        return {self._one()[0]: Path.mkdir}

    def _edited(self) -> bytes:
        manifest = json.loads(self._files["manifest.json"])
        at: Any = manifest
        while True:
            key = self._random.choice(list(at))
            if not isinstance(at[key], dict) or self._random.random() < 0.1:
                break
            at = at[key]
        if self._random.random() < 0.3:
            del at[key]
        elif isinstance(at[key], int):
            at[key] += self._random.choice([-1, 1, 1000])
        else:
            at[key] = self._random.choice(["x", "../x", "0" * 64, None, [], 2**70, "\0"])
        return json.dumps(manifest).encode()

    def manifest_edited(self) -> Change:
        return {"manifest.json": self._edited()}

    def manifest_signed_by_a_foreign_key(self) -> Change:
        edited = self._edited()
        return {"manifest.json": edited, "manifest.sig": self._foreign.sign(edited)}

    def signature_of_a_foreign_key(self) -> Change:
        return {"manifest.sig": self._foreign.sign(self._files["manifest.json"])}

    def manifest_that_is_not_the_one_of_the_row(self) -> Change:
        edited = self._edited()
        return {"manifest.json": edited, "manifest.sig": self._key.sign(edited)}

    def another_model_signed_by_a_foreign_key(self) -> Change:
        model = linear(self._random.uniform(-9, 9))
        fields = json.loads(self._files["manifest.json"])
        fields["files"]["model.onnx"] = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
        manifest = json.dumps(fields).encode()
        return {"model.onnx": model, "manifest.json": manifest, "manifest.sig": self._foreign.sign(manifest)}


def apply(folder: Path, change: Change) -> None:
    for name, value in change.items():
        path = folder / name
        path.unlink()
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            value(path)


def restore(folder: Path, files: Files, change: Change) -> None:
    for name in change:
        path = folder / name
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(files[name])


def files_of(folder: Path) -> Files:
    return {name: (folder / name).read_bytes() for name in NAMES}


def mutations(home: Path, ref: Any, seed: int) -> Iterator[tuple[str, Change]]:
    """Endless ways to change that bundle; version 2 of the same model lends its files."""
    files, elsewhere = files_of(folder_of(ref)), home / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    for name, data in files.items():
        (elsewhere / name).write_bytes(data)
    return iter(Mutations(seed, files, files_of(folder_of(make_bundle(home, 2))), load_key(home), elsewhere))


def test_none_of_them_is_opened(tmp_path):
    ref = make_bundle(tmp_path)
    folder, key = folder_of(ref), load_public_key(tmp_path)
    files, kinds, answers = files_of(folder), Counter(), []
    for kind, change in islice(mutations(tmp_path, ref, seed=20), MUTATIONS):
        kinds[kind] += 1
        apply(folder, change)
        with pytest.raises(BundleInvalid) as caught:
            open_bundle(ref, key)
        answers.append(str(caught.value))
        restore(folder, files, change)
    assert kinds.total() == MUTATIONS
    assert min(kinds.values()) > 100
    assert all(answer.startswith(f"{folder}/") for answer in answers), "each says which file"
    assert {answer.removeprefix(f"{folder}/").split()[0].rstrip(":") for answer in answers} == set(NAMES)
    assert open_bundle(ref, key).onnx == linear(), "unchanged, it opens"


@pytest.mark.parametrize("seed", range(3))
def test_the_mutations_are_the_same_every_time(tmp_path, seed):
    ref = make_bundle(tmp_path)
    one, two = (mutations(tmp_path, ref, seed) for _ in range(2))
    for _ in range(50):
        (kind, change), (again, changed) = next(one), next(two)
        assert (kind, sorted(change)) == (again, sorted(changed))
