"""The intervals of a report as a file that the audit reads, before the page shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from rayecg.core.files import write_text
from rayecg.core.published import INTERVAL_COLUMNS, INTERVALS
from rayecg.metrics.bootstrap import LEVEL
from rayecg.report.results import Results


def published(results: Results) -> pd.DataFrame:
    """List every interval of the summary and of its labels, with the mean over runs as its point.

    Of what was chosen, also that of its primary metric.
    """
    rows: list[tuple[object, ...]] = []
    done = results.figures[results.figures["status"] == "ok"]
    known, drawn = results.intervals, results.intervals.n_drawn

    def add(name: str, runs: pd.DataFrame, metric: str, ends: tuple[float, float]) -> None:
        point = runs[f"test_{metric}"].mean()
        if not np.isnan(ends[0]):
            names = " ".join(runs["run"])
            rows.append((name, names, metric, point, *ends, LEVEL, "patient", drawn, 0.0))

    for architecture, metrics in known.ends.items():
        for metric, ends in metrics.items():
            add(architecture, done[done["architecture"] == architecture], metric, ends)
    own = done[done["chosen"]]
    if len(own):
        add("chosen on validation", own, results.benchmark.primary, known.chosen)
    return pd.DataFrame(rows, columns=list(INTERVAL_COLUMNS))


def publish_intervals(results: Results, out: Path) -> None:
    """Write `intervals.csv`; its numbers are those of the tables, with all their digits."""
    text = published(results).to_csv(index=False, lineterminator="\n")
    write_text(Path(out) / INTERVALS, text)
