"""Counts of right and wrong decisions for all labels at once, and what is computed of them alone.

Legend: N example, C label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayecg.metrics.curves import ratio


@dataclass(frozen=True, eq=False)
class Counts:
    """True and false positives, false and true negatives of each label.

    What cannot be computed is NaN: sensitivity, F and G without a positive example, specificity
    without a negative one, PPV without a positive decision, NPV without a negative one.

    Attributes
    ----------
    tp_C, fp_C, fn_C, tn_C
        Whole numbers, or sums of weights.
    """

    tp_C: np.ndarray
    fp_C: np.ndarray
    fn_C: np.ndarray
    tn_C: np.ndarray

    @classmethod
    def of(cls, targets_NC: Any, decisions_NC: Any, weights_N: Any = None) -> Counts:
        """Count, each example as 1 or as its weight.

        Raises
        ------
        ValueError
            If shapes are not (N, C) both, or there is not one weight for each example.
        """
        targets_NC = np.asarray(targets_NC, dtype=bool)
        decisions_NC = np.asarray(decisions_NC, dtype=bool)
        if targets_NC.ndim != 2 or targets_NC.shape != decisions_NC.shape:
            raise ValueError(
                "expected targets and decisions of one shape (N, C), came "
                f"{targets_NC.shape} and {decisions_NC.shape}"
            )
        pairs = (
            targets_NC & decisions_NC,
            ~targets_NC & decisions_NC,
            targets_NC & ~decisions_NC,
            ~(targets_NC | decisions_NC),
        )
        if weights_N is None:
            return cls(*(np.count_nonzero(pair_NC, axis=0) for pair_NC in pairs))
        weights_N = np.asarray(weights_N, dtype=np.float64)
        if weights_N.shape != targets_NC.shape[:1]:
            raise ValueError(
                f"expected a weight for each of {len(targets_NC)} examples, came {weights_N.shape}"
            )
        return cls(*(weights_N @ pair_NC for pair_NC in pairs))

    def pooled(self) -> Counts:
        """Add up over the labels: one label's counts, of all decisions together."""
        parts = (self.tp_C, self.fp_C, self.fn_C, self.tn_C)
        return Counts(*(part_C.sum(keepdims=True) for part_C in parts))

    @property
    def n_positive(self) -> np.ndarray:
        """The support: examples that have the label."""
        return self.tp_C + self.fn_C

    def sensitivity(self) -> np.ndarray:
        """Give the share of the positives that are found."""
        return ratio(self.tp_C, self.n_positive)

    def specificity(self) -> np.ndarray:
        """Give the share of the negatives that are left alone."""
        return ratio(self.tn_C, self.tn_C + self.fp_C)

    def ppv(self) -> np.ndarray:
        """Give the share of the positive decisions that are right."""
        return ratio(self.tp_C, self.tp_C + self.fp_C)

    def npv(self) -> np.ndarray:
        """Give the share of the negative decisions that are right."""
        return ratio(self.tn_C, self.tn_C + self.fn_C)

    def accuracy(self) -> np.ndarray:
        """Give the share of the decisions on the label that are right."""
        return ratio(self.tp_C + self.tn_C, self.n_positive + self.fp_C + self.tn_C)

    def f_beta(self, beta: float = 1.0) -> np.ndarray:
        """Give the harmonic mean of sensitivity, weighted by beta squared, and PPV."""
        return np.where(self.n_positive > 0, self.raw_f_beta(beta), np.nan)

    def g_beta(self, beta: float = 2.0) -> np.ndarray:
        """Give TP / (TP + FP + beta FN); with beta 1 it is the Jaccard index."""
        return np.where(self.n_positive > 0, self.raw_g_beta(beta), np.nan)

    def raw_f_beta(self, beta: float) -> np.ndarray:
        """Give F-beta as the formula has it: 0 where nobody has the label and some are given it."""
        _check_beta(beta)
        hit_C = (1 + beta**2) * self.tp_C
        return ratio(hit_C, hit_C + self.fp_C + beta**2 * self.fn_C)

    def raw_g_beta(self, beta: float) -> np.ndarray:
        """Give G-beta as the formula has it: 0 where nobody has the label and some are given it."""
        _check_beta(beta)
        return ratio(self.tp_C, self.tp_C + self.fp_C + beta * self.fn_C)


def ppv_at_prevalence(sensitivity: Any, specificity: Any, prevalence: Any) -> np.ndarray:
    """Give the PPV that a sensitivity and a specificity mean where a share of people has the label.

    Bayes' theorem: a PPV measured on one population says nothing of another with other prevalence.

    Parameters
    ----------
    sensitivity, specificity, prevalence
        Between 0 and 1, numbers or arrays that broadcast. NaN gives NaN, and so does what gives no
        positive decision.

    Raises
    ------
    ValueError
        If one of them lies outside 0 to 1.
    """
    given = {"sensitivity": sensitivity, "specificity": specificity, "prevalence": prevalence}
    for name, values in given.items():
        outside = np.asarray(values, dtype=np.float64)
        outside = outside[(outside < 0) | (outside > 1)]
        if outside.size:
            raise ValueError(f"{name} must lie between 0 and 1, not {outside.flat[0]:g}")
    sensitivity, specificity, prevalence = (np.asarray(v, dtype=float) for v in given.values())
    hits = sensitivity * prevalence
    return ratio(hits, hits + (1 - specificity) * (1 - prevalence))


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be more than 0, not {beta}")
