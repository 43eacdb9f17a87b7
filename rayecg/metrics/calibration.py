"""How far probabilities mean what they say: calibration errors, Brier score, reliability, recalibration.

Whatever a figure rests on, a label's examples alone decide it; classes of a multiclass task are taken
one against the rest. A figure that cannot be computed is NaN.

Legend: N example, C label, B bin, G group, R resample.

Sources: Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning (ECE);
Nixon et al. 2019, Measuring calibration in deep learning (bins of equal mass); Brier 1950, Verification
of forecasts expressed in terms of probability; Cox 1958, Two further applications of a model for binary
regression (slope and intercept); Wilson 1927, Probable inference (intervals of a share).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import logit, ndtri

from rayecg.core.outputs import Kind
from rayecg.metrics.bootstrap import LEVEL, mean_of_known
from rayecg.metrics.calibrators import logistic_fit
from rayecg.metrics.resamples import Resamples

N_BINS = 10
#: Probabilities of 0 and 1 have no finite log-odds; recalibration takes them for this and 1 minus it.
NEAREST = 1e-12

Bins = Literal["width", "mass"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often what was said with a probability came true, bin by bin; empty bins are NaN.

    Attributes
    ----------
    edges_B
        Inner edges; a probability on one belongs to the bin below.
    mean_B, share_B, count_B
        Mean probability, share of positives, number of examples.
    low_B, high_B
        Ends of an interval of the share.
    """

    edges_B: np.ndarray
    mean_B: np.ndarray
    share_B: np.ndarray
    count_B: np.ndarray
    low_B: np.ndarray
    high_B: np.ndarray


@dataclass(frozen=True, eq=False)
class CalibrationFigures:
    """The figures of every label.

    Attributes
    ----------
    n_positive_C
        Examples that carry the label.
    both_C
        Whether a label has positives and negatives: over these, macro averages go.
    ece_C, adaptive_ece_C, brier_C, slope_C, intercept_C
        See the functions of the same names.
    top_label_ece, top_label_adaptive_ece
        Of the largest probability against whether its class is right; NaN for multilabel tasks.
    """

    n_positive_C: np.ndarray
    both_C: np.ndarray
    ece_C: np.ndarray
    adaptive_ece_C: np.ndarray
    brier_C: np.ndarray
    slope_C: np.ndarray
    intercept_C: np.ndarray
    top_label_ece: float
    top_label_adaptive_ece: float

    def macro(self, figure: str, among_C: np.ndarray | None = None) -> float:
        """Average a figure over the labels with positives and negatives that have it.

        `among_C` says which labels may count, so that averages of several sets of probabilities can be
        over the same ones.
        """
        own_C = self.both_C if among_C is None else self.both_C & among_C
        return float(mean_of_known(np.where(own_C, getattr(self, f"{figure}_C"), np.nan), axis=0))


def evaluate_calibration(
    targets_NC: Any, probabilities_NC: Any, kind: Kind, n_bins: int = N_BINS
) -> CalibrationFigures:
    """Compute every figure of a set of probabilities.

    Raises
    ------
    ValueError
        If shapes differ or are not (N, C), there is no example, targets are not 0 or 1, or
        probabilities leave 0 to 1.
    """
    targets_NC, probabilities_NC = checked(targets_NC, probabilities_NC)
    slope_C, intercept_C = recalibration(targets_NC, probabilities_NC)
    top = [float("nan")] * 2
    if kind == "multiclass":
        right_N1, largest_N1 = top_label(targets_NC, probabilities_NC)
        top = [float(ece(right_N1, largest_N1, n_bins, bins)[0]) for bins in _BINS]
    return CalibrationFigures(
        n_positive_C=targets_NC.sum(axis=0),
        both_C=targets_NC.any(axis=0) & ~targets_NC.all(axis=0),
        ece_C=ece(targets_NC, probabilities_NC, n_bins),
        adaptive_ece_C=ece(targets_NC, probabilities_NC, n_bins, "mass"),
        brier_C=brier(targets_NC, probabilities_NC),
        slope_C=slope_C,
        intercept_C=intercept_C,
        top_label_ece=top[0],
        top_label_adaptive_ece=top[1],
    )


def ece(
    targets_NC: Any, probabilities_NC: Any, n_bins: int = N_BINS, bins: Bins = "width"
) -> np.ndarray:
    """Give each label's expected calibration error: bins' |mean probability - share|, by their counts.

    Parameters
    ----------
    targets_NC, probabilities_NC
        0 or 1, and 0 to 1.
    n_bins
        How many.
    bins
        "width": between 0 and 1, all of one width. "mass": between quantiles of the label's own
        probabilities (the adaptive error); equal ones stay together, so that the order of examples
        does not matter and some bins may be empty.

    Raises
    ------
    ValueError
        See `evaluate_calibration`; also if `n_bins` is below 1.
    """
    targets_NC, probabilities_NC = checked(targets_NC, probabilities_NC)
    n_labels, place_NC = probabilities_NC.shape[1], _bins(probabilities_NC, n_bins, bins)[1]
    place_NC += np.arange(n_labels) * n_bins
    # The counts cancel out: n |mean p - mean y| = |sum of p - y|.
    gap_NC = probabilities_NC - targets_NC
    gaps = np.bincount(place_NC.ravel(), gap_NC.ravel(), n_labels * n_bins)
    total: np.ndarray = np.abs(gaps).reshape(n_labels, n_bins).sum(axis=1)
    return total / len(targets_NC)


def brier(targets_NC: Any, probabilities_NC: Any) -> np.ndarray:
    """Give each label's mean squared error; over classes they add up to the multiclass score."""
    targets_NC, probabilities_NC = checked(targets_NC, probabilities_NC)
    found: np.ndarray = np.square(probabilities_NC - targets_NC).mean(axis=0)
    return found


def recalibration(targets_NC: Any, probabilities_NC: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give slope and intercept of each label's targets on the log-odds of its probabilities.

    Both are fitted together (logistic recalibration); calibrated probabilities have slope 1 and
    intercept 0, and too extreme ones a slope below 1. NaN where no finite slope is the best: a label
    without positives or negatives, or with probabilities that tell all of them apart.
    """
    targets_NC, probabilities_NC = checked(targets_NC, probabilities_NC)
    odds_NC = logit(np.clip(probabilities_NC, NEAREST, 1 - NEAREST))
    # Neither way round does a cut have all positives on one side.
    overlap_C = _crossed(odds_NC, targets_NC) & _crossed(-odds_NC, targets_NC)
    slope_C, intercept_C = np.full((2, len(overlap_C)), np.nan)
    slope_C[overlap_C], intercept_C[overlap_C] = logistic_fit(
        odds_NC[:, overlap_C], targets_NC[:, overlap_C].astype(np.float64)
    )
    return slope_C, intercept_C


def top_label(targets_NC: Any, probabilities_NC: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give whether the class with the largest probability is right, and that probability; (N, 1) each.

    Its calibration error is what Guo et al. 2017 report for multiclass networks.
    """
    targets_NC, probabilities_NC = checked(targets_NC, probabilities_NC)
    top_N1 = probabilities_NC.argmax(axis=1)[:, None]
    return (
        np.take_along_axis(targets_NC, top_N1, axis=1),
        np.take_along_axis(probabilities_NC, top_N1, axis=1),
    )


def reliability(
    targets_N: Any,
    probabilities_N: Any,
    n_bins: int = N_BINS,
    bins: Bins = "width",
    groups_N: Any = None,
    resamples: Resamples | None = None,
    level: float = LEVEL,
) -> Reliability:
    """Give the reliability curve of one label, or of several put one after another.

    Parameters
    ----------
    targets_N, probabilities_N
        0 or 1, and 0 to 1.
    n_bins, bins
        As for `ece`.
    groups_N
        Whose the examples are, patients as a rule. With them the interval is that of the bootstrap
        over groups, the bins held fixed, and NaN where resamples have nothing to differ by: all
        examples of the bin agree, or are of one group. Without, Wilson's, which takes examples for
        independent.
    resamples
        Of these groups or more; drawn if there are none.
    level
        What share the interval should hold.

    Raises
    ------
    ValueError
        See `evaluate_calibration`; also if `n_bins` is below 1 or `level` leaves 0 to 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    targets_NC, probabilities_NC = checked(
        *(np.asarray(values).reshape(-1, 1) for values in (targets_N, probabilities_N))
    )
    edges, place_NC = _bins(probabilities_NC, n_bins, bins)
    target_N, place_N = targets_NC[:, 0], place_NC[:, 0]
    count_B, hits_B, sum_B = (
        np.bincount(place_N, weights, n_bins)
        for weights in (None, target_N, probabilities_NC[:, 0])
    )
    with np.errstate(invalid="ignore"):
        mean_B, share_B = sum_B / count_B, hits_B / count_B
    if groups_N is None:
        low_B, high_B = wilson(hits_B, count_B, level)
    else:
        resamples = resamples or Resamples.of(groups_N)
        low_B, high_B = _resampled(target_N, place_N, n_bins, groups_N, resamples, level)
        alike_B = low_B == high_B
        low_B[alike_B] = high_B[alike_B] = np.nan
    return Reliability(edges[:, 0], mean_B, share_B, count_B, low_B, high_B)


def wilson(hits: Any, counts: Any, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Give the ends of Wilson's interval of shares `hits / counts`; NaN where the count is 0."""
    hits, counts = np.asarray(hits, np.float64), np.asarray(counts, np.float64)
    z = ndtri((1 + level) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = hits / counts
        centre = (share + z**2 / (2 * counts)) / (1 + z**2 / counts)
        spread = z * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2))
        spread /= 1 + z**2 / counts
    # Of none or all, the end is the share itself, which rounding would miss.
    low = np.where(hits == 0, share, np.maximum(centre - spread, 0.0))
    return low, np.where(hits == counts, share, np.minimum(centre + spread, 1.0))


def _resampled(
    target_N: np.ndarray,
    place_N: np.ndarray,
    n_bins: int,
    groups_N: Any,
    resamples: Resamples,
    level: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Give the ends of the percentile interval of every bin's share."""
    n_groups = len(resamples.names_G)
    cell_N = resamples.index(groups_N) * n_bins + place_N
    count_GB, hits_GB = (
        np.bincount(cell_N, weights, n_groups * n_bins).reshape(n_groups, n_bins)
        for weights in (None, target_N)
    )
    drawn_RG = resamples.counts_GR.T.astype(np.float64)
    with np.errstate(invalid="ignore"):
        share_RB = (drawn_RG @ hits_GB) / (drawn_RG @ count_GB)
    ends = np.full((2, n_bins), np.nan)
    # A resample without an example in a bin says nothing of its share.
    some_B = ~np.isnan(share_RB).all(axis=0)
    ends[:, some_B] = np.nanquantile(
        share_RB[:, some_B], [(1 - level) / 2, (1 + level) / 2], axis=0
    )
    return ends[0], ends[1]


_BINS: tuple[Bins, Bins] = ("width", "mass")


def _bins(probabilities_NC: np.ndarray, n_bins: int, bins: Bins) -> tuple[np.ndarray, np.ndarray]:
    """Give inner edges, a column for each label, and every example's bin."""
    if isinstance(n_bins, bool) or int(n_bins) != n_bins or n_bins < 1:
        raise ValueError(f"n_bins must be a whole number of at least 1, not {n_bins}")
    if bins not in _BINS:
        raise ValueError(f"bins must be {' or '.join(_BINS)}, not {bins!r}")
    at_B = np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
    if bins == "width":
        edges = np.repeat(at_B[:, None], probabilities_NC.shape[1], axis=1)
        return edges, np.searchsorted(at_B, probabilities_NC)
    edges = np.percentile(probabilities_NC, at_B * 100, axis=0)
    place_NC = np.empty(probabilities_NC.shape, dtype=np.int64)
    for label, own_B in enumerate(edges.T):
        place_NC[:, label] = np.searchsorted(own_B, probabilities_NC[:, label])
    return edges, place_NC


def _crossed(odds_NC: np.ndarray, targets_NC: np.ndarray) -> np.ndarray:
    """Say of each label whether its highest negative lies above its lowest positive."""
    lowest_C = np.where(targets_NC, odds_NC, np.inf).min(axis=0)
    above: np.ndarray = np.where(targets_NC, -np.inf, odds_NC).max(axis=0) > lowest_C
    return above


def checked(targets_NC: Any, probabilities_NC: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give targets as bool and probabilities; ValueError if they are not what these should be."""
    targets_NC = np.asarray(targets_NC)
    probabilities_NC = np.asarray(probabilities_NC, dtype=np.float64)
    if targets_NC.ndim != 2 or targets_NC.shape != probabilities_NC.shape:
        raise ValueError(
            f"expected targets and probabilities (N, C), came {targets_NC.shape}, "
            f"{probabilities_NC.shape}"
        )
    if not len(targets_NC):
        raise ValueError(f"there is no example: targets are {targets_NC.shape}")
    if not ((probabilities_NC >= 0) & (probabilities_NC <= 1)).all():
        raise ValueError("probabilities must lie in 0 to 1, and some do not")
    if targets_NC.dtype != bool:
        if not ((targets_NC == 0) | (targets_NC == 1)).all():
            raise ValueError("targets must be 0 or 1")
        targets_NC = targets_NC.astype(bool)
    return targets_NC, probabilities_NC
