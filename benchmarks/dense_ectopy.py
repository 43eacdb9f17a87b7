"""Supraventricular beats of patients in whom they are the rule: with condensed copies, and without.

    python benchmarks/dense_ectopy.py --mitbih DIR [--json]

Within DS1 of MIT-BIH, in five patient-grouped folds: `feature_boosting` trained on the records as
they are (`plain`), and on condensed copies beside them (`condensed`, `train.augment.condense: [S]`).
Both are validated on other patients' records as they are, and on condensed copies of those, in which
a third to all beats are supraventricular: what record 232 is like, though nothing of DS2 is read. F1
of S, for each record with enough S beats for a condensed copy, the mean over these, and pooled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rayecg import pipeline
from rayecg.core.experiment import Experiment
from rayecg.core.files import read_table
from rayecg.core.folders import Folders
from rayecg.core.session import ray_session
from rayecg.core.settings import load_settings
from rayecg.core.versions import versions
from rayecg.metrics.classification import f1
from rayecg.models.catalogue import ModelInputs, build_model
from rayecg.tasks.task import target_matrix
from rayecg.train.losses import class_weights
from rayecg.train.resident import KEYS, build_windows
from rayecg.train.run import Run

SETTINGS = Path(__file__).parents[1] / "jobs" / "experiments" / "mitbih_beats.yaml"
LABEL = "S"
#: The models, and the average of their probabilities.
ROWS = ("plain", "condensed", "both")


def read(run: Run, folders: Folders, cache: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Give a fold's windows, condensed ones too, with split and targets, and their features."""
    folder = build_windows(run, folders.shards, folders.examples, cache)
    windows = read_table(folder / "windows.parquet").to_pandas().reset_index(names="row")
    examples = read_table(folders.examples)
    names = [f"target_{label}" for label in run.task.label_names]
    table = examples.select([*KEYS, "split", "fold"]).to_pandas()
    table[names] = target_matrix(run.task, examples)
    own = table[table["fold"] == run.task.split.fold]
    found = windows.merge(own, on=KEYS).sort_values("row")
    side_WM = np.load(folder / "side.npy", mmap_mode="r")[found["row"]]
    return found.rename(columns=dict(zip(names, run.task.label_names, strict=True))), side_WM


def fitted(run: Run, target_WC: np.ndarray, side_WM: np.ndarray) -> Any:
    """Fit the run's model as its own training does."""
    labels, architecture = run.task.label_names, run.architecture
    inputs = ModelInputs.of(run.input)
    model: Any = build_model(architecture.name, inputs, len(labels), architecture.hyperparameters)
    weight_C = class_weights(target_WC, run.settings.loss.class_weights)
    model.fit(side_WM, target_WC, run.task.kind, weight_C, run.seed)
    return model.eval()


def one_fold(run: Run, folders: Folders, cache: Path) -> pd.DataFrame:
    """Train both ways on a fold; gives its validation windows with the decisions on S."""
    windows, side_WM = read(run, folders, cache)
    labels = list(run.task.label_names)
    target_WC = windows[labels].to_numpy(dtype=np.float32)
    train_W = (windows["split"] == "train").to_numpy()
    held_W = (windows["split"] == "validation").to_numpy()
    probability = []
    for used_W in (train_W & ~windows["condensed"].to_numpy(), train_W):
        model = fitted(run, target_WC[used_W], side_WM[used_W])
        with torch.inference_mode():
            logit_WC = model(torch.empty(0), torch.from_numpy(side_WM[held_W]))
        probability.append(logit_WC.softmax(dim=1).numpy())
    probability.append(np.mean(probability, axis=0))
    found = windows.loc[held_W, ["record_id", LABEL]].reset_index(drop=True)
    found["is_copy"] = windows.loc[held_W, "condensed"].to_numpy()
    for name, own_WC in zip(ROWS, probability, strict=True):
        found[name] = own_WC.argmax(axis=1) == labels.index(LABEL)
    return found


def measure(held: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Give F1 of S of each model, on the records as they are and condensed."""
    patients = sorted(held.loc[held["is_copy"], "record_id"].unique())
    rows: dict[str, dict[str, float]] = {}
    for name, is_copy in itertools.product(ROWS, (False, True)):
        own = held[held["is_copy"] == is_copy]
        target_W, decision_W = own[LABEL].to_numpy() > 0, own[name].to_numpy()
        each = {}
        for patient in patients:
            here_W = (own["record_id"] == patient).to_numpy()
            each[str(patient)] = f1(target_W[here_W], decision_W[here_W])
        rows[f"{name}, {'condensed' if is_copy else 'as they are'}"] = {
            "mean": float(np.mean(list(each.values()))),
            "pooled": f1(target_W, decision_W),
            **each,
        }
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mitbih", required=True, help="folder of MIT-BIH's records")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    experiment = load_settings(Experiment, SETTINGS, [f"archive.path={arguments.mitbih}"])
    with tempfile.TemporaryDirectory() as folder, ray_session():
        folders = Folders.of_benchmark(Path(folder) / "out")
        task, key = pipeline.prepare(experiment, folders)
        runs = pipeline.plan_runs(experiment, task, key, synthetic=False)
        condensing = [run for run in runs if run.settings.augment.condense]
        held = pd.concat([one_fold(run, folders, Path(folder) / "cache") for run in condensing])
    rows = measure(held)
    if arguments.json:
        json.dump({"versions": versions(), "rows": rows}, sys.stdout, indent=2)
        print()
        return
    for name, row in rows.items():
        print(f"{name:24s} " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
