"""Metrics, in numpy and scipy alone."""

from rayecg.metrics.bootstrap import Interval, bootstrap_interval
from rayecg.metrics.classification import macro_auprc, macro_auroc, macro_f1

__all__ = ["Interval", "bootstrap_interval", "macro_auprc", "macro_auroc", "macro_f1"]
