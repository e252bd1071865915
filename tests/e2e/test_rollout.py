"""A rollout in real servers: bad challengers are out within seconds, a good one goes through, whatever else fails."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from homeostat.approval import approve
from homeostat.config import GuardConfig, ProjectConfig, RolloutConfig
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.records import Comparison, Deployed, Evaluation, Interval, Trial, Verdict
from homeostat.rollout import confirm, introduce
from homeostat.trial import conclude
from tests.bundles import make_bundle
from tests.challengers import classifier, crashing, slow
from tests.e2e.test_server import Server

pytestmark = pytest.mark.e2e

WHY = Why("t", "t")
LOOSE = GuardConfig(error_rate=0.05, latency_ratio=5.0, latency_floor_ms=20.0)
QUICK = RolloutConfig(
    strategy="canary", steps=(0.05, 0.5), min_requests=20, min_seconds=0.3, bake_seconds=1.0, guards=LOOSE
)


class Clients:
    """Threads that send requests with labels, and count which version answered and whether it was right."""

    def __init__(self, server: Server, *, threads: int = 2, labels: bool = True, flips: float = 0.02) -> None:
        self.server, self.labels, self.flips = server, labels, flips
        self.reach = 1.0
        """How far x1 goes from zero."""
        self.stop = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.last: dict[str, float] = {}
        self.threads = [threading.Thread(target=self.run, args=(seed,)) for seed in range(threads)]

    def __enter__(self) -> Clients:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        while not self.stop.is_set():
            row = [rng.uniform(-1, 1) for _ in range(4)]
            row[1] *= self.reach
            truth = int((row[0] > 0) != (rng.random() < self.flips))
            value = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row}]}
            try:
                status, answer = send(connection, "/v2/models/toy/infer", value)
                if status == 200:
                    scores = answer["outputs"][0]["data"]
                    version = answer["model_version"]
                    self.versions[version] += 1
                    self.last[version] = time.monotonic()
                    self.wrong[version] += int(scores[1] > scores[0]) != int(row[0] > 0)
                    if self.labels:
                        send(connection, "/v1/feedback", {"id": answer["id"], "labels": [truth]})
                self.statuses[status] += 1
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
                time.sleep(0.05)
        connection.close()


def send(connection: http.client.HTTPConnection, path: str, value: Any) -> tuple[int, Any]:
    connection.request("POST", path, json.dumps(value))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home")
    champion = make_bundle(made.home, 1, onnx_bytes=classifier(), task="classification")
    made.control.set_challenger("toy", champion, expected_generation=0, actor="t", reason="t")
    made.control.promote("toy", 1, expected_generation=1, actor="t", reason="t")
    made.wait(lambda: made.get("/v2/models/toy/ready")[0] == 200)
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.wait(20)


def begin(server: Server, onnx: bytes, config: RolloutConfig = QUICK, version: int = 2) -> None:
    """Load the challenger, then start to roll it out."""
    bundle = make_bundle(server.home, version, onnx_bytes=onnx, task="classification", rollout=config)
    row = server.control.set_challenger(
        "toy", bundle, expected_generation=server.control.generation("toy"), actor="t", reason="t"
    )
    server.wait(lambda: server.get(f"/v2/models/toy/versions/{version}/ready")[0] == 200)
    progress.start(server.control, bundle, config, WHY, expected_generation=row.generation)


def mode(server: Server) -> str:
    return server.control.row("toy").mode


def kept(server: Server) -> dict[str, Any]:
    path = server.home / "serving" / "rollouts" / "toy.0.json"
    return json.loads(path.read_text()) if path.exists() else {}


BAD = {
    "wrong on labels": (classifier(wrong_over=-2.0), "labels"),
    "wrong on a slice": (classifier(wrong_over=0.6), "labels"),
    "answers NaN": (classifier(nan_over=1.5), "errors"),
    "slow": (slow(), "latency"),
}


@pytest.mark.parametrize("defect", BAD)
def test_a_bad_challenger_is_out_within_seconds(served, defect):
    onnx, guard = BAD[defect]
    config = QUICK.model_copy(
        update={"min_seconds": 60.0, "guards": GuardConfig(latency_floor_ms=0.05, latency_ratio=3)}
    )
    with Clients(served) as clients:
        clients.reach = 3.0 if guard == "errors" else 1.0  # NaN lies beyond the golden rows
        served.wait(lambda: clients.versions["1"] > 300)
        started = time.monotonic()
        begin(served, onnx, config)
        served.wait(lambda: mode(served) == "live", 60)
        took = time.monotonic() - started
        time.sleep(0.5)
        counted = clients.versions["2"]
        time.sleep(0.5)
        assert clients.versions["2"] == counted, "the challenger still answers"
    row = served.control.row("toy")
    assert (row.champion.version, row.challenger) == (1, None)
    entry = served.control.history("toy")[-1]
    assert (entry.action, entry.version, entry.evidence["guard"]) == ("abort", 2, guard)
    assert [one["reason"] for one in served.control.quarantined()] == [entry.reason]
    assert set(clients.statuses) == {200}, "no client sees an error of the challenger"
    assert clients.wrong["2"] <= 500
    assert took < 60
    assert served.control.verify() > 0


def test_an_equal_challenger_goes_through_to_promotion_and_bakes(served):
    with Clients(served) as clients:
        begin(served, classifier())
        served.wait(lambda: served.control.row("toy").champion.version == 2, 60)
        served.wait(lambda: mode(served) == "live", 20)
        served.wait(lambda: time.monotonic() - clients.last["1"] > 1.0)
    actions = [entry.action for entry in served.control.history("toy")][2:]
    assert actions == ["challenger", "start", "step", "promote", "finish"]
    assert set(clients.statuses) == {200}
    assert served.control.quarantined() == []


@contextmanager
def store_away(server: Server) -> Iterator[None]:
    """Take the control store away: in its place is a folder."""
    paths = [server.home / f"control.db{suffix}" for suffix in ("", "-wal", "-shm")]
    aside = [path.with_name(f"aside-{path.name}") for path in paths]
    for path, to in zip(paths, aside, strict=True):
        if path.exists():
            path.rename(to)
    paths[0].mkdir()
    yield
    paths[0].rmdir()
    for path, to in zip(paths, aside, strict=True):
        if to.exists():
            to.rename(path)


def test_a_server_killed_in_a_canary_goes_on_with_it_and_stops_it_without_the_store(served):
    config = QUICK.model_copy(update={"min_seconds": 60.0, "steps": (0.2, 0.5)})
    with Clients(served) as clients:
        clients.reach = 0.5
        begin(served, classifier(wrong_over=0.6), config)
        served.wait(lambda: clients.versions["2"] > 20 and kept(served).get("requests", 0) > 0)
        with store_away(served):
            served.kill()
            before = kept(served)
            known = sum(before["evidence"]["tallies"]["labels"]["trials"])
            clients.versions.clear()
            began = time.monotonic()
            served.start()
            served.wait(lambda: clients.versions["1"] > 0 and clients.versions["2"] > 0)
            assert time.monotonic() - began < 10
            served.wait(lambda: sum(kept(served)["evidence"]["tallies"]["labels"]["trials"]) > known)
            assert kept(served)["deaths"] == 1
            clients.reach = 1.0
            served.wait(lambda: (kept(served)["stopped"] or {}).get("version") == 2, 60)
            out = clients.versions["2"]
            served.wait(lambda: clients.versions["1"] > 200 + out)
            assert clients.versions["2"] <= out + 2, "those in flight"
            # and it stays out over one more restart
            served.kill()
            clients.versions.clear()
            served.start()
            served.wait(lambda: clients.versions["1"] > 200)
            assert clients.versions["2"] == 0
        assert served.control.row("toy").mode == "canary"
        served.wait(lambda: mode(served) == "live")
    assert served.control.history("toy")[-1].action == "abort"
    assert [one["version"] for one in served.control.quarantined()] == [2]
    assert served.control.verify() > 0


def test_a_challenger_that_kills_workers_is_out_at_the_third_death(served):
    begin(served, crashing(), QUICK.model_copy(update={"min_seconds": 60.0, "steps": (0.999,)}))
    served.wait(lambda: kept(served).get("open"))
    sent = itertools.count(11)

    def ask() -> tuple[int, Any]:
        # other tensors each time: the same ones are refused after two deaths
        values = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [-next(sent), 0, 0, 0]}
        try:
            return served.call("POST", "/v2/models/toy/infer", json.dumps({"inputs": [values]}))
        except (OSError, http.client.HTTPException):
            return 0, None

    served.wait(lambda: ask() and mode(served) == "live", 60)
    served.wait(lambda: ask()[0] == 200)
    status, answer = ask()
    assert (status, answer["model_version"]) == (200, "1")
    assert kept(served)["deaths"] == 3
    assert "was killed 3 times" in served.control.history("toy")[-1].reason
    assert [one["version"] for one in served.control.quarantined()] == [2]


def test_two_servers_have_one_champion(served, tmp_path):
    keys = tmp_path / "second" / "keys"
    keys.mkdir(parents=True)
    (keys / "signing.pub").write_bytes((served.home / "keys" / "signing.pub").read_bytes())
    second = Server(tmp_path / "second", HOMEOSTAT_CONTROL_URL=f"sqlite:///{served.home}/control.db")
    try:
        second.wait(lambda: second.get("/v2/models/toy/ready")[0] == 200)
        with Clients(served) as ours, Clients(second, labels=False) as theirs:
            begin(served, classifier())
            served.wait(lambda: mode(served) == "bake", 60)
            changed = time.monotonic()
            for server in (served, second):
                server.wait(lambda server=server: server.get("/v2/models/toy/ready")[1]["version"] == "2")
            assert time.monotonic() - changed < 1
            served.wait(lambda: mode(served) == "live", 20)
            assert served.control.row("toy").champion.version == 2
            # a bad one: whichever sees it first stops it, and both have the champion back
            ours.reach = theirs.reach = 3.0
            begin(served, classifier(nan_over=1.5), version=3)
            served.wait(lambda: mode(served) == "live", 60)
            time.sleep(1)
            for clients in (ours, theirs):
                clients.versions.clear()
            served.wait(lambda: min(sum(clients.versions.values()) for clients in (ours, theirs)) > 100)
        assert set(ours.versions) == set(theirs.versions) == {"2"}
        assert set(ours.statuses) == set(theirs.statuses) == {200}
        actions = Counter(entry.action for entry in served.control.history("toy"))
        assert (actions["promote"], actions["finish"], actions["abort"]) == (2, 1, 1)
        assert served.control.verify() > 0
    finally:
        second.process.terminate()
        second.process.wait(20)


def test_a_shadow_is_compared_out_of_the_clients_way(served):
    config = RolloutConfig(strategy="shadow", min_requests=50, min_seconds=0.5, bake_seconds=0.0, guards=LOOSE)
    with Clients(served, labels=False) as clients:
        begin(served, classifier(wrong_over=0.5), config)
        served.wait(lambda: mode(served) == "live", 60)
        assert set(clients.versions) == {"1"}
        entry = served.control.history("toy")[-1]
        assert (entry.action, entry.evidence["guard"]) == ("abort", "disagreement")
        begin(served, classifier(), config, version=3)
        served.wait(lambda: served.control.row("toy").champion.version == 3, 60)
    assert served.control.history("toy")[-1].action == "promote"
    assert set(clients.statuses) == {200}


def test_a_deployment_starts_the_rollout_that_its_project_asks_for(served):
    config = ProjectConfig(name="toy", project="a.b:C", task="classification", rollout=QUICK)
    bundle = make_bundle(served.home, 2, onnx_bytes=classifier(), task="classification", rollout=QUICK)
    comparison = Comparison("accuracy", 1, 500, 0.95, 0.9, Interval(0.05, 0.02, 0.08))
    url = f"http://127.0.0.1:{served.port}"

    def deploy(gain: Comparison) -> tuple[Deployed, Verdict]:
        return introduce(served.control, bundle, Evaluation("accuracy", {}, 500, (), gain), config, url, "test")

    worse = replace(comparison, gain=Interval(-0.05, -0.08, -0.02))
    assert (deploy(worse)[1].kind, mode(served)) == ("hold", "live")
    deployed, verdict = deploy(comparison)
    row = served.control.row("toy")
    assert (deployed.role, verdict.kind, row.mode, row.weight) == ("challenger", "promote", "canary", 0.05)
    entry = served.control.history("toy")[-1]
    assert (entry.action, entry.evidence["verdict"]) == ("start", "promote")
    again, _ = deploy(comparison)  # the task is run again
    assert again.generation == row.generation
    with Clients(served):
        served.wait(lambda: served.control.row("toy").champion.version == 2, 60)


def test_live_labels_promote_what_the_test_part_could_not(served):
    config = ProjectConfig(name="toy", project="a.b:C", task="classification")
    bundle = make_bundle(served.home, 2, onnx_bytes=classifier(), task="classification")
    unsure = Comparison("accuracy", 1, 500, 0.91, 0.9, Interval(0.01, -0.01, 0.03))
    url = f"http://127.0.0.1:{served.port}"
    evaluation = Evaluation("accuracy", {}, 500, (), unsure)
    assert introduce(served.control, bundle, evaluation, config, url, "test")[1].kind == "inconclusive"
    assert "live labels are to decide within 14 days" in served.control.history("toy")[-1].reason
    now = datetime.now(UTC).isoformat()
    live = replace(unsure, rows=2000, gain=Interval(0.01, 0.002, 0.018))
    verdict = conclude(served.control, Trial(2, now, now, live), 1, config, url, "test")
    assert (verdict.kind, served.control.row("toy").champion.version) == ("promote", 2)
    assert served.get("/v2/models/toy/ready")[1]["version"] == "2"
    assert served.control.history("toy")[-1].evidence["trial"]["comparison"]["rows"] == 2000


def test_a_promotion_that_waits_for_a_yes_changes_nothing_until_then(served):
    rollout = RolloutConfig(approval_hours=1)
    config = ProjectConfig(name="toy", project="a.b:C", task="classification", rollout=rollout)
    bundle = make_bundle(served.home, 2, onnx_bytes=classifier(), task="classification", rollout=rollout)
    better = Comparison("accuracy", 1, 500, 0.95, 0.9, Interval(0.05, 0.02, 0.08))
    url = f"http://127.0.0.1:{served.port}"
    for _ in range(2):  # the task is run again
        deployed, verdict = introduce(
            served.control, bundle, Evaluation("accuracy", {}, 500, (), better), config, url, "test"
        )
        assert (deployed.role, verdict.kind) == ("challenger", "promote")
    assert served.get("/v2/models/toy")[1]["versions"][0] == "1"
    assert [entry.action for entry in served.control.history("toy")].count("approval") == 1
    row = approve(served.control, served.home, "toy", 2, "ann", "agreed", datetime.now(UTC))
    assert confirm(served.control, row, bundle, config, url).role == "champion"
    served.wait(lambda: served.get("/v2/models/toy/ready")[1]["version"] == "2")


def test_a_graph_in_quarantine_that_is_trained_again_is_held_and_moves_nothing(served):
    config = ProjectConfig(name="toy", project="a.b:C", task="classification")
    first, again = (
        make_bundle(served.home, version, onnx_bytes=classifier(wrong_over=0.9), task="classification")
        for version in (2, 3)
    )
    assert first.sha256 == again.sha256
    better = Comparison("accuracy", 1, 500, 0.95, 0.9, Interval(0.05, 0.02, 0.08))
    url = f"http://127.0.0.1:{served.port}"
    evaluation = Evaluation("accuracy", {}, 500, (), better)
    assert introduce(served.control, first, evaluation, config, url, "test")[0].role == "champion"
    generation = served.control.row("toy").generation
    before = served.control.rollback("toy", expected_generation=generation, actor="test", reason="bad on Mondays")
    deployed, verdict = introduce(served.control, again, evaluation, config, url, "test")
    assert (deployed.role, verdict.kind, served.control.row("toy")) == ("quarantined", "hold", before)
    assert "v3" in deployed.reason
    assert "the graph of v2, is in quarantine" in deployed.reason
    entry = served.control.history("toy")[-1]
    assert (entry.action, entry.version, entry.reason) == ("hold", 3, deployed.reason)
