"""`homeostat monitor`: captured traffic of a signed champion; what it prints, writes and leaves alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from homeostat import observation
from homeostat.cli import main
from homeostat.control.store import ControlStore
from homeostat.control.windows import Standing, Windows
from homeostat.inference import predict
from homeostat.monitoring.document import write_monitoring
from homeostat.serving.capture.writer import INSERT_REQUEST, REPLACE_LABEL, connect
from homeostat.settings import load_settings
from homeostat.tensors import pack
from tests.bundles import folder_of, make_bundle, npz, softmax
from tests.conftest import forget_projects
from tests.windows import CASES, HOSTILE, column, look

WHY = {"actor": "test", "reason": "because"}
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROJECT = '''
from homeostat.project import Project


class Toy(Project):
    """Which of three columns is the largest."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError
'''
TOML = 'name = "toy"\nproject = "projects.toy.project:Toy"\ntask = "classification"\n'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOMEOSTAT_ROOT", str(tmp_path))
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path / "var"))
    monkeypatch.delenv("HOMEOSTAT_CONTROL_URL", raising=False)
    folder = tmp_path / "projects" / "toy"
    folder.mkdir(parents=True)
    for name, text in (("__init__.py", ""), ("project.py", PROJECT), ("project.toml", TOML)):
        (folder / name).write_text(text)
    (folder.parent / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_projects()
    yield tmp_path
    forget_projects()


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3)).astype(np.float32)
    return x, np.where(rng.random(count) < 0.1, rng.integers(0, 3, count), x.argmax(axis=1))


@pytest.fixture
def champion(root: Path) -> Path:
    """v1, then v2, whose reference is wider: v2 is champion for a day at NOW."""
    store = ControlStore(load_settings().control_url, clock=lambda: NOW - timedelta(days=1))
    for version in (1, 2):
        x, y = drawn(800, version)
        x *= 3 if version == 1 else 1
        arrays = {"input:x": x, "columns:x": np.array(["a", "b", "c"]), "target": y}
        reference = npz(**arrays, **{"output:scores": predict(softmax(), {"x": x})["scores"]})
        made = make_bundle(root / "var", version, "toy", softmax(), "classification", reference=reference)
        store.set_challenger("toy", made, expected_generation=2 * version - 2, **WHY)
        store.promote("toy", version, expected_generation=2 * version - 1, **WHY)
    return root


def send(root: Path, x: np.ndarray, y: np.ndarray | None = None, moment: datetime = NOW) -> None:
    """Answer rows, ten a request, over the twelve hours before a moment."""
    connection = connect(str(root / "var" / "traffic.db"))
    for first in range(0, len(x), 10):
        part, request = x[first : first + 10], f"r{first}"
        time = moment.timestamp() - 12 * 3600 * (1 - first / len(x))
        scores = predict(softmax(), {"x": part})["scores"]
        values = (request, time, "toy", 2, "00", "", len(part), pack({"x": part}))
        kept = (*values, pack({"scores": scores}), 2.0, "champion", "key-1", None, None)
        connection.execute(INSERT_REQUEST, kept)
        if y is not None:
            label = json.dumps(y[first : first + 10].tolist())
            connection.execute(REPLACE_LABEL, (request, "toy", moment.timestamp(), label))
    connection.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["monitor", *arguments], env={"COLUMNS": "80"})


def test_a_healthy_window_of_the_past(champion: Path) -> None:
    send(champion, *drawn(400, 7))
    result = run("toy", "--until", NOW.isoformat(), "--html", str(champion / "mine.html"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "Healthy: nothing changed, and labels show no harm."
    assert "toy v2, 28 Feb 2026 12:00 to 1 Mar 2026 12:00 UTC: 400 rows, 400 labelled." in lines[1]
    assert "accuracy" in result.stdout
    assert str(champion / "mine.html") in lines
    assert max(map(len, [line for line in lines if not line.startswith("/")])) <= 80
    page = (champion / "mine.html").read_text()
    assert "Healthy: nothing changed" in page
    assert page.count('class="histogram"') >= 3
    (document,) = (champion / "var" / "looks" / "toy").glob("*/monitoring.json")
    assert json.loads(document.read_text())["conclusion"] == "healthy"
    assert Windows(load_settings().control_url).standing("toy", 2) == Standing(0, ""), "no evidence is moved on"


def test_drift_against_another_version(champion: Path) -> None:
    send(champion, *drawn(400, 7))
    result = run("toy", "--until", NOW.isoformat(), "--against", "v1", "--json")
    assert result.exit_code == 3, result.output
    found = json.loads(result.stdout)
    assert (found["conclusion"], found["predecessor"]["champion_version"]) == ("drift", 1)
    assert {"a", "b", "c"} <= {c["column"] for c in found["columns"] if c["drifted"]}


def test_a_look_that_ends_now_goes_on_from_the_looks_before_and_leaves_them(champion: Path) -> None:
    moment = datetime.now(UTC)
    send(champion, *drawn(20, 7), moment=moment)
    windows = Windows(load_settings().control_url)
    windows.keep("toy", 2, Standing(0, ""), "2026-02-28T13:00:00+00:00", {"not": "a window"}, "no state")
    result = run("toy", "--since", (moment - timedelta(hours=6)).isoformat())
    assert result.exit_code == 5, result.output
    assert result.stdout.startswith("Inconclusive: window of 10 rows is under")
    assert "the evidence of the looks before cannot be read" in " ".join(result.stdout.split())
    assert windows.standing("toy", 2) == Standing(1, "no state")


def test_the_champion_of_that_time(champion: Path) -> None:
    result = run("toy", "--until", "2026-02-27T12:00:00")
    assert result.exit_code == 1
    assert "had no champion" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--until", "2999-01-01"), "has not come yet"),
        (("--since", "2026-03-02", "--until", "2026-03-01"), "is not before the end"),
        (("--since", "yesterday"), "no ISO 8601 time"),
        (("--against", "new"), "no version"),
    ],
)
def test_times_that_make_no_window(root: Path, arguments: tuple[str, ...], why: str) -> None:
    result = run("toy", *arguments)
    assert (result.exit_code, why in " ".join(result.stderr.replace("│", "").split())) == (2, True), result.stderr


def test_before_anything_is_rolled_out(root: Path) -> None:
    result = run("toy")
    assert (result.exit_code, "no control store" in result.stderr) == (1, True)
    assert "no project 'other'" in run("other").stderr
    assert not (root / "var").exists(), "to look makes nothing"


@pytest.mark.parametrize(("name", "code"), [("healthy", 0), ("harmless", 3), ("harmful", 4), ("tiny", 5), ("wide", 3)])
def test_each_conclusion_has_its_exit_code_and_fits_80_columns(
    champion: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    window = replace(CASES[name]().window, model="toy")
    monkeypatch.setattr(observation, "look", lambda *_, **__: (window, ""))
    result = run("toy")
    assert result.exit_code == code, result.output
    assert max(map(len, [line for line in result.stdout.splitlines() if not line.startswith("/")])) <= 80
    if name == "harmful":
        assert "ward=D" in result.stdout
        assert "since" in result.stdout


def test_names_from_data_cannot_style_or_steer_the_terminal(champion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (*HOSTILE, "[red]not red[/red]", "\x1b]0;title\x07", "[/bold")
    window = look(1, model="toy", drifted=True, conclusion="drift", notes=names, faults=names)
    window = replace(window, columns=tuple(column(n, 9.0, 1e-6, True) for n in names))
    monkeypatch.setattr(observation, "look", lambda *_, **__: (window, ""))
    result = run("toy")
    assert result.exit_code == 3, result.output
    assert "[red]not red[/red]" in result.stdout
    assert not {"\x1b", "\x07", "\u202e", "\x00"} & set(result.stdout)


def test_history_and_damaged_looks(champion: Path, caplog: pytest.LogCaptureFixture) -> None:
    windows = Windows(load_settings().control_url)
    kept = json.loads(write_monitoring(look(1)))
    for number, found in enumerate((kept, {"conclusion": "odd"})):
        windows.keep("toy", 2, Standing(number, ""), "2026-02-28T13:00:00+00:00", found, "")
    assert observation.earlier_windows(windows, "toy", 2) == (look(1),)
    assert "toy v2, look 2: no monitored window" in caplog.text


def test_a_challenger_is_shown_and_a_damaged_one_does_not_stop_the_look(champion: Path) -> None:
    store = ControlStore(load_settings().control_url, clock=lambda: NOW - timedelta(hours=13))
    made = make_bundle(champion / "var", 3, "toy", softmax(), "classification")
    row = store.set_challenger("toy", made, expected_generation=store.generation("toy"), **WHY)
    store.hold("toy", expected_generation=row.generation, evidence={"verdict": "inconclusive"}, **WHY)
    send(champion, *drawn(200, 7))
    since = (NOW - timedelta(days=1)).isoformat()
    shown = run("toy", "--since", since, "--json")
    trial = json.loads(shown.stdout)["trial"]
    assert (trial["version"], trial["comparison"]["rows"], trial["comparison"]["gain"]["value"]) == (3, 200, 0.0)
    assert (
        "challenger v3, accuracy, gain over the live version on the same 200 rows"
        in Path(next((champion / "var" / "looks").rglob("page.html"))).read_text()
    )
    (folder_of(made) / "model.onnx").write_bytes(b"damaged")
    again = run("toy", "--since", since, "--json")
    assert (again.exit_code, json.loads(again.stdout)["trial"]) == (shown.exit_code, None)
