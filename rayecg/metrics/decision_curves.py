"""Decision curves: what acting on a probability is worth at each threshold someone may hold.

Whoever acts at a probability of t or more says by it that t / (1 - t) needless acts are as bad as one
omitted. Net benefit counts hits in units of examples and takes off needless acts at that price. It
presupposes probabilities that mean what they say.

Legend: N example, C label, T threshold.

Source: Vickers and Elkin 2006, Decision curve analysis; Kerr et al. 2016, Assessing the clinical impact
of risk prediction models with decision curves (standardised).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayecg.metrics.calibration import checked
from rayecg.metrics.curves import ratio

#: 0.01 to 0.99 in hundredths.
THRESHOLDS_T = np.arange(1, 100) / 100


@dataclass(frozen=True, eq=False)
class DecisionCurves:
    """Net benefit of each label at each threshold; acting on nobody is worth 0 everywhere.

    Attributes
    ----------
    thresholds_T
        Probabilities from which on one acts.
    model_TC
        Acting on those whose probability reaches the threshold.
    treat_all_TC
        Acting on everybody.
    prevalence_C
        Share of positives.
    """

    thresholds_T: np.ndarray
    model_TC: np.ndarray
    treat_all_TC: np.ndarray
    prevalence_C: np.ndarray


def decision_curves(
    targets_NC: Any,
    probabilities_NC: Any,
    thresholds_T: Any = THRESHOLDS_T,
    standardised: bool = False,
) -> DecisionCurves:
    """Compute net benefit: TP / N - FP / N x t / (1 - t).

    Parameters
    ----------
    targets_NC, probabilities_NC
        0 or 1, and 0 to 1.
    thresholds_T
        Probabilities from 0 up to, and without, 1.
    standardised
        Divide by the prevalence, which is the most there is to gain, so that labels compare; NaN for a
        label without positives.

    Raises
    ------
    ValueError
        If shapes differ or are not (N, C), there is no example, targets are not 0 or 1, or
        probabilities or thresholds leave their range.
    """
    targets_NC, probabilities_NC = checked(targets_NC, probabilities_NC)
    thresholds_T = np.asarray(thresholds_T, dtype=np.float64)
    if thresholds_T.ndim != 1 or not ((thresholds_T >= 0) & (thresholds_T < 1)).all():
        raise ValueError("thresholds must be numbers from 0 up to, and without, 1")
    n = len(targets_NC)
    price_T1 = (thresholds_T / (1 - thresholds_T))[:, None]
    columns = [
        _reaching(targets_N, probabilities_N, thresholds_T)
        for targets_N, probabilities_N in zip(targets_NC.T, probabilities_NC.T, strict=True)
    ]
    hits_TC, alarms_TC = (np.stack(parts, axis=1) for parts in zip(*columns, strict=True))
    prevalence_C = targets_NC.mean(axis=0)
    model_TC = hits_TC / n - alarms_TC / n * price_T1
    treat_all_TC = prevalence_C - (1 - prevalence_C) * price_T1
    if standardised:
        model_TC, treat_all_TC = ratio(model_TC, prevalence_C), ratio(treat_all_TC, prevalence_C)
    return DecisionCurves(thresholds_T, model_TC, treat_all_TC, prevalence_C)


def _reaching(
    targets_N: np.ndarray, probabilities_N: np.ndarray, thresholds_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the positives and the negatives at or above each threshold."""
    sides = (np.sort(probabilities_N[own_N]) for own_N in (targets_N, ~targets_N))
    hits_T, alarms_T = (len(side) - np.searchsorted(side, thresholds_T) for side in sides)
    return hits_T, alarms_T
