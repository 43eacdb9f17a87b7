"""What 95 % intervals contain: simulated studies of patients whose truth is known.

    python benchmarks/interval_coverage.py [--json] [--studies 1000] [--icc 0.5] [--out reports/coverage]

A study has 300, 50 or 22 patients. How many records each has is drawn between 1 and 30, its logarithm
evenly: half of the patients have fewer than six, and 50 patients vary as much as 26 of equal size. Five
labels have prevalences of 0.4 to 0.1 and AUROCs of 0.80 to 0.90. A label is there where the sum of a
normal part of the patient and one of the record is high; a score is normal with variance 1, higher by
the label's distance where it is there, and again the sum of a part of the patient and one of the record.
`--icc` is the patient's share of both variances. A second model's noise correlates 0.7 with the first's.

The truth is the population's: what a metric is of all records of infinitely many such patients. Then a
positive and a negative record are of two patients, so that the AUROC is Phi(distance / sqrt(2)); F1
follows from prevalence and threshold. Both are compared with one study of 40,000 patients.

Each study is evaluated in 1,000 resamples: of patients, by the three methods of `bootstrap_interval`; of
records, as if each were a patient; and by DeLong's formula for one AUROC, with patients (Obuchowski) and
without.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from rayecg.core.files import replacing, write_text
from rayecg.core.versions import versions
from rayecg.metrics.bootstrap import METHODS, Measured, ends, mean_of_known, warning
from rayecg.metrics.comparison import bootstrap_difference
from rayecg.metrics.delong import auroc_interval
from rayecg.metrics.resamples import Resamples, n_effective
from rayecg.report.style import INK, PALE, colour, legend, new_figure, png, tidy
from rayecg.report.text import markdown_table

SIZES = (300, 50, 22)
MOST_RECORDS, N_RESAMPLES, LEVEL = 30, 1000, 0.95
PREVALENCE_C = np.array([0.4, 0.3, 0.2, 0.15, 0.1])
AUROC_C = np.array([0.90, 0.85, 0.90, 0.80, 0.85])
#: Of the second model, whose noise correlates with the first's.
OTHER_AUROC_C, CORRELATION = AUROC_C - 0.03, 0.7
#: The label that metrics of one label are shown of, and the score from which it is decided for.
LABEL, THRESHOLD = 1, 1.0
#: What the share of intervals that contain the truth is asked to be, at 300 and 50 patients.
ASKED = (0.93, 0.97)
METRICS = ("auroc", "f1", "macro_auroc", "difference of macro_auroc")
TITLES = {
    "student": "patients: student (the default)",
    "percentile": "patients: percentile",
    "bca": "patients: BCa",
    "delong": "patients: DeLong, clustered",
    "records": "records: student",
    "records, percentile": "records: percentile",
    "records, delong": "records: DeLong",
}


@dataclass(frozen=True)
class Study:
    """Records of some patients: targets (N, C), scores of two models (N, C), patients (N,)."""

    targets_NC: np.ndarray
    scores_NC: np.ndarray
    other_NC: np.ndarray
    patients_N: np.ndarray

    @classmethod
    def draw(cls, n_patients: int, icc: float, seed: tuple[int, ...]) -> Study:
        """Draw one."""
        rng = np.random.default_rng(seed)
        sizes_G = np.exp(rng.uniform(0, np.log(MOST_RECORDS + 1), n_patients)).astype(int)
        patients_N = np.repeat(np.arange(n_patients), sizes_G)

        def parts() -> np.ndarray:
            of_patients_GC = rng.normal(size=(n_patients, len(AUROC_C)))
            of_records_NC = rng.normal(size=(len(patients_N), len(AUROC_C)))
            return np.sqrt(icc) * of_patients_GC[patients_N] + np.sqrt(1 - icc) * of_records_NC

        targets_NC = parts() > norm.isf(PREVALENCE_C)
        noise_NC = parts()
        other_NC = CORRELATION * noise_NC + np.sqrt(1 - CORRELATION**2) * parts()
        return cls(
            targets_NC,
            distance(AUROC_C) * targets_NC + noise_NC,
            distance(OTHER_AUROC_C) * targets_NC + other_NC,
            patients_N,
        )

    def examples(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield metrics with the targets and scores or decisions that they are computed of."""
        target_N, score_N = self.targets_NC[:, LABEL], self.scores_NC[:, LABEL]
        yield "auroc", target_N, score_N
        yield "f1", target_N, score_N >= THRESHOLD
        yield "macro_auroc", self.targets_NC, self.scores_NC


def distance(auroc: np.ndarray) -> np.ndarray:
    """Give how far positives' scores lie above the others', in standard deviations."""
    return np.asarray(np.sqrt(2) * norm.ppf(auroc))


def truth() -> dict[str, float]:
    """Give the metrics of the population."""
    found, missed = (norm.sf(THRESHOLD - d) for d in (distance(AUROC_C)[LABEL], 0.0))
    share = PREVALENCE_C[LABEL]
    return {
        "auroc": float(AUROC_C[LABEL]),
        "f1": float(2 * share * found / (share + share * found + (1 - share) * missed)),
        "macro_auroc": float(AUROC_C.mean()),
        "difference of macro_auroc": float((AUROC_C - OTHER_AUROC_C).mean()),
    }


def evaluate(n_patients: int, icc: float, seed: int) -> list[dict[str, Any]]:
    """Give the intervals of one study."""
    study = Study.draw(n_patients, icc, (seed, n_patients))
    patients_N = study.patients_N
    sizes = n_patients, n_effective(patients_N)
    rows: list[dict[str, Any]] = []

    def add(metric: str, method: str, low: float, high: float, said: str) -> None:
        known = {"n_patients": n_patients, "n_effective": sizes[1], "n_records": len(patients_N)}
        interval = {"low": low, "high": high, "warning": bool(said)}
        rows.append({"metric": metric, "method": method, **interval, **known})

    for groups_N, methods, before in (
        (patients_N, METHODS, ""),
        (np.arange(len(patients_N)), ("student", "percentile"), "records, "),
    ):
        resamples = Resamples.of(groups_N, N_RESAMPLES, seed)
        for metric, targets, scores in study.examples():
            measured = Measured.of(metric, targets, scores, groups_N)
            values_R = mean_of_known(measured.values(resamples), axis=1)
            without_G = measured.without_one() if "bca" in methods else None
            for method in methods:
                low, high, used = ends(
                    method, measured.point, values_R, measured.n_units, LEVEL, without_G
                )
                said = warning(measured.point, (low, high), (method, used), len(resamples.names_G))
                add(metric, f"{before}{method}".replace(", student", ""), low, high, said)
    target_N, score_N = study.targets_NC[:, LABEL], study.scores_NC[:, LABEL]
    for title, of_N in (("delong", patients_N), ("records, delong", None)):
        found = auroc_interval(target_N, score_N, of_N)
        add("auroc", title, found.low, found.high, found.warning)
    pair = study.targets_NC, study.scores_NC, study.other_NC
    less = bootstrap_difference("macro_auroc", *pair, patients_N, N_RESAMPLES, seed=seed)
    add("difference of macro_auroc", "student", less.low, less.high, less.warning)
    return rows


def evaluate_many(job: tuple[int, float, list[int]]) -> list[dict[str, Any]]:
    """Evaluate some studies."""
    n_patients, icc, seeds = job
    return [row for seed in seeds for row in evaluate(n_patients, icc, seed)]


def coverage(n_studies: int, icc: float) -> pd.DataFrame:
    """Count, for each size, metric and method, how often the truth lies in the interval."""
    jobs = [
        (size, icc, part.tolist())
        for size in SIZES
        for part in np.array_split(np.arange(n_studies), max(n_studies // 20, 1))
    ]
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for the processes
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        rows = [row for part in pool.map(evaluate_many, jobs) for row in part]
    table = pd.DataFrame(rows)
    table["truth"] = table["metric"].map(truth())
    table["given"] = table["low"].notna()
    table["below"] = table["high"] < table["truth"]
    table["above"] = table["low"] > table["truth"]
    table["covered"] = table["given"] & ~table["below"] & ~table["above"]
    table["width"] = table["high"] - table["low"]
    found = (
        table.groupby(["n_patients", "metric", "method"])
        .agg(
            n_studies=("given", "sum"),
            coverage=("covered", "mean"),
            interval_below=("below", "mean"),
            interval_above=("above", "mean"),
            width=("width", "mean"),
            warned=("warning", "mean"),
            n_effective=("n_effective", "mean"),
            n_records=("n_records", "mean"),
            truth=("truth", "first"),
        )
        .reset_index()
    )
    order = [(size, metric, method) for size in SIZES for metric in METRICS for method in TITLES]
    places = {key: i for i, key in enumerate(order)}
    keys = zip(found["n_patients"], found["metric"], found["method"], strict=True)
    found = found.assign(place=[places[key] for key in keys])
    return found.sort_values("place").drop(columns="place").reset_index(drop=True)


def simulated_truth(icc: float) -> dict[str, float]:
    """Give the metrics of one study of many patients."""
    study = Study.draw(40_000, icc, (0, 40_000))
    found = {name: Measured.of(name, t, s).point for name, t, s in study.examples()}
    other = Measured.of("macro_auroc", study.targets_NC, study.other_NC).point
    return found | {"difference of macro_auroc": found["macro_auroc"] - other}


def verdict(table: pd.DataFrame) -> list[str]:
    """Say what was asked and what came."""
    low, high = ASKED
    own = table[(table["method"] == "student") & (table["n_patients"] > SIZES[-1])]
    n_in = int(own["coverage"].between(low, high).sum())
    least = table[(table["method"] == "student") & (table["n_patients"] == SIZES[-1])]
    records = table[table["method"].str.startswith("records") & (table["n_patients"] > SIZES[-1])]
    plain = table[(table["method"] == "percentile") & (table["n_patients"] > SIZES[-1])]
    return [
        f"The default is asked to contain the truth in {low:.0%} to {high:.0%} of the studies of "
        f"{SIZES[0]} and of {SIZES[1]} patients: it does in {n_in} of {len(own)} rows "
        f"({own['coverage'].min():.1%} to {own['coverage'].max():.1%}).",
        f"Of {SIZES[-1]} patients: {least['coverage'].min():.1%} to {least['coverage'].max():.1%}; "
        f"{least['warned'].min():.0%} of these intervals carry their warning.",
        f"The percentile interval, at {SIZES[0]} and {SIZES[1]}: {plain['coverage'].min():.1%} to "
        f"{plain['coverage'].max():.1%}.",
        f"Records taken for patients, at {SIZES[0]} and {SIZES[1]}: "
        f"{records['coverage'].min():.1%} to {records['coverage'].max():.1%}.",
    ]


def plot(table: pd.DataFrame) -> bytes:
    """Draw the coverage of every method, a panel for each size."""
    figure = new_figure(10.6, 5.0)
    panels = figure.subplots(1, len(SIZES), sharey=True, sharex=True)
    marks = dict(zip(METRICS, "osD^", strict=True))
    for axes, size in zip(panels, SIZES, strict=True):
        tidy(axes, x="share of intervals that contain the truth", grid="x")
        axes.axvspan(*ASKED, color=colour(2), alpha=0.15, lw=0)
        axes.axvline(LEVEL, color=PALE, lw=1)
        for i, metric in enumerate(METRICS):
            own = table[(table["n_patients"] == size) & (table["metric"] == metric)]
            rows = [list(TITLES).index(method) + 0.16 * (i - 1.5) for method in own["method"]]
            error = 1.96 * np.sqrt(own["coverage"] * (1 - own["coverage"]) / own["n_studies"])
            look = {"fmt": marks[metric], "ms": 5, "lw": 1, "color": colour(i)}
            axes.errorbar(own["coverage"], rows, xerr=error, label=metric, **look)
        n = table.loc[table["n_patients"] == size, "n_effective"].mean()
        axes.set_title(f"{size} patients (as {n:.0f} of equal size)", fontsize=10, color=INK)
    panels[0].set_yticks(range(len(TITLES)), list(TITLES.values()))
    panels[0].set_ylim(len(TITLES) - 0.5, -0.5)
    legend(panels[0], loc="upper left", handletextpad=0.2)
    return png(figure)


def write(out: Path, told: dict[str, Any], table: pd.DataFrame, command: str) -> None:
    """Write table, plot and text."""
    text = table.to_csv(index=False, lineterminator="\n", float_format="%.4g")
    write_text(out / "coverage.csv", text)
    with replacing(out / "coverage.png") as beside:
        beside.write_bytes(plot(table))
    columns = ("patients", "metric", "method", "contains", "too low", "too high", "width", "warned")
    rows = [
        (
            str(row["n_patients"]),
            row["metric"],
            TITLES[row["method"]],
            f"{row['coverage']:.3f}",
            f"{row['interval_below']:.3f}",
            f"{row['interval_above']:.3f}",
            f"{row['width']:.3f}",
            f"{row['warned']:.2f}",
        )
        for _, row in table.iterrows()
    ]
    about = (__doc__ or "").split("\n\n", 2)[2]
    error = np.sqrt(LEVEL * (1 - LEVEL) / told["studies"])
    said = ", ".join(
        f"{name} {value:.4f} ({told['simulated_truth'][name]:.4f})"
        for name, value in told["truth"].items()
    )
    packages = ", ".join(f"{name} {told['versions'][name]}" for name in ("python", "numpy"))
    parts = [
        "# What the intervals contain, in simulated studies\n",
        f"`{command}`: {told['studies']:,} studies of each size; {packages}.\n",
        *(f"- {line}" for line in verdict(table)),
        "\nSimulated numbers, no recordings. " + about,
        f"Truth (and the study of 40,000 patients): {said}. A share of 0.95 of {told['studies']:,} "
        f"studies has a standard error of {error:.3f}. “Too low” and “too high” are intervals that lie "
        "wholly below or above the truth.\n",
        "![The shares by method and size](coverage.png)\n",
        markdown_table(columns, rows),
    ]
    write_text(out / "summary.md", "\n".join(parts))


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--studies", type=int, default=1000, help="of each size (1000)")
    parser.add_argument("--icc", type=float, default=0.5, help="the patient's share (0.5)")
    parser.add_argument(
        "--out", type=Path, help="write coverage.csv, coverage.png, summary.md there"
    )
    arguments = parser.parse_args()
    if arguments.studies < 1 or not 0 <= arguments.icc <= 1:
        parser.error("--studies: at least 1; --icc: 0 to 1")
    table = coverage(arguments.studies, arguments.icc)
    told: dict[str, Any] = {
        "studies": arguments.studies,
        "resamples": N_RESAMPLES,
        "icc": arguments.icc,
        "truth": truth(),
        "simulated_truth": simulated_truth(arguments.icc),
        "versions": versions(),
        "verdict": verdict(table),
        "rows": table.to_dict("records"),
    }
    if arguments.out:
        write(
            arguments.out,
            told,
            table,
            " ".join(["python benchmarks/interval_coverage.py", *sys.argv[1:]]),
        )
    if arguments.json:
        json.dump(told, sys.stdout, indent=2)
        print()
        return
    print(table.drop(columns=["n_records", "truth"]).to_string(index=False, float_format="%.3f"))
    print("\n".join(told["verdict"]))


if __name__ == "__main__":
    main()
