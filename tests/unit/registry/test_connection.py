"""What a MLflow costs that does not answer, answers late, or is damaged."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from homeostat.errors import RegistryError, RegistryUnavailable
from homeostat.records import RunRef
from homeostat.registry import Registry


def calls(registry: Registry, parts: dict) -> dict:
    run = RunRef("m", "p", "r", "")
    return {
        "start_run": lambda: registry.start_run("m", "p"),
        "log_metrics": lambda: registry.log_metrics(run, {"a": 1.0}),
        "log_file": lambda: registry.log_file(run, parts["export"].onnx.path),
        "log_folder": lambda: registry.log_folder(run, parts["export"].saved_model),
        "end_run": lambda: registry.end_run(run),
        "register": lambda: registry.register(run, **parts),
        "aliases": lambda: registry.aliases("m"),
        "log_monitoring": lambda: registry.log_monitoring("m", {}, [], 1),
    }


def test_nobody_listens(parts):
    registry = Registry("http://127.0.0.1:9")
    start = time.perf_counter()
    for call in calls(registry, parts).values():
        with pytest.raises(
            RegistryUnavailable, match=r"http://127.0.0.1:9 does not answer.*HOMEOSTAT_MLFLOW_URL"
        ) as caught:
            call()
        assert caught.value.transient
    assert time.perf_counter() - start < 2


def test_the_server_stops_between_two_calls(parts, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    registry = Registry("http://127.0.0.1:9")
    registry.ping = lambda timeout_seconds=3.0: None  # it answered then
    start = time.perf_counter()
    with pytest.raises(RegistryUnavailable):
        registry.start_run("m", "p")
    with pytest.raises(RegistryUnavailable):
        calls(registry, parts)["register"]()
    assert time.perf_counter() - start < 20


def test_without_mlflow_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RegistryError, match=r"needs mlflow: pip install 'homeostat\[train\]'"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db").aliases("m")


def test_a_server_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        registry = Registry(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(RegistryUnavailable, match="timed out"):
            registry.ping(0.2)
        assert time.perf_counter() - start < 1


def test_a_damaged_database_and_a_wrong_address(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(RegistryUnavailable, match="not a database"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db").start_run("m", "p")
    with pytest.raises(RegistryError, match="use http://"):
        Registry("mlruns").aliases("m")
    assert not Registry(f"sqlite:///{tmp_path}/none.db").exists()
    assert Registry("http://127.0.0.1:9").exists()
