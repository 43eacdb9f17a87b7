"""Differences between two models or runs, on the same resamples of patients.

Both are evaluated in every resample, so that what a hard patient costs both cancels: two intervals that
overlap say nothing about the difference.

Legend: N example, C label, G group, R resample, K test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri, stdtr

from rayecg.metrics.bootstrap import (
    LEVEL,
    N_RESAMPLES,
    ROUNDING,
    Interval,
    Measured,
    Metric,
    bca_constants,
    ends,
    mean_of_known,
    n_lacking,
    warning,
)
from rayecg.metrics.resamples import Resamples, n_effective


@dataclass(frozen=True)
class Difference(Interval):
    """The difference of two figures with its paired interval, and a test.

    Attributes
    ----------
    p_value
        Two-sided, that there is no difference: 1 - level of the widest interval of the same method that
        leaves out 0 (`p_value`). NaN if the resamples do not say.
    """

    p_value: float


def bootstrap_difference(
    metric: str | Metric,
    targets_NC: np.ndarray,
    a_NC: np.ndarray,
    b_NC: np.ndarray,
    groups_N: Any = None,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    method: str | None = None,
) -> Difference:
    """Give a metric of `a` less that of `b`, with its interval over groups, patients as a rule.

    Parameters
    ----------
    metric, targets_NC, groups_N, n_resamples, level, seed, method
        As `rayecg.metrics.bootstrap_interval` takes them.
    a_NC, b_NC
        What two models gave for the same examples: probabilities or decisions, as the metric takes.

    Returns
    -------
    Difference
        A label that is undefined for one of them, in a resample or as a whole, is left out for both; the
        resamples in which this happens are counted.

    Raises
    ------
    ValueError
        As `bootstrap_interval`.
    """
    both = [Measured.of(metric, targets_NC, each_NC, groups_N) for each_NC in (a_NC, b_NC)]
    groups_N = both[0].groups_N
    method = both[0].method(method, level)
    drawn = Resamples.of(groups_N, n_resamples, seed)
    values_RC = _less(both, drawn)
    whole_C = _less(both, Resamples.whole(groups_N))[0]
    without_G = None
    if method == "bca" and len(drawn.names_G) > 1:
        parts = [_less(both, part) for part in Resamples.leaving_one_out(groups_N)]
        without_G = mean_of_known(np.concatenate(parts), axis=1)
    return difference(
        float(mean_of_known(whole_C[None], axis=1)[0]),
        mean_of_known(values_RC, axis=1),
        (len(drawn.names_G), n_effective(groups_N)),
        n_undefined=n_lacking(values_RC, ~np.isnan(whole_C)),
        n_rare=both[0].n_rare,
        n_units=both[0].n_units,
        level=level,
        method=method,
        without_G=without_G,
    )


def _less(both: Sequence[Measured], resamples: Resamples) -> np.ndarray:
    a_RC, b_RC = (each.values(resamples) for each in both)
    return np.asarray(a_RC - b_RC)


def difference(
    point: float,
    values_R: np.ndarray,
    sizes: tuple[int, float],
    n_undefined: int | None = None,
    n_rare: int = 0,
    n_units: float | None = None,
    level: float = LEVEL,
    method: str = "student",
    without_G: np.ndarray | None = None,
) -> Difference:
    """Give a difference with interval and test from what it is in every resample.

    Parameters
    ----------
    point
        The difference of the examples as they are.
    values_R
        In every resample; NaN where it is not defined.
    sizes
        How many groups were drawn from, and of what effective number (`n_effective`).
    n_undefined, n_rare
        Resamples that lack a label (None: those whose difference is NaN), and labels of too few groups.
    n_units, level, method, without_G
        As in `rayecg.metrics.bootstrap.ends`; the scale is the difference's own. `n_units` is that of
        `sizes` if not said.
    """
    n_units = sizes[1] if n_units is None else n_units
    low, high, used = ends(method, point, values_R, n_units, level, without_G, bounded=False)
    return Difference(
        point,
        low,
        high,
        level,
        *sizes,
        len(values_R),
        int(np.isnan(values_R).sum()) if n_undefined is None else n_undefined,
        warning(point, (low, high), (method, used), sizes[0], n_rare),
        used,
        p_value(used, point, values_R, n_units, without_G),
    )


def p_value(
    method: str,
    point: float,
    values_R: np.ndarray,
    n_units: float,
    without_G: np.ndarray | None = None,
) -> float:
    """Test, two-sided, that there is no difference, so that p and interval agree.

    "student": by Student's t of the difference over its standard error (`student_ends`). "percentile":
    twice the share of the resamples on the rarer side of 0, those at 0 on both, one resample added to
    each (Davison and Hinkley 1997, section 4.2), so that p is never below 2 / (R + 1). "bca": the same
    share, taken through the correction backwards.

    Returns
    -------
    float
        1 if no resample differs from 0, and neither does the difference; NaN if nothing varies
        otherwise.
    """
    known_R = values_R[~np.isnan(values_R)]
    if not len(known_R) or not np.isfinite(point):
        return float("nan")
    spread = float(known_R.std())
    if spread < ROUNDING:
        return 1.0 if abs(point) < ROUNDING else float("nan")
    if method == "student":
        error = spread * np.sqrt(n_units / (n_units - 1))
        return float(2 * stdtr(n_units - 1, -abs(point) / error))
    at_most, at_least = (known_R <= ROUNDING).sum(), (known_R >= -ROUNDING).sum()
    shares = (np.array([at_most, at_least]) + 1) / (len(known_R) + 1)
    if method == "bca" and without_G is not None:
        bias, acceleration = bca_constants(point, values_R, without_G)
        shares = np.minimum(shares, len(known_R) / (len(known_R) + 1))  # no infinite quantile
        z = ndtri(shares) * np.array([1, -1]) - bias
        shares = ndtr((z / (1 + acceleration * z) - bias) * np.array([1, -1]))
    return float(min(2 * shares.min(), 1.0))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Correct p values of several tests, so that the chance of any false one is bounded.

    The smallest is multiplied by their number, the next by one less, and so on; none comes out below a
    smaller one, or above 1. NaN, tests that were not made, stay NaN and do not count.

    Returns
    -------
    np.ndarray
        (K,), in the order given.

    Raises
    ------
    ValueError
        If one is no number from 0 to 1.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    p_K = np.asarray(p_values, dtype=np.float64)
    if p_K.ndim != 1 or ((p_K < 0) | (p_K > 1)).any():
        raise ValueError(f"expected a list of p values from 0 to 1, came {p_values}")
    order = np.argsort(p_K, kind="stable")[: int((~np.isnan(p_K)).sum())]  # NaN sort last
    adjusted_K = np.full(len(p_K), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted_K[order] = np.minimum(np.maximum.accumulate(p_K[order] * factors), 1.0)
    return adjusted_K
