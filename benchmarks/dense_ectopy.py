"""Supraventricular beats, also of patients in whom they are the rule, within DS1 of MIT-BIH.

    python benchmarks/dense_ectopy.py --path DIR [--json]

Each architecture of `jobs/experiments/mitbih_beats.yaml` and the mean of their probabilities, in its
five patient-grouped folds of DS1: validated on other patients' records as they are, and on condensed
copies of those, cut down to the S beats and one neighbour either side, so that a third to all beats
are supraventricular (as in record 232, of which nothing is read here). F1 of S for each record that
has enough S beats for a copy, the mean over these records, and pooled over all records.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from printing import print_rows

from rayecg import pipeline
from rayecg.core.experiment import Experiment
from rayecg.core.files import read_table
from rayecg.core.folders import Folders
from rayecg.core.record import Record
from rayecg.core.session import ray_session
from rayecg.core.settings import load_settings
from rayecg.core.shard_format import (
    shard_files,
)
from rayecg.core.shard_reader import read_records
from rayecg.metrics.classification import f1
from rayecg.models.catalogue import ModelInputs, build_model
from rayecg.signal.prepare import prepare
from rayecg.tasks.task import target_matrix
from rayecg.train.losses import class_weights
from rayecg.train.resident import resident_windows
from rayecg.train.run import Run

SETTINGS = Path(__file__).parents[1] / "jobs" / "experiments" / "mitbih_beats.yaml"
LABEL, ALL = "S", "mean of all"
#: Beats kept on either side of one of the label: what is premature is so beside an ordinary beat.
NEIGHBOURS = 1
#: Fewer beats than these have no rhythm of their own.
FEWEST = 40


def beats_of(record: Record) -> np.ndarray:
    """Give the R peaks, which every record of this archive has."""
    assert record.beat_times is not None
    return record.beat_times


def condense(record: Record, wanted_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut out of a record all beats but the wanted and their neighbours.

    A beat is kept or goes together with the interval before it: each kept beat has the RR interval
    it had, and pieces are joined at R peaks. Gives the signal (mV), the R peaks, and which they are.
    """
    times = beats_of(record)
    kept_B = np.convolve(wanted_B, np.ones(2 * NEIGHBOURS + 1), mode="same") > 0.5
    kept_K = np.flatnonzero(kept_B)
    # Sample t belongs to the first beat at or after it; what follows the last beat, to that one.
    owner_T = np.searchsorted(times, np.arange(record.digital_LT.shape[1]))
    kept_T = np.append(kept_B, kept_B[-1])[owner_T]
    time_K = (np.cumsum(kept_T) - 1)[times[kept_K]]
    assert (np.diff(time_K) == (times[kept_K] - times[kept_K - 1])[1:]).all()
    return record.physical[:, kept_T], time_K, kept_K


def held_beats(run: Run, folders: Folders) -> Iterator[tuple[str, bool, np.ndarray, np.ndarray]]:
    """Yield each validation record, as it is and condensed: name, whether a copy, columns, targets."""
    examples = read_table(folders.examples)
    table = examples.select(["record_id", "offset", "split", "fold"]).to_pandas()
    table["row"] = np.arange(len(table))
    table = table[(table["split"] == "validation") & (table["fold"] == run.task.split.fold)]
    offsets_of = {str(name): own for name, own in table.groupby("record_id")}
    target_NC = target_matrix(run.task, examples)
    label = run.task.label_names.index(LABEL)
    for file in shard_files(folders.shards):
        for row, record in read_records(file, set(offsets_of)):
            own = offsets_of[row["record_id"]].sort_values("offset")
            offsets, target_BC = own["offset"].to_numpy(), target_NC[own["row"]]
            made = prepare(
                record.physical,
                record.fs,
                record.leads,
                run.input,
                offsets,
                record.beat_times,
                row,
            )
            yield row["record_id"], False, made.side_WM, target_BC
            wanted_B = np.isin(beats_of(record), offsets[target_BC[:, label] > 0])
            signal_LT, time_K, kept_K = condense(record, wanted_B)
            own_K = np.isin(beats_of(record)[kept_K], offsets)  # not every beat is an example
            if len(kept_K) < FEWEST:
                continue
            beat_W = np.searchsorted(offsets, beats_of(record)[kept_K][own_K])
            made = prepare(
                signal_LT, record.fs, record.leads, run.input, time_K[own_K], time_K, row
            )
            yield row["record_id"], True, made.side_WM, target_BC[beat_W]


def validate(run: Run, folders: Folders, cache: Path) -> pd.DataFrame:
    """Fit a fold's model as its training does; gives a row for each validation beat."""
    train = resident_windows(run, folders.shards, folders.examples, cache)["train"]
    labels, architecture = run.task.label_names, run.architecture
    inputs = ModelInputs.of(run.input)
    model: Any = build_model(architecture.name, inputs, len(labels), architecture.hyperparameters)
    weight_C = class_weights(train.target_WC, run.settings.loss.class_weights)
    model.fit(train.all_WM[train.row_W], train.target_WC, run.task.kind, weight_C, run.seed)
    model.eval()
    found = []
    for record_id, is_copy, side_WM, target_WC in held_beats(run, folders):
        with torch.inference_mode():
            logit_WC = model(torch.empty(0), torch.from_numpy(side_WM))
        rows = pd.DataFrame(logit_WC.softmax(dim=1).numpy(), columns=list(labels))
        rows["beat"], rows["record_id"], rows["is_copy"] = np.arange(len(rows)), record_id, is_copy
        rows["target"] = target_WC[:, labels.index(LABEL)] > 0
        found.append(rows)
    return pd.concat(found).set_index(["record_id", "is_copy", "beat"]).sort_index()


def measure(name: str, held: pd.DataFrame, labels: list[str]) -> dict[str, dict[str, float]]:
    """Give F1 of S of a model, on the records as they are and condensed."""
    held = held.reset_index()
    held["decision"] = held[labels].to_numpy().argmax(axis=1) == labels.index(LABEL)
    patients = sorted(held.loc[held["is_copy"], "record_id"].unique())
    rows: dict[str, dict[str, float]] = {}
    for is_copy in (False, True):
        own = held[held["is_copy"] == is_copy]
        each = {}
        for patient in patients:
            one = own[own["record_id"] == patient]
            each[str(patient)] = f1(one["target"].to_numpy(), one["decision"].to_numpy())
        rows[f"{name}, {'condensed' if is_copy else 'as they are'}"] = {
            "mean": float(np.mean(list(each.values()))),
            "pooled": f1(own["target"].to_numpy(), own["decision"].to_numpy()),
            **each,
        }
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--path", required=True, help="folder of MIT-BIH's records")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    experiment = load_settings(Experiment, SETTINGS, [f"archive.path={arguments.path}"])
    with tempfile.TemporaryDirectory() as folder, ray_session():
        folders = Folders.of_benchmark(Path(folder) / "out")
        task, key = pipeline.prepare(experiment, folders)
        runs = pipeline.plan_runs(experiment, task, key, synthetic=False)
        held = {
            title: pd.concat([validate(run, folders, Path(folder) / "cache") for run in own])
            for title, own in itertools.groupby(
                sorted(runs, key=lambda run: run.architecture.title),
                key=lambda run: run.architecture.title,
            )
        }
    labels = list(task.label_names)
    probabilities = np.mean([own[labels].to_numpy() for own in held.values()], axis=0)
    mean = next(iter(held.values())).copy()
    mean[labels] = probabilities
    held[ALL] = mean
    rows: dict[str, dict[str, float]] = {}
    for name, own in held.items():
        rows |= measure(name, own, labels)
    print_rows(rows, arguments.json)


if __name__ == "__main__":
    main()
