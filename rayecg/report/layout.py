"""Tables as they are read: names and figures in words, for the page, Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from rayecg.report import tables
from rayecg.report.benchmark import Benchmark
from rayecg.report.intervals import LABEL_METRICS
from rayecg.report.results import Results
from rayecg.report.runs import HEADLINE
from rayecg.report.text import (
    NOTHING,
    SYNTHETIC_LABEL,
    count,
    counted,
    interval,
    listed,
    mean_and_spread,
    metric_title,
    number,
    shorten_paths,
    some,
    with_interval,
)


@dataclass(frozen=True)
class Table:
    """A table to be read.

    Attributes
    ----------
    caption
        What it lists; ends with the label of simulated data where that is what it rests on.
    columns
        Titles; those in `numeric` hold figures.
    rows
        Cells. The first names the row.
    marked
        Rows to be pointed out.
    notes
        Lines below.
    section
        Of the page, for the tables of `rayecg.report.write.TABLES`.
    """

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numeric: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()
    notes: tuple[str, ...] = field(default=())
    section: str = ""


def _caption(text: str, benchmark: Benchmark) -> str:
    return f"{text}, {SYNTHETIC_LABEL}" if benchmark.synthetic else text


def _numeric(*columns: int) -> frozenset[int]:
    return frozenset(columns)


def summary_table(results: Results) -> Table:
    """Lay out the summary over seeds and folds."""
    primary, summary = results.benchmark.primary, results.summary
    others = [metric for metric in HEADLINE if metric != primary]
    rows = []
    for _, row in summary.iterrows():

        def over_seeds(name: str, row: pd.Series = row) -> str:
            return mean_and_spread(row[f"{name}_mean"], row[f"{name}_sd"])

        failed = f" ({row['n_failed']} failed)" if row["n_failed"] else ""
        rows.append(
            (
                str(row["architecture"]),
                f"{counted(row['n_seeds'], row['n_members'])}{failed}",
                over_seeds(f"validation_{primary}"),
                over_seeds(f"test_{primary}"),
                interval(row[f"test_{primary}_low"], row[f"test_{primary}_high"]),
                interval(row[f"test_{primary}_min"], row[f"test_{primary}_max"]),
                *(over_seeds(f"test_{metric}") for metric in others),
                _count(row["n_parameters"]),
                str(row["verdict"]),
            )
        )
    columns = (
        "architecture",
        "seeds" if results.benchmark.n_folds == 1 else "runs",
        f"validation {metric_title(primary)}",
        f"test {metric_title(primary)}",
        "95 % interval",
        "test range",
        *(f"test {metric_title(metric)}" for metric in others),
        "parameters",
        "audit",
    )
    chosen = frozenset(i for i, is_it in enumerate(summary.get("chosen", ())) if is_it)
    return Table(
        _caption(f"Architectures, mean over {results.benchmark.over}", results.benchmark),
        columns,
        rows,
        _numeric(*range(1, len(columns) - 1)),
        chosen,
        (
            *_ensemble_notes(results),
            *_order_notes(results),
            *_scored_notes(results),
            *results.intervals.notes,
        ),
    )


def _ensemble_notes(results: Results) -> tuple[str, ...]:
    if not len(results.summary) or results.summary["n_members"].isna().all():
        return ()
    return (
        "An ensemble's probability is the mean of those of its members, runs of the other rows; its "
        "thresholds are chosen on validation like theirs. It is no checkpoint that could be deployed, "
        "and is not chosen.",
    )


def _order_notes(results: Results) -> tuple[str, ...]:
    """Say which architectures lack a fold, and so do not compare with the others."""
    summary = results.summary
    if results.benchmark.n_folds == 1 or not len(summary) or summary["complete"].all():
        return ()
    lacking = listed(list(summary.loc[~summary["complete"], "architecture"]))
    return (
        f"Not every seed and fold is there of {lacking}: means over the rest do not compare, so these "
        "come last and are not chosen.",
    )


def _scored_notes(results: Results) -> tuple[str, ...]:
    """Say how many test examples figures rest on, and which labels they leave out."""
    done, unit = results.done, results.benchmark.unit
    if not len(done):
        return ()
    notes = []
    n_test, missing, abstained = (
        tables.largest_count(done, name, results.benchmark) or 0
        for name in ("n_test", "n_test_missing", "n_test_abstained")
    )
    several = results.benchmark.n_folds > 1 and results.benchmark.tests_once
    where = "test splits of the folds together have" if several else "test split has"
    text = f"The {where} {some(n_test, unit)}."
    if missing:
        text += (
            f" Up to {some(missing, unit)} of them have no probability (the record was quarantined, "
            "or no window could be cut): they are counted here and in no metric."
        )
    notes.append(text)
    if abstained:
        notes.append(
            f"For up to {some(abstained, unit)} a run abstained (the record breaks a limit of the "
            "checkpoint's card). They count in AUROC and AUPRC, and are left out of what rests on "
            "decisions: F1, accuracy, sensitivity, specificity, PPV."
        )
    without = [
        label
        for label in results.benchmark.labels
        if done[f"test_auroc_{label}"].isna().any() or done[f"test_f1_{label}"].isna().any()
    ]
    if without:
        n = len(results.benchmark.labels)
        notes.append(
            f"Macro averages rest on {n - len(without)} of {n} labels in some or all runs; they leave "
            f"out {listed(without)}, which cannot be computed on the examples scored."
        )
    if results.benchmark.task["kind"] == "multilabel":
        notes.append("Accuracy counts an example as right if all its labels are.")
    return tuple(notes)


def _count(value: Any) -> str:
    return NOTHING if pd.isna(value) else count(float(value))


def per_class_table(results: Results) -> Table:
    """Lay out the metrics of each label."""
    metrics = ("auroc", "auprc", "f1", "sensitivity", "specificity", "ppv")

    def cell(row: pd.Series, metric: str) -> str:
        figure = row[f"{metric}_mean"], row[f"{metric}_sd"]
        if metric not in LABEL_METRICS:
            return mean_and_spread(*figure)
        return with_interval(*figure, row[f"{metric}_low"], row[f"{metric}_high"])

    rows = [
        (
            str(row["label"]),
            str(row["architecture"]),
            _count(row["n_positive"]),
            *(cell(row, metric) for metric in metrics),
            str(row["verdict"]),
        )
        for _, row in results.per_class.iterrows()
    ]
    order = {label: i for i, label in enumerate(results.benchmark.labels)}
    rows.sort(key=lambda row: order[row[0]])
    columns = ("label", "architecture", "positive", *map(metric_title, metrics), "audit")
    return Table(
        _caption(
            f"Labels on the test split, mean over {results.benchmark.over}", results.benchmark
        ),
        columns,
        rows,
        _numeric(*range(2, len(columns) - 1)),
        notes=("In brackets: the 95 % interval over patients.",) if rows else (),
    )


def _epoch_kept(row: pd.Series) -> str:
    """Give the epoch whose weights were kept; files count from 0, readers from 1."""
    if pd.isna(row["best_epoch"]) or pd.isna(row["epochs"]):
        return NOTHING
    return f"{row['best_epoch'] + 1} of {row['epochs']}"


def runs_table(results: Results) -> Table:
    """Lay out every run."""
    primary = results.benchmark.primary
    rows = [
        (
            str(row["run"]),
            _count(row["seed"]),
            str(row["status"]),
            _epoch_kept(row),
            number(row[f"validation_{primary}"]),
            number(row[f"test_{primary}"]),
            _count(row["n_test_scored"]),
            _count(row["n_test_missing"]),
            _count(row["n_test_abstained"]),
            _count(row["seconds"]),
            str(row["verdict"]),
        )
        for _, row in results.runs.iterrows()
    ]
    columns = (
        "run",
        "seed",
        "status",
        "epoch kept",
        f"validation {metric_title(primary)}",
        f"test {metric_title(primary)}",
        "test scored",
        "missing",
        "abstained",
        "training, s",
        "audit",
    )
    chosen = frozenset(int(i) for i in results.runs.index[results.runs["chosen"]])
    return Table(
        _caption("Runs", results.benchmark),
        columns,
        rows,
        _numeric(1, *range(3, 10)),
        chosen,
    )


def failed_table(results: Results) -> Table:
    """Lay out the runs without test figures, with what went wrong."""
    failed = results.runs[results.runs["status"] != "ok"]
    rows = [
        (str(row["run"]), str(row["status"]), str(row["error"] or NOTHING))
        for _, row in failed.iterrows()
    ]
    return Table(
        _caption("Runs without figures", results.benchmark), ("run", "status", "error"), rows
    )


def population_table(results: Results) -> Table:
    """Lay out who is in which split."""
    benchmark = results.benchmark
    counts = tables.population(benchmark)
    first = ("recordings",) if benchmark.task["unit"] == "record" else ("beats", "recordings")
    keys = ("examples",) if benchmark.task["unit"] == "record" else ("examples", "records")
    labels = benchmark.drawn_labels
    columns = ("split", *first, "patients", *labels)
    rows = [
        (str(row["split"]), *(count(float(row[k])) for k in (*keys, "patients", *labels)))
        for _, row in counts.iterrows()
    ]
    notes: tuple[str, ...] = (f"Split: {benchmark.task['split']['name']}.{benchmark.drawn_note}",)
    if benchmark.task["kind"] == "multilabel":
        notes += ("A recording can carry several labels, so these do not add up.",)
    for split, row in counts.set_index("split").iterrows():
        without = [label for label in benchmark.labels if not row[label]]
        if without:
            notes += (
                f"The {split} split has no example of {listed(without)}: its macro averages leave "
                "such labels out.",
            )
    return Table(
        _caption(f"{benchmark.unit.capitalize()}s by split and label", benchmark),
        columns,
        rows,
        _numeric(*range(1, len(columns))),
        notes=notes,
    )


def left_out_table(results: Results) -> Table:
    """Lay out what no figure rests on, and why."""
    benchmark = results.benchmark
    by_beat = benchmark.task["unit"] == "beat"
    keys = ("examples", "records") if by_beat else ("examples",)
    rows = [
        (str(row["reason"]), *(count(float(row[key])) for key in keys))
        for _, row in tables.left_out(benchmark).iterrows()
    ]
    columns = ("reason", "beats", "of recordings") if by_beat else ("reason", "recordings")
    caption = _caption("Left out of training and evaluation, and still scored", benchmark)
    return Table(caption, columns, rows, _numeric(1, 2))


def archive_table(results: Results) -> Table:
    """Lay out what became of the archive's records."""
    shards = results.benchmark.shards
    names = ("n_input", "n_ok", "n_degraded", "n_quarantined")
    columns = ("archive", "records", "ok", "degraded", "quarantined")
    archive = shards.get("archive") or {}
    path = str(archive.get("path") or "").rstrip("/\\")
    folder = path.replace("\\", "/").rsplit("/", 1)[-1]
    name = f"{archive.get('kind', NOTHING)}{f' ({folder})' if folder else ''}"
    row = (name, *(count(float(shards[key])) for key in names))
    caption = _caption("Records of the archive", results.benchmark)
    return Table(caption, columns, [row], _numeric(1, 2, 3, 4))


def quarantine_table(results: Results) -> Table:
    """Lay out the records that could not be read."""
    rows = [
        (
            str(row["error_code"]),
            str(row["meaning"]),
            count(float(row["records"])),
            str(row["first"]),
        )
        for _, row in tables.quarantine_codes(results.benchmark).iterrows()
    ]
    columns = ("error code", "meaning", "records", "the first of them")
    caption = _caption("Quarantined records", results.benchmark)
    return Table(caption, columns, rows, _numeric(2))


def findings_rows(findings: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Give the audit's findings with what the page says of each."""
    rows = []
    for finding in findings or ():
        evidence = dict(finding["evidence"])
        ids = [str(one) for one in evidence.get("ids") or ()]
        rows.append(
            {
                **finding,
                "text": shorten_paths(str(evidence.get("text", ""))),
                "ids": ids,
                "n_more": max(int(evidence.get("n", 0)) - len(ids), 0) if ids else 0,
                "figures": _figures(finding["taints"]),
            }
        )
    return rows


def _figures(taints: Sequence[str]) -> str:
    """Say which figures rest on a finding."""
    runs = [taint.removeprefix("run:") for taint in taints if taint.startswith("run:")]
    parts = [f"all {taint} figures" for taint in taints if not taint.startswith("run:")]
    if runs:
        parts.append(f"run {runs[0]}" if len(runs) == 1 else f"runs {', '.join(runs)}")
    return "; ".join(parts)
