"""Many runs on Ray Train: worker groups that start once and take one run after another.

A `TorchTrainer` takes seconds to start, so as many are started as the cluster can hold at a time, and
each works off runs from a common queue. A worker that dies is restarted by Ray Train, gets the same
run again and continues it from its last epoch; a run that keeps killing its workers becomes a row
with its error, and the others go on.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from rayecg.core.errors import DataError, RayecgError
from rayecg.core.files import read_json, write_json
from rayecg.core.progress import Progress
from rayecg.core.session import KEEPS_MEMORY, own_node
from rayecg.core.train_settings import ScalingSettings
from rayecg.train.loop import train_run
from rayecg.train.resident import build_windows, resident_windows
from rayecg.train.run import STATE, Run, Workers
from rayecg.train.trackers import Track, trackers


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a worker finds and leaves things; `resident` is another's cache, to be left as it is."""

    shards: Path
    examples: Path
    out: Path
    resident: Path | None = None

    def run(self, name: str) -> Path:
        """Give the folder of a run."""
        return self.out / name

    @property
    def cache(self) -> Path:
        """Where the resident windows are kept."""
        return self.resident or self.out / ".resident"


def run_report(places: Places, run: Run) -> dict[str, Any] | None:
    """Give a run's `run.json` if it was written for the very same run."""
    file = places.run(run.name) / "run.json"
    if not file.exists():
        return None
    found = read_json(file)
    return found if found.get("key") == run.key else None


def _write_report(places: Places, run: Run, **what: Any) -> None:
    report = {
        "run": run.name,
        "architecture": run.architecture.title,
        "task": run.task.name,
        "split": run.task.split.name,
        "fold": run.task.split.fold,
        "seed": run.seed,
        "status": "ok",
        "error": None,
        **what,
        "key": run.key,
    }
    write_json(places.run(run.name) / "run.json", report)


class RunQueue:
    """Hands out runs to worker groups, each until it is finished or has failed too often."""

    def __init__(self, runs: Sequence[Run], places: Places, max_failures: int) -> None:
        self.waiting, self.places, self.max_failures = list(runs), places, max_failures
        self.taken: dict[int, Run] = {}
        self.starts: dict[str, int] = {}
        self.notes: dict[str, str] = {}
        self.n_done = 0

    def next(self, group: int) -> Run | None:
        """Give a group its next run; the one it had, if it did not finish that."""
        run = self.taken.get(group)
        if run is not None and self.starts[run.name] > self.max_failures:
            error = f"its workers died {self.starts[run.name]} times"
            _write_report(self.places, run, status="failed", error=error)
            self.finish(group)
            run = None
        if run is None and self.waiting:
            run = self.taken[group] = self.waiting.pop(0)
        if run is not None:
            self.starts[run.name] = self.starts.get(run.name, 0) + 1
        return run

    def note(self, run: str, text: str) -> None:
        """Take note of a finished epoch."""
        self.notes[run] = text

    def finish(self, group: int) -> None:
        """Count a group's run as ended."""
        run = self.taken.pop(group)
        self.notes.pop(run.name, None)
        self.n_done += 1

    def progress(self) -> tuple[int, str]:
        """Give the number of ended runs and what the others are at."""
        return self.n_done, "; ".join(f"{run} {text}" for run, text in sorted(self.notes.items()))


def train_runs(
    runs: Sequence[Run], scaling: ScalingSettings, max_failures: int, places: Places
) -> None:
    """Train what is not finished yet; every run ends with a `run.json`.

    Raises
    ------
    DataError
        If a worker group cannot be had at all.
    """
    waiting = []
    for run in runs:
        report = run_report(places, run)
        if report is None or report["status"] != "ok":
            # Another key's report must not be taken for this run's while it is under way.
            (places.run(run.name) / "run.json").unlink(missing_ok=True)
            waiting.append(run)
    progress = Progress("train", len(runs), "runs")
    if waiting:
        _build_resident(waiting, places)
        here = own_node()
        queue = ray.remote(**here)(RunQueue).remote(waiting, places, max_failures)
        n_groups = min(_groups_that_fit(scaling), len(waiting))
        group_failures = len(waiting) * (max_failures + 1)
        work = ray.remote(max_retries=0, **here)(_work)  # Ray Train's controllers lie where it runs
        groups = [work.remote(i, queue, scaling, group_failures, places) for i in range(n_groups)]
        n_before = len(runs) - len(waiting)
        while groups:
            ended, groups = ray.wait(groups, timeout=0.5)
            n_done, note = ray.get(queue.progress.remote())
            progress.update(n_before + n_done, note)
            for error in ray.get(ended):
                if error:
                    raise DataError(f"training: {error}")
        ray.kill(queue)
        shutil.rmtree(places.out / ".ray", ignore_errors=True)  # Ray Train's own notes
    missing = [run.name for run in runs if run_report(places, run) is None]
    if missing:
        raise DataError(f"training ended without a result for {', '.join(missing)}")
    reports = [read_json(places.run(run.name) / "run.json") for run in runs]
    n_failed = sum(report["status"] != "ok" for report in reports)
    progress.done(f"{n_failed} failed" if n_failed else "")


def _build_resident(runs: Sequence[Run], places: Places) -> None:
    """Build the windows that the runs share once, and remove those that no run reads any more."""

    @ray.remote(num_cpus=1)
    def build(run: Run) -> str:
        return build_windows(run, places.shards, places.examples, places.cache).name

    distinct = {run.input: run for run in runs}
    wanted = ray.get([build.remote(run) for run in distinct.values()])
    for folder in places.cache.iterdir():
        if folder.name not in wanted and places.resident is None:
            shutil.rmtree(folder, ignore_errors=True)


def _groups_that_fit(scaling: ScalingSettings) -> int:
    """Count the worker groups that the cluster can hold at a time, without over-subscription."""
    total = ray.cluster_resources()
    wanted = dict(scaling.resources_per_worker)
    if scaling.use_gpu:
        wanted.setdefault("GPU", 1.0)
    fits = [
        int(total.get(name, 0.0) / (amount * scaling.num_workers))
        for name, amount in wanted.items()
        if amount > 0
    ]
    if min(fits) < 1:
        # A cluster that scales will grow for the first group; a fixed one never does, and says so.
        print(f"train: waiting for {wanted} x {scaling.num_workers}, the cluster has {total}")
    return max(min(fits), 1)


def _work(
    group: int, queue: Any, scaling: ScalingSettings, max_failures: int, places: Places
) -> str | None:
    """Run one worker group until the queue is empty; gives an error's text if it cannot run."""
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"group": group, "queue": queue, "places": places},
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker=dict(scaling.resources_per_worker),
        ),
        run_config=RunConfig(
            name=f"group-{group}-{time.time_ns()}",
            storage_path=str(places.out / ".ray"),
            # The queue counts the failures of each run; a group must outlive those of all its runs.
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            worker_runtime_env={"env_vars": KEEPS_MEMORY},
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _worker(config: dict[str, Any]) -> None:
    """Work off runs; what every worker of a group executes."""
    context = ray.train.get_context()
    queue, places, group = config["queue"], config["places"], config["group"]
    torch.set_num_threads(_cpus_of_this_worker())
    workers = Workers(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        wrap=_data_parallel,
        agree=_agree,
        mean=_mean,
    )
    while True:
        run = _agree(ray.get(queue.next.remote(group)) if workers.rank == 0 else None)
        if run is None:
            return
        _one_run(run, queue, places, workers)
        if workers.rank == 0:
            ray.get(queue.finish.remote(group))


def _one_run(run: Run, queue: Any, places: Places, workers: Workers) -> None:
    tracked: list[Track] = []

    def on_epoch(row: dict[str, float]) -> None:
        if workers.rank == 0:
            score = row[f"validation_{run.task.primary_metric}"]
            text = f"epoch {int(row['epoch']) + 1}/{run.settings.epochs} {score:.3f}"
            queue.note.remote(run.name, text)
            for track in tracked:
                track(row)
        ray.train.report({"run": run.name, **row})

    folder = places.run(run.name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        windows = resident_windows(run, places.shards, places.examples, places.cache)
        asked = run.settings.trackers if workers.rank == 0 else ()
        with trackers(asked, run, folder) as tracked:
            summary = train_run(run, windows, folder, workers, on_epoch)
    except Exception as error:
        if workers.size > 1 and not isinstance(error, RayecgError):
            raise  # the other workers may wait for this one: Ray Train must restart them all
        lines = traceback.format_exception_only(error)
        text = str(error) if isinstance(error, RayecgError) else "".join(lines).strip()
        if workers.rank == 0:
            _write_report(places, run, status="failed", error=text)
        return
    if workers.rank == 0:
        _write_report(places, run, **summary)
        (folder / STATE).unlink(missing_ok=True)  # only now is it not needed any more


def _cpus_of_this_worker() -> int:
    resources = ray.get_runtime_context().get_assigned_resources()
    return max(int(resources.get("CPU", 1)), 1)


def _data_parallel(model: torch.nn.Module) -> torch.nn.Module:
    return ray.train.torch.prepare_model(model, move_to_device=False)


def _agree(value: Any) -> Any:
    """Give every worker of the group the first one's value."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def _mean(value: float) -> float:
    """Give every worker of the group the mean of their values."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device=ray.train.torch.get_device())
    torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()
