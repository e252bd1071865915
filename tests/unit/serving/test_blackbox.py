"""The black box and the requests that have killed: what is noted, how long, and what is refused."""

import tempfile

import numpy as np
import pytest

from homeostat.errors import RequestInvalid
from homeostat.serving.blackbox import MAX_KILLERS, SIZE, SLOT_BYTES, SLOTS, BlackBox, Guard, Killers, fingerprint
from homeostat.tensors import pack

DIGEST = "a" * 64
SMALL = pack({"x": np.ones((1, 4), np.float32)})
LARGE = pack({"x": np.ones(SLOT_BYTES, np.uint8)})


@pytest.fixture
def boxes():
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        yield BlackBox(file.fileno()), BlackBox(file.fileno())


def test_the_supervisor_sees_what_is_being_computed(boxes):
    worker, supervisor = boxes
    first, second = worker.enter(DIGEST, SMALL), worker.enter("b" * 64, LARGE)
    assert set(supervisor.inside()) == {fingerprint(DIGEST, SMALL), fingerprint("b" * 64, LARGE)}
    worker.leave(first)
    assert supervisor.inside() == [fingerprint("b" * 64, LARGE)]
    worker.leave(second)
    assert supervisor.inside() == []


def test_a_request_is_told_from_others_by_its_tensors_and_its_version():
    assert fingerprint(DIGEST, SMALL) == fingerprint(DIGEST, bytes(SMALL))
    assert len({fingerprint(digest, data) for digest in (DIGEST, "b" * 64) for data in (SMALL, LARGE)}) == 4


def test_more_calls_than_slots_are_not_noted_and_do_no_harm(boxes):
    worker, supervisor = boxes
    slots = [worker.enter(DIGEST, SMALL) for _ in range(SLOTS + 2)]
    assert slots[-2:] == [-1, -1]
    for slot in slots:
        worker.leave(slot)
    assert supervisor.inside() == []
    assert worker.enter(DIGEST, SMALL) >= 0


def test_the_beat_is_seen(boxes):
    worker, supervisor = boxes
    assert supervisor.last_beat() == 0
    worker.beat()
    first = supervisor.last_beat()
    worker.beat()
    assert supervisor.last_beat() > first > 0


def test_a_request_is_refused_after_two_deaths_by_every_reader_and_after_a_restart(tmp_path):
    path = tmp_path / "workers" / "killers.json"
    supervisor, guard = Killers(path), Guard(killers=Killers(path))
    one = fingerprint(DIGEST, SMALL)
    supervisor.note([one, fingerprint(DIGEST, LARGE)])
    guard.killers.read()
    guard.leave(guard.enter(DIGEST, SMALL))
    supervisor.note([one])
    guard.killers.read()
    with pytest.raises(RequestInvalid, match="ended the server's process 2 times") as caught:
        guard.enter(DIGEST, SMALL)
    assert caught.value.status == 422
    guard.leave(guard.enter("b" * 64, SMALL))
    guard.leave(guard.enter(DIGEST, LARGE))
    again = Killers(path)
    again.read()
    assert again.refused == {one}
    path.unlink()
    guard.killers.read()
    guard.leave(guard.enter(DIGEST, SMALL))


def test_the_newest_are_remembered(tmp_path):
    killers = Killers(tmp_path / "killers.json")
    killers.note(["first", "second"])
    killers.note(["first"])
    killers.note(map(str, range(MAX_KILLERS - 1)))
    again = Killers(killers.path)
    again.read()
    assert again.refused == {"first"}
    again.note(["one more"])
    again.read()
    assert again.refused == set()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": "b"}', '{"a": null}'])
def test_a_broken_file_refuses_nothing_and_is_logged(tmp_path, caplog, text):
    path = tmp_path / "killers.json"
    path.write_text(text)
    killers = Killers(path)
    killers.read()
    assert killers.refused == set()
    assert "killers.json cannot be read" in caplog.text
    killers.note(["one"])
    killers.note(["one"])
    killers.read()
    assert killers.refused == {"one"}


def test_a_file_that_cannot_be_written_is_logged(tmp_path, caplog):
    (tmp_path / "workers").write_text("in the way")
    Killers(tmp_path / "workers" / "killers.json").note(["one"])
    assert "cannot be written" in caplog.text


def test_no_path_is_needed():
    killers = Killers()
    killers.read()
    killers.note(["one"])
    assert killers.refused == set()
