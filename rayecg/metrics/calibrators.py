"""Calibrators, fitted to a stated split: from log-odds to probabilities that mean what they say.

Legend: N example, C label, K knot.

Sources: Guo et al. 2017, On Calibration of Modern Neural Networks (temperature); Platt 1999,
Probabilistic outputs for support vector machines, with the targets of its section 2.2 (Platt);
Zadrozny and Elkan 2002, Transforming classifier scores into accurate multiclass probability estimates
(isotonic, and one against the rest with the sum divided out). Platt's fit differs from the source by
slopes that stay at 0 or above.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import expit, log_softmax, logit

from rayecg.core.outputs import (
    Calibrator,
    Isotonic,
    Kind,
    Platt,
    Temperature,
    Uncalibrated,
    log_odds,
)

#: Temperatures lie between its inverse and itself.
HIGHEST_TEMPERATURE = 10.0
#: Newton's method stops after so many steps, or when one changes nothing that matters.
_STEPS, _SMALL = 100, 1e-10
#: Curvature below which a direction says nothing; it only keeps steps finite.
_FLAT = 1e-12


def fit_calibrator(
    method: str, logits_NC: np.ndarray, targets_NC: np.ndarray, kind: Kind, split: str
) -> Calibrator:
    """Fit one of the methods `none`, `temperature`, `platt` and `isotonic`.

    Parameters
    ----------
    logits_NC, targets_NC
        What it is fitted to; targets are 0 or 1.
    split
        Whose these are; kept with the calibrator.
    """
    targets_NC = np.asarray(targets_NC, dtype=bool)
    n = len(targets_NC)
    if method == "none":
        return Uncalibrated(split, n)
    if method == "temperature":
        return Temperature(split, n, fit_temperature(logits_NC, targets_NC, kind))
    # Of a label with one side alone, a fit would say 0 or 1 of whatever comes.
    both_C = np.logical_and(targets_NC.any(axis=0), ~targets_NC.all(axis=0))
    odds_NC = log_odds(logits_NC, kind)
    if method == "platt":
        slope_C, intercept_C = np.ones(len(both_C)), np.zeros(len(both_C))
        if both_C.any():
            own = odds_NC[:, both_C], targets_NC[:, both_C]
            slope_C[both_C], intercept_C[both_C] = fit_platt(*own)
        return Platt(
            split,
            n,
            tuple(slope_C.tolist()),
            tuple(intercept_C.tolist()),
            tuple(both_C.tolist()),
        )
    if method != "isotonic":
        raise ValueError(f"expected none, temperature, platt or isotonic, came {method!r}")
    curves = [
        fit_isotonic(odds_NC[:, label], targets_NC[:, label]) if both else ((), ())
        for label, both in enumerate(both_C)
    ]
    return Isotonic(split, n, tuple(x for x, _ in curves), tuple(y for _, y in curves))


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
    most = np.log(HIGHEST_TEMPERATURE)
    found = minimize_scalar(loss, bounds=(-most, most), method="bounded")
    return float(np.exp(found.x))


def fit_platt(log_odds_NC: np.ndarray, targets_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit slope and intercept of each label, which has positives and negatives.

    The targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2) in place of 1 and 0, so that labels whose
    examples can be told apart without fail get finite values, too. A slope that would be negative is
    0, and what remains is the mean of these targets.
    """
    n_positive_C = targets_NC.sum(axis=0)
    n_negative_C = len(targets_NC) - n_positive_C
    soft_NC = np.where(targets_NC, (n_positive_C + 1) / (n_positive_C + 2), 1 / (n_negative_C + 2))
    slope_C, intercept_C = logistic_fit(log_odds_NC, soft_NC)
    down_C = slope_C < 0
    return (
        np.where(down_C, 0.0, slope_C),
        np.where(down_C, logit(soft_NC.mean(axis=0)), intercept_C),
    )


def fit_isotonic(
    log_odds_N: np.ndarray, targets_N: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Fit the rising curve with the least squares (pool adjacent violators); gives its knots.

    Knots amid equal values are left out; those that remain give the same curve.
    """
    x_K, place_N = np.unique(log_odds_N, return_inverse=True)
    n_K = np.bincount(place_N)
    mean_K = np.bincount(place_N, targets_N) / n_K
    y_K = np.clip(isotonic_regression(mean_K, weights=n_K).x, 0.0, 1.0)
    bends_K = np.diff(y_K) != 0
    kept_K = np.append(True, bends_K) | np.append(bends_K, True)
    return tuple(x_K[kept_K].tolist()), tuple(y_K[kept_K].tolist())


def logistic_fit(x_NC: np.ndarray, targets_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a slope and an intercept to each column by likelihood, all columns at once.

    Parameters
    ----------
    x_NC
        What each column's targets are regressed on, one predictor for each.
    targets_NC
        From 0 to 1. The fit is finite where a column's zeros and ones overlap in `x`, or where no
        target is 0 or 1.

    Returns
    -------
    tuple
        `slope_C` and `intercept_C` of the log-odds; the slope of a column that never changes is 0.
    """
    n_columns = x_NC.shape[1]
    centre_C, spread_C = x_NC.mean(axis=0), x_NC.std(axis=0)
    spread_C[spread_C == 0] = 1.0
    x_NC = (x_NC - centre_C) / spread_C
    rate_C = targets_NC.mean(axis=0)
    slope_C, intercept_C = np.zeros(n_columns), logit(rate_C)
    # Newton's method; labels that have arrived are left out.
    going = np.arange(n_columns)
    for _ in range(_STEPS):
        x_own, target_own = x_NC[:, going], targets_NC[:, going]
        own = np.stack([slope_C[going], intercept_C[going]])
        p_own = expit(own[0] * x_own + own[1])
        error_own, weight_own = p_own - target_own, p_own * (1 - p_own)
        gradient = np.stack([(error_own * x_own).mean(axis=0), error_own.mean(axis=0)])
        a, b, c = (
            (weight_own * power).mean(axis=0) for power in (x_own * x_own, x_own, np.ones(1))
        )
        a, c = np.maximum(a, _FLAT), np.maximum(c, _FLAT)
        determinant = np.maximum(a * c - b * b, _FLAT * a * c)
        step = np.stack(
            [
                (c * gradient[0] - b * gradient[1]) / determinant,
                (a * gradient[1] - b * gradient[0]) / determinant,
            ]
        )
        share = _shortened(x_own, target_own, own, step, (gradient * step).sum(axis=0))
        slope_C[going], intercept_C[going] = own - share * step
        small = _SMALL * (1 + np.abs(own).max(axis=0))
        going = going[np.abs(share * step).max(axis=0) > small]
        if not len(going):
            break
    slope_C = slope_C / spread_C
    return slope_C, intercept_C - slope_C * centre_C


def _shortened(
    x_NC: np.ndarray,
    targets_NC: np.ndarray,
    own_2C: np.ndarray,
    step_2C: np.ndarray,
    fall_C: np.ndarray,
) -> np.ndarray:
    """Give the share of each column's step, halved until the loss falls as its gradient promises."""

    def loss(at_2C: np.ndarray) -> np.ndarray:
        eta_NC = at_2C[0] * x_NC + at_2C[1]
        found: np.ndarray = (np.logaddexp(0.0, eta_NC) - targets_NC * eta_NC).mean(axis=0)
        return found

    share_C, before_C = np.ones(x_NC.shape[1]), loss(own_2C)
    # A loss cannot be told from another within what its sums round off.
    slack_C = 1e-14 * (1 + np.abs(before_C))
    for _ in range(40):
        too_far_C = loss(own_2C - share_C * step_2C) > before_C - 1e-4 * share_C * fall_C + slack_C
        if not too_far_C.any():
            break
        share_C[too_far_C] /= 2
    return share_C
