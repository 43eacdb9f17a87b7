"""Classification metrics in numpy.

Legend: N example, C label. A metric of a label that cannot be computed (no positive example, or no
negative one where one is needed) is NaN; macro averages leave such labels out, and callers say so.
"""

from __future__ import annotations

import numpy as np


def auroc(targets_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half (the Mann-Whitney statistic)."""
    targets_N = np.asarray(targets_N, dtype=bool)
    n_positive = int(targets_N.sum())
    n_negative = len(targets_N) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    rank_of_value = np.cumsum(counts) - (counts - 1) / 2
    positive_ranks = rank_of_value[inverse_N[targets_N]].sum()
    return float((positive_ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def _cumulative(targets_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, ...]:
    """Give thresholds (falling, distinct) with true and false positives at or above each."""
    order = np.argsort(-np.asarray(scores_N), kind="stable")
    scores_N = np.asarray(scores_N)[order]
    hits_N = np.cumsum(np.asarray(targets_N, dtype=bool)[order])
    last = np.append(np.flatnonzero(np.diff(scores_N)), len(scores_N) - 1)
    true_positive = hits_N[last]
    return scores_N[last], true_positive, last + 1 - true_positive


def auprc(targets_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Average precision: the sum of precision over steps of recall, without interpolation."""
    n_positive = int(np.sum(np.asarray(targets_N, dtype=bool)))
    if not n_positive:
        return float("nan")
    _, true_positive, false_positive = _cumulative(targets_N, scores_N)
    precision = true_positive / (true_positive + false_positive)
    recall = true_positive / n_positive
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def f1(targets_N: np.ndarray, decisions_N: np.ndarray) -> float:
    """Harmonic mean of sensitivity and PPV; 0 if positives exist and none is found."""
    targets_N = np.asarray(targets_N, dtype=bool)
    decisions_N = np.asarray(decisions_N, dtype=bool)
    if not targets_N.any():
        return float("nan")
    return float(2 * np.sum(targets_N & decisions_N) / (targets_N.sum() + decisions_N.sum()))


def sensitivity(targets_N: np.ndarray, decisions_N: np.ndarray) -> float:
    """Share of the positives that are found."""
    targets_N = np.asarray(targets_N, dtype=bool)
    return float(np.mean(np.asarray(decisions_N)[targets_N])) if targets_N.any() else float("nan")


def ppv(targets_N: np.ndarray, decisions_N: np.ndarray) -> float:
    """Share of the positive decisions that are right; NaN if there is none."""
    decisions_N = np.asarray(decisions_N, dtype=bool)
    return float(np.mean(np.asarray(targets_N)[decisions_N])) if decisions_N.any() else float("nan")


def max_f1_threshold(targets_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Give the threshold with the highest F1: a decision is `score >= threshold`.

    It lies halfway between the lowest score accepted and the highest refused. With no positive
    example there is nothing to choose by, and the threshold is 0.5.
    """
    n_positive = int(np.sum(np.asarray(targets_N, dtype=bool)))
    if not n_positive:
        return 0.5
    thresholds, true_positive, false_positive = _cumulative(targets_N, scores_N)
    scores = 2 * true_positive / (true_positive + false_positive + n_positive)
    best = int(np.argmax(scores))
    lowest = float(thresholds[best])
    refused = float(thresholds[best + 1]) if best + 1 < len(thresholds) else 0.0
    halfway = (lowest + refused) / 2
    return (
        halfway if halfway > refused else lowest
    )  # neighbouring numbers have nothing between them


def _macro(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def macro_auroc(targets_NC: np.ndarray, probabilities_NC: np.ndarray) -> float:
    """Mean AUROC over the labels that have positive and negative examples."""
    columns = zip(np.asarray(targets_NC).T, np.asarray(probabilities_NC).T, strict=True)
    return _macro([auroc(t, p) for t, p in columns])


def macro_auprc(targets_NC: np.ndarray, probabilities_NC: np.ndarray) -> float:
    """Mean average precision over the labels that have positive examples."""
    columns = zip(np.asarray(targets_NC).T, np.asarray(probabilities_NC).T, strict=True)
    return _macro([auprc(t, p) for t, p in columns])


def macro_f1(targets_NC: np.ndarray, decisions_NC: np.ndarray) -> float:
    """Mean F1 over the labels that have positive examples."""
    columns = zip(np.asarray(targets_NC).T, np.asarray(decisions_NC).T, strict=True)
    return _macro([f1(t, d) for t, d in columns])


def accuracy(targets_NC: np.ndarray, decisions_NC: np.ndarray) -> float:
    """Share of the examples with all labels right; NaN if there is none."""
    right_N = (np.asarray(targets_NC) == np.asarray(decisions_NC)).all(axis=1)
    return float(np.mean(right_N)) if len(right_N) else float("nan")


def evaluate(
    targets_NC: np.ndarray,
    probabilities_NC: np.ndarray,
    decisions_NC: np.ndarray,
    labels: tuple[str, ...],
) -> dict[str, float]:
    """Compute every metric of a run's table row.

    Returns
    -------
    dict
        `macro_auroc`, `macro_auprc`, `macro_f1`, `accuracy` (share of examples with all labels
        right), and for each label `auroc_`, `auprc_`, `f1_`, `sensitivity_`, `ppv_` and
        `n_positive_<label>`.
    """
    targets_NC = np.asarray(targets_NC, dtype=bool)
    decisions_NC = np.asarray(decisions_NC, dtype=bool)
    found = {
        "macro_auroc": macro_auroc(targets_NC, probabilities_NC),
        "macro_auprc": macro_auprc(targets_NC, probabilities_NC),
        "macro_f1": macro_f1(targets_NC, decisions_NC),
        "accuracy": accuracy(targets_NC, decisions_NC),
    }
    for i, label in enumerate(labels):
        target_N, decision_N = targets_NC[:, i], decisions_NC[:, i]
        found[f"auroc_{label}"] = auroc(target_N, probabilities_NC[:, i])
        found[f"auprc_{label}"] = auprc(target_N, probabilities_NC[:, i])
        found[f"f1_{label}"] = f1(target_N, decision_N)
        found[f"sensitivity_{label}"] = sensitivity(target_N, decision_N)
        found[f"ppv_{label}"] = ppv(target_N, decision_N)
        found[f"n_positive_{label}"] = float(target_N.sum())
    return found
