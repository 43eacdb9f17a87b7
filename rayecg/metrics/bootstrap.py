"""Confidence intervals by drawing whole patients again.

Examples of one patient resemble one another, so patients are drawn, with replacement and as many as
there are, each with all its examples: intervals over examples would be too narrow.

Source: Rutter 2000, Bootstrap estimation of diagnostic accuracy with patient-clustered data.

Legend: N example, C label, R resample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayecg.metrics import classification
from rayecg.metrics.classification import accuracy, macro_auprc, macro_auroc, macro_f1
from rayecg.metrics.resamples import (
    BY_DECISION,
    BY_SCORE,
    Resamples,
    accuracy_values,
    as_groups,
    check,
    label_values,
)

N_RESAMPLES, LEVEL = 2000, 0.95
#: With fewer groups than these, intervals by groups are known to be too narrow (Cameron, Gelbach and
#: Miller 2008, Bootstrap-based improvements for inference with clustered errors: five to thirty).
FEW_GROUPS = 30
#: A resample has none of k given groups in about exp(-k) of cases: over 1 % for fewer than five.
FEW_POSITIVE_GROUPS = 5

Metric = Callable[[np.ndarray, np.ndarray], float]


#: The metric of a label that each macro metric is the mean of.
MACRO = {"macro_auroc": "auroc", "macro_auprc": "auprc", "macro_f1": "f1"}
_LABEL: dict[str, Metric] = {name: getattr(classification, name) for name in BY_SCORE + BY_DECISION}
#: What is computed for all resamples at once.
_QUICK: dict[str, Metric] = {
    "macro_auroc": macro_auroc,
    "macro_auprc": macro_auprc,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
    **_LABEL,
}


@dataclass(frozen=True)
class Interval:
    """A figure with its interval.

    Attributes
    ----------
    point
        The metric of the examples as they are.
    low, high
        Percentile interval of `level`; NaN if no resample has the metric.
    n_groups
        How many groups were drawn from.
    n_effective
        How many groups of equal size would vary as much: (sum n_g)^2 / sum n_g^2 (Kish 1965).
    n_resamples
        How often they were drawn.
    n_undefined
        Resamples in which a label that the point knows was undefined and left out of the macro
        average, or the metric itself was.
    warning
        Why it should not be trusted, in a clause; empty if nothing speaks against it.
    """

    point: float
    low: float
    high: float
    level: float
    n_groups: int
    n_effective: float
    n_resamples: int
    n_undefined: int
    warning: str


def bootstrap_interval(
    metric: str | Metric,
    targets_NC: np.ndarray,
    probabilities_NC: np.ndarray,
    groups_N: Any = None,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Give a metric with its percentile interval over groups, patients as a rule.

    Parameters
    ----------
    metric
        A function of `rayecg.metrics.classification` or its name, also "accuracy"; these are quick.
        Any other function of targets and scores is called for every resample.
    targets_NC, probabilities_NC
        (N, C), or (N,) for the metric of one label. F1, sensitivity, PPV and accuracy take decisions
        in the place of probabilities.
    groups_N
        The group of each example, of any type that sorts; None: each example is its own.
    n_resamples, level, seed
        How often to draw, what share the interval should hold, and what draws.

    Raises
    ------
    ValueError
        If shapes do not match, values or groups are missing, targets are not 0 or 1, or a setting is
        out of its range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    if isinstance(metric, str):
        if metric not in _QUICK:
            raise ValueError(f"no metric is named {metric!r}; known: {', '.join(_QUICK)}")
        name, function = metric, _QUICK[metric]
    else:
        name = next((known for known, quick in _QUICK.items() if quick is metric), "")
        function = metric
    targets, scores = np.asarray(targets_NC), np.asarray(probabilities_NC)
    n_axes = 0 if not name else 1 if name in _LABEL else 2
    check(targets, scores, n_axes, MACRO.get(name, name))
    groups_N = np.arange(len(targets)) if groups_N is None else as_groups(groups_N)
    if len(groups_N) != len(targets):
        raise ValueError(
            f"expected a group for each of {len(targets)} examples, came {len(groups_N)}"
        )
    resamples = Resamples.of(groups_N, n_resamples, seed)
    n_rare = 0
    if not name:
        values_R = _loop(function, targets, scores, groups_N, resamples)
        lacking_R = np.isnan(values_R)
    elif name == "accuracy":
        values_R = accuracy_values(targets, scores, groups_N, resamples)
        lacking_R = np.isnan(values_R)
    else:
        one = MACRO.get(name, name)
        targets_NC, scores_NC = (v.reshape(len(v), -1) for v in (targets, scores))
        values_RC = label_values(one, targets_NC, scores_NC, groups_N, resamples)
        known_C = _known(one, targets_NC, scores_NC)
        values_R = mean_of_known(values_RC, axis=1)
        lacking_R = np.isnan(values_RC[:, known_C]).any(axis=1) | np.isnan(values_R)
        n_rare = int(rare_labels(targets_NC, groups_N).sum())
    point = float(function(targets, scores))
    low, high = percentiles(values_R, level)
    n_groups = len(resamples.names_G)
    sizes_G = np.unique(groups_N, return_counts=True)[1].astype(np.float64)
    return Interval(
        point=point,
        low=low,
        high=high,
        level=level,
        n_groups=n_groups,
        n_effective=float(sizes_G.sum() ** 2 / (sizes_G**2).sum()),
        n_resamples=resamples.n_resamples,
        n_undefined=int(lacking_R.sum()),
        warning=_warning(point, low, high, n_groups, n_rare),
    )


def percentiles(values_R: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Give the ends of the percentile interval; NaN are left out."""
    known = values_R[~np.isnan(values_R)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Average over an axis what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis)
    return mean


def rare_labels(targets_NC: np.ndarray, groups_N: Any) -> np.ndarray:
    """Say of each label whether its positives, if any, come from fewer than five groups; (C,)."""
    groups_N = as_groups(groups_N)
    columns = np.asarray(targets_NC, dtype=bool).T
    n_C = np.array([len(np.unique(groups_N[own_N])) for own_N in columns])
    rare_C: np.ndarray = (n_C > 0) & (n_C < FEW_POSITIVE_GROUPS)
    return rare_C


def holds(low: float, high: float, point: float) -> bool:
    """Whether an interval, if there is one, contains its point; both are sums with rounding errors."""
    return not (point < low - 1e-9 or point > high + 1e-9)


def few_groups(n_groups: int) -> str:
    """Say that they are few, if they are; else nothing."""
    return f"rests on few patients ({n_groups})" if n_groups < FEW_GROUPS else ""


def _known(metric: str, targets_NC: np.ndarray, scores_NC: np.ndarray) -> np.ndarray:
    """Say which labels the point is the mean of."""
    if metric == "ppv":
        return np.asarray(scores_NC.any(axis=0))
    some_C = targets_NC.any(axis=0)
    return np.asarray(some_C & ~targets_NC.all(axis=0) if metric == "auroc" else some_C)


def _loop(
    function: Metric,
    targets: np.ndarray,
    scores: np.ndarray,
    groups_N: np.ndarray,
    resamples: Resamples,
) -> np.ndarray:
    every_N, place_N = np.arange(len(targets)), resamples.index(groups_N)
    drawn = (np.repeat(every_N, counts_G[place_N]) for counts_G in resamples.counts_GR.T)
    return np.array([float(function(targets[own], scores[own])) for own in drawn])


def _warning(point: float, low: float, high: float, n_groups: int, n_rare: int) -> str:
    parts = [few_groups(n_groups)]
    if n_rare:
        labels = "1 label" if n_rare == 1 else f"{n_rare} labels"
        few = f"the positives of {labels} come from fewer than {FEW_POSITIVE_GROUPS} patients"
        parts.append(few)
    if np.isnan(low):
        parts.append("no resample has the metric")
    elif not holds(low, high, point):
        parts.append("the interval does not contain its point")
    return "; ".join(filter(None, parts))
