"""Time travel: training rows later than test rows, and input columns that hold a moment after the row's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from homeostat.data.leaking_columns import Column
from homeostat.dataset import Array, Dataset

SECOND, DAY, YEAR = 1.0, 86_400.0, 365 * 86_400.0
UNITS = {"days": DAY, "seconds": SECOND, "milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}
ORIGINS = ("1970-01-01", "2020-01-01")
"""Where moments are counted from: Unix time, and the day that Dataset.from_frame proposes in its message."""
LEAST_SHARE = 0.01
"""Rows with a later moment that are no accident."""
FEW = 20


def training_rows_after_test(parts: Mapping[str, Dataset]) -> tuple[int, str]:
    """Return how many training rows are later than the oldest test row, and that row's time (ISO 8601)."""
    train, test = parts["train"].time, parts["test"].time
    if train is None or test is None or np.isnat(test).all():
        return 0, ""
    oldest = np.nanmin(test)
    return int((train > oldest).sum()), str(oldest.astype("datetime64[s]"))


def later_share(column: Column, time: Array) -> tuple[float, str]:
    """Return the share of rows in which a column is a moment after `time` [n] datetime64, and how it is counted.

    0 and "" for a column that is no moment. It is one when its values, in some unit from some origin, lie about
    the times of the rows (within their span, and a year at least), and go with them a second for a second
    (slope 0.5 to 1.5, correlation from 0.5). So a column cannot be told in rows of one short time.
    """
    known = ~np.isnan(column.values) & ~np.isnat(time)
    values = column.values[known]
    when = time[known].astype("datetime64[us]").astype(np.int64) / 1e6
    if len(values) < FEW or np.ptp(when) == 0 or np.ptp(values) == 0:
        return 0.0, ""
    reach = max(float(np.ptp(when)), YEAR)
    covariance = np.cov(values, when)
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    for unit, seconds in UNITS.items():
        slope = seconds * covariance[0, 1] / covariance[1, 1]
        for origin in ORIGINS:
            moment = values * seconds + float(np.datetime64(origin, "s").astype(np.int64))
            about = (moment >= when.min() - reach) & (moment <= when.max() + reach)
            if about.all() and correlation >= 0.5 and 0.5 <= slope <= 1.5:
                # a day counts from midnight to midnight; float32 rounds seconds since 1970 to 128
                rounded = max(
                    seconds if unit == "days" else SECOND, 2 * float(np.spacing(np.float32(values.max()))) * seconds
                )
                later = moment > when + rounded
                return (float(later.mean()), f"{unit} since {origin}") if later.mean() >= LEAST_SHARE else (0.0, "")
    return 0.0, ""
