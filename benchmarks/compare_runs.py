"""Two architectures of a training job on the validation patients of some folds, paired.

    python benchmarks/compare_runs.py --out OUT --rows A B --folds 3 4

For the settings that a search found, on folds it did not select on (see
`jobs/experiments/compare_mitbih.yaml`): macro F1 of each row, the mean over seeds and folds, and the
difference with its 95 % interval over patients. Both rows are evaluated in the same 2,000 resamples
of each fold's patients. Every run stopped at its best epoch by the same validation examples, so that
both figures are a little too high.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from rayecg.core.files import read_json, read_table
from rayecg.metrics.bootstrap import mean_of_known, percentiles
from rayecg.metrics.classification import macro_f1
from rayecg.metrics.resamples import Resamples, label_values

KEYS = ["record_id", "offset"]


def evaluate(out: Path, row: str, fold: int) -> tuple[list[float], np.ndarray, int]:
    """Give a row's macro F1 on a fold for each seed, their mean in each resample, and the patients."""
    examples = read_table(out / "work" / "examples.parquet").to_pandas()
    held = examples[(examples["split"] == "validation") & (examples["fold"] == fold)]
    labels = [name.removeprefix("target_") for name in held if name.startswith("target_")]
    resamples = Resamples.of(held["patient_id"])
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
        values_RC = label_values("f1", target_NC, decision_NC, both["patient_id"], resamples)
        drawn.append(mean_of_known(values_RC, axis=1))
    if not points:
        sys.exit(f"{out}: expected runs named {row}-fold{fold}-seed…, there is none")
    return points, np.mean(drawn, axis=0), len(resamples.names_G)


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
    points = {row: [points for points, _, _ in folds] for row, folds in found.items()}
    means = {row: float(np.mean(own)) for row, own in points.items()}
    difference = means[arguments.rows[0]] - means[arguments.rows[1]]
    drawn_R = np.mean([one[1] - other[1] for one, other in zip(first, second, strict=True)], axis=0)
    low, high = percentiles(drawn_R)
    told = {
        "folds": arguments.folds,
        "patients": [n for _, _, n in first],
        "macro_f1": points,
        "means": means,
        "difference": difference,
        "interval": [low, high],
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
    print(
        f"difference   {difference:+.3f}, 95 % interval over patients {low:+.3f} to {high:+.3f} "
        f"({' and '.join(map(str, told['patients']))} patients)"
    )


if __name__ == "__main__":
    main()
