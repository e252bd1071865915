"""One server in a HOME, and a HOME that cannot be had."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from homeostat.errors import ConfigError
from homeostat.serving.capture.recorder import Recorder
from homeostat.serving.occupancy import occupy
from homeostat.serving.post import Post, receive


def test_a_second_server_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    first = occupy(tmp_path / "home")
    assert first is not None
    with pytest.raises(ConfigError, match=r"another server uses HOMEOSTAT_HOME=.*HOME of its own"):
        occupy(tmp_path / "home")
    os.close(first)
    again = occupy(tmp_path / "home")
    assert again is not None
    os.close(again)


def test_the_lock_goes_to_the_supervisor_and_outlives_the_first_worker(tmp_path: Path) -> None:
    supervisor, worker = socket.socketpair()
    with supervisor, worker, socket.socket() as rest, socket.socket() as grpc:
        Post(worker, box=None).announce([rest, grpc], 1, tmp_path / "killers.json", occupy(tmp_path))  # type: ignore[arg-type]
        heard = receive(supervisor)
        assert heard is not None
        (message,), (*listening, lock) = heard
        assert (message["locked"], len(listening)) == (True, 2)
        with pytest.raises(ConfigError):
            occupy(tmp_path)
        for one in (*listening, lock):
            os.close(one)
        last = occupy(tmp_path)
        assert last is not None, "the worker has kept no copy"
        os.close(last)


def test_a_folder_that_cannot_be_locked_is_said_and_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "serving").write_text("a file")
    assert occupy(tmp_path) is None
    assert "cannot be locked" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"HOMEOSTAT_HOME=.*file/home cannot be made: Not a directory"):
        occupy(tmp_path / "file" / "home")
    with pytest.raises(ConfigError, match="captured traffic, cannot be made: Not a directory; set HOMEOSTAT_TRAFFIC"):
        Recorder(tmp_path / "file" / "traffic" / "traffic.db").start()
