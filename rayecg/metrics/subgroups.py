"""What metrics are for some of the examples against the others, and how wrong single examples are.

Legend: N example, C label, R resample.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rayecg.metrics.resamples import (
    BY_DECISION,
    BY_SCORE,
    Resamples,
    accuracy_values,
    label_values,
)

#: The metric of a label that another one is of its absence.
TURNED = {"specificity": "sensitivity", "npv": "ppv"}
#: What `values_of` knows: metrics of a label's scores, and of its decisions.
SCORE_METRICS = BY_SCORE
DECISION_METRICS = tuple(dict.fromkeys((*BY_DECISION, *TURNED)))

#: Probabilities nearer than this to 0 or 1 count as this near: one that is certain and wrong would
#: otherwise outweigh everything else.
NEAREST = 1e-6


def with_point(resamples: Resamples) -> Resamples:
    """Put the patients as they are, each once, before the resamples."""
    once_G1 = np.ones((len(resamples.names_G), 1), dtype=resamples.counts_GR.dtype)
    return Resamples(resamples.names_G, np.concatenate([once_G1, resamples.counts_GR], axis=1))


def values_of(
    metric: str, targets_NC: np.ndarray, scores_NC: np.ndarray, groups_N: Any, resamples: Resamples
) -> np.ndarray:
    """Give a metric of labels, or "accuracy" of all together, in every resample.

    Parameters
    ----------
    metric
        One of `SCORE_METRICS` or `DECISION_METRICS`, or "accuracy".
    targets_NC, scores_NC, groups_N
        As `rayecg.metrics.resamples.label_values` takes them; there may be no example.

    Returns
    -------
    np.ndarray
        (R, C), (R, 1) of "accuracy"; NaN where it is not defined.
    """
    n_labels = 1 if metric == "accuracy" else targets_NC.shape[1]
    if not len(targets_NC):
        return np.full((resamples.n_resamples, n_labels), np.nan)
    if metric == "accuracy":
        return accuracy_values(targets_NC, scores_NC, groups_N, resamples)[:, None]
    if metric in TURNED and metric not in BY_DECISION:
        return values_of(TURNED[metric], targets_NC == 0, scores_NC == 0, groups_N, resamples)
    return label_values(metric, targets_NC, scores_NC, groups_N, resamples)


def difference_values(
    metric: str,
    targets_NC: np.ndarray,
    scores_NC: np.ndarray,
    groups_N: Any,
    own_N: np.ndarray,
    resamples: Resamples,
) -> np.ndarray:
    """Give by how much a metric of some examples exceeds that of the others, in every resample.

    Both sides are taken from the same resample of patients: one whose examples lie on both sides
    (an age band is left with the years, a noisy recording has a quiet one beside it) is drawn with
    all of them.

    Parameters
    ----------
    own_N
        Which examples are compared with the rest.

    Returns
    -------
    np.ndarray
        (R, C), (R, 1) of "accuracy"; NaN where either side does not have the metric.
    """
    groups_N = np.asarray(groups_N)
    own_RC, rest_RC = (
        values_of(metric, targets_NC[side_N], scores_NC[side_N], groups_N[side_N], resamples)
        for side_N in (own_N, ~own_N)
    )
    return np.asarray(own_RC - rest_RC)


def log_loss(targets_NC: np.ndarray, probabilities_NC: np.ndarray, exclusive: bool) -> np.ndarray:
    """Give the log loss of each example, in nats; (N,).

    Parameters
    ----------
    targets_NC, probabilities_NC
        (N, C).
    exclusive
        Whether an example has one of the labels: its loss is then that of this label, otherwise the
        mean over labels, each against its absence.
    """
    targets_NC = np.asarray(targets_NC, dtype=bool)
    clipped_NC = np.clip(probabilities_NC, NEAREST, 1 - NEAREST)
    if exclusive:
        loss_N: np.ndarray = -(np.log(clipped_NC) * targets_NC).sum(axis=1)
        return loss_N
    mean_N: np.ndarray = -np.log(np.where(targets_NC, clipped_NC, 1 - clipped_NC)).mean(axis=1)
    return mean_N
