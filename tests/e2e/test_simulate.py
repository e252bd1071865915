"""`homeostat simulate` before a real server: what is captured is what was sent, with faults, late labels and users."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.bundles import linear, make_bundle
from tests.e2e.test_server import Server

pytestmark = pytest.mark.e2e

PROJECT = '''
import numpy as np

from homeostat.project import Dataset, Project


class Toy(Project):
    """The sum of four numbers."""

    def load_data(self):
        x = np.random.default_rng(1).normal(size=(400, 4)).astype(np.float32)
        return Dataset.from_arrays({"x": x}, x.sum(axis=1), columns={"x": ("a", "b", "c", "d")})

    def build_model(self, train):
        raise RuntimeError("nothing is trained here")
'''
TOML = 'name = "toy"\nproject = "projects.toy.project:Toy"\ntask = "regression"\n'

Simulate = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "projects" / "toy"
    folder.mkdir(parents=True)
    for name, text in (("__init__.py", ""), ("project.py", PROJECT), ("project.toml", TOML)):
        (folder / name).write_text(text)
    (folder.parent / "__init__.py").write_text("")
    made = Server(tmp_path / "var", HOMEOSTAT_ROOT=str(tmp_path))
    bundle = make_bundle(made.home, 1, onnx_bytes=linear())
    made.control.set_challenger("toy", bundle, expected_generation=0, actor="t", reason="t")
    made.control.promote("toy", 1, expected_generation=1, actor="t", reason="t")
    made.wait(lambda: made.get("/v2/models/toy/ready")[0] == 200)
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.wait(20)


def command(server: Server, *words: str) -> list[str]:
    where = ["--server", f"http://127.0.0.1:{server.port}"]
    return [sys.executable, "-m", "homeostat.cli", "simulate", "toy", *where, *words]


def simulate(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(server, *words), env=server.environment, capture_output=True, text=True, timeout=120, check=False
    )


def captured(server: Server, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{server.home}/traffic.db?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


def test_each_row_is_sent_once_and_its_label_comes(served: Server) -> None:
    done = simulate(served, "--part", "all", "--rate", "400", "--label-delay", "1s", "--coverage", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["sent"], found["answered"], found["refused"], found["versions"]) == (400, 400, {}, {"1": 400})
    assert 150 < found["labels"] < 250
    served.wait(lambda: captured(served, "select count(*) from label")[0][0] == found["labels"])
    assert captured(served, "select count(*) from request")[0][0] == 400
    assert 60 < captured(served, "select count(distinct entity_id) from request")[0][0] <= 100


def test_a_fault_begins_when_it_should_and_refusals_are_told(served: Server) -> None:
    words = ("--fault", "nan:b:1", "--fault-after", "0.5", "--rate", "400", "--count", "100")
    done = simulate(served, *words)
    assert done.returncode == 0, done.stderr
    assert "100 sent of 80 rows, 50 answered" in done.stdout
    assert "80 rows are sent 1.2 times" in done.stderr
    assert "50 refused: 400" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_ctrl_c_says_what_was_sent(served: Server) -> None:
    with subprocess.Popen(
        command(served, "--rate", "5"),
        env=served.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        served.wait(lambda: captured(served, "select count(*) from request")[0][0] > 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert out.startswith("stopped: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fault", "grow:a:1"), "write KIND:COLUMN:AMOUNT"),
        (("--fault", "shift:weight:1"), "no column 'weight'; the rows have: a, b, c, d"),
    ],
)
def test_faults_that_are_none(served: Server, words: tuple[str, ...], said: str) -> None:
    done = simulate(served, *words)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (1, True, False), done.stderr


def test_a_server_that_is_gone(served: Server) -> None:
    served.process.terminate()
    served.process.wait(20)
    done = simulate(served)
    assert done.returncode == 1
    assert "no model server answers at" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_goes_meanwhile(served: Server) -> None:
    with subprocess.Popen(
        command(served, "--rate", "20", "--label-delay", "1s"),
        env=served.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        served.wait(lambda: captured(served, "select count(*) from request")[0][0] > 5)
        served.process.kill()
        served.process.wait(20)
        time.sleep(0.5)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (0, False), err
    assert "80 sent" in out
    assert "refused: ConnectError" in out
    assert "refused: labels: " in out


def test_nothing_is_answered(served: Server) -> None:
    done = simulate(served, "--fault", "absent:x", "--rate", "400")
    assert (done.returncode, "no request was answered" in done.stderr) == (1, True), done.stderr
