"""What was chosen, label by label and averaged over labels, with what the first tables leave out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from rayecg.metrics.counts import ppv_at_prevalence
from rayecg.report.layout import Table
from rayecg.report.results import Results
from rayecg.report.text import SYNTHETIC_LABEL, count, listed, metric_title, number

#: Shares of people with a label that PPVs are given for.
PREVALENCES = (0.01, 0.05, 0.20)
_AVERAGED = ("auroc", "auprc", "f1", "sensitivity", "specificity", "ppv", "npv")


def class_tables(results: Results) -> Iterator[Table]:
    """Lay out each label's other figures, the averages over labels, and what is of all labels."""
    own = results.done[results.done["chosen"]]
    if not len(own):
        return
    means = own[[name for name in own if str(name).startswith(("test_", "fmax_"))]].mean()
    whose = f"{results.chosen_name} (chosen on validation), test split"
    if results.benchmark.synthetic:
        whose = f"{whose}, {SYNTHETIC_LABEL}"
    yield _label_table(results, means, whose)
    yield _average_table(results, own, means, whose)


def _label_table(results: Results, means: pd.Series, whose: str) -> Table:
    metrics = ("specificity", "npv", "accuracy", "sensitivity_at_spec90", "sensitivity_at_spec95")
    rows = []
    for label in results.benchmark.labels:
        pair = means[f"test_sensitivity_{label}"], means[f"test_specificity_{label}"]
        ppvs = ppv_at_prevalence(*pair, np.array(PREVALENCES))
        rows.append(
            (
                label,
                *(count(means[f"test_{name}_{label}"]) for name in ("tp", "fp", "fn", "tn")),
                *(number(means[f"test_{name}_{label}"]) for name in metrics),
                *(number(ppv) for ppv in ppvs),
                results.chosen_verdict,
            )
        )
    columns = (
        *("label", "TP", "FP", "FN", "TN", "specificity", "NPV", "accuracy"),
        *("sensitivity at specificity 0.90", "at 0.95"),
        *(f"PPV at {share:.0%} prevalence" for share in PREVALENCES),
        "audit",
    )
    many = int(results.runs["chosen"].sum()) > 1
    notes = (
        "Sensitivity at a specificity is read off the ROC curve of these very examples: the best that "
        "any threshold would give, not what one brought from validation gives. The PPV at a "
        "prevalence is what the sensitivity and specificity of the decisions mean where that share of "
        "people has the label (Bayes); PPV and NPV as measured hold for the test split's own."
        + (" Counts are means over runs, rounded." if many else ""),
    )
    return Table(
        f"Labels in detail: {whose}",
        columns,
        rows,
        frozenset(range(1, len(columns) - 1)),
        notes=notes,
        section="classes",
    )


def _average_table(results: Results, own: pd.DataFrame, means: pd.Series, whose: str) -> Table:
    hows = ("macro", "micro", "weighted")
    # The weighted sensitivity is the micro one, by definition.
    means = means.copy()
    means["test_weighted_sensitivity"] = means["test_micro_sensitivity"]
    rows = [
        (
            metric_title(metric),
            *(number(means[f"test_{how}_{metric}"]) for how in hows),
            results.chosen_verdict,
        )
        for metric in _AVERAGED
    ]
    said = [
        "Macro is the mean over labels, weighted the mean weighted by positives, micro the metric of "
        "all decisions (or scores) as if of one label. Labels without the metric are left out of the "
        f"first two{_left_out(results, own)}.",
        f"Of all labels together: {_together(results, means)}.",
    ]
    fmax = means["test_fmax"]
    if np.isfinite(fmax):
        said.append(
            f"Fmax (sample-centric, one threshold for all labels): {number(fmax)} at "
            f"{number(means['fmax_threshold'])}, a threshold chosen on validation. Published ones are "
            "often chosen on the test split itself, and higher for that."
        )
    if np.isfinite(means["test_challenge_score"]):
        said.append(
            f"Score of the CinC challenge 2021: {number(means['test_challenge_score'])} (1 is "
            "perfect, 0 is to call everybody sinus rhythm)."
        )
    return Table(
        f"Averages over labels: {whose}",
        ("metric", *hows, "audit"),
        rows,
        frozenset((1, 2, 3)),
        notes=tuple(said),
        section="classes",
    )


def _left_out(results: Results, own: pd.DataFrame) -> str:
    """Name the labels that a metric leaves out, in some or all runs, and the metrics."""
    metrics: dict[tuple[str, ...], list[str]] = {}
    for metric in _AVERAGED:
        lacking = tuple(
            label
            for label in results.benchmark.labels
            if own[f"test_{metric}_{label}"].isna().any()
        )
        if lacking:
            metrics.setdefault(lacking, []).append(metric_title(metric))
    parts = [f"{', '.join(names)} of {listed(labels)}" for labels, names in metrics.items()]
    return f" ({'; '.join(parts)})" if parts else ""


def _together(results: Results, means: pd.Series) -> str:
    """Write the figures that are of all labels of an example together."""
    many = results.benchmark.task["kind"] == "multilabel"
    parts = [
        f"{'subset ' if many else ''}accuracy {number(means['test_accuracy'])}",
        f"Hamming loss {number(means['test_hamming_loss'])}",
    ]
    if many:
        parts.append(
            f"F2 {number(means['test_challenge_f2'])} and G2 {number(means['test_challenge_g2'])}, "
            f"macro with each {results.benchmark.unit} weighed by its number of labels (CinC 2020)"
        )
    return ", ".join(parts)
