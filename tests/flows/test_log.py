"""What a failed flow run says: an error of ours in one message, any other with its traceback."""

from __future__ import annotations

import logging

import pytest
from prefect import flow

from homeostat.errors import DataInvalid, HomeostatError, RegistryUnavailable
from tasks.stage import stage

pytestmark = pytest.mark.flows
ERRORS = {
    "terminal": DataInvalid("2 breaches; mend them in load_data", ["age: 3 of 90 rows are NaN", "100% of sex is 'f'"]),
    "transient": RegistryUnavailable("MLflow at http://127.0.0.1:9 does not answer: 100% refused; start it"),
    "foreign": ZeroDivisionError("division by zero"),
}


@stage(minutes=1)
def meet(kind: str) -> None:
    raise ERRORS[kind]


@flow
def story(kind: str) -> None:
    meet(kind)


def said(caplog: pytest.LogCaptureFixture, logger: str) -> list[str]:
    """All that a logger of Prefect said from warnings on, and its last words."""
    records = [record for record in caplog.records if record.name == logger]
    lines = [caplog.handler.format(record) for record in records]
    return [line for line, record in zip(lines, records, strict=True) if record.levelno > logging.INFO] + lines[-1:]


@pytest.mark.parametrize("kind", ["terminal", "transient"])
def test_an_error_of_ours_is_one_message(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(meet, "retry_delay_seconds", 0)
    error = ERRORS[kind]
    with pytest.raises(HomeostatError, match="; "):
        story(kind)
    assert "Traceback" not in caplog.text
    message, last = said(caplog, "prefect.flow_runs")
    assert message.endswith(f" {type(error).__name__}: {error}")
    assert last.endswith(" Finished in state Failed")
    assert said(caplog, "prefect.task_runs")[-1].endswith(" Finished in state Failed")


def test_any_other_error_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError):
        story("foreign")
    message, last = said(caplog, "prefect.flow_runs")
    assert "Traceback (most recent call last)" in message
    assert "in meet" in message
    assert "division by zero" in last
