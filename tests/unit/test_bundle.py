"""bundle: what is opened is byte for byte what was signed, or nothing is opened."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from dataclasses import replace

import fsspec
import numpy as np
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from homeostat.bundle import SIZE_CAPS, build, load_key, load_public_key, open_bundle
from homeostat.config import ProjectConfig
from homeostat.errors import BundleInvalid, ConfigError
from homeostat.golden import GOLDEN_ROWS, read_golden
from tests.bundles import LINEAGE, chain, contract_of, folder_of, linear, make_bundle, rows_of

FILES = [*SIZE_CAPS, "manifest.json", "manifest.sig"]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def reopen(home, ref):
    return open_bundle(ref, load_public_key(home))


def test_build_and_open(home):
    ref = make_bundle(home, max_rows=7)
    bundle = reopen(home, ref)
    assert folder_of(ref) == home / "bundles" / "toy" / f"v1-{ref.manifest_sha256[:12]}"
    assert sorted(path.name for path in folder_of(ref).iterdir()) == sorted(FILES)
    assert (bundle.ref, bundle.onnx, bundle.contract) == (ref, linear(), contract_of(linear()))
    assert (bundle.manifest.lineage, bundle.manifest.serve.max_rows) == (LINEAGE, 7)
    rows, answers = read_golden(bundle.golden)
    np.testing.assert_allclose(answers["output"], rows["x"].sum(1, keepdims=True), rtol=1e-6)
    assert open_bundle(ref.url, load_public_key(home)).ref == ref
    assert not list((home / "bundles").rglob("*.tmp"))


def test_golden_rows_are_few(home):
    config = ProjectConfig(name="toy", project="a.b:C", task="regression")
    contract = contract_of(linear())
    many = rows_of(contract, 100)
    ref = build(
        "toy", 1, linear(), contract, b"{}", config, LINEAGE, b"", many, load_key(home), str(home / "s"), ("a", "b")
    )
    bundle = reopen(home, ref)
    assert len(read_golden(bundle.golden)[0]["x"]) == GOLDEN_ROWS
    assert bundle.manifest.classes == ("a", "b")


def test_building_again_changes_nothing(home):
    first = make_bundle(home)
    before = {path: path.stat().st_mtime_ns for path in folder_of(first).iterdir()}
    assert make_bundle(home) == first
    assert {path: path.stat().st_mtime_ns for path in folder_of(first).iterdir()} == before
    assert make_bundle(home, max_rows=9).url != first.url


def test_any_fsspec_store_will_do(home):
    config = ProjectConfig(name="toy", project="a.b:C", task="regression")
    contract = contract_of(linear())
    arguments = (contract, b"{}", config, LINEAGE, b"", rows_of(contract), load_key(home), "memory://store")
    ref = build("toy", 1, linear(), *arguments)
    assert build("toy", 1, linear(), *arguments) == ref
    assert reopen(home, ref).onnx == linear()
    names = list(fsspec.filesystem("memory").store)
    assert names[-1].endswith("manifest.sig"), "the signature, whose presence is the commit, is written last"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_one_flipped_byte(home, name, place):
    ref = make_bundle(home)
    path = folder_of(ref) / name
    data = bytearray(path.read_bytes())
    data[int(len(data) * place) if place != -1 else -1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleInvalid, match=name if name != "manifest.json" else "manifest") as caught:
        reopen(home, ref)
    assert "again" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_truncated_or_longer_file(home, name):
    ref = make_bundle(home)
    path = folder_of(ref) / name
    data = path.read_bytes()
    for changed in (data[:-1], b"", data + b"x"):
        path.write_bytes(changed)
        with pytest.raises(BundleInvalid, match=r"manifest|" + name):
            reopen(home, ref)
    path.unlink()
    with pytest.raises(BundleInvalid, match=name):
        reopen(home, ref)


def test_the_error_names_both_digests(home):
    ref = make_bundle(home)
    record = json.loads((folder_of(ref) / "manifest.json").read_text())["files"]["contract.json"]
    path = folder_of(ref) / "contract.json"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleInvalid, match=record["sha256"]):
        reopen(home, ref)


def test_another_key(home, tmp_path):
    ref = make_bundle(home)
    with pytest.raises(BundleInvalid, match="another key"):
        open_bundle(ref, Ed25519PrivateKey.generate().public_key())


def test_a_manifest_from_another_bundle(home):
    one, two = make_bundle(home, 1), make_bundle(home, 2)
    for name in ("manifest.json", "manifest.sig"):
        shutil.copy(folder_of(two) / name, folder_of(one) / name)
    with pytest.raises(BundleInvalid, match="expected"):
        reopen(home, one)
    with pytest.raises(BundleInvalid, match=r"contract.json|model.onnx|golden.npz"):
        open_bundle(one.url, load_public_key(home))
    shutil.copytree(folder_of(two), folder_of(one), dirs_exist_ok=True)
    with pytest.raises(BundleInvalid, match=r"manifest.json: found sha256"):
        reopen(home, one)


def test_the_record_must_be_of_this_bundle(home):
    ref = make_bundle(home)
    for wrong in (replace(ref, version=2), replace(ref, model="other"), replace(ref, sha256="0" * 64)):
        with pytest.raises(BundleInvalid, match="expected"):
            reopen(home, wrong)
    with pytest.raises(BundleInvalid, match="f" * 64):
        open_bundle(ref.url, load_public_key(home), "f" * 64)


def _sign_again(home, ref, change) -> None:
    path = folder_of(ref) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    (folder_of(ref) / "manifest.sig").write_bytes(load_key(home).sign(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format=2),
        lambda m: m.update(extra=1),
        lambda m: m.update(model="../../x"),
        lambda m: m["files"].update({"../../etc/passwd": m["files"]["golden.npz"]}),
        lambda m: m["files"].pop("golden.npz"),
        lambda m: m["files"]["golden.npz"].update(sha256="../x"),
    ],
)
def test_a_signed_manifest_that_is_none(home, change):
    ref = make_bundle(home)
    _sign_again(home, ref, change)
    with pytest.raises(BundleInvalid, match=r"manifest.json"):
        open_bundle(ref.url, load_public_key(home))


@pytest.mark.parametrize("name", FILES)
def test_only_plain_files_are_read(home, tmp_path, monkeypatch, name):
    ref = make_bundle(home)
    path, elsewhere = folder_of(ref) / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    for make in (path.symlink_to, path.hardlink_to):
        make(elsewhere)
        with pytest.raises(BundleInvalid, match=rf"{name} is not a plain file"):
            reopen(home, ref)
        path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleInvalid, match=rf"{name} is not a plain file"):
        reopen(home, ref)
    path.unlink()
    path.mkdir()
    with pytest.raises(BundleInvalid, match=rf"{name} is not a plain file"):
        reopen(home, ref)
    path.rmdir()
    monkeypatch.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        with pytest.raises(BundleInvalid, match=rf"{name} is not a plain file"):
            reopen(home, ref)
    path.unlink()
    elsewhere.rename(path)
    reopen(home, ref)


def test_no_descriptor_is_left_open(home):
    ref = make_bundle(home)
    path = folder_of(ref) / "golden.npz"
    path.unlink()
    path.mkdir()
    before = psutil.Process().num_fds()
    for _ in range(20):
        with pytest.raises(BundleInvalid):
            reopen(home, ref)
    assert psutil.Process().num_fds() == before


def test_size_caps(home, monkeypatch):
    ref = make_bundle(home)
    sizes = {path.name: path.stat().st_size for path in folder_of(ref).iterdir()}
    for name in ("model.onnx", "golden.npz"):
        with monkeypatch.context() as patch:
            patch.setitem(SIZE_CAPS, name, sizes[name] - 1)
            with pytest.raises(BundleInvalid, match=rf"{name} has {sizes[name]} bytes, expected at most"):
                reopen(home, ref)
            with pytest.raises(BundleInvalid, match=rf"{name} has \d+ bytes, at most"):
                make_bundle(home, 2)
    for cap, said in (
        ("BUNDLE_CAP", r"manifest.json lists files of \d+ bytes in all, at most 100"),
        ("MANIFEST_CAP", "manifest"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"homeostat.bundle.{cap}", 100)
            with pytest.raises(BundleInvalid, match=said):
                reopen(home, ref)
            with pytest.raises(BundleInvalid, match="at most 100"):
                make_bundle(home, 3)
    reopen(home, ref)


def test_a_graph_that_answers_nan_is_not_built(home):
    with pytest.raises(BundleInvalid, match="answers NaN or Inf on 3 of 3 golden rows"):
        make_bundle(home, onnx_bytes=chain(2, "Log"))


def test_keys_are_private_and_made_once(home):
    key = load_key(home)
    private, public = home / "keys" / "signing.pem", home / "keys" / "signing.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700
    assert load_key(home).private_bytes_raw() == key.private_bytes_raw()
    assert load_public_key(home).public_bytes_raw() == key.public_key().public_bytes_raw()
    assert sorted(path.name for path in private.parent.iterdir()) == ["signing.pem", "signing.pub"]
    public.unlink()
    with pytest.raises(ConfigError, match=r"signing.pub: no such file"):
        load_public_key(home)
    private.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(home)


def test_damaged_or_foreign_keys(home, tmp_path):
    load_key(home)
    other = tmp_path / "other"
    load_key(other)
    shutil.copy(other / "keys" / "signing.pub", home / "keys" / "signing.pub")
    with pytest.raises(ConfigError, match="does not belong"):
        load_key(home)
    (home / "keys" / "signing.pub").write_text("x")
    with pytest.raises(ConfigError, match="PEM"):
        load_public_key(home)
    (home / "keys" / "signing.pem").write_text("x")
    with pytest.raises(ConfigError, match="PEM"):
        load_key(home)


def test_processes_at_once_get_the_same_key(home):
    code = "import sys, pathlib; from homeostat.keys import load_key; "
    code += "print(load_key(pathlib.Path(sys.argv[1])).private_bytes_raw().hex())"
    started = [subprocess.Popen([sys.executable, "-c", code, home], stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate()[0] for process in started}) == 1
    assert all(process.returncode == 0 for process in started)
