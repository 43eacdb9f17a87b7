"""Metrics, in numpy alone."""

from rayecg.metrics.classification import macro_auprc, macro_auroc, macro_f1

__all__ = ["macro_auprc", "macro_auroc", "macro_f1"]
