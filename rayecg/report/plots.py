"""Plots of figures: one function each, from results to plots.

Legend: N example, C label. A function whose files are not there yields nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from rayecg.report.results import Results
from rayecg.report.style import INK, PALE, Plot, colour, dash, legend, new_figure, tidy
from rayecg.report.text import NOTHING, counted, mean_and_spread, metric_title, number

BLUES = LinearSegmentedColormap.from_list("blues", ["#f4f8fb", "#7fb3d5", "#12507b"])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def row_names(names: Sequence[str], longest: int = 24) -> list[str]:
    """Cut long names; of an ensemble's, which has several words, the last goes on a second line."""
    parts = [name.rpartition(" ") if " " in name else (name, "", "") for name in names]
    cut = [n if len(n) <= longest else n[: longest - 1] + "…" for n, _, _ in parts]
    return [f"{n}\n{last}" if last else n for n, (_, _, last) in zip(cut, parts, strict=True)]


def primary_metric(results: Results) -> Iterator[Plot]:
    """Draw the primary metric of every run and ensemble, by architecture, with the means."""
    primary, done = results.benchmark.primary, results.done
    test, validation = f"test_{primary}", f"validation_{primary}"
    done = done[done[test].notna()]
    names = [a for a in results.architectures if (done["architecture"] == a).any()]
    if not names:
        return
    figure = new_figure(7.6, 1.35 + 0.52 * len(names))
    axes = tidy(figure.add_subplot(), x=f"{metric_title(primary)}", grid="x")
    said = []
    labelled: set[str] = set()

    def once(label: str) -> str | None:
        """Give a label for the legend, which needs each only once."""
        new = label not in labelled
        labelled.add(label)
        return label if new else None

    for i, name in enumerate(names):
        own = done[done["architecture"] == name].sort_values(["seed", "fold"], kind="stable")
        n_members = own["n_members"].max()
        alone = pd.isna(n_members)
        values = own[test].to_numpy(dtype=float)
        mean = float(values.mean())
        sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        # Runs are set apart a little, so that equal figures do not hide one another.
        y = i + (np.linspace(-0.13, 0.13, len(own)) if len(own) > 1 else np.zeros(1))
        axes.plot([values.min(), values.max()], [i, i], color=colour(i), lw=7, alpha=0.18)
        axes.scatter(
            own[validation].to_numpy(dtype=float),
            y,
            s=26,
            marker="D",
            facecolors="white",
            edgecolors=PALE,
            linewidths=1.0,
            label=once("validation, each"),
        )
        axes.scatter(
            values,
            y,
            s=36,
            marker="o" if alone else "s",
            color=colour(i),
            zorder=3,
            label=once("test, each run" if alone else "test, ensemble"),
        )
        axes.plot([mean, mean], [i - 0.32, i + 0.32], color=colour(i), lw=2.2, zorder=4)
        chosen = own["chosen"].to_numpy(dtype=bool)
        axes.scatter(
            values[chosen],
            y[chosen],
            s=120,
            facecolors="none",
            edgecolors=INK,
            linewidths=1.3,
            zorder=5,
            label="chosen on validation" if chosen.any() else None,
        )
        text = mean_and_spread(mean, sd)
        n = f"{'n = ' if alone else ''}{counted(len(own), n_members)}"
        said.append(f"{name} {text} ({n})")
        axes.annotate(
            f"{text}  ({n})",
            (1.015, i),
            xycoords=("axes fraction", "data"),
            fontsize=9,
            color=INK,
            va="center",
            annotation_clip=False,
        )
    over = results.benchmark.over
    axes.set_yticks(range(len(names)), row_names(names))
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.margins(x=0.08)
    legend(axes, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)
    squares = ", each square an ensemble" if done["n_members"].notna().any() else ""
    yield Plot(
        "primary_metric",
        "results",
        f"{_capital(metric_title(primary))} on the test split",
        f"Each dot is one run{squares}; the bar marks the mean over {over}, the band reaches from the "
        "lowest to the highest. Hollow diamonds are the same on validation. Ordered as the summary is, "
        "by validation.",
        f"Test {metric_title(primary)}, mean ± standard deviation over {over}: {'; '.join(said)}.",
        figure,
    )


def per_class(results: Results) -> Iterator[Plot]:
    """Draw each label's test AUROC, means over runs, as a table of shades."""
    table, labels = results.per_class, results.benchmark.drawn_labels
    if not len(table) or not table["auroc_mean"].notna().any():
        return
    names = [a for a in results.architectures if (table["architecture"] == a).any()]
    values = np.array(
        [
            [
                table.loc[
                    (table["architecture"] == a) & (table["label"] == label), "auroc_mean"
                ].iloc[0]
                for label in labels
            ]
            for a in names
        ],
        dtype=float,
    )
    positives = table.groupby("label")["n_positive"].max()
    figure = new_figure(2.6 + 0.95 * len(labels), 1.25 + 0.5 * len(names))
    axes = tidy(figure.add_subplot(), grid="none")
    _shades(axes, values, [[number(v) for v in row] for row in values], float(np.nanmin(values)))
    axes.set_xticks(range(len(labels)), [f"{x}\n{int(positives[x]):,} pos." for x in labels])
    axes.set_yticks(range(len(names)), row_names(names))
    said = [
        f"{name}: " + ", ".join(f"{x} {number(v)}" for x, v in zip(labels, row, strict=True))
        for name, row in zip(names, values, strict=True)
    ]
    yield Plot(
        "per_class_auroc",
        "classes",
        "AUROC of each label on the test split",
        f"Means over {results.benchmark.over}, with the number of positive test examples. Darker is "
        f"higher.{results.benchmark.drawn_note}",
        f"Test AUROC by architecture and label. {'; '.join(said)}.",
        figure,
    )


def luminance(colour: Sequence[float]) -> float:
    """Give the relative luminance of an RGB colour (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _shades(axes: Any, values: np.ndarray, texts: list[list[str]], low: float) -> None:
    low = min(low, 0.999)
    axes.imshow(values, cmap=BLUES, vmin=low, vmax=1.0, aspect="auto")
    n_rows, n_columns = values.shape
    for i in range(n_rows):
        for j in range(n_columns):
            shade = BLUES((values[i, j] - low) / (1 - low)) if np.isfinite(values[i, j]) else None
            # The luminance at which black and white letters stand out alike (WCAG 2).
            ink = INK if shade is None or luminance(shade) > 0.18 else "white"
            axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks(np.arange(1, n_columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, n_rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def curves_of_chosen(results: Results) -> Iterator[Plot]:
    """Draw ROC and precision-recall curves of the run chosen on validation."""
    outputs, chosen = results.chosen_outputs, results.chosen
    if outputs is None or chosen is None or not len(outputs.targets_NC):
        return
    roc, pr = new_figure(5.2, 5.3), new_figure(5.2, 5.3)
    roc_axes = tidy(roc.add_subplot(), "1 - specificity", "sensitivity")
    pr_axes = tidy(pr.add_subplot(), "sensitivity (recall)", "PPV (precision)")
    roc_axes.plot([0, 1], [0, 1], color="#9aa5b1", lw=1, ls=(0, (4, 3)))
    decided = outputs.decided
    said = {"roc": [], "pr": []}  # type: dict[str, list[str]]
    for drawn, label in enumerate(results.benchmark.drawn_labels):
        i = outputs.labels.index(label)
        target_N = outputs.targets_NC[:, i]
        order = np.argsort(-outputs.probabilities_NC[:, i], kind="stable")
        scores = outputs.probabilities_NC[order, i]
        last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
        hits = np.cumsum(target_N[order])[last]
        n_positive, n_negative = int(target_N.sum()), int((~target_N).sum())
        if not n_positive:
            continue
        style = {"color": colour(drawn), "ls": dash(drawn), "lw": 1.7}
        at = {
            "color": colour(drawn),
            "s": 34,
            "zorder": 4,
            "edgecolors": "white",
            "linewidths": 0.8,
        }
        decision_N = outputs.decisions_NC[decided, i].astype(bool)
        truth_N = target_N[decided]
        area = {m: float(chosen[f"test_{m}_{label}"]) for m in ("auroc", "auprc")}
        sensitivity = float(decision_N[truth_N].mean()) if truth_N.any() else float("nan")
        if n_negative:
            fall_out = np.append(0, last + 1 - hits) / n_negative
            text = f"{label}  {number(area['auroc'])}"
            roc_axes.plot(fall_out, np.append(0, hits) / n_positive, label=text, **style)
            said["roc"].append(text)
            if (~truth_N).any():
                roc_axes.scatter(decision_N[~truth_N].mean(), sensitivity, **at)
        text = f"{label}  {number(area['auprc'])}"
        recall = np.append(0, hits) / n_positive
        precision = hits / (last + 1)
        # Average precision is the area below these steps.
        pr_axes.step(recall[1:], precision, where="pre", label=text, **style)
        pr_axes.axhline(n_positive / len(target_N), color=colour(drawn), lw=0.8, ls=(0, (2, 3)))
        said["pr"].append(text)
        if decision_N.any():
            pr_axes.scatter(sensitivity, truth_N[decision_N].mean(), **at)
    for axes in (roc_axes, pr_axes):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    if not said["pr"]:
        return
    # Above the axes: inside, it would hide one curve or another.
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 3}
    legend(roc_axes, title="AUROC", **above)
    legend(pr_axes, title="AUPRC", **above)
    run = f"Run {chosen['run']} (chosen on validation), test split."
    dots = "Dots mark the operating point chosen on validation."
    kind = (
        "" if results.benchmark.task["kind"] == "multilabel" else " Each label against the others."
    ) + results.benchmark.drawn_note
    yield Plot(
        "roc",
        "labels",
        "ROC curves",
        f"{run} {dots}{kind}",
        f"ROC curves of {chosen['run']}; AUROC: {', '.join(said['roc'])}.",
        roc,
    )
    yield Plot(
        "precision_recall",
        "labels",
        "Precision-recall curves",
        f"{run} {dots} Dotted lines: the share of positives, which chance would give.{kind}",
        f"Precision-recall curves of {chosen['run']}; AUPRC: {', '.join(said['pr'])}.",
        pr,
    )


def confusion(results: Results) -> Iterator[Plot]:
    """Draw the confusion matrix of the chosen run, for tasks with one label per example."""
    outputs, chosen = results.chosen_outputs, results.chosen
    if outputs is None or chosen is None or results.benchmark.task["kind"] != "multiclass":
        return
    decided, labels = outputs.decided, outputs.labels
    if not decided.any():
        return
    n = len(labels)
    counts = np.zeros((n, n), dtype=np.int64)
    truth_N = outputs.targets_NC[decided].argmax(axis=1)
    given_N = outputs.decisions_NC[decided].argmax(axis=1)
    np.add.at(counts, (truth_N, given_N), 1)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    texts = [[f"{number(shares[i, j], 2)}\n{counts[i, j]:,}" for j in range(n)] for i in range(n)]
    figure = new_figure(2.2 + 0.85 * n, 1.5 + 0.72 * n)
    axes = tidy(figure.add_subplot(), "decision", "label", grid="none")
    _shades(axes, shares, texts, 0.0)
    axes.set_xticks(range(n), labels)
    axes.set_yticks(range(n), [f"{x}  ({t:,})" for x, t in zip(labels, totals[:, 0], strict=True)])
    said = [f"{labels[i]} {number(shares[i, i], 2)} of {totals[i, 0]:,}" for i in range(n)]
    yield Plot(
        "confusion",
        "labels",
        "Confusion matrix",
        f"Run {chosen['run']} (chosen on validation), test split. Each row adds up to 1; counts "
        f"below. A row of {NOTHING} has no example.",
        f"Confusion matrix of {chosen['run']}. Found again: {'; '.join(said)}.",
        figure,
    )
