"""Architectures against the chosen one: table, plot and file of the paired differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from rayecg.metrics.bootstrap import N_RESAMPLES
from rayecg.metrics.comparison import holm
from rayecg.report.layout import Table
from rayecg.report.plots import row_names
from rayecg.report.results import Results
from rayecg.report.runs import verdict
from rayecg.report.style import PALE, Plot, colour, new_figure, tidy
from rayecg.report.text import (
    NOTHING,
    SYNTHETIC_LABEL,
    counted,
    listed,
    mean_and_spread,
    metric_title,
    number,
    some,
)

#: Columns of `comparison.csv`.
COLUMNS = (
    "architecture",
    "reference",
    "metric",
    "n_seeds",
    "mean",
    "sd",
    "difference",
    "low",
    "high",
    "p_value",
    "p_holm",
    "n_patients",
    "n_effective",
    "n_undefined",
    "warning",
    "verdict",
    "data",
)


def comparisons(results: Results) -> pd.DataFrame:
    """Give a row for each architecture that has a difference from the chosen one.

    Ordered as the summary is. `p_holm` is corrected for as many tests as there are rows.
    """
    own, known = results.benchmark, results.intervals
    done, metric = results.done, f"test_{results.benchmark.primary}"
    rows = []
    for name in results.architectures:
        if name not in known.differences:
            continue
        found = known.differences[name]
        runs = done[done["architecture"].isin([name, known.reference])]
        values = runs.loc[runs["architecture"] == name, metric]
        rows.append(
            {
                "architecture": name,
                "reference": known.reference,
                "metric": own.primary,
                "n_seeds": len(values),
                "mean": values.mean(),
                "sd": values.std(ddof=1) if len(values) > 1 else float("nan"),
                "difference": found.point,
                **{key: getattr(found, key) for key in ("low", "high", "p_value")},
                "n_patients": found.n_groups,
                **{key: getattr(found, key) for key in ("n_effective", "n_undefined", "warning")},
                "verdict": verdict(own.findings, runs["run"]),
                "data": own.data_label,
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["p_holm"] = holm(table["p_value"].to_numpy(dtype=float))
    return table


def comparison_csv(results: Results) -> pd.DataFrame | None:
    """Give the table of `comparison.csv`; None where nothing is compared."""
    table = comparisons(results)
    return table if len(table) else None


def comparison_table(results: Results) -> Iterator[Table]:
    """Lay out the differences."""
    table, benchmark = comparisons(results), results.benchmark
    if not len(table):
        return
    metric, reference = metric_title(benchmark.primary), results.intervals.reference
    members = results.summary.set_index("architecture")["n_members"]
    rows = [
        (
            str(row["architecture"]),
            counted(row["n_seeds"], members[row["architecture"]]),
            mean_and_spread(row["mean"], row["sd"]),
            _signed(row["difference"]),
            _between(row["low"], row["high"]),
            _p(row["p_value"]),
            _p(row["p_holm"]),
            str(row["verdict"]),
        )
        for _, row in table.iterrows()
    ]
    columns = (
        "architecture",
        "seeds" if benchmark.n_folds == 1 else "runs",
        f"test {metric}",
        "difference",
        "95 % interval",
        "p",
        "p by Holm",
        "audit",
    )
    caption = f"Against {reference}, the architecture chosen on validation, on the same patients"
    caption += f", {SYNTHETIC_LABEL}" if benchmark.synthetic else ""
    yield Table(
        caption,
        columns,
        rows,
        frozenset(range(1, len(columns) - 1)),
        notes=_notes(results, table),
        section="comparison",
    )


def _notes(results: Results, table: pd.DataFrame) -> tuple[str, ...]:
    reference, over = results.intervals.reference, results.benchmark.over
    done = results.done
    own = done.loc[done["architecture"] == reference, f"test_{results.benchmark.primary}"]
    n_patients = some(int(table["n_patients"].iloc[0]), "patient")
    notes = [
        f"Difference: the mean over {over} less that of {reference} ({number(own.mean())}); above 0 is "
        f"better than {reference}. Both are evaluated in the same {N_RESAMPLES:,} resamples of "
        f"{n_patients}, and interval and p (two-sided, Student's t) are of what the difference varies "
        f"by. By Holm: p corrected for {some(len(table), 'comparison')}.",
        f"It says what other patients of the same kind could change, not what other {over} could: that "
        f"spread is the ± beside each mean. {reference} was chosen on validation, and nothing is chosen "
        "by this table. A high p does not show that two are equal; the interval says how far apart they "
        "may be.",
    ]
    if warnings := sorted(set(filter(None, table["warning"]))):
        notes.append(f"The comparison is doubtful: {'; '.join(warnings)}.")
    names = set(table["architecture"]) | {reference}
    lacking = [name for name in results.architectures if name not in names]
    if lacking:
        notes.append(
            f"Not compared: {listed(lacking)}, without test figures or without every seed and fold."
        )
    return tuple(notes)


def comparison_plot(results: Results) -> Iterator[Plot]:
    """Draw the differences with their intervals."""
    table = comparisons(results)
    table = table[np.isfinite(table["difference"].astype(float))].reset_index(drop=True)
    if not len(table):
        return
    metric, reference = metric_title(results.benchmark.primary), results.intervals.reference
    figure = new_figure(7.6, 1.15 + 0.46 * len(table))
    axes = tidy(figure.add_subplot(), x=f"difference in test {metric} from {reference}", grid="x")
    axes.axvline(0, color=PALE, lw=1.2, zorder=1)
    said = []
    for i, row in table.iterrows():
        own = colour(results.architectures.index(row["architecture"]))
        axes.plot([row["low"], row["high"]], [i, i], color=own, lw=2.4, solid_capstyle="butt")
        axes.scatter([row["difference"]], [i], s=40, color=own, zorder=3)
        text = f"{_signed(row['difference'])} ({_between(row['low'], row['high'])})"
        said.append(f"{row['architecture']} {text}, p {_p(row['p_holm'])}")
        axes.annotate(
            text,
            (1.015, i),
            xycoords=("axes fraction", "data"),
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(table)), row_names(list(table["architecture"])))
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.margins(x=0.08)
    yield Plot(
        "comparison",
        "comparison",
        f"Difference from {reference} in {metric}",
        f"Dots are differences of means over {results.benchmark.over}, bars their 95 % intervals over "
        "patients, paired on the same resamples. Right of the line is better than the chosen "
        "architecture.",
        f"Difference in test {metric} from {reference}, with 95 % interval and p by Holm: "
        f"{'; '.join(said)}.",
        figure,
    )


def _signed(value: float) -> str:
    """Write a difference with its sign, by the minus that is as wide as the plus."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else NOTHING


def _between(low: float, high: float) -> str:
    return f"{_signed(low)} to {_signed(high)}" if np.isfinite(low) else NOTHING


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else number(value)
