"""Averages over labels, and metrics that look at all labels of an example together.

`macro` is the mean over labels, `weighted` the mean weighted by how many examples have the label, and
`micro` the metric of all decisions (or scores) together, as if of one label. Macro and weighted
averages leave out the labels whose metric is NaN, and callers say so.

Legend: N example, C label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from rayecg.metrics.counts import Counts
from rayecg.metrics.curves import Curves, column

How = Literal["macro", "micro", "weighted"]

#: Metrics of labels that rest on scores, and those that rest on decisions.
SCORE_METRICS: Mapping[str, Callable[[Curves], np.ndarray]] = {
    "auroc": Curves.auroc,
    "auprc": Curves.auprc,
    "sensitivity_at_spec90": lambda curves: curves.sensitivity_at_specificity(0.90),
    "sensitivity_at_spec95": lambda curves: curves.sensitivity_at_specificity(0.95),
}
DECISION_METRICS: Mapping[str, Callable[[Counts], np.ndarray]] = {
    "f1": Counts.f_beta,
    "f2": lambda counts: counts.f_beta(2.0),
    "g2": lambda counts: counts.g_beta(2.0),
    "sensitivity": Counts.sensitivity,
    "specificity": Counts.specificity,
    "ppv": Counts.ppv,
    "npv": Counts.npv,
    "accuracy": Counts.accuracy,
}


def average(metric: str, how: How, targets_NC: Any, values_NC: Any) -> float:
    """Average a metric over labels.

    Parameters
    ----------
    metric
        One of `SCORE_METRICS` or `DECISION_METRICS`.
    how
        "macro", "micro" or "weighted".
    targets_NC, values_NC
        (N, C): what is true, and the scores, or the decisions where the metric rests on these.

    Returns
    -------
    float
        NaN where no label has the metric. The weighted sensitivity is the micro one.

    Raises
    ------
    ValueError
        If the metric or the average is not known, or shapes do not match.
    """
    if how not in ("macro", "micro", "weighted"):
        raise ValueError(f"expected macro, micro or weighted, came {how!r}")
    if metric in SCORE_METRICS:
        if how == "micro":
            targets_NC, values_NC = column(targets_NC), column(values_NC)
        curves = Curves.of(targets_NC, values_NC)
        values_C, n_positive_C = SCORE_METRICS[metric](curves), curves.n_positive_C
    elif metric in DECISION_METRICS:
        counts = Counts.of(targets_NC, values_NC)
        counts = counts.pooled() if how == "micro" else counts
        values_C, n_positive_C = DECISION_METRICS[metric](counts), counts.n_positive
    else:
        known = ", ".join((*SCORE_METRICS, *DECISION_METRICS))
        raise ValueError(f"no metric of a label is named {metric!r}; known: {known}")
    return mean_of_labels(values_C, n_positive_C if how == "weighted" else None)


def mean_of_labels(values_C: np.ndarray, weights_C: np.ndarray | None = None) -> float:
    """Average the labels that have a value, each as 1 or as its weight; NaN if none has one."""
    known_C = ~np.isnan(values_C)
    if weights_C is None:
        return float(values_C[known_C].mean()) if known_C.any() else float("nan")
    weights = weights_C[known_C]
    return float(values_C[known_C] @ weights / weights.sum()) if weights.sum() else float("nan")


def hamming_loss(targets_NC: Any, decisions_NC: Any) -> float:
    """Share of the decisions that are wrong, over all labels and examples; NaN if there is none."""
    wrong_NC = np.asarray(targets_NC, dtype=bool) != np.asarray(decisions_NC, dtype=bool)
    return float(wrong_NC.mean()) if wrong_NC.size else float("nan")
