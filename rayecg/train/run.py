"""What a run is, who works on it, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayecg.core.experiment import ArchitectureSettings, InputSettings
from rayecg.core.files import replacing
from rayecg.core.train_settings import TrainSettings
from rayecg.tasks.task import Task

CPU = torch.device("cpu")
#: A run under way: its last whole epoch.
STATE = "state.pt"


@dataclass(frozen=True)
class Run:
    """What one run is: all that decides its weights."""

    name: str
    key: str
    architecture: ArchitectureSettings
    seed: int
    task: Task
    input: InputSettings
    settings: TrainSettings
    shards_key: str
    synthetic: bool


@dataclass(frozen=True)
class Workers:
    """The worker group of a run, as its own worker sees it (one alone by default).

    `wrap` makes a network data-parallel; `agree` gives every worker the first one's value, `mean` the
    mean of all.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    agree: Callable[[Any], Any] = lambda value: value
    mean: Callable[[float], float] = lambda value: value


@dataclass
class State:
    """How far a run is; written after every epoch.

    `average` is the moving average of the weights, empty without one.
    """

    epoch: int
    best_epoch: int
    best_score: float
    best: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    curves: list[dict[str, float]]


def save_state(
    path: Path, key: str, state: State, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    with replacing(path) as beside:
        torch.save(
            {
                "key": key,
                **vars(state),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            },
            beside,
        )


def load_state(
    path: Path,
    key: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> State:
    """Continue from the state of the last whole epoch, if there is one of this very run."""
    if path.exists():
        saved = torch.load(path, map_location=device, weights_only=True)
        if saved.pop("key") == key:
            model.load_state_dict(saved.pop("model"))
            optimizer.load_state_dict(saved.pop("optimizer"))
            return State(**saved)
    return State(epoch=0, best_epoch=-1, best_score=float("nan"), best={}, average={}, curves=[])
