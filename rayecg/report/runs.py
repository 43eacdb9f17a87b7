"""One row for every run, those that failed included."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from rayecg.metrics.averages import DECISION_METRICS, SCORE_METRICS
from rayecg.metrics.challenge import NORMAL, challenge_score, challenge_weights
from rayecg.metrics.classification import AVERAGES_BY_DECISION, AVERAGES_BY_SCORE
from rayecg.metrics.fmax import f_at_threshold, fmax_threshold
from rayecg.report.benchmark import Benchmark, Outputs
from rayecg.report.text import shorten_paths

#: What the summary shows of runs.
HEADLINE = ("macro_auroc", "macro_auprc", "macro_f1", "accuracy")
#: All that is evaluated of runs and of labels, on validation and on test.
METRICS = tuple(
    dict.fromkeys(
        (
            *HEADLINE,
            *AVERAGES_BY_SCORE,
            *AVERAGES_BY_DECISION,
            *("hamming_loss", "challenge_f2", "challenge_g2"),
        )
    )
)
LABEL_METRICS = (
    *SCORE_METRICS,
    *DECISION_METRICS,
    *("n_positive", "tp", "fp", "fn", "tn"),
)
#: Figures of the test split that need more than its outputs, and a threshold chosen on validation.
OF_TEST = ("fmax_threshold", "test_fmax", "test_challenge_score")

_TEXT = ("run", "architecture", "task", "split", "status", "error", "verdict", "data")
_FLAGS = ("chosen", "synthetic")
_COUNTS = (
    "seed",
    "fold",
    "n_members",
    "n_parameters",
    "epochs",
    "best_epoch",
    "n_test",
    "n_test_scored",
    "n_test_missing",
    "n_test_abstained",
)


def schema(labels: Sequence[str]) -> pa.Schema:
    """Give the columns of `runs.parquet`."""
    metrics = [*METRICS, *(f"{metric}_{label}" for label in labels for metric in LABEL_METRICS)]
    return pa.schema(
        [
            *(pa.field(name, pa.string()) for name in _TEXT[:4]),
            *(pa.field(name, pa.int64()) for name in _COUNTS[:3]),
            *(pa.field(name, pa.string()) for name in _TEXT[4:]),
            *(pa.field(name, pa.bool_()) for name in _FLAGS),
            *(pa.field(name, pa.int64()) for name in _COUNTS[3:]),
            pa.field("seconds", pa.float64()),
            pa.field("examples_per_s", pa.float64()),
            *(
                pa.field(f"{part}_{m}", pa.float64())
                for part in ("validation", "test")
                for m in metrics
            ),
            *(pa.field(name, pa.float64()) for name in OF_TEST),
        ]
    )


def collect_runs(benchmark: Benchmark) -> pd.DataFrame:
    """Evaluate every run on the test split, from the decisions in its files; nothing of the audit.

    Returns
    -------
    pd.DataFrame
        The columns of `schema`, in the order of run names; runs that the experiment plans and that
        left nothing behind come last. Counts and metrics of a run without predictions are null.
        Ensembles have rows of their own: there, and there alone, `n_members` is not null.
    """
    rows = [_row(benchmark, run, said) for run, said in benchmark.run_files.items()]
    rows += _absent(benchmark, rows)
    best = _best(rows, f"validation_{benchmark.primary}", by_fold=benchmark.n_folds > 1)
    fields = schema(benchmark.labels)
    for row in rows:
        row["chosen"] = row["run"] in best
    table = pa.Table.from_pylist([{n: row.get(n) for n in fields.names} for row in rows], fields)
    runs: pd.DataFrame = table.to_pandas()
    for name in _COUNTS:
        runs[name] = runs[name].astype("Int64")
    return runs


def with_verdicts(runs: pd.DataFrame, findings: Sequence[Mapping[str, Any]] | None) -> pd.DataFrame:
    """Say beside the figures of each run what the audit says of them."""
    done = runs["status"].isin(["ok", "not scored"])
    said = [
        verdict(findings, [run]) if is_done else "no figures"
        for run, is_done in zip(runs["run"], done, strict=True)
    ]
    return runs.assign(verdict=said)


def run_table(runs: pd.DataFrame, labels: Sequence[str]) -> pa.Table:
    """Give the table of `runs.parquet`."""
    fields = schema(labels)
    columns = [pa.array(runs[field.name], type=field.type, from_pandas=True) for field in fields]
    return pa.Table.from_arrays(columns, schema=fields.remove_metadata())


def _row(benchmark: Benchmark, run: str, said: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: said.get(name)
        for name in ("architecture", "task", "split", "seed", "fold", "n_parameters")
    }
    row |= {name: said.get(name) for name in ("epochs", "best_epoch", "seconds", "examples_per_s")}
    error = said.get("error")
    row |= {
        "run": run,
        "n_members": len(said["members"]) if "members" in said else None,
        "status": said.get("status"),
        "error": None if error is None else shorten_paths(str(error)),
        "synthetic": benchmark.synthetic,
        "data": benchmark.data_label,
        "verdict": "no figures",
    }
    row |= {f"validation_{k}": v for k, v in (said.get("validation") or {}).items()}
    if row["status"] != "ok":
        return row
    outputs = benchmark.outputs(run)
    if outputs is None:
        return row | {"status": "not scored", "error": "the scoring of this run did not finish"}
    row |= {
        "n_test": outputs.n_examples,
        "n_test_missing": outputs.n_missing,
        "n_test_scored": len(outputs.targets_NC),
        "n_test_abstained": int((~outputs.decided).sum()),
    }
    row |= {f"test_{name}": value for name, value in outputs.metrics().items()}
    return row | of_test(benchmark.task, outputs, benchmark.outputs(run, "validation"))


def of_test(
    task: Mapping[str, Any], outputs: Outputs, validation: Outputs | None
) -> dict[str, float]:
    """Give the figures of `OF_TEST` that there are.

    Fmax is of multilabel tasks: its threshold is chosen on validation, never on the examples that it
    is a figure of. The challenge's score is of the task with its labels.
    """
    found = {}
    if task["kind"] == "multilabel" and validation is not None and len(validation.targets_NC):
        threshold = fmax_threshold(validation.targets_NC, validation.probabilities_NC)
        figure = f_at_threshold(outputs.targets_NC, outputs.probabilities_NC, threshold)
        found = {"fmax_threshold": threshold, "test_fmax": figure}
    if task["name"] == "cinc_snomed":
        weights_CC, normal = challenge_weights(outputs.labels), outputs.labels.index(NORMAL)
        own_N = outputs.decided
        found["test_challenge_score"] = challenge_score(
            outputs.targets_NC[own_N], outputs.decisions_NC[own_N], weights_CC, normal
        )
    return found


def _absent(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give rows to the runs that the experiment plans and that have no `run.json`."""
    there = {(row["architecture"], row["seed"], row["fold"]) for row in rows}
    folds = sorted(benchmark.examples["fold"].dropna().unique()) or [None]
    titles = [
        settings if isinstance(settings, str) else settings.get("label") or settings["name"]
        for settings in benchmark.experiment.get("architectures") or ()
    ]
    missing = []
    for title, seed, fold in itertools.product(
        titles, benchmark.experiment.get("seeds") or (), folds
    ):
        if (title, seed, fold) not in there:
            where = "" if fold is None else f", fold {fold}"
            missing.append(
                {
                    "run": f"{title}{where}, seed {seed}",
                    "architecture": title,
                    "task": benchmark.task["name"],
                    "split": benchmark.task["split"]["name"],
                    "seed": seed,
                    "fold": fold,
                    "status": "not finished",
                    "error": "planned by the experiment, and left no run.json",
                    "synthetic": benchmark.synthetic,
                    "data": benchmark.data_label,
                    "verdict": "no figures",
                }
            )
    return missing


def _best(rows: Iterable[Mapping[str, Any]], column: str, by_fold: bool) -> set[str]:
    """Name the finished run with the highest validation figure; the first of equals.

    An ensemble is not chosen: it is no checkpoint that one could take home.

    With folds, whose figures do not compare with one another, all runs of the architecture with the
    highest mean, among those that lack no run.
    """
    runs = pd.DataFrame(list(rows))
    if column not in runs:
        return set()
    runs = runs[runs["n_members"].isna()]
    done = runs[runs["status"].isin(["ok", "not scored"]) & runs[column].notna()]
    if by_fold:
        done = done[done["architecture"].isin(complete(runs, done))]
    if not len(done):
        return set()
    by = "architecture" if by_fold else "run"
    best = done.groupby(by, sort=False)[column].mean().idxmax()
    return set(done.loc[done[by] == best, "run"])


def complete(runs: pd.DataFrame, done: pd.DataFrame) -> set[str]:
    """Name the architectures that have a row of `done` for every seed and fold of `runs`.

    A mean over the easy folds alone would beat one over all of them. Ensembles have no seeds, and are
    asked for every fold.
    """
    found: set[str] = set()
    for alone in (True, False):
        own, own_done = (rows[rows["n_members"].isna() == alone] for rows in (runs, done))
        n_planned = len(own[["seed", "fold"]].drop_duplicates())
        each = own_done.drop_duplicates(["architecture", "seed", "fold"])["architecture"]
        n_done = each.value_counts()
        found |= set(n_done.index[n_done == n_planned])
    return found


def verdict(findings: Sequence[Mapping[str, Any]] | None, runs: Iterable[str]) -> str:
    """Phrase what the audit says of the figures of some runs.

    `passed` alone means that every rule was checked and none is violated. A violated rule that does
    not invalidate the figures is marked `(weakens)`.
    """
    if not findings:
        return "not audited"
    rests_on = {"validation", "test", *(f"run:{run}" for run in runs)}
    found: dict[str, dict[str, str | None]] = {"violated": {}, "not checked": {}}
    for finding in findings:
        if finding["verdict"] in found and rests_on & set(finding["taints"]):
            found[finding["verdict"]].setdefault(finding["rule_id"], finding.get("severity"))
    parts = []
    if found["violated"]:
        named = (
            f"{rule} (weakens)" if severity == "weakens" else rule
            for rule, severity in found["violated"].items()
        )
        parts.append(f"violated: {', '.join(named)}")
    n_open = len([rule for rule in found["not checked"] if rule not in found["violated"]])
    if n_open:
        parts.append(f"{n_open} rule{'s' if n_open > 1 else ''} not checked")
    return "; ".join(parts) or "passed"
