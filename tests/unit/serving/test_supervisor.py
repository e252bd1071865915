"""The supervisor's decisions about workers that end, with stand-in processes; the real ones are in tests/e2e."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from homeostat.serving import supervisor as module
from homeostat.serving import worker
from homeostat.serving.supervisor import Supervisor

ANNOUNCE = """
import json, os, signal, socket, sys, time
from homeostat.serving.blackbox import BlackBox
control, box = socket.socket(fileno=int(sys.argv[1])), BlackBox(int(sys.argv[2]))
def say(**message): control.sendall(json.dumps(message).encode() + b"\\n")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a supervisor whose workers are this script; return its exit code."""

    def run(script, seconds=None):
        path = tmp_path / "stand_in.py"
        path.write_text(ANNOUNCE + script)
        start = subprocess.Popen

        def popen(command, **options):
            assert command[1:3] == ["-m", "homeostat.serving.worker"]
            return start([sys.executable, str(path), *command[3:]], **options)

        monkeypatch.setattr(module.subprocess, "Popen", popen)
        timer = threading.Timer(seconds or 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        if seconds:
            timer.start()
        try:
            return Supervisor({"PLACE": str(tmp_path)}).run()
        finally:
            timer.cancel()

    return run


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (1, 1), (0, 1)])
def test_a_first_worker_that_cannot_serve_ends_the_server(run, code, expected):
    assert run(f"sys.exit({code})") == expected


def test_wrong_settings_found_before_anything_was_served_end_it_too(run):
    assert run('say(workers=1, killers=os.environ["PLACE"] + "/killers.json"); sys.exit(2)') == 2


def test_a_worker_that_dies_again_and_again_is_started_more_and_more_slowly(run, tmp_path, caplog):
    script = """
with open(os.environ["PLACE"] + "/starts", "a") as file: file.write("x")
say(workers=1, killers=os.environ["PLACE"] + "/killers.json")
say(ready=True)
box.enter("a" * 64, b"tensors")
time.sleep(0.05)
os.kill(os.getpid(), signal.SIGFPE)
"""
    with caplog.at_level(logging.INFO):
        assert run(script, seconds=3) == 0
    starts = len((tmp_path / "starts").read_text())
    assert 3 <= starts <= 6, "at once, then after 0.4, 0.8, 1.6 s"
    assert "ended with signal SIGFPE; 1 requests were in it" in caplog.text
    assert (tmp_path / "killers.json").exists()


def test_a_worker_that_does_not_drain_is_killed(run, monkeypatch, caplog):
    monkeypatch.setattr(module, "STOP_SECONDS", 0.5)
    script = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say(workers=1, killers=os.environ["PLACE"] + "/killers.json")
time.sleep(60)
"""
    start = time.monotonic()
    assert run(script, seconds=1) == 0
    assert time.monotonic() - start < 10
    assert "hangs and is killed" in caplog.text


def test_ctrl_c_ends_a_worker_that_still_starts_without_a_traceback(run, tmp_path, capfd):
    script = """
open(os.environ["PLACE"] + "/started", "w").close()
time.sleep(60)
"""

    def interrupt():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run(script) == 0
    thread.join()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("missing", ["uvicorn", "homeostat.serving.server"])
def test_a_worker_without_the_extra_says_what_to_install(monkeypatch, capsys, missing):
    ours, theirs = socket.socketpair()
    monkeypatch.delitem(sys.modules, "homeostat.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with ours:
        assert worker.main([str(theirs.detach()), "-1", "0"]) == 2
    assert f"the model server needs {missing}: pip install 'homeostat[serve]'" in capsys.readouterr().err
