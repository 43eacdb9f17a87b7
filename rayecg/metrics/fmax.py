"""The sample-centric F, and the threshold where it is highest.

Precision is the mean over the examples that are given a label at all, recall the mean over the
examples that have one, and F the harmonic mean of the two; one threshold serves all labels. Its
maximum over thresholds, Fmax, is a figure of the benchmarks on PTB-XL, where it was taken on the very
examples that it describes, and so is too high. Here the threshold comes from data of its own
(`fmax_threshold` on validation, then `f_at_threshold` on test).

Source: Strodthoff et al. 2021, Deep Learning for ECG Analysis: Benchmarks and Insights from PTB-XL,
IEEE J Biomed Health Inform 25:1519-1528.

Legend: N example, C label, K each example's labels by falling score, E all of these together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rayecg.metrics.curves import halfway, ratio


def f_at_threshold(targets_NC: Any, probabilities_NC: Any, threshold: float) -> float:
    """Give the sample-centric F of the labels with `probability >= threshold`.

    0 if nothing is given a label; NaN if no example has one.

    Raises
    ------
    ValueError
        If shapes are not (N, C), both.
    """
    targets_NC, probabilities_NC = _checked(targets_NC, probabilities_NC)
    given_NC = probabilities_NC >= threshold
    hits_N = np.count_nonzero(targets_NC & given_NC, axis=1)
    n_given_N, n_true_N = np.count_nonzero(given_NC, axis=1), np.count_nonzero(targets_NC, axis=1)
    if not n_true_N.any():
        return float("nan")
    if not hits_N.any():
        return 0.0
    precision = float(np.mean(hits_N[n_given_N > 0] / n_given_N[n_given_N > 0]))
    recall = float(np.mean(hits_N[n_true_N > 0] / n_true_N[n_true_N > 0]))
    return 2 * precision * recall / (precision + recall)


def fmax_threshold(targets_NC: Any, probabilities_NC: Any) -> float:
    """Give the one threshold for all labels with the highest sample-centric F.

    Of equals it is the highest, halfway between the lowest probability accepted and the highest
    refused; 0.5 if no example has a label.

    Raises
    ------
    ValueError
        If shapes are not (N, C), both.
    """
    targets_NC, probabilities_NC = _checked(targets_NC, probabilities_NC)
    n_true_N = np.count_nonzero(targets_NC, axis=1)
    if not n_true_N.any():
        return 0.5
    order_NK = np.argsort(-probabilities_NC, axis=1)
    hit_NK = np.take_along_axis(targets_NC, order_NK, axis=1)
    precision_NK = np.cumsum(hit_NK, axis=1) / np.arange(1, hit_NK.shape[1] + 1)
    # What each label adds to its example's precision and recall when the threshold falls past it.
    # Of equal scores in an example all are passed at once, so that their order does not matter.
    more_precision_NK = np.diff(precision_NK, axis=1, prepend=0.0)
    more_recall_NK = np.where(hit_NK, ratio(1.0, n_true_N)[:, None], 0.0)
    first_NK = np.zeros_like(hit_NK)
    first_NK[:, 0] = True
    score_E = np.take_along_axis(probabilities_NC, order_NK, axis=1).ravel()
    order_E = np.argsort(-score_E)
    score_E = score_E[order_E]
    summed = [np.cumsum(part.ravel()[order_E]) for part in (more_precision_NK, more_recall_NK)]
    last_E = np.append(score_E[1:] != score_E[:-1], True)
    thresholds = score_E[last_E]
    precision = summed[0][last_E] / np.cumsum(first_NK.ravel()[order_E])[last_E]
    recall = summed[1][last_E] / np.count_nonzero(n_true_N)
    f = np.nan_to_num(ratio(2 * precision * recall, precision + recall))
    best = int(np.argmax(f))
    refused = float(thresholds[best + 1]) if best + 1 < len(thresholds) else 0.0
    return halfway(float(thresholds[best]), refused)


def fmax_optimistic(targets_NC: Any, probabilities_NC: Any) -> float:
    """Give Fmax with the threshold chosen on the same examples, as published tables have it.

    It is too high as a figure of these examples. For comparison with such tables alone; no report of
    this package shows it.
    """
    threshold = fmax_threshold(targets_NC, probabilities_NC)
    return f_at_threshold(targets_NC, probabilities_NC, threshold)


def _checked(targets_NC: Any, probabilities_NC: Any) -> tuple[np.ndarray, np.ndarray]:
    targets_NC = np.asarray(targets_NC, dtype=bool)
    probabilities_NC = np.asarray(probabilities_NC, dtype=np.float64)
    if targets_NC.ndim != 2 or targets_NC.shape != probabilities_NC.shape:
        raise ValueError(
            "expected targets and probabilities of one shape (N, C), came "
            f"{targets_NC.shape} and {probabilities_NC.shape}"
        )
    return targets_NC, probabilities_NC
