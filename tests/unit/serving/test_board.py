"""The board of several workers: metrics become one server's, and all must have what is called ready."""

import json
import time

import pytest

from homeostat.serving.board import FRESH_SECONDS, Board, merge, render
from homeostat.serving.metrics import Metrics


def exposition(requests=0, seconds=0.01):
    metrics = Metrics()
    for _ in range(requests):
        metrics.version("toy", 1).answered("champion", "v2-rest", seconds, seconds, 2, 0)
    return metrics.render().decode()


def values(text):
    samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_counters_and_histograms_are_summed():
    found = values(render(merge([exposition(2, 0.002), exposition(3, 0.2)])).decode())
    labels = 'arm="champion",model="toy",protocol="v2-rest"'
    names = {name.partition("{")[0]: value for name, value in found.items() if "homeostat_re" in name}
    assert names["homeostat_requests_total"] == names["homeostat_request_duration_seconds_count"] == 5
    assert names["homeostat_request_duration_seconds_sum"] == pytest.approx(0.604)
    assert found['homeostat_rows_total{model="toy",version="1"}'] == 10
    low, high = (
        next(value for name, value in found.items() if "_bucket" in name and f'le="{edge}"' in name)
        for edge in ("0.0025", "0.25")
    )
    assert (low, high) == (2, 5), labels


def test_one_exposition_stays_as_it_is():
    text = exposition(2)
    assert render(merge([text])).decode() == text


def gauges(**named):
    return "".join(f"# HELP {name} x\n# TYPE {name} gauge\n{name} {value}\n" for name, value in named.items())


def test_gauges_are_those_of_the_server():
    first = gauges(homeostat_ready=1, homeostat_problem=0, homeostat_connections=3, homeostat_queue_limit=64)
    second = gauges(homeostat_ready=0, homeostat_problem=1, homeostat_connections=4, homeostat_queue_limit=64)
    found = values(render(merge([first, second])).decode())
    assert found == {
        "homeostat_ready": 0,
        "homeostat_problem": 1,
        "homeostat_connections": 7,
        "homeostat_queue_limit": 128,
    }


def board(folder, index, requests=0):
    return Board(folder, index, list, lambda: exposition(requests).encode())


def total(text):
    return sum(value for name, value in values(text).items() if name.startswith("homeostat_requests_total"))


def test_a_worker_goes_on_from_its_forerunners_counts(tmp_path):
    for index, requests in enumerate((2, 3)):
        one = board(tmp_path, index, requests)
        one.start(first=index == 0)
        one.close()
    back = board(tmp_path, 1, 10)
    back.start(first=False)
    try:
        assert total(back.render().decode()) == 2 + 3 + 10
    finally:
        back.close()
    again = board(tmp_path, 0)
    again.start(first=True)
    try:
        assert total(again.render().decode()) == 0, "another server: the notices of the earlier one are gone"
    finally:
        again.close()


def notice(folder, index, **models):
    path = folder / f"worker-{index}.notice"
    path.write_text(json.dumps({"pid": 1, "monotonic": time.monotonic(), "models": models, "metrics": ""}))
    return path


def test_a_version_is_missing_where_a_worker_that_lives_does_not_have_it(tmp_path, caplog):
    one = board(tmp_path, 0)
    assert one.missing("toy", "a", live=True) == 0
    notice(tmp_path, 1, toy={"live": "a", "loaded": ["a", "b"]})
    path = notice(tmp_path, 2, toy={"live": "b", "loaded": ["b"]})
    assert one.missing("toy", "a", live=True) == one.missing("toy", "b", live=True) == 1
    assert one.missing("toy", "a", live=False) == 1
    assert one.missing("toy", "b", live=False) == 0
    assert one.missing("other", "a", live=False) == 2
    path.write_text(json.dumps(json.loads(path.read_text()) | {"monotonic": time.monotonic() - FRESH_SECONDS - 1}))
    assert one.missing("toy", "a", live=False) == 0
    path.write_text("{")
    assert one.missing("toy", "a", live=False) == 0
    assert "worker-2.notice cannot be read" in caplog.text


@pytest.mark.parametrize("seconds", [-1000, 1000])
def test_no_worker_is_hidden_by_a_clock_that_jumps(tmp_path, monkeypatch, seconds):
    board(tmp_path, 1).publish()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    assert board(tmp_path, 0).missing("toy", "a", live=True) == 1


def test_a_folder_that_cannot_be_written_is_logged(tmp_path, caplog):
    (tmp_path / "workers").write_text("in the way")
    board(tmp_path / "workers", 0).publish()
    assert "cannot be written" in caplog.text
