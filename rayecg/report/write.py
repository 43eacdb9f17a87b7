"""The report stage: tables, plots and the page of one benchmark, from its files alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rayecg.core.catalogue import look_up
from rayecg.core.files import replacing, write_table, write_text
from rayecg.report import layout
from rayecg.report.comparison import comparison_csv
from rayecg.report.layout import Table
from rayecg.report.page import audit_counts, render_page, terminal_text
from rayecg.report.patients import worst_patients_csv
from rayecg.report.published import publish_intervals
from rayecg.report.results import Results
from rayecg.report.runs import run_table
from rayecg.report.style import Plot, png, stamp
from rayecg.report.subgroups import subgroups_csv
from rayecg.report.text import (
    NOTHING_NOTE,
    SPREAD_NOTE,
    SYNTHETIC_LABEL,
    markdown_table,
    metric_title,
)

#: Plots in the order of the page: `name -> "module:function"`, each from results to plots.
PLOTS = {
    "primary_metric": "rayecg.report.plots:primary_metric",
    "per_class": "rayecg.report.plots:per_class",
    "curves_of_chosen": "rayecg.report.plots:curves_of_chosen",
    "confusion": "rayecg.report.plots:confusion",
    "comparison": "rayecg.report.comparison:comparison_plot",
    "reliability": "rayecg.report.calibration_plots:reliability_plot",
    "decision_curves": "rayecg.report.calibration_plots:decision_plot",
    "subgroups": "rayecg.report.subgroups:forest",
    "training_curves": "rayecg.report.training_plots:training_curves",
    "waveforms": "rayecg.report.waveforms:waveforms",
}
#: Tables beside those of `layout`, in the order of the page: `name -> "module:function"`, each from
#: results to tables that name their section: `comparison`, `calibration`, `subgroups` or `classes`.
TABLES: dict[str, str] = {
    "classes": "rayecg.report.class_tables:class_tables",
    "beats": "rayecg.report.beat_tables:beat_tables",
    "comparison": "rayecg.report.comparison:comparison_table",
    "calibration": "rayecg.report.calibration:calibration_tables",
    "subgroups": "rayecg.report.subgroups:subgroup_tables",
    "worst_patients": "rayecg.report.patients:worst_patients_table",
}


@dataclass(frozen=True)
class ReportResult:
    """What the report stage ends with: the table for the terminal, and the page."""

    table: str
    page: Path


def report(source: Path, out: Path, results: Results | None = None) -> ReportResult:
    """Write a benchmark's report.

    Parameters
    ----------
    source
        The benchmark's output folder: `experiment.yaml` and `work/`.
    out
        Holds the audit's `findings.json`, and gets `runs.parquet`, `summary.csv`, `per_class.csv`,
        `comparison.csv`, `subgroups.csv` and `worst_patients.csv` where something was chosen (the
        first, where there is something to compare it with), `summary.md`,
        `plots/*.png` and, last, `index.html`. It can be `source` itself. The same files give the
        same bytes.
    results
        What `publish_intervals` has written the intervals of, which are then not computed again.

    Raises
    ------
    DataError
        If what every report needs is missing: the task, the examples, the shards' manifest.
    """
    out = Path(out)
    if results is None:
        results = Results(Path(source), out / "findings.json")
        publish_intervals(results, out)
    plots = _draw(results)
    more = _lay_out(results)
    write_table(out / "runs.parquet", run_table(results.runs, results.benchmark.labels))
    _write_csv(out / "summary.csv", results.summary)
    _write_csv(out / "per_class.csv", results.per_class)
    for name, table in (
        ("comparison", comparison_csv(results)),
        ("subgroups", subgroups_csv(results)),
        ("worst_patients", worst_patients_csv(results)),
    ):
        if table is not None:
            _write_csv(out / f"{name}.csv", table)
    write_text(out / "summary.md", markdown(results, more))
    for name, (_, data) in plots.items():
        with replacing(out / "plots" / f"{name}.png") as beside:
            beside.write_bytes(data)
    page = out / "index.html"
    write_text(page, render_page(results, plots, more))
    return ReportResult(terminal_text(results), page)


def _draw(results: Results) -> dict[str, tuple[Plot, bytes]]:
    drawn = {}
    for name in PLOTS:
        function: Callable[[Results], Iterator[Plot]] = look_up(PLOTS, name, "plot")
        for plot in function(results):
            # Recordings are no figures: an audit's finding does not make them doubtful.
            data_only = SYNTHETIC_LABEL if results.benchmark.synthetic else ""
            stamp(plot.figure, data_only if plot.section == "data" else results.warning)
            drawn[plot.name] = plot, png(plot.figure)
    return drawn


def _lay_out(results: Results) -> list[Table]:
    found: list[Table] = []
    for name in TABLES:
        function: Callable[[Results], Iterator[Table]] = look_up(TABLES, name, "table")
        found += [table for table in function(results) if table.rows]
    return found


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def markdown(results: Results, more: Sequence[Table] = ()) -> str:
    """Give the tables as Markdown, `more` after those that every report has."""
    benchmark = results.benchmark
    parts = [f"# {benchmark.title}\n", f"{benchmark.task['title']}.\n"]
    if benchmark.synthetic:
        parts.append(f"**{SYNTHETIC_LABEL[0].upper()}{SYNTHETIC_LABEL[1:]}.**\n")
    if results.chosen is not None:
        metric = metric_title(benchmark.primary)
        parts.append(
            f"Chosen on validation: {results.chosen_name}, test {metric} {results.chosen_test}.\n"
        )
    for table in (
        layout.summary_table(results),
        layout.per_class_table(results),
        layout.failed_table(results),
        layout.archive_table(results),
        layout.population_table(results),
        *more,
    ):
        if table.rows:
            parts += [f"## {table.caption}\n", markdown_table(table.columns, table.rows)]
            parts += [f"{note}\n" for note in table.notes]
    parts += [f"{SPREAD_NOTE} {NOTHING_NOTE}\n"]
    parts.append(f"Audit: {results.verdict} ({audit_counts(results)}).\n")
    return "\n".join(parts)
