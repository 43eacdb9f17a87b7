"""What an experiment comes to: shards, examples, and the runs, all checked first."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from rayecg.archives.catalogue import ARCHIVES, open_archive
from rayecg.archives.provide import ensure_archive, synthetic_settings
from rayecg.core.catalogue import look_up
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import (
    ArchitectureSettings,
    Experiment,
)
from rayecg.core.files import (
    fingerprint,
    read_table,
    write_json,
    write_table,
)
from rayecg.core.folders import Folders
from rayecg.core.settings import to_tree
from rayecg.core.shard_format import RECORDS
from rayecg.core.train_settings import TrainSettings
from rayecg.core.versions import code_fingerprint
from rayecg.models.catalogue import ModelInputs, build_model, input_of
from rayecg.tasks.split import splits_of
from rayecg.tasks.task import Task, example_table, load_task

#: Rooms whose code decides what a run's weights are.
TRAINING_ROOMS = ("core", "metrics", "models", "signal", "tasks", "train")


def prepare(experiment: Experiment, folders: Folders) -> tuple[Task, str]:
    """Have shards and examples; gives the task and the key of the shards."""
    from rayecg.shards.build import make_shards as build

    archive = open_archive(ensure_archive(experiment.archive, folders.archive))
    task = load_task(experiment.task, experiment.archive.kind)
    manifest = build(archive, experiment.shards, folders.shards)
    splits = splits_of(task, experiment.split)
    write_json(folders.work / "task.json", to_tree(dataclasses.replace(task, split=splits[0])))
    examples = example_table(task, read_table(folders.shards / RECORDS), splits)
    write_table(folders.examples, examples)
    return task, manifest["key"]


def check_experiment(experiment: Experiment) -> None:
    """Find what is wrong with an experiment before anything is run.

    Raises
    ------
    SettingsError
        For an unknown task, architecture, hyperparameter or archive kind, an input that an
        architecture cannot read, a loss or a rule of decisions that does not fit the task, or scores
        that are to be parted.
    """
    from rayecg.metrics.operating_point import check_operating_point
    from rayecg.signal.features import BEATWISE
    from rayecg.train.losses import check_loss
    from rayecg.train.trackers import check_trackers

    if experiment.score.partition is not None:
        raise SettingsError(
            "score.partition: expected none in an experiment, whose scores are read as they are "
            f"written, came {experiment.score.partition}"
        )
    task = load_task(experiment.task, experiment.archive.kind)
    splits_of(task, experiment.split)
    look_up(ARCHIVES, experiment.archive.kind, "archive kind")
    if experiment.archive.kind == "synthetic":
        synthetic_settings(experiment.archive)
    else:
        open_archive(experiment.archive)
    for architecture in experiment.architectures:
        settings = input_of(architecture, experiment.input)
        training = _training_of(architecture, experiment)
        check_loss(task.kind, training.loss)
        check_operating_point(task.kind, training.operating_point)
        check_trackers(training.trackers)
        asked = set(BEATWISE) & set(settings.features)
        if asked and task.unit != "beat":
            raise SettingsError(
                f"input.features: {', '.join(sorted(asked))}: expected a task of beats, "
                f"{task.name} is one of recordings"
            )
        inputs = ModelInputs.of(settings)
        with torch.device("meta"):
            build_model(architecture.name, inputs, len(task.labels), architecture.hyperparameters)


def _training_of(architecture: ArchitectureSettings, experiment: Experiment) -> TrainSettings:
    origin = f"architectures: {architecture.title}"
    return architecture.train.applied_to(experiment.train, origin, "train")


def plan_runs(experiment: Experiment, task: Task, shards_key: str, synthetic: bool) -> list[Any]:
    """List the runs: all architectures with the first seed on the first fold, then the next fold."""
    from rayecg.train.run import Run

    runs = []
    code = code_fingerprint(*TRAINING_ROOMS)
    everyone = itertools.product(
        experiment.seeds, splits_of(task, experiment.split), experiment.architectures
    )
    for seed, split, architecture in everyone:
        own = dataclasses.replace(task, split=split)
        settings = input_of(architecture, experiment.input)
        training = _training_of(architecture, experiment)
        decisive = to_tree(training)
        for name in ("failure", "trackers"):  # these do not change what a run is
            del decisive[name]
        decides = [
            to_tree(architecture),
            seed,
            to_tree(own),
            to_tree(settings),
            decisive,
            shards_key,
            code,
        ]
        fold = "" if split.fold is None else f"-fold{split.fold}"
        runs.append(
            Run(
                name=f"{architecture.title}{fold}-seed{seed}",
                key=fingerprint(decides),
                architecture=architecture,
                seed=seed,
                task=own,
                input=settings,
                settings=training,
                shards_key=shards_key,
                synthetic=synthetic,
            )
        )
    return runs
