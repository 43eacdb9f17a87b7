"""One trial: the same settings on every searched fold, epoch by epoch.

A step is an epoch of every fold, so that trials are compared, and given up, on the same folds after
the same number of epochs; one fold after another would compare by the first fold alone, and one
group of few patients is mostly noise. What a step is worth is the mean over the folds of the figure
of each one's best epoch so far: what its checkpoint would have if training ended there.

Everything that is known of a trial stands in its folder, which is named by its settings: `state.pt`
of each fold, and `trial.json`. A trial that is started again reports its steps again, without
training them, and goes on.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from rayecg.core.errors import DataError, RayecgError
from rayecg.core.experiment import Experiment
from rayecg.core.files import fingerprint, read_json, write_json
from rayecg.search.space import Plan, drawn_value, search_of, searched_runs
from rayecg.train.loop import train_run
from rayecg.train.outcome import monitored
from rayecg.train.resident import resident_windows
from rayecg.train.run import STATE, Run, Workers
from rayecg.train.schedule import epoch_order

#: What Tune compares trials by, and the steps it counts.
FIGURE, STEP = "figure", "epoch"
REPORT = "trial.json"


@dataclass(frozen=True)
class Job:
    """What all trials share: what is searched, what makes runs of it, and where things lie."""

    experiment: Experiment
    plan: Plan
    shards: Path
    folder: Path

    @property
    def examples(self) -> Path:
        """The examples of the searched folds, those of the test split left out."""
        return self.folder / "examples.parquet"

    @property
    def cache(self) -> Path:
        """Where the windows are kept."""
        return self.folder / ".resident"

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Give the settings of a trial from what Tune drew."""
        space = search_of(self.experiment).space
        return {name: drawn_value(own, drawn[name]) for name, own in space.items()}

    def trial(self, drawn: Mapping[str, Any]) -> Path:
        """Give the folder of a trial."""
        return self.folder / "trials" / fingerprint(self.values(drawn))


class _OneEpochDone(Exception):  # noqa: N818 - it tells of no error
    pass


class _Fold:
    """One fold's run, trained an epoch at a time."""

    def __init__(self, run: Run, job: Job, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.windows = resident_windows(run, job.shards, job.examples, job.cache)
        self.rows: list[dict[str, float]] = []
        self.ended = False
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).exists():
            saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            self.rows = saved["curves"] if saved["key"] == run.key else []

    def step(self, epoch: int, workers: Workers) -> None:
        """Have a row for an epoch, unless the run ended before it."""
        if self.ended or epoch < len(self.rows):
            return

        def pause(row: dict[str, float]) -> None:
            self.rows.append(row)
            raise _OneEpochDone

        try:
            train_run(self.run, self.windows, self.folder, workers, pause)
        except _OneEpochDone:
            # What is not trained by gradients keeps no state, for its one epoch is all.
            self.ended = not (self.folder / STATE).exists()
        else:
            self.ended = True  # its patience ended it

    def best(self, epoch: int) -> dict[str, float]:
        """Give the row whose weights would be kept if an epoch were the last one."""
        best = self.rows[0]
        for row in self.rows[1 : epoch + 1]:
            if monitored(row, self.run) > monitored(best, self.run):
                best = row
        return best

    @property
    def examples_per_epoch(self) -> int:
        """Training examples that an epoch draws."""
        return len(epoch_order(len(self.windows["train"]), self.run.settings, self.run.seed, 0))


def run_trial(drawn: dict[str, Any], job: Job) -> None:
    """Train a trial as far as Tune lets it; what goes wrong in it becomes its error."""
    folder = job.trial(drawn)
    report: dict[str, Any] = {"values": job.values(drawn), "status": "running", "error": None}
    earlier = folder / REPORT
    report["begun"] = read_json(earlier)["begun"] if earlier.exists() else time.time()
    write_json(folder / REPORT, report)
    try:
        _train(report, job, folder)
    except Exception as error:
        lines = traceback.format_exception_only(error)
        text = str(error) if isinstance(error, RayecgError) else "".join(lines).strip()
        write_json(folder / REPORT, {**report, "status": "failed", "error": text})


def _train(report: dict[str, Any], job: Job, folder: Path) -> None:
    scaling = job.experiment.train.scaling
    torch.set_num_threads(max(int(scaling.resources_per_worker["CPU"]), 1))
    workers = Workers(device=torch.device("cuda" if scaling.use_gpu else "cpu"))
    runs = searched_runs(job.experiment, report["values"], job.plan)
    folds = [_Fold(run, job, folder / f"fold{i}") for i, run in enumerate(runs)]
    name = f"validation_{runs[0].task.primary_metric}"
    epochs = runs[0].settings.epochs
    steps: list[dict[str, float]] = []
    report["steps"] = steps
    n_examples = 0
    for epoch in range(epochs):
        for fold in folds:
            fold.step(epoch, workers)
            n_examples += fold.examples_per_epoch if epoch < len(fold.rows) else 0
        ended = all(fold.ended for fold in folds)
        if ended and epoch >= max(len(fold.rows) for fold in folds):
            break  # the last of them had no patience left for this epoch
        of_fold = [fold.best(epoch)[name] for fold in folds]
        figure = sum(of_fold) / len(of_fold)
        if not math.isfinite(figure):
            raise DataError(f"{name} is undefined on a fold: {of_fold}")
        steps.append({STEP: epoch + 1, FIGURE: figure, "examples_seen": n_examples})
        report["of_fold"] = of_fold
        if ended or epoch + 1 == epochs:
            report["status"] = "ok"
        write_json(folder / REPORT, report)
        tune.report({STEP: epoch + 1, FIGURE: figure})
        if ended:
            break
    write_json(folder / REPORT, {**report, "status": "ok"})
