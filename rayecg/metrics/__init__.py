"""Metrics, in numpy and scipy alone."""

from rayecg.metrics.averages import average, hamming_loss
from rayecg.metrics.bootstrap import Interval, bootstrap_interval
from rayecg.metrics.challenge import beta_measures, challenge_score, challenge_weights
from rayecg.metrics.classification import (
    accuracy,
    auprc,
    auroc,
    evaluate,
    f1,
    f_beta,
    g_beta,
    macro_auprc,
    macro_auroc,
    macro_f1,
    npv,
    ppv,
    sensitivity,
    sensitivity_at_specificity,
    specificity,
)
from rayecg.metrics.comparison import Difference, bootstrap_difference, holm
from rayecg.metrics.counts import Counts, ppv_at_prevalence
from rayecg.metrics.delong import auroc_difference, auroc_interval
from rayecg.metrics.ec57 import BeatCounts, beat_matrices
from rayecg.metrics.fmax import f_at_threshold, fmax_optimistic, fmax_threshold

__all__ = [
    "BeatCounts",
    "Counts",
    "Difference",
    "Interval",
    "accuracy",
    "auprc",
    "auroc",
    "auroc_difference",
    "auroc_interval",
    "average",
    "beat_matrices",
    "beta_measures",
    "bootstrap_difference",
    "bootstrap_interval",
    "challenge_score",
    "challenge_weights",
    "evaluate",
    "f1",
    "f_at_threshold",
    "f_beta",
    "fmax_optimistic",
    "fmax_threshold",
    "g_beta",
    "hamming_loss",
    "holm",
    "macro_auprc",
    "macro_auroc",
    "macro_f1",
    "npv",
    "ppv",
    "ppv_at_prevalence",
    "sensitivity",
    "sensitivity_at_specificity",
    "specificity",
]
