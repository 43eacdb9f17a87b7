"""Plots of how runs trained."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from rayecg.report.results import Results
from rayecg.report.style import INK, Plot, colour, new_figure, tidy, whole_numbers
from rayecg.report.text import metric_title, number

#: The losses have a figure each, because one axis would invite to compare them.
_LOSSES = (
    (
        "training_loss",
        "loss",
        "training loss",
        "What training makes small, weights included; it can differ between architectures. ",
    ),
    (
        "validation_loss",
        "validation_loss",
        "plain validation loss",
        "Unweighted BCE or cross-entropy, whatever the training loss is: the two do not compare. ",
    ),
)


def training_curves(results: Results) -> Iterator[Plot]:
    """Draw validation figure and losses of every epoch, a panel for each architecture."""
    benchmark = results.benchmark
    curves = {run: benchmark.curves(run) for run in results.runs["run"]}
    primary = f"validation_{benchmark.primary}"
    said_of_primary = f"validation {metric_title(benchmark.primary)}"
    for name, column, title, note in (
        ("training_validation", primary, said_of_primary, ""),
        *_LOSSES,
    ):
        there = {
            run: curve for run, curve in curves.items() if curve is not None and column in curve
        }
        drawn = results.runs[results.runs["run"].isin(there)]
        names = [a for a in results.architectures if (drawn["architecture"] == a).any()]
        if not names:
            continue
        n_columns = min(len(names), 3)
        n_rows = -(-len(names) // n_columns)
        figure = new_figure(2.2 + 2.25 * n_columns, 0.7 + 2.0 * n_rows)
        grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
        said = []
        # Ensembles, which were not trained, keep their colours to themselves.
        colours = [colour(results.architectures.index(name)) for name in names]
        for k, axes in enumerate(grid.flat):
            if k >= len(names):
                axes.set_visible(False)
                continue
            tidy(axes, "epoch" if k // n_columns == n_rows - 1 else "")
            if k % n_columns == 0:
                axes.set_ylabel(title, fontsize=10, color=INK)
            whole_numbers(axes)
            axes.set_title(names[k], fontsize=10, color=INK, loc="left")
            own = drawn[drawn["architecture"] == names[k]]
            for run, best_epoch in zip(own["run"], own["best_epoch"], strict=True):
                curve = there[run]
                axes.plot(curve["epoch"] + 1, curve[column], color=colours[k], lw=1.5, alpha=0.85)
                at = curve[curve["epoch"] == best_epoch] if pd.notna(best_epoch) else curve.iloc[:0]
                axes.scatter(at["epoch"] + 1, at[column], color=colours[k], s=26, zorder=4)
                said.append(f"{run} {number(float(curve[column].iloc[-1]))}")
        yield Plot(
            name,
            "training",
            f"{title[0].upper()}{title[1:]} by epoch",
            f"{note}One line per run; dots mark the epoch whose weights were kept, chosen on "
            "validation.",
            f"{title} by epoch for each run; in the last epoch: {', '.join(said)}.",
            figure,
        )
