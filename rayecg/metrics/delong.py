"""AUROC of one label with its variance by formula: DeLong's, and Obuchowski's for patients.

An alternative to resampling for one label: exact in its computation, and quick. What an example
contributes (its placement) is the share of the other class that it is on the right side of; the variance
is that of the placements, of examples or of patients' sums of them. All placements come from ranks, in
O(N log N).

Sources: DeLong, DeLong and Clarke-Pearson 1988, Comparing the areas under two or more correlated
receiver operating characteristic curves; Sun and Xu 2014, Fast implementation of DeLong's algorithm;
Obuchowski 1997, Nonparametric analysis of clustered ROC curve data.

Legend: N example, G group, S set of scores, 2 positive and negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import rankdata

from rayecg.metrics.bootstrap import FEW_POSITIVE_GROUPS, LEVEL, few_groups
from rayecg.metrics.resamples import as_groups, check, n_effective

SCALES = ("logit", "plain")


@dataclass(frozen=True)
class DeLong:
    """An AUROC, or the difference of two, with its interval.

    Attributes
    ----------
    point, variance
        The figure, and how much it varies between studies.
    low, high
        The interval of `level`; NaN if the AUROC is not defined.
    p_value
        Of a difference: two-sided, of the normal distribution, that there is none. NaN of an AUROC.
    n_groups, n_effective
        As in `rayecg.metrics.bootstrap.Interval`.
    warning
        Why it should not be trusted, in a clause; empty if nothing speaks against it.
    """

    point: float
    variance: float
    low: float
    high: float
    level: float
    p_value: float
    n_groups: int
    n_effective: float
    warning: str


def auroc_interval(
    targets_N: np.ndarray,
    scores_N: np.ndarray,
    groups_N: Any = None,
    level: float = LEVEL,
    scale: str = "logit",
) -> DeLong:
    """Give the AUROC of one label with its interval.

    Parameters
    ----------
    targets_N, scores_N
        Of the label.
    groups_N
        The patient of each example: then the variance is Obuchowski's. None: DeLong's, for examples
        that have nothing to do with one another.
    level
        What share the interval should hold.
    scale
        "logit": symmetric in the log odds of the AUROC, and so within 0 and 1. "plain": symmetric, cut
        off at 0 and 1.

    Raises
    ------
    ValueError
        If shapes do not match, values or groups are missing, targets are not 0 or 1, or a setting is
        out of its range.
    """
    if scale not in SCALES:
        raise ValueError(f"no scale is named {scale!r}; known: {', '.join(SCALES)}")
    auroc_S, covariance_SS, counts = auroc_covariance(targets_N, [scores_N], groups_N)
    point, variance = float(auroc_S[0]), max(float(covariance_SS[0, 0]), 0.0)
    reach = _quantile(level) * np.sqrt(variance)
    if scale == "logit" and 0 < point < 1:
        odds, reach = logit(point), reach / (point * (1 - point))
        low, high = expit(odds - reach), expit(odds + reach)
    else:
        low, high = np.clip([point - reach, point + reach], 0, 1)
    warning = _warning(point, variance, counts)
    nan = float("nan")
    return DeLong(point, variance, float(low), float(high), level, nan, *counts[:2], warning)


def auroc_difference(
    targets_N: np.ndarray,
    a_N: np.ndarray,
    b_N: np.ndarray,
    groups_N: Any = None,
    level: float = LEVEL,
) -> DeLong:
    """Give the difference of two AUROCs on the same examples, a's less b's, with its paired test.

    The parameters and errors are those of `auroc_interval`; the interval is on the plain scale.
    """
    auroc_S, covariance_SS, counts = auroc_covariance(targets_N, [a_N, b_N], groups_N)
    point = float(auroc_S[0] - auroc_S[1])
    variance = float(covariance_SS[0, 0] + covariance_SS[1, 1] - 2 * covariance_SS[0, 1])
    # The three terms cancel where both say the same; what rounding leaves is no variance.
    variance = 0.0 if variance < 1e-14 * covariance_SS.trace() else variance
    reach = _quantile(level) * np.sqrt(variance)
    if variance > 0:
        p_value = float(2 * ndtr(-abs(point) / np.sqrt(variance)))
    else:
        p_value = 1.0 if point == 0 else float("nan")
    warning = _warning(point, variance, counts)
    ends = float(point - reach), float(point + reach)
    return DeLong(point, variance, *ends, level, p_value, *counts[:2], warning)


def auroc_covariance(
    targets_N: np.ndarray, scores_SN: Any, groups_N: Any = None
) -> tuple[np.ndarray, np.ndarray, tuple[int, float, int]]:
    """Give the AUROCs of several sets of scores for the same examples, with their covariance.

    Returns
    -------
    tuple
        AUROC (S,); covariance (S, S); how many groups there are, of what effective number, and how many
        the rarer class comes from. NaN for what is not defined: an AUROC without both classes, a
        variance with a class of one group.
    """
    targets_N, scores_SN = np.asarray(targets_N), np.asarray(scores_SN)
    for scores_N in scores_SN:
        check(targets_N, scores_N, 1, "auroc")
    positive_N = targets_N.astype(bool)
    groups_N = np.arange(len(targets_N)) if groups_N is None else as_groups(groups_N)
    if len(groups_N) != len(targets_N):
        raise ValueError(
            f"expected a group for each of {len(targets_N)} examples, came {len(groups_N)}"
        )
    names_G, place_N = np.unique(groups_N, return_inverse=True)
    n_groups = len(names_G)
    own_2N = np.stack([positive_N, ~positive_N])
    n_2 = own_2N.sum(axis=1)
    size_2G = np.stack([np.bincount(place_N[own_N], minlength=n_groups) for own_N in own_2N])
    n_with_2 = (size_2G > 0).sum(axis=1)
    counts = n_groups, n_effective(groups_N), int(n_with_2.min())
    n_sets = len(scores_SN)
    if not n_2.all():
        return np.full(n_sets, np.nan), np.full((n_sets, n_sets), np.nan), counts
    placed_SN = np.stack([_placements(positive_N, scores_N) for scores_N in scores_SN])
    auroc_S = placed_SN[:, positive_N].mean(axis=1)
    # What a group's examples of a class contribute beyond what as many average ones would.
    sums = [
        [np.bincount(place_N[own_N], placed_N[own_N], n_groups) for own_N in own_2N]
        for placed_N in placed_SN
    ]
    excess_S2G = (np.array(sums) - auroc_S[:, None, None] * size_2G) / n_2[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        within_2 = n_with_2 / (n_with_2 - 1)
        across = np.float64(n_groups) / (n_groups - 1)
        product = np.einsum("sag,tbg->abst", excess_S2G, excess_S2G)
        covariance_SS = within_2[0] * product[0, 0] + within_2[1] * product[1, 1]
        covariance_SS = covariance_SS + across * (product[0, 1] + product[1, 0])
    return auroc_S, np.where(n_with_2.min() > 1, covariance_SS, np.nan), counts


def _placements(positive_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """Give the share of the other class that each example is on the right side of, ties by half."""
    among_all_N = rankdata(scores_N)  # equal scores share their mean rank
    placed_N = np.empty(len(scores_N))
    for own_N, n_other in ((positive_N, (~positive_N).sum()), (~positive_N, positive_N.sum())):
        placed_N[own_N] = (among_all_N[own_N] - rankdata(scores_N[own_N])) / n_other
    placed_N[~positive_N] = 1 - placed_N[~positive_N]
    return placed_N


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    return float(ndtri((1 + level) / 2))


def _warning(point: float, variance: float, counts: tuple[int, float, int]) -> str:
    n_groups, _, n_rarer = counts
    parts = [few_groups(n_groups)]
    if n_rarer < FEW_POSITIVE_GROUPS:
        parts.append(f"one class comes from fewer than {FEW_POSITIVE_GROUPS} patients")
    if np.isnan(point):
        parts.append("there is only one class")
    elif np.isnan(variance):
        parts.append("one class comes from a single patient")
    elif variance == 0:
        parts.append("nothing varies, and the interval is its point")
    return "; ".join(filter(None, parts))
