"""The files for systemd, container and proxies: their tools take them, and they fit the server."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from homeostat.bundle import open_bundle
from homeostat.errors import BundleInvalid
from homeostat.keys import load_key, load_public_key
from homeostat.serving.rest.app import MAX_BODY
from homeostat.serving.rest.connections import RESERVED_FILES
from homeostat.serving.server import DRAIN_SECONDS, KEEP_ALIVE_SECONDS
from homeostat.serving.supervisor import STOP_SECONDS, WRONG_SETTINGS
from homeostat.settings import Settings
from tests.bundles import make_bundle
from tests.conftest import ROOT
from tests.programs import installed

DEPLOYMENTS = ROOT / "deployments"
UNIT = DEPLOYMENTS / "systemd" / "homeostat-server.service"
CONTAINER = DEPLOYMENTS / "container"
DOCKERFILE = (CONTAINER / "Dockerfile").read_text()
PROXIES = [(DEPLOYMENTS / "proxy" / name).read_text() for name in ("nginx.conf", "Caddyfile")]
OPERATING = (ROOT / "docs" / "operating.md").read_text()
FILES = sorted(
    path for folder in ("container", "proxy", "systemd") for path in (DEPLOYMENTS / folder).rglob("*") if path.is_file()
)


@installed("systemd-analyze", "systemd")
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    def analyze(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    if int(re.findall(r"\d+", analyze("--version")[1])[0]) < 250:
        pytest.skip("the unit and systemd-analyze security --offline need systemd 250 or newer")
    homeostat = str(Path(sys.executable).parent / "homeostat")
    made = tmp_path / UNIT.name
    made.write_text(UNIT.read_text().replace("/opt/homeostat/bin/homeostat", homeostat))
    shutil.copytree(UNIT.with_name(UNIT.name + ".d"), tmp_path / (UNIT.name + ".d"))
    code, told = analyze("verify", str(made))
    assert code == 0, told
    assert "homeostat" not in told, told  # warnings name the unit; this machine's other units are its own affair
    code, told = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(made))
    assert code == 0, told[-300:]


def test_the_unit_fits_the_server() -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    service = parser["Service"]
    assert int(service["TimeoutStopSec"]) > max(DRAIN_SECONDS, STOP_SECONDS)
    assert int(service["RestartPreventExitStatus"]) == WRONG_SETTINGS
    assert service["KillMode"] == "mixed"  # the supervisor drains its workers itself
    assert int(service["LimitNOFILE"]) >= Settings.model_fields["max_connections"].default + RESERVED_FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_setting_that_a_file_names_is_one(path: Path) -> None:
    named = set(re.findall(r"\bHOMEOSTAT_[A-Z_0-9]+", path.read_text()))
    assert {name.removeprefix("HOMEOSTAT_").lower() for name in named} <= set(Settings.model_fields)


def test_a_proxy_sends_every_grpc_service_to_its_port() -> None:
    nginx, caddy = PROXIES
    location = re.compile(re.search(r"location ~ (\^/\(inference.*) {", nginx)[1])  # type: ignore[index]
    services = []
    for path in (ROOT / "homeostat" / "serving" / "protos").glob("*.proto"):
        package = re.search(r"^package ([\w.]+);", path.read_text(), re.M)
        services += [
            f"/{package[1]}.{name}/" for name in re.findall(r"^service (\w+)", path.read_text(), re.M) if package
        ]
    assert len(services) == 3
    for one in services:
        assert location.match(f"{one}Method")
        assert f"{one}*" in caddy


def test_a_proxy_keeps_to_the_limits_of_the_server() -> None:
    nginx, caddy = PROXIES
    assert int(re.search(r"client_max_body_size (\d+)m;", nginx)[1]) * 1024 * 1024 == MAX_BODY  # type: ignore[index]
    assert int(re.search(r"\bkeepalive (\d+)s", caddy)[1]) < KEEP_ALIVE_SECONDS  # type: ignore[index]
    assert KEEP_ALIVE_SECONDS > 60  # nginx's own, where its file says nothing


def test_the_image_is_of_pinned_packages_for_a_user_that_is_not_root() -> None:
    installs = re.findall(r"pip install ([^&\n\\]+)", DOCKERFILE)
    assert len(installs) == 3
    assert all("--require-hashes" in one or "--no-index" in one for one in installs)
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.M)
    ignored = (CONTAINER / "Dockerfile.dockerignore").read_text()
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M):
        for name in copied.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}\n" in ignored, name


@pytest.mark.parametrize(("name", "least"), [("server", 10), ("build", 5)])
def test_the_pins_of_the_image_are_those_that_are_tested(name: str, least: int) -> None:
    def pins(path: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9_.-]+==[^ ]+", (ROOT / "requirements" / path).read_text(), re.M))

    assert len(pins(f"{name}.txt")) >= least
    assert pins(f"{name}.txt") <= pins("dev.txt")
    heavy = {"tensorflow", "keras", "mlflow", "prefect", "evidently", "great-expectations", "pandas", "scipy"}
    assert not heavy & {one.split("==")[0] for one in pins(f"{name}.txt")}


@installed("openssl")
def test_the_commands_of_the_docs_sign_bundles_with_a_new_key(tmp_path: Path) -> None:
    script = next(one for one in re.findall(r"```sh\n(.*?)```", OPERATING, re.S) if "genpkey -algorithm ed25519" in one)
    kept, forged = make_bundle(tmp_path, 1), make_bundle(tmp_path, 2)
    old = load_public_key(tmp_path)
    Path(forged.url.removeprefix("file://"), "manifest.sig").write_bytes(bytes(64))
    script = script.replace("/var/lib/homeostat", str(tmp_path))
    subprocess.run(["sh", "-eu", "-c", script], check=True, capture_output=True, timeout=60)
    assert load_key(tmp_path).public_key() != old  # and checks modes, and that the pair is one
    assert open_bundle(kept, load_public_key(tmp_path)).manifest.version == 1
    for key in (old, load_public_key(tmp_path)):
        with pytest.raises(BundleInvalid, match="signature does not hold"):
            open_bundle(forged, key)
    with pytest.raises(BundleInvalid, match="signature does not hold"):
        open_bundle(kept, old)
