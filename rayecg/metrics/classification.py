"""Classification metrics in numpy.

Those of one label take (N,); they are columns of what `curves.py` and `counts.py` compute for all
labels at once.

Legend: N example, C label. A metric of a label that cannot be computed (no positive example, or no
negative one where one is needed) is NaN; macro averages leave such labels out, and callers say so.
"""

from __future__ import annotations

import numpy as np

from rayecg.metrics.averages import (
    DECISION_METRICS,
    SCORE_METRICS,
    average,
    hamming_loss,
    mean_of_labels,
)
from rayecg.metrics.challenge import beta_measures
from rayecg.metrics.counts import Counts
from rayecg.metrics.curves import Curves, column

#: What `evaluate` averages, and how; the weighted sensitivity would be the micro one.
AVERAGES_BY_SCORE = tuple(
    f"{how}_{metric}" for how in ("macro", "micro", "weighted") for metric in ("auroc", "auprc")
)
AVERAGES_BY_DECISION = tuple(
    f"{how}_{metric}"
    for how in ("macro", "micro", "weighted")
    for metric in ("f1", "sensitivity", "specificity", "ppv", "npv")
    if (how, metric) != ("weighted", "sensitivity")
)


def auroc(targets_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half (the Mann-Whitney statistic)."""
    return float(_curves(targets_N, scores_N).auroc()[0])


def auprc(targets_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Average precision: the sum of precision over steps of recall, without interpolation."""
    return float(_curves(targets_N, scores_N).auprc()[0])


def sensitivity_at_specificity(
    targets_N: np.ndarray, scores_N: np.ndarray, specificity: float
) -> float:
    """Highest sensitivity of the thresholds with this specificity or a higher one.

    The threshold is chosen on these very examples: it says what the ROC curve holds, not what a
    threshold brought from elsewhere would give. ValueError if `specificity` is outside 0 to 1.
    """
    curves = _curves(targets_N, scores_N)
    return float(curves.sensitivity_at_specificity(specificity)[0])


def f1(targets_N: np.ndarray, decisions_N: np.ndarray) -> float:
    """Harmonic mean of sensitivity and PPV; 0 if positives exist and none is found."""
    return float(_counts(targets_N, decisions_N).f_beta()[0])


def f_beta(targets_N: np.ndarray, decisions_N: np.ndarray, beta: float = 2.0) -> float:
    """Harmonic mean of sensitivity, weighted by beta squared, and PPV; ValueError unless beta > 0."""
    return float(_counts(targets_N, decisions_N).f_beta(beta)[0])


def g_beta(targets_N: np.ndarray, decisions_N: np.ndarray, beta: float = 2.0) -> float:
    """TP / (TP + FP + beta FN): Jaccard's index where beta is 1; ValueError unless beta > 0."""
    return float(_counts(targets_N, decisions_N).g_beta(beta)[0])


def sensitivity(targets_N: np.ndarray, decisions_N: np.ndarray) -> float:
    """Share of the positives that are found."""
    return float(_counts(targets_N, decisions_N).sensitivity()[0])


def specificity(targets_N: np.ndarray, decisions_N: np.ndarray) -> float:
    """Share of the negatives that are left alone; NaN if there is none."""
    return float(_counts(targets_N, decisions_N).specificity()[0])


def ppv(targets_N: np.ndarray, decisions_N: np.ndarray) -> float:
    """Share of the positive decisions that are right; NaN if there is none."""
    return float(_counts(targets_N, decisions_N).ppv()[0])


def npv(targets_N: np.ndarray, decisions_N: np.ndarray) -> float:
    """Share of the negative decisions that are right; NaN if there is none."""
    return float(_counts(targets_N, decisions_N).npv()[0])


def _curves(targets_N: np.ndarray, scores_N: np.ndarray) -> Curves:
    return Curves.of(column(targets_N), column(scores_N))


def _counts(targets_N: np.ndarray, decisions_N: np.ndarray) -> Counts:
    return Counts.of(column(targets_N), column(decisions_N))


def macro_auroc(targets_NC: np.ndarray, probabilities_NC: np.ndarray) -> float:
    """Mean AUROC over the labels that have positive and negative examples."""
    return average("auroc", "macro", targets_NC, probabilities_NC)


def macro_auprc(targets_NC: np.ndarray, probabilities_NC: np.ndarray) -> float:
    """Mean average precision over the labels that have positive examples."""
    return average("auprc", "macro", targets_NC, probabilities_NC)


def macro_f1(targets_NC: np.ndarray, decisions_NC: np.ndarray) -> float:
    """Mean F1 over the labels that have positive examples."""
    return average("f1", "macro", targets_NC, decisions_NC)


def accuracy(targets_NC: np.ndarray, decisions_NC: np.ndarray) -> float:
    """Share of the examples with all labels right (subset accuracy); NaN if there is none."""
    right_N = (np.asarray(targets_NC) == np.asarray(decisions_NC)).all(axis=1)
    return float(np.mean(right_N)) if len(right_N) else float("nan")


def evaluate(
    targets_NC: np.ndarray,
    probabilities_NC: np.ndarray,
    decisions_NC: np.ndarray,
    labels: tuple[str, ...],
) -> dict[str, float]:
    """Compute every metric of a run's table row that needs no data but these.

    Returns
    -------
    dict
        What `evaluate_scores` and `evaluate_decisions` give.
    """
    return {
        **evaluate_scores(targets_NC, probabilities_NC, labels),
        **evaluate_decisions(targets_NC, decisions_NC, labels),
    }


def evaluate_scores(
    targets_NC: np.ndarray, probabilities_NC: np.ndarray, labels: tuple[str, ...]
) -> dict[str, float]:
    """Compute the metrics that rest on scores.

    Returns
    -------
    dict
        `macro_`, `micro_` and `weighted_` `auroc` and `auprc`, and for each label `auroc_`, `auprc_`,
        `sensitivity_at_spec90_`, `sensitivity_at_spec95_` and `n_positive_<label>`.
    """
    curves = Curves.of(targets_NC, probabilities_NC)
    together = Curves.of(column(targets_NC), column(probabilities_NC))
    values = {name: metric(curves) for name, metric in SCORE_METRICS.items()}
    found = {}
    for name in AVERAGES_BY_SCORE:
        how, metric = name.split("_")
        if how == "micro":
            found[name] = float(SCORE_METRICS[metric](together)[0])
        else:
            weights_C = curves.n_positive_C if how == "weighted" else None
            found[name] = mean_of_labels(values[metric], weights_C)
    return found | _by_label(labels, {**values, "n_positive": curves.n_positive_C})


def evaluate_decisions(
    targets_NC: np.ndarray, decisions_NC: np.ndarray, labels: tuple[str, ...]
) -> dict[str, float]:
    """Compute the metrics that rest on decisions.

    Returns
    -------
    dict
        `macro_`, `micro_` and `weighted_` `f1`, `sensitivity` (its weighted average is the micro
        one), `specificity`, `ppv` and `npv`, `accuracy` (share of examples with all labels right),
        `hamming_loss`, `challenge_f2` and `challenge_g2` (see `challenge.beta_measures`), and for each
        label `f1_`, `f2_`, `g2_`, `sensitivity_`, `specificity_`, `ppv_`, `npv_`, `accuracy_`, `tp_`,
        `fp_`, `fn_` and `tn_<label>`.
    """
    counts = Counts.of(targets_NC, decisions_NC)
    together = counts.pooled()
    values = {name: metric(counts) for name, metric in DECISION_METRICS.items()}
    found = {}
    for name in AVERAGES_BY_DECISION:
        how, metric = name.split("_")
        if how == "micro":
            found[name] = float(DECISION_METRICS[metric](together)[0])
        else:
            weights_C = counts.n_positive if how == "weighted" else None
            found[name] = mean_of_labels(values[metric], weights_C)
    targets_NC, decisions_NC = np.asarray(targets_NC, bool), np.asarray(decisions_NC, bool)
    f2, g2 = beta_measures(targets_NC, decisions_NC)
    found |= {
        "accuracy": accuracy(targets_NC, decisions_NC),
        "hamming_loss": hamming_loss(targets_NC, decisions_NC),
        "challenge_f2": f2,
        "challenge_g2": g2,
    }
    for name in ("tp", "fp", "fn", "tn"):
        values[name] = getattr(counts, f"{name}_C")
    return found | _by_label(labels, values)


def _by_label(labels: tuple[str, ...], values: dict[str, np.ndarray]) -> dict[str, float]:
    return {
        f"{name}_{label}": float(values_C[c])
        for c, label in enumerate(labels)
        for name, values_C in values.items()
    }
