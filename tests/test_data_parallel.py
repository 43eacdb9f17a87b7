"""Two workers on the halves of a batch compute what one computes on the whole."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
import torch
from fake_benchmark import write_benchmark
from test_training import INPUT, resident, run_of
from torch import multiprocessing

from rayecg.core.experiment import ArchitectureSettings, TaskSettings
from rayecg.tasks.task import load_task
from rayecg.train import loop
from rayecg.train.run import Workers

BATCH = 16


def train_and_record(rank: int, size: int, root: str, **changes: object) -> None:
    """Train as worker `rank` of `size`; leaves the gradients of each step in `gradients-SIZE.pt`."""
    folder, recorded = Path(root), []
    # Without batch norm, whose statistics are those of a worker's own part, and without dropout.
    plain = ArchitectureSettings("gru", hyperparameters={"dropout": 0.0, "n_layers": 1})
    task = load_task(TaskSettings())
    windows = resident(folder / "fake" / "work", task, folder / "cache")
    run = run_of(
        task, "gru", INPUT, epochs=2, batch_size=BATCH, examples_per_epoch=3 * BATCH, **changes
    )
    object.__setattr__(run, "architecture", plain)
    plain_optimizer = loop._optimizer

    def recording(settings, model):
        optimizer = plain_optimizer(settings, model)

        def record(*_):
            recorded.append([p.grad.clone() for p in model.parameters()])

        optimizer.register_step_pre_hook(record)
        return optimizer

    loop._optimizer = recording
    workers = Workers()
    if size > 1:
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'meeting'}",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=120),
        )
        workers = Workers(rank, size, wrap=torch.nn.parallel.DistributedDataParallel, agree=agree)
    own = folder / f"out-{size}"
    own.mkdir(exist_ok=True)
    try:
        loop.train_run(run, windows, own, workers)
    finally:
        loop._optimizer = plain_optimizer
    if rank == 0:
        torch.save(recorded, folder / f"gradients-{size}.pt")
    if size > 1:
        torch.distributed.destroy_process_group()


def agree(value: object) -> object:
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def train_as_worker(rank: int, root: str, changes: dict[str, object]) -> None:
    train_and_record(rank, 2, root, **changes)
    # A thread of gloo may still hold tensors while the interpreter takes itself apart, and abort it.
    os._exit(0)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 3}, {"ema": 0.9}], ids=str)
def test_two_workers_have_the_gradients_of_one(tmp_path, changes):
    write_benchmark(tmp_path / "fake")
    changes = {"gradient_clip": None, **changes}
    train_and_record(0, 1, str(tmp_path), **changes)
    multiprocessing.spawn(train_as_worker, (str(tmp_path), changes), nprocs=2)
    alone, together = (torch.load(tmp_path / f"gradients-{size}.pt") for size in (1, 2))
    assert len(alone) == len(together) == (2 if "accumulate" in changes else 6)
    # The first step: the same weights, so all that differs is the order of a sum over the batch,
    # each of whose terms was itself summed over the window's times.
    n_added = BATCH * INPUT.n_times
    for own, other in zip(alone[0], together[0], strict=True):
        bound = n_added**0.5 * torch.finfo(torch.float32).eps * float(own.abs().max())
        torch.testing.assert_close(other, own, rtol=0, atol=4 * bound)
        assert own.abs().max() > 0
