"""How figures, names and error texts are written down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

#: Stands on every table, plot and page that rests on simulated recordings.
SYNTHETIC_LABEL = "synthetic data: not evidence of clinical worth"

#: What a figure looks like that cannot be computed.
NOTHING = "\N{EN DASH}"
NOTHING_NOTE = (
    f"“{NOTHING}” marks what cannot be computed: a label without a positive example (for AUROC, also "
    "without a negative one, which specificity alone needs), a PPV without a positive decision or an "
    "NPV without a negative one, a spread over a single run, a run that failed. Macro averages leave "
    "such labels out, and means such runs."
)
SPREAD_NOTE = (
    "± is the standard deviation: the spread over seeds and folds, not a confidence interval."
)

METRIC_TITLES = {
    "macro_auroc": "macro AUROC",
    "macro_auprc": "macro AUPRC",
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f2": "F2",
    "g2": "G2",
}

#: Absolute paths of POSIX and of Windows; not the path of a URL, and not the end of a tag.
_PATH = re.compile(
    r"(?<![\w:/.<\\-])(?:file://|~)?(?:/[^\s/:'\"<>|,;()]+)+/?"
    r"|\b[A-Za-z]:(?:\\[^\s\\:'\"<>|,;()]+)+\\?"
)


def metric_title(metric: str) -> str:
    """Give a metric's name in tables and plots."""
    return METRIC_TITLES.get(metric, metric.replace("_", " "))


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure with fixed digits; one that is not there as a dash."""
    return NOTHING if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """Write a count with thousands separated."""
    return NOTHING if value is None or not np.isfinite(value) else f"{round(value):,}"


def mean_and_spread(mean: float, sd: float, digits: int = 3) -> str:
    """Write `mean ± SD`; without a spread, the mean alone."""
    if not np.isfinite(sd):
        return number(mean, digits)
    return f"{number(mean, digits)} ± {number(sd, digits)}"


def interval(low: float, high: float, digits: int = 3) -> str:
    """Write the smallest and the largest of several values, or the ends of an interval."""
    return (
        NOTHING if not np.isfinite(low) else f"{number(low, digits)}{NOTHING}{number(high, digits)}"
    )


def with_interval(mean: float, sd: float, low: float, high: float) -> str:
    """Write `mean ± SD (low-high)`, without what is not there."""
    around = f" ({interval(low, high)})" if np.isfinite(low) else ""
    return f"{mean_and_spread(mean, sd)}{around}"


def some(n: int, one: str, many: str | None = None) -> str:
    """Write a count with its noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def counted(n_runs: int, n_members: Any) -> str:
    """Count the runs of a row; of ensembles, say what each averages."""
    if pd.isna(n_members):
        return str(n_runs)
    return f"{n_members} averaged" if n_runs == 1 else f"{n_runs}, each {n_members} averaged"


def shorten_paths(text: str) -> str:
    """Cut absolute paths down to their last name: a report says nothing of the machine."""
    return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def listed(names: Sequence[str], most: int = 12) -> str:
    """List names; of many, the first ones and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        clean = (" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        return f"| {' | '.join(clean)} |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)]) + "\n"


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table in columns, for the terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)
