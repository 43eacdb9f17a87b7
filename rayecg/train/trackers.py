"""Experiment trackers: each gets a row of a run's curves after every epoch.

The files of a run hold the same; a tracker that is not installed is refused before anything starts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from rayecg.core.errors import SettingsError
from rayecg.core.settings import to_tree
from rayecg.train.run import Run

#: What each tracker needs.
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}

Track = Callable[[dict[str, float]], None]


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers whose package is not installed.

    Raises
    ------
    SettingsError
        Naming it.
    """
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise SettingsError(
                f"train.trackers: {name} needs the package {PACKAGES[name]}, which is not installed"
            )


def open_trackers(run: Run, folder: Path) -> list[Track]:
    """Open what the run asks for; a run that continues goes on in the same place.

    Parameters
    ----------
    run
        The run; its `settings.trackers` name them.
    folder
        Of the run; TensorBoard's files go below it. Where MLflow and W&B keep theirs, their own
        environment variables say.
    """
    openers = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    return [openers[name](run, folder) for name in run.settings.trackers]


def _tensorboard(run: Run, folder: Path) -> Track:
    from tensorboardX import SummaryWriter  # its import is slow

    writer = SummaryWriter(str(folder / "tensorboard"))

    def track(row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, int(row["epoch"]))
        writer.flush()

    return track


def _mlflow(run: Run, folder: Path) -> Track:
    from ray.air.integrations.mlflow import setup_mlflow

    client = setup_mlflow(
        to_tree(run.settings), run_name=run.name, create_experiment_if_not_exists=True
    )

    def track(row: dict[str, float]) -> None:
        client.log_metrics({k: v for k, v in row.items() if k != "epoch"}, int(row["epoch"]))

    return track


def _wandb(run: Run, folder: Path) -> Track:
    from ray.air.integrations.wandb import setup_wandb

    own = setup_wandb(to_tree(run.settings), name=run.name, dir=str(folder))

    def track(row: dict[str, float]) -> None:
        own.log(row)

    return track
