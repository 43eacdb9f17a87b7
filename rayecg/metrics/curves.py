"""What becomes of every label's decisions as the threshold falls, for all labels at once.

Legend: C label, N example, in each row of a `_CN` array by falling score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Curves:
    """The counts behind ROC and precision-recall curves.

    Attributes
    ----------
    scores_CN
        Falling.
    hits_CN, alarms_CN
        Positives and negatives up to here.
    last_CN
        Whether this is the last of equal scores: only there a threshold can lie.
    n_positive_C, n_negative_C
        Of all examples.
    """

    scores_CN: np.ndarray
    hits_CN: np.ndarray
    alarms_CN: np.ndarray
    last_CN: np.ndarray
    n_positive_C: np.ndarray
    n_negative_C: np.ndarray

    @classmethod
    def of(cls, targets_NC: Any, scores_NC: Any) -> Curves:
        """Sort every label's examples; ValueError if the shapes are not (N, C), both."""
        target_CN, score_CN = label_rows(targets_NC, scores_NC)
        order_CN = np.argsort(-score_CN, axis=1)
        score_CN = np.take_along_axis(score_CN, order_CN, axis=1)
        hit_CN = np.take_along_axis(target_CN, order_CN, axis=1)
        last_CN = np.ones_like(hit_CN)
        last_CN[:, :-1] = score_CN[:, :-1] != score_CN[:, 1:]
        hits_CN = np.cumsum(hit_CN, axis=1)
        n = hit_CN.shape[1]
        alarms_CN, n_positive_C = np.arange(1, n + 1) - hits_CN, np.count_nonzero(hit_CN, axis=1)
        return cls(score_CN, hits_CN, alarms_CN, last_CN, n_positive_C, n - n_positive_C)

    def auroc(self) -> np.ndarray:
        """Give the area under each ROC curve; NaN without positives or negatives."""
        # Trapezoids between thresholds, doubled: whole numbers, so exact.
        width_CN = np.where(self.last_CN, self.alarms_CN - self._before(self.alarms_CN), 0)
        doubled_C = (width_CN * (self.hits_CN + self._before(self.hits_CN))).sum(axis=1)
        return ratio(doubled_C, 2 * self.n_positive_C * self.n_negative_C)

    def auprc(self) -> np.ndarray:
        """Give each average precision, without interpolation; NaN without positives."""
        step_CN = np.where(self.last_CN, self.hits_CN - self._before(self.hits_CN), 0)
        precision_CN = self.hits_CN / (self.hits_CN + self.alarms_CN)
        return ratio((step_CN * precision_CN).sum(axis=1), self.n_positive_C)

    def sensitivity_at_specificity(self, specificity: float) -> np.ndarray:
        """Give the highest sensitivity of the thresholds with this specificity or a higher one.

        NaN without positives or negatives, and no interpolation between thresholds.

        Raises
        ------
        ValueError
            If `specificity` does not lie in 0 to 1.
        """
        if not 0 <= specificity <= 1:
            raise ValueError(f"specificity must lie between 0 and 1, not {specificity}")
        n_negative_C1 = self.n_negative_C[:, None]
        reached_CN = ratio(n_negative_C1 - self.alarms_CN, n_negative_C1)
        found_CN = np.where(self.last_CN & (reached_CN >= specificity), self.hits_CN, 0)
        sensitivity_C = ratio(found_CN.max(axis=1, initial=0), self.n_positive_C)
        return np.where(self.n_negative_C > 0, sensitivity_C, np.nan)

    def _before(self, count_CN: np.ndarray) -> np.ndarray:
        """Give the count at the threshold above."""
        at_threshold_CN = np.maximum.accumulate(np.where(self.last_CN, count_CN, 0), axis=1)
        before_CN = np.zeros_like(count_CN)
        before_CN[:, 1:] = at_threshold_CN[:, :-1]
        return before_CN


def label_rows(targets_NC: Any, scores_NC: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give targets, as bool, and scores with a contiguous row for each label.

    Raises
    ------
    ValueError
        If their shapes are not (N, C), both.
    """
    targets_NC, scores_NC = np.asarray(targets_NC, dtype=bool), np.asarray(scores_NC)
    if scores_NC.dtype.kind != "f":  # what has no sign cannot be sorted by its negative
        scores_NC = scores_NC.astype(np.float64)
    if targets_NC.ndim != 2 or targets_NC.shape != scores_NC.shape:
        raise ValueError(
            "expected targets and scores of one shape (N, C), came "
            f"{targets_NC.shape} and {scores_NC.shape}"
        )
    return np.ascontiguousarray(targets_NC.T), np.ascontiguousarray(scores_NC.T)


def column(values_N: Any) -> np.ndarray:
    """Give one label's values as (N, 1)."""
    return np.asarray(values_N).reshape(-1, 1)


def ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = np.where(denominator == 0, np.nan, numerator / denominator)
    return found


def halfway(lowest: float, refused: float) -> float:
    """Give a threshold between the lowest score accepted and the highest refused.

    Neighbouring numbers have nothing between them: there it is the lowest accepted itself.
    """
    between = (lowest + refused) / 2
    return between if between > refused else lowest
