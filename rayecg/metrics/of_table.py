"""Metrics of somebody else's table of predictions, by name.

Legend: N example, C label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rayecg.core.prediction_table import LABEL_METRICS, METRICS, PredictionTable
from rayecg.metrics import classification
from rayecg.metrics.bootstrap import LEVEL, Interval, bootstrap_interval
from rayecg.metrics.resamples import BY_DECISION


@dataclass(frozen=True, eq=False)
class Measured:
    """What a metric of a run is computed from.

    Attributes
    ----------
    metric
        Its name for `bootstrap_interval`.
    targets, scores
        (N, C), or (N,) for the metric of one label; decisions stand for scores where it rests on them.
    patients_N
        Whose the examples are; a record without a patient is its own.
    """

    metric: str
    targets: np.ndarray
    scores: np.ndarray
    patients_N: np.ndarray

    @property
    def point(self) -> float:
        """The metric of the rows as they are."""
        found: Callable[..., float] = getattr(classification, self.metric)
        return float(found(self.targets, self.scores))

    def interval(self, by: str = "patient", level: float = LEVEL) -> Interval:
        """Give the point with its interval over patients, or over single rows (`by="row"`)."""
        groups_N = self.patients_N if by == "patient" else None
        return bootstrap_interval(self.metric, self.targets, self.scores, groups_N, level=level)


def metric_names(table: PredictionTable) -> list[str]:
    """List the metrics that a table has the columns for: of all labels, then of each."""
    skipped = () if table.decides else ("accuracy", "macro_f1", *BY_DECISION)
    names = [name for name in METRICS if name not in skipped]
    each = [name for name in LABEL_METRICS if name not in skipped]
    return names + [f"{name}_{label}" for label in table.labels for name in each]


def measured(table: PredictionTable, run: str, split: str, metric: str) -> Measured | None:
    """Find what a metric is computed from; None if the table does not have it.

    Parameters
    ----------
    table
        What `read_prediction_table` gives.
    run, split
        Which rows.
    metric
        One of `metric_names`; F1 and the like take the rows that have decisions.
    """
    if metric not in metric_names(table):
        return None
    name, _, label = (metric, "", "") if metric in METRICS else metric.partition("_")
    rows = table.of_run(run, split)
    rows = rows[rows[f"probability_{table.labels[0]}"].notna()]
    by_decision = name in ("accuracy", "macro_f1", *BY_DECISION)
    if by_decision:
        rows = rows[rows[[f"decision_{one}" for one in table.labels]].notna().all(axis=1)]
    if not len(rows):
        return None
    targets = table.stack(rows, "target").astype(bool)
    scores = table.stack(rows, "decision" if by_decision else "probability")
    if label:
        column = table.labels.index(label)
        targets, scores = targets[:, column], scores[:, column]
    return Measured(name, targets, scores, persons(rows))


def persons(rows: pd.DataFrame) -> np.ndarray:
    """Name whose each row is: the patient, or the record where no patient is known."""
    known = rows["patient_id"].notna()
    names = ("patient " + rows["patient_id"].astype(str)).where(
        known, "record " + rows["record_id"].astype(str)
    )
    return names.to_numpy(dtype=np.str_)
