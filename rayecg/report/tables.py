"""From runs to tables: one function each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd

from rayecg.core.errors import ERROR_CODES
from rayecg.report.benchmark import Benchmark
from rayecg.report.intervals import LABEL_METRICS, Intervals
from rayecg.report.runs import HEADLINE, complete, verdict
from rayecg.report.runs import LABEL_METRICS as OF_LABELS
from rayecg.tasks.task import SPLITS


def _spread(values: pd.Series) -> dict[str, float]:
    known = values.astype("float64").dropna().to_numpy()
    if not len(known):
        return dict.fromkeys(("mean", "sd", "min", "max"), float("nan"))
    return {
        "mean": float(known.mean()),
        "sd": float(known.std(ddof=1)) if len(known) > 1 else float("nan"),
        "min": float(known.min()),
        "max": float(known.max()),
    }


def _ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": ends[0], f"{name}_high": ends[1]}


def largest_count(runs: pd.DataFrame, column: str, benchmark: Benchmark) -> int | None:
    """Count test examples over the folds of each architecture and seed; gives the largest count.

    Where folds test on the same examples, these are counted once.
    """
    each = runs[runs[column].notna()].groupby(["architecture", "seed"], dropna=False)[column]
    counts = each.sum() if benchmark.tests_once else each.max()
    return int(counts.max()) if len(counts) else None


def summary(runs: pd.DataFrame, benchmark: Benchmark, intervals: Intervals) -> pd.DataFrame:
    """Give one row per architecture: mean, standard deviation and range over its seeds.

    Some test figures have an interval over patients (`_low`, `_high`).

    Ordered by the mean validation figure of the primary metric, as nothing is ordered or chosen by
    test figures. With folds, whose figures do not compare with one another, an architecture that
    lacks a run comes after those that are complete. One without a finished run keeps its row. Each
    kind of ensemble has a row as if it were an architecture, if one was made.
    """
    rows = []
    validation = f"validation_{benchmark.primary}"
    whole = complete(runs, runs[(runs["status"] == "ok") & runs[validation].notna()])
    for architecture, own in runs.groupby("architecture", sort=False):
        done = own[own["status"] == "ok"]
        n_members = own["n_members"].max()
        if pd.notna(n_members) and not len(done):
            continue
        row: dict[str, Any] = {
            "architecture": architecture,
            "chosen": bool(own["chosen"].any()),
            "complete": architecture in whole,
            "n_parameters": done["n_parameters"].max() if len(done) else None,
            "n_seeds": len(done),
            "n_members": None if pd.isna(n_members) else n_members,
            "n_failed": len(own) - len(done),
        }
        for part, metrics in (("validation", [benchmark.primary]), ("test", HEADLINE)):
            for metric in metrics:
                found = _spread(done[f"{part}_{metric}"])
                row |= {f"{part}_{metric}_{name}": value for name, value in found.items()}
                if part == "test" and metric in intervals.metrics:
                    row |= _ends(f"test_{metric}", intervals.of(str(architecture), metric))
        for name in ("n_test", "n_test_missing", "n_test_abstained"):
            row[name] = largest_count(done, name, benchmark)
        row["n_test_patients"] = intervals.n_patients.get(str(architecture))
        row["seconds_mean"] = _spread(done["seconds"])["mean"]
        row["verdict"] = verdict(benchmark.findings, done["run"]) if len(done) else "no figures"
        row["data"] = benchmark.data_label
        rows.append(row)
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    by = ["complete"] * (benchmark.n_folds > 1) + [f"{validation}_mean"]
    table = table.sort_values(by, ascending=False, kind="stable", na_position="last")
    counts = ("n_test", "n_test_missing", "n_test_abstained", "n_test_patients")
    for name in ("n_members", "n_parameters", *counts):
        table[name] = table[name].astype("Int64")
    return table.reset_index(drop=True)


def per_class(
    runs: pd.DataFrame, benchmark: Benchmark, architectures: Sequence[str], intervals: Intervals
) -> pd.DataFrame:
    """Give one row per architecture and label: test metrics over seeds, and the positives scored."""
    rows = []
    for architecture in architectures:
        done = runs[(runs["architecture"] == architecture) & (runs["status"] == "ok")]
        if not len(done):
            continue
        for label in benchmark.labels:
            row: dict[str, Any] = {
                "architecture": architecture,
                "label": label,
                "n_positive": largest_count(done, f"test_n_positive_{label}", benchmark),
                "n_seeds": len(done),
            }
            for metric in OF_LABELS:
                if metric == "n_positive":
                    continue
                found = _spread(done[f"test_{metric}_{label}"])
                row |= {f"{metric}_mean": found["mean"], f"{metric}_sd": found["sd"]}
                if metric in LABEL_METRICS:
                    row |= _ends(metric, intervals.of(architecture, f"{metric}_{label}"))
            row["verdict"] = verdict(benchmark.findings, done["run"])
            row["data"] = benchmark.data_label
            rows.append(row)
    return pd.DataFrame(rows)


def population(benchmark: Benchmark) -> pd.DataFrame:
    """Count examples, records, patients and the positives of each label in each split.

    Of several folds each has its rows.
    """
    rows = []
    folds = sorted(benchmark.examples["fold"].dropna().unique()) or [None]
    for fold, split in itertools.product(folds, SPLITS):
        own = benchmark.split_examples(split, fold)
        rows.append(
            {
                "split": split if fold is None else f"fold {fold}, {split}",
                "examples": len(own),
                "records": own["record_id"].nunique(),
                "patients": own["patient_id"].nunique(),
                **{label: int(own[f"target_{label}"].sum()) for label in benchmark.labels},
            }
        )
    return pd.DataFrame(rows)


def left_out(benchmark: Benchmark) -> pd.DataFrame:
    """Count the examples that no figure rests on, by reason."""
    out = benchmark.examples[~benchmark.examples["split"].isin(SPLITS)]
    out = out.drop_duplicates(["record_id", "offset"])  # the same in every fold
    counts = out.groupby("reason", dropna=False).agg(
        examples=("record_id", "size"), records=("record_id", "nunique")
    )
    return counts.reset_index().sort_values("reason", kind="stable")


def quarantine_codes(benchmark: Benchmark, n_ids: int = 5) -> pd.DataFrame:
    """Count the records that could not be read, by error code, with the first few of each."""
    rows = []
    for code, own in benchmark.quarantine.groupby("error_code", sort=True):
        ids = own["record_id"].tolist()
        shown = ", ".join(ids[:n_ids]) + (", …" if len(ids) > n_ids else "")
        meaning = ERROR_CODES.get(str(code), "")
        rows.append({"error_code": code, "meaning": meaning, "records": len(own), "first": shown})
    return pd.DataFrame(rows, columns=["error_code", "meaning", "records", "first"])
