"""The command line: what it prints, where errors go, and that it starts at once."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from homeostat import __version__
from homeostat.cli import main
from homeostat.control.store import ControlStore
from homeostat.records import BundleRef
from homeostat.serving.memory import Memory
from homeostat.settings import load_settings
from tests.bundles import make_bundle
from tests.conftest import ROOT

WHY = {"actor": "test", "reason": "because"}


def ref(version: int) -> BundleRef:
    return BundleRef("digits", version, f"file:///bundles/{version}", "a" * 64, f"{version:064x}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEOSTAT_ROOT", str(tmp_path))
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path / "var"))
    for name in ("CONTROL_URL", "MLFLOW_URL"):
        monkeypatch.delenv(f"HOMEOSTAT_{name}", raising=False)
    monkeypatch.setenv("USER", "ada")
    return tmp_path


@pytest.fixture
def store(home: Path) -> ControlStore:
    store = ControlStore(load_settings().control_url)
    store.set_challenger("digits", ref(1), expected_generation=0, **WHY)
    store.promote("digits", 1, expected_generation=1, **WHY)
    store.set_challenger("digits", make_bundle(home / "var", 2, "digits"), expected_generation=2, **WHY)
    return store


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "80"})


def good(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80 or "--json" in arguments
    return result.stdout


def test_help_starts_at_once():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "homeostat.cli", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.4
    code = "import sys, homeostat.cli; print(*{m.split('.')[0] for m in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"sqlalchemy", "pydantic", "numpy", "rich", "mlflow", "tensorflow", "prefect"} & set(modules)


def test_version():
    assert good("--version").strip() == f"homeostat, version {__version__}"


def test_before_anything_is_rolled_out(home):
    control = home / "var" / "control.db"
    assert "No model has been rolled out yet" in good("status")
    assert f"no control store at {control}" in run("status").stderr
    assert json.loads(run("status", "--json").stdout) == {}
    for words in (("champion",), ("history", "digits")):
        shown = run(*words)
        assert (shown.exit_code, f"no control store at {control}" in shown.stderr) == (1, True)
    assert not control.exists(), "to look makes nothing"
    assert "No model" in good("reconcile")
    assert good("ledger", "verify") == "The ledger holds: 0 entries.\n"
    assert not (home / "mlruns").exists()


def test_status_as_json(store):
    store.record("digits", "drift", actor="monitor", reason="x drifted", evidence={"columns": ["x"]}, version=1)
    found = json.loads(good("status", "--json"))
    assert list(found) == ["digits"]
    digits = found["digits"]
    assert digits["champion"] == {"version": 1, "sha256": ref(1).sha256, "since": store.row("digits").since}
    assert digits["challenger"]["version"] == 2
    assert (digits["mode"], digits["weight"], digits["generation"]) == ("live", 0.0, 3)
    assert digits["last_verdict"] is None
    assert digits["last_drift"]["evidence"] == {"columns": ["x"]}


def test_status_as_a_table(store):
    store.record("digits", "verdict", actor="flow", reason="gain +0.01 " * 12, evidence={"kind": "hold"}, version=2)
    shown = good("status")
    assert "v1 00000000" in shown
    assert "last verdict" in shown
    assert "hold: gain" in shown
    assert "no drift report yet" in shown


def test_promote_rollback_history_and_champion(store, home):
    result = run("promote", "digits", "v2", "--reason", "looks good")
    assert (result.exit_code, result.stdout) == (0, "digits: champion v1 -> v2 (generation 4)\n")
    assert "The change holds" in result.stderr
    assert "no MLflow database" in result.stderr
    assert "is champion already (generation 4)" in good("promote", "digits", "2")
    promoted = store.history("digits")[-1]
    assert (promoted.actor, promoted.reason) == ("cli:ada", "looks good")
    assert "champion v2 -> v1 (generation 5)" in good("rollback", "digits")
    assert "looks good" in good("history", "digits")
    assert [e["action"] for e in json.loads(good("history", "digits", "--json"))][-2:] == ["promote", "rollback"]

    before = (datetime.fromisoformat(promoted.time) - timedelta(microseconds=1)).isoformat()
    assert good("champion", "digits", "--at", before).startswith("digits: v1 ")
    assert good("champion", "--at", promoted.time).startswith("digits: v2 ")
    assert good("champion", "digits").startswith("digits: v1 ")
    assert json.loads(good("champion", "--json"))["digits"]["action"] == "rollback"
    assert good("champion", "--at", "2020-01-01") == "digits: no champion yet\n"
    assert good("ledger", "verify") == "The ledger holds: 5 entries.\n"
    assert not (home / "mlruns").exists()


def test_a_version_rolled_back_is_in_quarantine_until_it_is_released(store):
    good("promote", "digits", "2")
    good("rollback", "digits", "--reason", "wrong on Mondays")
    refused = run("promote", "digits", "2")
    assert refused.exit_code == 1
    assert "is in quarantine since" in refused.stderr
    assert "wrong on Mondays; `homeostat rollout release digits 2` lets it out" in refused.stderr
    assert good("rollout", "release", "digits", "2") == "digits: v2 is out of quarantine\n"
    assert good("rollout", "release", "digits", "2") == "digits: v2 was not in quarantine\n"
    assert "v1 -> v2" in good("promote", "digits", "2")
    assert store.verify() == len(store.history())


def test_a_damaged_bundle_is_not_promoted(store, home):
    onnx = next((home / "var" / "bundles" / "digits").glob("v2-*")) / "model.onnx"
    data = bytearray(onnx.read_bytes())
    data[len(data) // 2] ^= 1
    onnx.write_bytes(data)
    before = store.row("digits")
    result = run("promote", "digits", "2")
    assert result.exit_code == 1
    assert "model.onnx" in result.stderr
    assert store.row("digits") == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["promote", "digits", "9"], 1, "digits has no bundle of version 9; there are: v1, v2"),
        (["promote", "digit", "1"], 1, "no model 'digit' in the control store; there are: digits"),
        (["rollback", "digits"], 1, "no previous champion to roll back to"),
        (["history", "nobody"], 1, "no model 'nobody'"),
        (["champion", "digits", "--at", "2020-01-01"], 1, "had no champion at 2020-01-01T00:00:00"),
        (["champion", "digits", "--at", "0001-01-01T00:00+14:00"], 2, "is before the year 1"),
        (["champion", "digits", "--at", "noon"], 2, "'noon' is no ISO 8601 time"),
        (["promote", "digits", "first"], 2, "'first' is no version; write 3 or v3"),
        (["promote", "digits", "0"], 2, "'0' is no version"),
        (["promote", "digits"], 2, "Missing argument 'VERSION'"),
        (["serve", "--port", "70000"], 2, "70000 is not in the range"),
        (["init", "x", "--task", "clustering"], 2, "'clustering' is not one of"),
        (["launch"], 2, "No such command 'launch'"),
    ],
)
def test_errors_are_one_message_on_stderr(store, arguments, code, message):
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_an_edited_ledger_is_reported(store, home):
    import sqlite3

    connection = sqlite3.connect(home / "var" / "control.db")
    connection.execute("DROP TRIGGER ledger_no_update")
    connection.execute("UPDATE ledger SET actor = 'nobody' WHERE sequence = 2")
    connection.commit()
    connection.close()
    result = run("ledger", "verify")
    assert result.exit_code == 1
    assert result.stderr == "Error: ledger entry 2 (promote of digits) was edited\n"


def test_a_control_store_made_anew_is_reported(store, home):
    Memory(home / "var" / "serving").write(store.row("digits"), [])
    assert good("ledger", "verify") == "The ledger holds: 3 entries.\n"
    for path in (home / "var").glob("control.db*"):
        path.unlink()
    result = run("ledger", "verify")
    assert result.exit_code == 1
    assert "shorter than what was served: the server here had digits at generation 3 (v1)" in result.stderr
    (home / "var" / "serving" / "digits.json").unlink()
    assert good("ledger", "verify") == "The ledger holds: 0 entries.\n"


def test_a_wrong_environment_names_the_variable(home, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_PORT", "many")
    result = run("status")
    assert result.exit_code == 1
    assert "HOMEOSTAT_PORT" in result.stderr


@pytest.mark.parametrize("answers", [False, True])
def test_a_dead_or_hanging_mlflow_does_not_hold_up_a_rollback(store, monkeypatch, answers):
    store.promote("digits", 2, expected_generation=3, **WHY)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if not answers:
            listener.close()
        monkeypatch.setenv("HOMEOSTAT_MLFLOW_URL", f"http://127.0.0.1:{port}")
        start = time.perf_counter()
        result = run("rollback", "digits")
        assert time.perf_counter() - start < 3
    assert (result.exit_code, store.row("digits").champion) == (0, ref(1))
    assert f"MLflow at http://127.0.0.1:{port} does not answer" in result.stderr
    assert "reconcile" in result.stderr
    assert run("reconcile").exit_code == 1


def test_serve_hands_its_options_to_the_server(monkeypatch):
    from homeostat.serving import supervisor

    given = []
    monkeypatch.setattr(supervisor, "supervise", lambda environment: given.append(environment) or 2)
    assert run("serve", "--port", "0", "--grpc-port", "9").exit_code == 2
    assert given == [{"HOMEOSTAT_PORT": "0", "HOMEOSTAT_GRPC_PORT": "9"}]


def test_init_writes_a_project(home):
    shutil.copy(ROOT / "prefect.yaml", home)
    shown = good("init", "my_model", "--task", "regression")
    assert "wrote projects/my_model/project.toml" in shown
    assert (home / "projects" / "my_model" / "project.py").is_file()
    again = run("init", "my_model")
    assert again.exit_code == 1
    assert "my_model" in again.stderr
