"""Many writers at once, and writers killed half way: one wins per generation, and the ledger holds."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from homeostat.control.store import ControlStore
from homeostat.errors import Conflict
from homeostat.records import BundleRef

WHY = {"actor": "test", "reason": "because"}


def ref(version: int, model: str = "digits") -> BundleRef:
    return BundleRef(model, version, f"file:///bundles/{model}/{version}", "a" * 64, f"{version:064x}")


PROMOTE_ONCE = """
import sys, time, pathlib
from homeostat.control.store import ControlStore
from homeostat.errors import Conflict
url, version, gate = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
store = ControlStore(url, timeout_seconds=20)
(gate / f"ready{version}").touch()
while not (gate / "go").exists():
    time.sleep(0.001)
try:
    store.promote("digits", version, expected_generation=1, actor="race", reason="first")
    print("won")
except Conflict:
    print("lost")
"""

PROMOTE_FOREVER = """
import sys
from homeostat.control.store import ControlStore
store = ControlStore(sys.argv[1])
while True:
    row = store.row("digits")
    version = 3 - row.champion.version
    store.promote("digits", version, expected_generation=row.generation, actor="loop", reason="again")
    print(version, flush=True)
"""


def test_one_thread_wins_per_generation(url):
    rounds, racers = 10, 8
    store = ControlStore(url, timeout_seconds=20)
    for version in range(1, racers + 1):
        store.register_bundle(ref(version))
    store.promote("digits", 1, expected_generation=0, **WHY)
    barrier, outcomes, failures = threading.Barrier(racers), [], []

    def race(number: int) -> None:
        own = ControlStore(url, timeout_seconds=20)
        for generation in range(1, rounds + 1):
            barrier.wait(30)
            version = 1 + (number + generation) % racers
            try:
                before = own.row("digits").champion
                if before.version == version:
                    continue
                own.promote("digits", version, expected_generation=generation, **WHY)
                outcomes.append(generation)
            except Conflict as error:
                failures.append(error)
            finally:
                barrier.wait(30)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == list(range(1, rounds + 1))
    assert len(failures) >= rounds * (racers - 2)
    assert store.verify() == rounds + 1 == store.generation("digits")


def test_one_process_wins(url, tmp_path):
    store = ControlStore(url)
    for version in range(1, 6):
        store.register_bundle(ref(version))
    store.promote("digits", 5, expected_generation=0, **WHY)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE_ONCE, url, str(version), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for version in range(1, 5)
    ]
    while sum(1 for _ in tmp_path.glob("ready*")) < len(racers):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    answers = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(answers) == ["lost"] * 3 + ["won"]
    assert store.row("digits").champion.version == answers.index("won") + 1
    assert store.verify() == 2


def test_eight_threads_may_create_the_store_at_once(url):
    barrier, failures = threading.Barrier(8), []

    def create(number: int) -> None:
        barrier.wait(30)
        try:
            store = ControlStore(url, timeout_seconds=20)
            store.register_bundle(ref(number, model=f"model{number}"))
        except Exception as error:  # noqa: BLE001 (reported below)
            failures.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = ControlStore(url)
    assert all(store.bundle(f"model{number}", number) for number in range(8))


@pytest.mark.parametrize("lines", [1, 7, 30])
def test_kill_9_leaves_a_whole_store(url, lines):
    store = ControlStore(url)
    for version in (1, 2):
        store.register_bundle(ref(version))
    store.promote("digits", 1, expected_generation=0, **WHY)
    with subprocess.Popen([sys.executable, "-c", PROMOTE_FOREVER, url], stdout=subprocess.PIPE, text=True) as process:
        last = [int(process.stdout.readline()) for _ in range(lines)][-1]
        process.send_signal(signal.SIGKILL)
    row = store.row("digits")
    assert store.verify() == row.generation
    assert row.generation >= lines + 1
    assert row.champion.version == (last if (row.generation - lines) % 2 else 3 - last)
    assert store.champion_at("digits", ControlStore(url)._clock()).version == row.champion.version


def test_of_many_who_decide_at_once_one_does(url):
    store = ControlStore(url, timeout_seconds=20)
    store.register_bundle(ref(1))
    store.promote("digits", 1, expected_generation=0, **WHY)
    store.record("digits", "verdict", **WHY)  # another action
    racers, outcomes = 8, []
    barrier, refused = threading.Barrier(racers), []

    def decide() -> None:
        mine = ControlStore(url, timeout_seconds=20)
        barrier.wait(10)
        try:
            outcomes.append(mine.record("digits", "retrain", **WHY, after=0).sequence)
        except Conflict as conflict:
            refused.append(str(conflict))

    threads = [threading.Thread(target=decide) for _ in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(outcomes), len(refused)) == (1, racers - 1)
    assert all("is a newer retrain than 0; decide again" in said for said in refused)
    assert store.record("digits", "retrain", **WHY, after=outcomes[0]).sequence > outcomes[0]
    assert [entry.action for entry in store.history("digits")].count("retrain") == 2


def test_a_rollback_wins_against_whatever_else_moves(url):
    store = ControlStore(url)
    for version in (1, 2, 3):
        store.register_bundle(ref(version))
    store.promote("digits", 1, expected_generation=0, **WHY)
    store.promote("digits", 2, expected_generation=1, **WHY)
    seen = store.row("digits").generation
    store.set_challenger("digits", ref(3), expected_generation=seen, evidence={}, **WHY)
    assert store.rollback("digits", bad_version=2, **WHY).champion == ref(1)
    with pytest.raises(Conflict, match="expected 3"):
        store.promote("digits", 3, expected_generation=seen + 1, **WHY)  # decided before the rollback
    with pytest.raises(Conflict, match="v2 was to be rolled back, but the champion is v1 now"):
        store.rollback("digits", bad_version=2, **WHY)
    assert store.row("digits").champion == ref(1)
