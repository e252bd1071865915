"""apikeys: keys are long, kept as salted digests in a private file, and gone when revoked."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from homeostat.apikeys import FILE, FORM, KeyTable, create_key, read_keys, revoke_key
from homeostat.cli import main
from homeostat.errors import ConfigError, NotFound


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / FILE


def test_a_key_is_found_by_its_text_alone(path):
    key, record = create_key(path, "shop", ["infer", "label"], ["toy"])
    other, _ = create_key(path, "other", ["admin"])
    assert FORM.fullmatch(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert key not in text
    assert key.split("_", 2)[2] not in text
    table = KeyTable(read_keys(path))
    client = table.find(key)
    assert (client.id, client.scopes, client.models) == (record.id, {"infer", "label"}, {"toy"})
    assert table.find(other).models is None
    swapped = f"hs_{record.id}_{other.split('_', 2)[2]}"
    for wrong in (
        key[:-1],
        key + "x",
        swapped,
        key.upper(),
        "",
        "hs_",
        f"{key}\n",
        f" {key}",
        "hs_" + "0" * 12 + key[15:],
    ):
        assert table.find(wrong) is None, wrong


def test_two_keys_share_nothing(path):
    records = [create_key(path, "same", ["infer"])[1] for _ in range(2)]
    for field in ("id", "salt", "digest"):
        assert getattr(records[0], field) != getattr(records[1], field)


def test_revoked_is_gone_and_the_file_stays(path):
    key, record = create_key(path, "shop", ["infer"])
    assert revoke_key(path, record.id).name == "shop"
    assert KeyTable(read_keys(path)).find(key) is None
    assert path.exists()
    with pytest.raises(NotFound, match="there is: none"):
        revoke_key(path, record.id)


def test_changes_at_once_lose_nothing(path):
    threads = [threading.Thread(target=create_key, args=(path, f"k{n}", ["infer"])) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(path)} == {f"k{n}" for n in range(16)}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_may_use_is_refused(path, mode):
    create_key(path, "shop", ["infer"])
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(path)


def test_a_link_is_not_followed(path, tmp_path):
    create_key(path, "shop", ["infer"])
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="plain file"):
        read_keys(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format=2),
        lambda v: v.update(more=1),
        lambda v: v["keys"][0].update(scopes=["root"]),
        lambda v: v["keys"][0].update(scopes=[]),
        lambda v: v["keys"][0].update(digest=""),
        lambda v: v["keys"][0].update(expires="tomorrow"),
        lambda v: v["keys"][0].pop("salt"),
    ],
)
def test_a_damaged_file_is_refused_without_its_values(path, change):
    _, record = create_key(path, "shop", ["infer"])
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="not a file of API keys") as caught:
        read_keys(path)
    assert record.digest not in str(caught.value)


def test_a_record_that_is_none_is_not_made(path):
    for name, scopes in (("", ["infer"]), ("x" * 81, ["infer"]), ("x", []), ("x", ["root"])):
        with pytest.raises(ConfigError, match="key"):
            create_key(path, name, scopes)
    assert not path.exists()


def run(home, *arguments):
    return CliRunner().invoke(main, ["key", *arguments], env={"HOMEOSTAT_HOME": str(home)})


def test_the_command(tmp_path):
    made = run(tmp_path, "create", "shop", "--scope", "label", "--scope", "infer", "--model", "toy", "--expires", "90d")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert FORM.fullmatch(key), "stdout is the key alone, so that it can be piped"
    (record,) = read_keys(tmp_path / FILE)
    left = record.expires - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < left <= timedelta(days=90)
    listed = run(tmp_path, "list").output
    assert f"{record.id}  shop: infer, label; toy; until " in listed
    as_json = json.loads(run(tmp_path, "list", "--json").output)
    assert as_json[0].keys() == {"id", "name", "scopes", "models", "created", "expires"}
    for text in (listed, json.dumps(as_json)):
        assert key not in text
        assert record.digest not in text
    create_key(tmp_path / FILE, "till", ["infer"])
    assert run(tmp_path, "revoke", record.id).output == f"revoked {record.id} (shop)\n"
    closed = f"The server stays closed; on loopback it is open again when {tmp_path / FILE} is deleted."
    assert closed in run(tmp_path, "revoke", read_keys(tmp_path / FILE)[0].id).output
    assert run(tmp_path, "list").output == f"There is no key.\n{closed}\n"
    (tmp_path / FILE).unlink()
    assert run(tmp_path, "list").output == "There is no key.\n"
    wrong = run(tmp_path, "revoke", record.id)
    assert (wrong.exit_code, "no key" in wrong.output) == (1, True)


@pytest.mark.parametrize("time", ["yesterday", "2020-01-01", "-3d", "0d", "99999999999d", "d"])
def test_a_time_that_is_none_is_refused(tmp_path, time):
    refused = run(tmp_path, "create", "shop", "--expires", time)
    assert (refused.exit_code, "--expires" in refused.output) == (2, True)
    assert not (tmp_path / FILE).exists()


def test_nothing_of_a_failed_change_stays(path, monkeypatch):
    create_key(path, "shop", ["infer"])
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        create_key(path, "other", ["infer"])
    assert path.read_bytes() == before
