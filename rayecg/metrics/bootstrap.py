"""Confidence intervals by drawing whole patients again.

Examples of one patient resemble one another, so patients are drawn, with replacement and as many as
there are, each with all its examples: intervals over examples would be too narrow.

Percentiles of the resamples are too narrow as well where patients are few or of unequal size, and lie
too high for AUROC: a patient drawn twice brings pairs of its own examples, which its model ranks better
than those of two patients. What is given by default puts the standard error of the resamples around the
figure instead (`student_ends`); `reports/coverage` shows what each holds in simulated studies.

Source: Rutter 2000, Bootstrap estimation of diagnostic accuracy with patient-clustered data.

Legend: N example, C label, G group, R resample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri, stdtrit

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
    n_effective,
    n_effective_of_labels,
)

N_RESAMPLES, LEVEL = 2000, 0.95
#: With fewer groups than these, intervals by groups are known to be too narrow (Cameron, Gelbach and
#: Miller 2008, Bootstrap-based improvements for inference with clustered errors: five to thirty).
FEW_GROUPS = 30
#: A resample has none of k given groups in about exp(-k) of cases: over 1 % for fewer than five.
FEW_POSITIVE_GROUPS = 5
#: How an interval is made of resamples: `student_ends`, `percentiles`, `bca_ends`.
METHODS = ("student", "percentile", "bca")
#: Two sums of the same terms in another order differ by less.
ROUNDING = 1e-9

Metric = Callable[[np.ndarray, np.ndarray], float]

#: The metric of a label that each macro metric is the mean of.
MACRO = {"macro_auroc": "auroc", "macro_auprc": "auprc", "macro_f1": "f1"}
_LABEL: dict[str, Metric] = {name: getattr(classification, name) for name in BY_SCORE + BY_DECISION}
#: What is computed for all resamples at once; all of it lies between 0 and 1.
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
        Ends of the interval of `level`; NaN if no resample has the metric.
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
    method
        How the ends were made: of `METHODS`. Not the one asked for where that is not defined, and then
        `warning` says so.
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
    method: str


def bootstrap_interval(
    metric: str | Metric,
    targets_NC: np.ndarray,
    probabilities_NC: np.ndarray,
    groups_N: Any = None,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    method: str | None = None,
) -> Interval:
    """Give a metric with its interval over groups, patients as a rule.

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
    method
        "student" (see `student_ends`), "percentile" or "bca" (see `bca_ends`; it leaves out every group
        once more). None: "student" for the quick metrics, which lie between 0 and 1, and "percentile"
        for others, of which that is not known.

    Raises
    ------
    ValueError
        If shapes do not match, values or groups are missing, targets are not 0 or 1, or a setting is
        out of its range.
    """
    measured = Measured.of(metric, targets_NC, probabilities_NC, groups_N)
    method = measured.method(method, level)
    resamples = Resamples.of(measured.groups_N, n_resamples, seed)
    values_RC = measured.values(resamples)
    known_C = ~np.isnan(measured.values(Resamples.whole(measured.groups_N))[0])
    values_R = mean_of_known(values_RC, axis=1)
    point = measured.point
    without_G = measured.without_one() if method == "bca" else None
    sizes = len(resamples.names_G), n_effective(measured.groups_N)
    n_units = measured.n_units
    low, high, used = ends(method, point, values_R, n_units, level, without_G, measured.bounded)
    return Interval(
        point,
        low,
        high,
        level,
        *sizes,
        resamples.n_resamples,
        n_lacking(values_RC, known_C),
        warning(point, (low, high), (method, used), sizes[0], measured.n_rare),
        used,
    )


@dataclass(frozen=True, eq=False)
class Measured:
    """A metric with the examples it is computed of, for any resample of their groups.

    Attributes
    ----------
    name
        Of a metric that is quick; else empty.
    function, targets, scores, groups_N
        As `bootstrap_interval` takes them, checked.
    """

    name: str
    function: Metric
    targets: np.ndarray
    scores: np.ndarray
    groups_N: np.ndarray

    @classmethod
    def of(
        cls, metric: str | Metric, targets_NC: Any, scores_NC: Any, groups_N: Any = None
    ) -> Measured:
        """Look the metric up and check the examples; ValueError as `bootstrap_interval` says."""
        if isinstance(metric, str):
            if metric not in _QUICK:
                raise ValueError(f"no metric is named {metric!r}; known: {', '.join(_QUICK)}")
            name, function = metric, _QUICK[metric]
        else:
            name = next((known for known, quick in _QUICK.items() if quick is metric), "")
            function = metric
        targets, scores = np.asarray(targets_NC), np.asarray(scores_NC)
        n_axes = 0 if not name else 1 if name in _LABEL else 2
        check(targets, scores, n_axes, MACRO.get(name, name))
        groups_N = np.arange(len(targets)) if groups_N is None else as_groups(groups_N)
        if len(groups_N) != len(targets):
            raise ValueError(
                f"expected a group for each of {len(targets)} examples, came {len(groups_N)}"
            )
        return cls(name, function, targets, scores, groups_N)

    @property
    def bounded(self) -> bool:
        """Whether the metric is known to lie between 0 and 1."""
        return bool(self.name)

    @property
    def point(self) -> float:
        """The metric of the examples as they are."""
        return float(self.function(self.targets, self.scores))

    @property
    def n_units(self) -> float:
        """How many groups of equal size the spread is known from: see `units_of_labels`."""
        if not self.name or self.name == "accuracy":
            return n_effective(self.groups_N)
        return units_of_labels(self.targets.reshape(len(self.targets), -1), self.groups_N)

    @property
    def n_rare(self) -> int:
        """Labels whose positives come from too few groups, if the metric is one of labels."""
        if not self.name or self.name == "accuracy":
            return 0
        return int(rare_labels(self.targets.reshape(len(self.targets), -1), self.groups_N).sum())

    def method(self, method: str | None, level: float) -> str:
        """Give the method asked for, or the usual one; ValueError if it or the level is none."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, not {level}")
        if method is None:
            return "student" if self.bounded else "percentile"
        if method not in METHODS:
            raise ValueError(f"no method is named {method!r}; known: {', '.join(METHODS)}")
        return method

    def values(self, resamples: Resamples) -> np.ndarray:
        """Give the metric of every resample, a macro metric by label; (R, C), NaN if undefined."""
        if self.name == "accuracy":
            return accuracy_values(self.targets, self.scores, self.groups_N, resamples)[:, None]
        if self.name:
            targets_NC, scores_NC = (v.reshape(len(v), -1) for v in (self.targets, self.scores))
            one = MACRO.get(self.name, self.name)
            return label_values(one, targets_NC, scores_NC, self.groups_N, resamples)
        every_N, place_N = np.arange(len(self.targets)), resamples.index(self.groups_N)
        drawn = (np.repeat(every_N, counts_G[place_N]) for counts_G in resamples.counts_GR.T)
        return np.array([[self.function(self.targets[own], self.scores[own])] for own in drawn])

    def without_one(self) -> np.ndarray:
        """Give the metric without each of the groups; (G,), NaN where it is not defined."""
        if len(np.unique(self.groups_N)) == 1:
            return np.array([np.nan])
        parts = Resamples.leaving_one_out(self.groups_N)
        return np.concatenate([mean_of_known(self.values(part), axis=1) for part in parts])


def units_of_labels(targets_NC: np.ndarray, groups_N: Any) -> float:
    """Count the groups of equal size that the spread of a label's metric is known from.

    Those that its rarer class comes from; of a mean over labels, those of the label that has most;
    never more than there are of all examples.
    """
    own_C = n_effective_of_labels(targets_NC, groups_N)
    return min(float(np.nanmax(own_C)), n_effective(groups_N))


def ends(
    method: str,
    point: float,
    values_R: np.ndarray,
    n_units: float,
    level: float = LEVEL,
    without_G: np.ndarray | None = None,
    bounded: bool = True,
) -> tuple[float, float, str]:
    """Give the ends of an interval and the method they are of: percentiles if the other fails."""
    if method == "student":
        low, high = student_ends(point, values_R, n_units, level, bounded)
    elif method == "bca" and without_G is not None:
        low, high = bca_ends(point, values_R, without_G, level)
    else:
        low, high = percentiles(values_R, level)
    if not np.isnan(low):
        return low, high, method
    return *percentiles(values_R, level), "percentile"


def student_ends(
    point: float,
    values_R: np.ndarray,
    n_units: float,
    level: float = LEVEL,
    bounded: bool = True,
) -> tuple[float, float]:
    """Put the standard error of the resamples around a figure.

    The standard deviation of the resamples, times sqrt(n / (n - 1)), since drawing from n groups varies
    that much less than they do, times the quantile of Student's t with n - 1 degrees of freedom; n is
    `n_units`, groups of equal size (`units_of_labels`). A figure between 0 and 1 (`bounded`) is taken to
    log odds for it, the error by the delta method, so that the ends stay there and the one towards 0.5
    is further off.

    Source: Hesterberg 2015, What teachers should know about the bootstrap (both corrections for small
    n); that n counts groups by Kish's formula is a choice of this package.

    Returns
    -------
    tuple
        The ends; NaN if the resamples do not vary, n is 1, or a bounded figure is 0 or 1.
    """
    known_R = values_R[~np.isnan(values_R)]
    spread = float(known_R.std()) if len(known_R) else 0.0
    if spread < ROUNDING or not n_units > 1 or not np.isfinite(point):
        return float("nan"), float("nan")
    t = float(stdtrit(n_units - 1, (1 + level) / 2))
    reach = float(t * spread * np.sqrt(n_units / (n_units - 1)))
    if not bounded:
        return point - reach, point + reach
    if not 0 < point < 1:
        return float("nan"), float("nan")
    reach /= point * (1 - point)
    return float(expit(logit(point) - reach)), float(expit(logit(point) + reach))


def percentiles(values_R: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Give the ends of the percentile interval; NaN are left out."""
    known = values_R[~np.isnan(values_R)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bca_ends(
    point: float, values_R: np.ndarray, without_G: np.ndarray, level: float = LEVEL
) -> tuple[float, float]:
    """Give the ends of the percentile interval corrected for bias and skewness (BCa).

    Parameters
    ----------
    without_G
        The figure without each of the groups.

    Returns
    -------
    tuple
        The ends; NaN where it is not defined: see `bca_constants`, or corrected beyond every resample.

    Source: Efron 1987, Better bootstrap confidence intervals.
    """
    bias, acceleration = bca_constants(point, values_R, without_G)
    z = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    stretch = 1 - acceleration * z
    if not (stretch > 0).all():
        return float("nan"), float("nan")
    known = values_R[~np.isnan(values_R)]
    low, high = np.quantile(known, ndtr(bias + z / stretch))
    return float(low), float(high)


def bca_constants(point: float, values_R: np.ndarray, without_G: np.ndarray) -> tuple[float, float]:
    """Give the bias correction and the acceleration.

    NaN if all resamples lie on one side of the point, or leaving out a group changes nothing.
    """
    known_R, known_G = (values[~np.isnan(values)] for values in (values_R, without_G))
    n_below = (known_R < point - ROUNDING).sum() + (known_R <= point + ROUNDING).sum()
    share = n_below / (2 * len(known_R)) if len(known_R) else np.nan  # equal ones count half
    loss_G = known_G.mean() - known_G if len(known_G) else known_G
    scale = float((loss_G**2).sum())
    if not 0 < share < 1 or scale <= ROUNDING**2:
        return float("nan"), float("nan")
    return float(ndtri(share)), float((loss_G**3).sum() / (6 * scale**1.5))


def mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Average over an axis what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis)
    return mean


def n_lacking(values_RC: np.ndarray, known_C: np.ndarray) -> int:
    """Count the resamples that lack a label that the point knows, or all."""
    lacking_R = np.isnan(values_RC[:, known_C]).any(axis=1) | np.isnan(values_RC).all(axis=1)
    return int(lacking_R.sum())


def rare_labels(targets_NC: np.ndarray, groups_N: Any) -> np.ndarray:
    """Say of each label whether its positives, if any, come from fewer than five groups; (C,)."""
    groups_N = as_groups(groups_N)
    columns = np.asarray(targets_NC, dtype=bool).T
    n_C = np.array([len(np.unique(groups_N[own_N])) for own_N in columns])
    rare_C: np.ndarray = (n_C > 0) & (n_C < FEW_POSITIVE_GROUPS)
    return rare_C


def holds(low: float, high: float, point: float) -> bool:
    """Whether an interval, if there is one, contains its point; both are sums with rounding errors."""
    return not (point < low - ROUNDING or point > high + ROUNDING)


def few_groups(n_groups: int) -> str:
    """Say that they are few, if they are; else nothing."""
    return f"rests on few patients ({n_groups})" if n_groups < FEW_GROUPS else ""


def warning(
    point: float,
    ends: tuple[float, float],
    methods: tuple[str, str],
    n_groups: int,
    n_rare: int = 0,
) -> str:
    """Say in a clause why an interval should not be trusted; `methods`: asked for, and used."""
    parts = [few_groups(n_groups)]
    if n_rare:
        labels = "1 label" if n_rare == 1 else f"{n_rare} labels"
        few = f"the positives of {labels} come from fewer than {FEW_POSITIVE_GROUPS} patients"
        parts.append(few)
    low, high = ends
    if np.isnan(low):
        parts.append("no resample has the metric")
    elif high - low < ROUNDING:
        parts.append("no resample differs from another")
    elif methods[0] != methods[1]:
        parts.append(f"the {methods[0]} interval is not defined, these are percentiles")
    if not holds(low, high, point):
        parts.append("the interval does not contain its point")
    return "; ".join(filter(None, parts))
