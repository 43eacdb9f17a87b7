"""Experiment trackers: each gets a row of a run's curves after every epoch.

The files of a run hold the same; a tracker that is not installed is refused before anything starts.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rayecg.core.errors import SettingsError
from rayecg.core.files import read_json, write_json
from rayecg.core.settings import to_tree
from rayecg.train.run import Run

#: What each tracker needs.
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}

#: Names the run that MLflow is to continue.
MLFLOW_RUN = "MLFLOW_RUN_ID"

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


@contextmanager
def trackers(names: Sequence[str], run: Run, folder: Path) -> Iterator[list[Track]]:
    """Have some trackers open inside a `with` block.

    A run that continues goes on in the same place.

    Parameters
    ----------
    names
        Which, of `PACKAGES`.
    run
        What their rows are called after.
    folder
        Of the run; TensorBoard's files go below it. Where MLflow and W&B keep theirs, their own
        environment variables say.
    """
    openers = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    with ExitStack() as opened:
        yield [openers[name](run, folder, opened) for name in names]


def _tensorboard(run: Run, folder: Path, opened: ExitStack) -> Track:
    from tensorboardX import SummaryWriter  # its import is slow

    # A thread of its own writes, every few seconds, and at the end.
    writer = opened.enter_context(SummaryWriter(str(folder / "tensorboard"), flush_secs=5))

    def track(row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, int(row["epoch"]))

    return track


def _mlflow(run: Run, folder: Path, opened: ExitStack) -> Track:
    from ray.air.integrations.mlflow import setup_mlflow

    # MLflow names its runs itself; of one that continues, the name was kept.
    kept = folder / "mlflow.json"
    before = read_json(kept) if kept.exists() else {}
    own = {MLFLOW_RUN: before["run_id"]} if before.get("key") == run.key else {}
    os.environ.update(own)
    try:
        client = setup_mlflow(
            to_tree(run.settings),
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", f"rayecg {run.task.name}"),
            run_name=run.name,
            create_experiment_if_not_exists=True,
        )
    finally:
        for name in own:
            os.environ.pop(name, None)  # MLflow takes it away itself, if it gets that far
    opened.callback(client.end_run)
    write_json(kept, {"key": run.key, "run_id": client.active_run().info.run_id})

    def track(row: dict[str, float]) -> None:
        client.log_metrics({k: v for k, v in row.items() if k != "epoch"}, int(row["epoch"]))

    return track


def _wandb(run: Run, folder: Path, opened: ExitStack) -> Track:
    from ray.air.integrations.wandb import setup_wandb

    own = setup_wandb(to_tree(run.settings), trial_id=run.key, trial_name=run.name, dir=str(folder))
    opened.callback(own.finish)

    def track(row: dict[str, float]) -> None:
        own.log(row)

    return track
