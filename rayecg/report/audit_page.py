"""The page of an audit alone: somebody else's figures with intervals, and what the rules say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rayecg.core.files import read_json, write_text
from rayecg.core.prediction_table import ONLY_RUN, PredictionTable
from rayecg.metrics.bootstrap import Interval
from rayecg.metrics.of_table import measured, metric_names, persons
from rayecg.report.layout import Table, findings_rows
from rayecg.report.page import fill, rule_counts
from rayecg.report.runs import verdict
from rayecg.report.text import (
    NOTHING,
    NOTHING_NOTE,
    count,
    interval,
    listed,
    metric_title,
    number,
    plain_table,
    some,
    with_interval,
)
from rayecg.report.write import ReportResult

Findings = Sequence[Mapping[str, Any]]

#: Splits that figures are given of; on the training split they would say nothing.
EVALUATED = ("validation", "test")
ON_INTERVALS = ("interval-excludes-point", "resampling-unit")
#: Characters of what was seen, in the terminal.
_SHOWN = 96


def write_audit(table: PredictionTable, shards: str, out: Path) -> ReportResult:
    """Write the page of an audit of somebody else's predictions.

    Parameters
    ----------
    table
        What was audited.
    shards
        What it was held against, in words; empty if nothing.
    out
        Holds the audit's `findings.json`, and gets `figures.csv` (every figure with its interval over
        patients) and `index.html`.
    """
    out = Path(out)
    findings: Findings = read_json(out / "findings.json", list)
    figures = measure(table)
    write_text(out / "figures.csv", figures.to_csv(index=False, lineterminator="\n"))
    word = verdict(findings, table.runs)
    shown = Shown(table, figures, findings)
    page = fill(
        "audit.html",
        title=f"Audit of {table.name}",
        subtitle=f"{some(len(table.rows), 'row')}, {some(len(table.runs), 'run')}, "
        f"{some(len(table.labels), 'label')}",
        verdict=word,
        headline=shown.headline(word),
        figures=shown.summary(),
        per_class=shown.per_class(),
        claims=shown.claims(),
        population=shown.population(),
        notes=_notes(table, shards),
        nothing_note=NOTHING_NOTE,
        findings=findings_rows(findings),
        counts=rule_counts(findings),
    )
    write_text(out / "index.html", page)
    said = _terminal(findings, shown.summary(), word)
    if table.unread:
        said += f"\nnot read, as they mean nothing here: {listed(table.unread)}"
    return ReportResult(said, out / "index.html")


def measure(table: PredictionTable) -> pd.DataFrame:
    """Compute every metric of every run on validation and test, with its interval over patients.

    Returns
    -------
    pd.DataFrame
        `run, split, metric, point, low, high, n_patients, n_effective, warning`; a metric that is not
        defined has a point of NaN.
    """
    rows = []
    for run in table.runs:
        for split in EVALUATED:
            for metric in metric_names(table):
                own = measured(table, run, split, metric)
                if own is None:
                    continue
                found: Interval = own.interval()
                ends = (found.point, found.low, found.high)
                said = (found.n_groups, round(found.n_effective, 1), found.warning)
                rows.append((run, split, metric, *ends, *said))
    names = ("run", "split", "metric", "point", "low", "high", "n_patients", "n_effective")
    return pd.DataFrame(rows, columns=[*names, "warning"])


class Shown:
    """The tables of the page.

    Parameters
    ----------
    table, figures, findings
        What was audited, its figures, and the audit's word.
    """

    def __init__(self, table: PredictionTable, figures: pd.DataFrame, findings: Findings) -> None:
        self.table, self.findings = table, findings
        self.figures: dict[tuple[str, str, str], Any] = {
            (row["run"], row["split"], row["metric"]): row for row in figures.to_dict("records")
        }

    def headline(self, word: str) -> list[dict[str, str]]:
        """Give what a reader should see first."""
        items = [{"name": "Audit", "value": word, "note": rule_counts(self.findings)}]
        for split in EVALUATED[::-1]:
            key = (self.table.runs[0], split, "macro_auroc")
            if key in self.figures and len(items) < 2:
                run = "" if key[0] == ONLY_RUN else f" of {key[0]}"
                n_patients = int(self.figures[key]["n_patients"])
                note = f"95 % interval over {some(n_patients, 'patient')}"
                value = self._cell(*key)
                items.append({"name": f"{split} macro AUROC{run}", "value": value, "note": note})
        return items

    def _cell(self, run: str, split: str, metric: str) -> str:
        found = self.figures.get((run, split, metric))
        if found is None:
            return NOTHING
        return with_interval(found["point"], np.nan, found["low"], found["high"])

    def summary(self) -> Table:
        """Lay out the figures of whole runs."""
        names = [m for m in metric_names(self.table) if m.startswith("macro_") or m == "accuracy"]
        rows, warnings = [], dict[str, None]()
        for run in self.table.runs:
            for split in EVALUATED:
                own = self.table.of_run(run, split)
                if not len(own):
                    continue
                first = self.figures[(run, split, names[0])]
                cells = [self._cell(run, split, name) for name in names]
                people = f"{count(first['n_patients'])} ({first['n_effective']:.1f})"
                word = verdict(self.findings, [run])
                rows.append((run, split, count(len(own)), people, *cells, word))
                if first["warning"]:
                    warnings[f"{split}: {first['warning']}."] = None
        columns = ("run", "split", "rows", "patients (effective)", *map(metric_title, names))
        return Table(
            "Figures, with 95 % intervals over patients",
            (*columns, "audit"),
            rows,
            frozenset(range(2, len(columns))),
            notes=(
                "In brackets: the 95 % interval; whole patients are drawn again, 2,000 times. Effective "
                "patients: how many of equal size would vary as much.",
                *warnings,
            ),
        )

    def per_class(self) -> Table:
        """Lay out the figures of each label on the test split."""
        metrics = [m for m in ("auroc", "auprc", "f1", "sensitivity", "ppv") if self._has(m)]
        rows = []
        for label in self.table.labels:
            for run in self.table.runs:
                own = self.table.of_run(run, "test")
                if not len(own):
                    continue
                n = count(own[f"target_{label}"].sum())
                cells = [self._cell(run, "test", f"{metric}_{label}") for metric in metrics]
                rows.append((label, run, n, *cells, verdict(self.findings, [run])))
        columns = ("label", "run", "positive", *map(metric_title, metrics), "audit")
        return Table(
            "Labels on the test split", columns, rows, frozenset(range(2, len(columns) - 1))
        )

    def _has(self, metric: str) -> bool:
        return f"{metric}_{self.table.labels[0]}" in metric_names(self.table)

    def claims(self) -> Table:
        """Lay out published intervals beside those over patients."""
        own = [finding for finding in self.findings if finding["rule_id"] in ON_INTERVALS]
        rows = []
        for one in self.table.intervals:
            found = self.figures.get((one.run, "test", one.metric), {})
            figure, low, high = (
                float(found.get(name, np.nan)) for name in ("point", "low", "high")
            )
            rows.append(
                (
                    one.run,
                    metric_title(one.metric),
                    number(one.point),
                    number(figure),
                    f"{interval(one.low, one.high)} ({one.level:.0%})",
                    interval(low, high),
                    self.table.said[one.run].get("resampling_unit") or NOTHING,
                    verdict(own, [one.run]),
                )
            )
        columns = ("run", "metric", "stated", "computed", "published interval", "over patients")
        return Table(
            "Published intervals, and those over patients (95 %)",
            (*columns, "said to resample", "audit"),
            rows,
            frozenset(range(2, 6)),
        )

    def population(self) -> Table:
        """Count who is in which split."""
        rows = []
        every = self.table.rows.drop_duplicates(["record_id", "offset", "split"])
        for split in ("train", *EVALUATED):
            own = every[every["split"] == split]
            if len(own):
                positives = (count(own[f"target_{label}"].sum()) for label in self.table.labels)
                people = len(np.unique(persons(own)))
                shape = (count(len(own)), count(own["record_id"].nunique()), count(people))
                rows.append((split, *shape, *positives))
        columns = ("split", "examples", "records", "patients", *self.table.labels)
        return Table(
            "Examples by split and label", columns, rows, frozenset(range(1, len(columns)))
        )


def _notes(table: PredictionTable, shards: str) -> list[str]:
    notes = [f"Held against {shards}." if shards else "No shards were given to hold it against."]
    n_unknown = int(table.rows.drop_duplicates("record_id")["patient_id"].isna().sum())
    if n_unknown:
        notes.append(f"{some(n_unknown, 'record')} without a patient: each counts as one.")
    if table.unread:
        notes.append(f"Columns that mean nothing here, and were not read: {listed(table.unread)}.")
    return notes


def _terminal(findings: Findings, figures: Table, word: str) -> str:
    """Give the table that the job prints."""
    rows = []
    for finding in findings:
        text = str(finding["evidence"]["text"])
        text = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
        marked = finding["verdict"] == "violated" and finding["severity"] == "weakens"
        verdict_ = f"{finding['verdict']}{' (weakens)' if marked else ''}"
        rows.append((finding["rule_id"], verdict_, text))
    parts = [plain_table(("rule", "verdict", "seen"), rows), ""]
    if figures.rows:
        keep = range(len(figures.columns) - 1)
        cut = [[row[i] for i in keep] for row in figures.rows]
        parts += [plain_table([figures.columns[i] for i in keep], cut), ""]
    parts.append(f"audit: {word} ({rule_counts(findings)})")
    return "\n".join(parts)
