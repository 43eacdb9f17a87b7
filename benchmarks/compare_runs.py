"""Two architectures of a training job on the validation patients of some folds, paired.

    python benchmarks/compare_runs.py --out OUT --rows A B --folds 3 4

For the settings that a search found, on folds it did not select on (see
`jobs/experiments/compare_mitbih.yaml`): macro F1 of each row, the mean over seeds and folds, and the
difference with its 95 % interval over patients and p (`rayecg.metrics.comparison`). Both rows are
evaluated in the same 2,000 resamples of each fold's patients. Every run stopped at its best epoch by the same validation examples, so that
both figures are a little too high.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayecg.core.files import read_json, read_table
from rayecg.metrics.bootstrap import mean_of_known, units_of_labels
from rayecg.metrics.classification import macro_f1
from rayecg.metrics.comparison import Difference, difference
from rayecg.metrics.resamples import Resamples, label_values, n_effective

KEYS = ["record_id", "offset"]


@dataclass(frozen=True)
class Fold:
    """A row on one fold: macro F1 of each seed, its labels' mean over seeds in every resample."""

    points: list[float]
    values_RC: np.ndarray
    n_groups: int
    n_effective: float
    n_units: float


def evaluate(out: Path, row: str, fold: int) -> Fold:
    """Evaluate the validation decisions of a row's seeds on a fold."""
    examples = read_table(out / "work" / "examples.parquet").to_pandas()
    held = examples[(examples["split"] == "validation") & (examples["fold"] == fold)]
    labels = [name.removeprefix("target_") for name in held if name.startswith("target_")]
    patients_N = held["patient_id"].to_numpy(dtype=np.str_)
    resamples = Resamples.of(patients_N)
    points, drawn = [], []
    for folder in sorted(out.glob(f"{row}-fold{fold}-seed*")):
        if read_json(folder / "run.json")["status"] != "ok":
            sys.exit(f"{folder}: expected a finished run")
        decided = read_table(folder / "validation.parquet").to_pandas()
        both = held.merge(decided, on=KEYS, validate="one_to_one")
        target_NC, decision_NC = (
            both[[f"{kind}_{label}" for label in labels]].to_numpy()
            for kind in ("target", "decision")
        )
        points.append(macro_f1(target_NC, decision_NC))
        own_N = both["patient_id"].to_numpy(dtype=np.str_)
        drawn.append(label_values("f1", target_NC, decision_NC, own_N, resamples))
    if not points:
        sys.exit(f"{out}: expected runs named {row}-fold{fold}-seed…, there is none")
    targets_NC = held[[f"target_{label}" for label in labels]].to_numpy(dtype=bool)
    return Fold(
        points,
        mean_of_known(np.stack(drawn), axis=0),
        len(resamples.names_G),
        n_effective(patients_N),
        units_of_labels(targets_NC, patients_N),
    )


def compare(a: list[Fold], b: list[Fold]) -> Difference:
    """Give the mean over seeds and folds of `a` less that of `b`: in each fold, what both have."""
    less = [mean_of_known(i.values_RC - j.values_RC, axis=1) for i, j in zip(a, b, strict=True)]
    means = [np.mean([fold.points for fold in row]) for row in (a, b)]
    sizes = sum(fold.n_groups for fold in a), sum(fold.n_effective for fold in a)
    values_R = mean_of_known(np.stack(less), axis=0)
    n_units = sum(fold.n_units for fold in a)
    return difference(float(means[0] - means[1]), values_R, sizes, n_units=n_units)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", required=True, type=Path, help="the training job's output folder")
    parser.add_argument("--rows", required=True, nargs=2, help="two architectures, by their labels")
    parser.add_argument("--folds", required=True, nargs="+", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found = {
        row: [evaluate(arguments.out, row, fold) for fold in arguments.folds]
        for row in arguments.rows
    }
    first, second = found.values()
    points = {row: [fold.points for fold in folds] for row, folds in found.items()}
    means = {row: float(np.mean(own)) for row, own in points.items()}
    less = compare(first, second)
    told = {
        "folds": arguments.folds,
        "patients": [fold.n_groups for fold in first],
        "macro_f1": points,
        "means": means,
        "difference": less.point,
        "interval": [less.low, less.high],
        "p_value": less.p_value,
        "warning": less.warning,
    }
    if arguments.json:
        json.dump(told, sys.stdout, indent=2)
        print()
        return
    for row, folds in points.items():
        each = "; ".join(
            f"fold {fold}: " + ", ".join(f"{value:.3f}" for value in own)
            for fold, own in zip(arguments.folds, folds, strict=True)
        )
        print(f"{row:12s} mean {means[row]:.3f} ({each})")
    doubt = f"; {less.warning}" if less.warning else ""
    print(
        f"difference   {less.point:+.3f}, 95 % interval over patients {less.low:+.3f} to "
        f"{less.high:+.3f}, p {less.p_value:.3f} "
        f"({' and '.join(map(str, told['patients']))} patients{doubt})"
    )


if __name__ == "__main__":
    main()
