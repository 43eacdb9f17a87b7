"""The actors that score: how many there are, whether there is room for one, and what each opens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from rayecg.core.errors import SettingsError
from rayecg.core.experiment import ScoreSettings
from rayecg.core.session import KEEPS_MEMORY, cluster_cpus, cluster_gpus, may_grow
from rayecg.models.predictor import Predictor


def n_actors(settings: ScoreSettings, cpus: float, gpus: float) -> int:
    """Give how many actors score on so many CPUs and GPUs, if there are as many units.

    That is `concurrency`, or as many as there is room for now, at least one.
    """
    room = cpus / settings.num_cpus
    if settings.num_gpus:
        room = min(room, gpus / settings.num_gpus)
    return settings.concurrency or max(int(room), 1)


def check_room(settings: ScoreSettings, cpus: float, gpus: float) -> None:
    """Refuse an actor for which there will never be room.

    Raises
    ------
    SettingsError
        If it needs more than there is.
    """
    for name, asked, there, what in (
        ("--threads (score.num_cpus)", settings.num_cpus, cpus, "CPUs"),
        ("--gpus (score.num_gpus)", settings.num_gpus, gpus, "GPUs"),
    ):
        if asked > there:
            raise SettingsError(
                f"{name}: expected at most {there:g} for an actor, the {what} that there are, "
                f"came {asked:g}"
            )


def check_local_room(settings: ScoreSettings) -> None:
    """Do so in a Ray that was started here, which would wait for ever; a cluster may get nodes."""
    if not may_grow():
        check_room(settings, cluster_cpus(), cluster_gpus())


def actor_options(settings: ScoreSettings) -> dict[str, Any]:
    """Give what Ray is told of an actor; one that dies is replaced by whoever started it."""
    return {
        "num_cpus": settings.num_cpus,
        "num_gpus": settings.num_gpus,
        "max_restarts": 0,
        "runtime_env": {"env_vars": KEEPS_MEMORY},
    }


def say_unused_gpus(settings: ScoreSettings) -> None:
    """Say on standard error that there are GPUs, where actors have none."""
    n = cluster_gpus()
    if n and not settings.num_gpus:
        print(f"score: there are {n:g} GPUs; with --gpus 1 actors use them", file=sys.stderr)


def open_predictor(checkpoint: Path, settings: ScoreSettings) -> Predictor:
    """Open a checkpoint as an actor has it, and give this process as many threads."""
    torch.set_num_threads(settings.threads)
    return Predictor(
        checkpoint, settings.batch_size, settings.device, settings.backend, settings.threads
    )
