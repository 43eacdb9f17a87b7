"""Operating points: thresholds and temperature, chosen on a stated split.

Legend: N example, C label.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from rayecg.core.outputs import Kind, OperatingPoint, probabilities
from rayecg.metrics.classification import max_f1_threshold


def choose_operating_point(
    logits_NC: np.ndarray, targets_NC: np.ndarray, kind: Kind, split: str
) -> OperatingPoint:
    """Choose thresholds by the highest F1 of each label, and one temperature by likelihood.

    Source of the temperature: Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    thresholds_C: tuple[float, ...] = ()
    if kind == "multilabel":
        columns = zip(targets_NC.T, probabilities(logits_NC, kind).T, strict=True)
        thresholds_C = tuple(max_f1_threshold(t, p) for t, p in columns)
    return OperatingPoint(
        kind=kind,
        temperature=fit_temperature(logits_NC, targets_NC, kind),
        thresholds_C=thresholds_C,
        rule="max_f1" if kind == "multilabel" else "argmax",
        split=split,
        n_examples=len(targets_NC),
    )


def fit_temperature(logits_NC: np.ndarray, targets_NC: np.ndarray, kind: Kind) -> float:
    """Find the temperature (0.1 to 10) with the highest likelihood of the targets."""
    logits_NC = np.asarray(logits_NC, dtype=np.float64)
    signs_NC = np.where(targets_NC, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        scaled_NC = logits_NC / np.exp(log_temperature)
        if kind == "multilabel":
            return float(np.logaddexp(0.0, -signs_NC * scaled_NC).mean())
        return float(-(log_softmax(scaled_NC, axis=1) * targets_NC).sum(axis=1).mean())

    if not len(logits_NC):
        return 1.0
    found = minimize_scalar(loss, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    return float(np.exp(found.x))
