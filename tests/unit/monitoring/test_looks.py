"""Looks at live traffic, kept as JSON."""

import json
import math
from dataclasses import asdict, replace

import pytest

from homeostat.control.ledger import to_json
from homeostat.errors import DataInvalid
from homeostat.monitoring.looks import read_look
from homeostat.records import Cohort, ColumnDrift, Estimate, Harm, Interval, LabelDelay, Monitoring, Window

LOSS = Interval(0.1, 0.0, 0.2)
LOOK = Monitoring(
    model="toy",
    version=3,
    window=Window("toy", "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00", 100, 50, "w.parquet"),
    drifted=True,
    reason="a",
    columns=(ColumnDrift("a", "ks", 0.5, 0.01, drifted=True, log_e=9.5),),
    quality={"accuracy": LOSS},
    conclusion="harm",
    harm=(Harm("all", 50, LOSS, 0.1, 12.0, 9.9, harmed=True, since="2026-01-01T12:00:00+00:00"),),
    cohorts=(Cohort("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00", 100, 50, mature=True, metric=LOSS),),
    delay=LabelDelay(60.0, 90.0, 0.5, 120.0),
    estimate=Estimate("accuracy", 0.9, shown=True, error=0.01, constant_error=0.02, reason="it beat the constant"),
)


def test_a_look_comes_back_from_json():
    assert read_look(json.loads(json.dumps(to_json(asdict(LOOK)), allow_nan=False))) == LOOK


def test_a_number_that_is_not_finite_comes_back_too():
    odd = replace(LOOK, quality={"accuracy": Interval(0.5, math.nan, math.inf)})
    found = read_look(json.loads(json.dumps(to_json(asdict(odd)), allow_nan=False))).quality["accuracy"]
    assert math.isnan(found.low)
    assert found.high == math.inf


@pytest.mark.parametrize("damage", [{"columns": 5}, {"conclusion": "fine"}, {"window": None}])
def test_a_damaged_look_is_named(damage):
    with pytest.raises(DataInvalid, match=next(iter(damage))):
        read_look(asdict(LOOK) | damage)
