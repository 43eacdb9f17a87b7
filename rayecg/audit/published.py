"""Somebody else's published intervals, as rows of `rayecg.core.published`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rayecg.core.prediction_table import PredictionTable
from rayecg.core.published import INTERVAL_COLUMNS
from rayecg.metrics.of_table import measured


def of_table(table: PredictionTable, runs: Sequence[str]) -> pd.DataFrame | None:
    """Give the intervals of some runs of somebody else's table; None if it has none.

    The point is the one published with the interval, or else the metric of the run's test rows; NaN
    where neither is there.
    """
    rows = []
    for one in table.intervals:
        if one.run not in runs:
            continue
        point, slack = one.point, one.slack
        own = measured(table, one.run, "test", one.metric)
        if np.isnan(point) and own is not None:
            point = own.point
        unit = table.said[one.run].get("resampling_unit")
        ends = (one.low, one.high, one.level)
        rows.append((one.run, one.run, one.metric, point, *ends, unit, np.nan, slack))
    return pd.DataFrame(rows, columns=list(INTERVAL_COLUMNS)) if rows else None
