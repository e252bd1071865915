"""Captured traffic encrypted at rest: nonces, keys that change, wrong ones, and values that were changed."""

from __future__ import annotations

import base64
import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from homeostat.dataset import Dataset
from homeostat.errors import ConfigError, DataInvalid
from homeostat.monitoring.traffic import read_rows
from homeostat.monitoring.window import count_labelled, labelled_traffic, read_window
from homeostat.sealing import HEAD, MAGIC, Keyring, Sealer, key_id, load_keyring
from homeostat.serving.capture.recorder import Recorder
from homeostat.serving.capture.rolling import Rolled, roll
from homeostat.serving.capture.writer import REQUEST, connect, frame, frames, store
from homeostat.settings import load_settings
from tests.unit.serving.test_rolling import START, label, request

ONE, TWO = b"1" * 32, b"2" * 32
AT = "toy", "r1", "inputs"
TIMES = datetime.fromtimestamp(START - 60, UTC), datetime.fromtimestamp(START, UTC) + timedelta(days=1)


def test_what_is_sealed_opens_with_its_key_alone():
    sealed = Sealer(ONE).seal(b"secret", *AT)
    assert sealed.startswith(MAGIC + key_id(ONE))
    assert len(sealed) == HEAD + len(b"secret") + 16
    assert b"secret" not in sealed
    assert Keyring([ONE]).open(sealed, *AT) == Keyring([TWO, ONE]).open(sealed, *AT) == b"secret"
    with pytest.raises(ConfigError, match=f"key {key_id(ONE).hex()}, and there is {key_id(TWO).hex()}: .*TRAFFIC_KEY"):
        Keyring([TWO]).open(sealed, *AT)
    with pytest.raises(ConfigError, match="there is none"):
        Keyring().open(sealed, *AT)


def test_what_is_not_sealed_stays_as_it_is():
    for value in (b"plain", "text", None, b""):
        assert Keyring([ONE]).open(value, *AT) is value


def test_no_nonce_comes_twice_under_one_key():
    one, other = Sealer(ONE), Sealer(ONE)
    heads = [sealer.seal(b"same", *AT)[:HEAD] for _ in range(1000) for sealer in (one, other)]
    assert len(set(heads)) == 2000, "salt and nonce together"
    assert len({head[: HEAD - 12] for head in heads}) == 2, "a key for each sealer"
    assert sorted(int.from_bytes(head[-12:]) for head in heads[::2]) == list(range(1000))


@pytest.mark.parametrize("place", [len(MAGIC) + 8, HEAD - 1, HEAD, -1])
def test_a_changed_byte_is_found(place):
    sealed = bytearray(Sealer(ONE).seal(b"secret", *AT))
    sealed[place] ^= 1
    with pytest.raises(DataInvalid, match="inputs: its encryption does not hold"):
        Keyring([ONE]).open(bytes(sealed), *AT)


@pytest.mark.parametrize("at", [("other", "r1", "inputs"), ("toy", "r2", "inputs"), ("toy", "r1", "outputs")])
def test_a_value_that_was_moved_is_found(at):
    sealed = Sealer(ONE).seal(b"secret", *AT)
    with pytest.raises(DataInvalid):
        Keyring([ONE]).open(sealed, *at)
    with pytest.raises(DataInvalid):
        Keyring([ONE]).open(sealed[: HEAD + 3], *AT)


def encode(*keys: bytes, between: str = ",") -> str:
    return between.join(base64.b64encode(key).decode() for key in keys)


def test_keys_come_from_the_environment_and_a_file(tmp_path, monkeypatch):
    assert load_keyring(load_settings()).current is None
    path = tmp_path / "traffic.keys"
    path.write_text(encode(TWO, ONE, between="\n") + "\n")
    path.chmod(0o600)
    monkeypatch.setenv("HOMEOSTAT_TRAFFIC_KEY_FILE", str(path))
    keys = load_keyring(load_settings())
    assert keys.current == TWO
    assert keys.open(Sealer(ONE).seal(b"x", *AT), *AT) == b"x"
    monkeypatch.setenv("HOMEOSTAT_TRAFFIC_KEY", encode(ONE))
    settings = load_settings()
    assert load_keyring(settings).current == ONE
    assert encode(ONE) not in repr(settings)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_keyring(settings)


@pytest.mark.parametrize("text", ["short", "é", encode(b"1" * 31), encode(ONE) + "x", encode(ONE)[:-1]])
def test_a_key_that_is_none_says_how_to_make_one(text, tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_TRAFFIC_KEY", text)
    with pytest.raises(ConfigError, match=r"HOMEOSTAT_TRAFFIC_KEY: .*openssl rand -base64 32") as raised:
        load_keyring(load_settings())
    assert text not in str(raised.value)
    monkeypatch.delenv("HOMEOSTAT_TRAFFIC_KEY")
    monkeypatch.setenv("HOMEOSTAT_TRAFFIC_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="cannot be read as keys"):
        load_keyring(load_settings())
    (tmp_path / "none").touch(0o600)
    with pytest.raises(ConfigError, match="holds no key"):
        load_keyring(load_settings())


def write(path, key: bytes | None, *data: bytes) -> None:
    recorder = Recorder(path, key=key)
    recorder.start()
    for one in data:
        recorder.put(one)
    recorder.close()
    assert (recorder.written, recorder.dropped, recorder.restarts) == (len(data), 0, 0)


def test_traffic_is_read_with_its_keys_wherever_it_is(tmp_path):
    path = tmp_path / "traffic.db"
    write(path, None, request("plain"))
    write(path, ONE, request("old", START + 1), request("old", START + 1, arm="shadow"), label("old", 4.25))
    write(path, ONE, request("other", START + 2))
    assert roll(path, 0, 0) == Rolled(requests=4, files=1)
    write(path, TWO, request("new", START + 3), label("plain", 7.5), label("new", 8.5, "toy"))
    keys = Keyring([TWO, ONE])
    rows = read_rows(path, "toy", *TIMES, 100, keys=keys)
    assert rows.request_ids.tolist() == ["plain", "old", "other", "new"]
    assert rows.inputs["x"][:, 0].tolist() == [(START + n) % 97 for n in range(4)]
    np.testing.assert_array_equal(rows.labels, [7.5, 4.25, np.nan, 8.5])
    assert rows.slices["site"].tolist() == ["north"] * 4
    assert rows.unreadable == ()
    assert count_labelled(path, "toy", TIMES[0], keys) == 3
    template = Dataset.from_arrays({"x": np.zeros((4, 2), np.float32)}, np.zeros(4))
    assert labelled_traffic(path, "toy", TIMES[0], template, keys=keys).target.tolist() == [7.5, 4.25, 8.5]
    window, _ = read_window(path, "toy", *TIMES, 100, tmp_path / "work", keys=keys)
    assert (window.rows, window.path, (tmp_path / "work").exists()) == (4, "", False), "nothing is left in the clear"
    for wrong in (Keyring([TWO]), Keyring([ONE]), None):
        with pytest.raises(ConfigError, match="is encrypted with the key"):
            read_rows(path, "toy", *TIMES, 100, keys=wrong)
        with pytest.raises(ConfigError, match="is encrypted with the key"):
            count_labelled(path, "toy", TIMES[0], wrong)


def test_nothing_of_an_encrypted_request_stands_in_a_file(tmp_path):
    path = tmp_path / "traffic.db"
    text = b'["r1", 1.0, "toy", 3, "sha", "e", 1, 0.5, "champion", null, "{\\"site\\": \\"nowhere else\\"}", null]'
    write(path, ONE, frame(REQUEST, text, b"inputs in the clear", b"outputs in the clear"), label("r1", 12345.5))
    for name in ("traffic.db", "traffic.db-wal"):
        if (tmp_path / name).exists():
            data = (tmp_path / name).read_bytes()
            assert not any(part in data for part in (b"in the clear", b"nowhere", b"12345.5", ONE))


def test_a_second_use_and_a_second_writing_are_told_apart_though_nothing_is_the_same_twice(tmp_path):
    database = connect(str(tmp_path / "t.db"))
    sent = list(frames(bytearray(request("a") + label("a", 1.0))))
    assert [store(database, list(sent), Sealer(ONE)) for _ in range(3)] == [0, 0, 0]
    assert store(database, list(frames(bytearray(request("a", 9.0)))), Sealer(ONE)) == 1
    database.close()


def test_a_row_that_was_changed_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "traffic.db"
    write(path, ONE, request("a"), request("b", START + 1), request("c", START + 2), label("c", 1.0))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE request SET inputs = (SELECT inputs FROM request WHERE request_id = 'b')")
        database.execute("UPDATE label SET labels = ?", (Sealer(ONE).seal(b"[1.0]", "", "b", "labels"),))
    database.close()
    rows = read_rows(path, "toy", *TIMES, 100, keys=Keyring([ONE]))
    assert rows.request_ids.tolist() == ["b"]
    assert [line.split(":")[0] for line in rows.unreadable] == ["a", "c"]
