"""One run: plain torch, no Ray.

Legend: B batch, L lead, T time, M side column, C label.

Everything random in an epoch is drawn from (seed, epoch), and the learning rate is a function of the
step and of the curves so far, so that a run continued from the state of an epoch ends in the weights
of one that was never interrupted. An architecture with a method `fit` is not trained by gradients: it
is fitted once to the training windows, and all that follows is the same.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from rayecg.core.errors import DataError
from rayecg.core.train_settings import TrainSettings
from rayecg.models.catalogue import ModelInputs, build_model
from rayecg.train.augment import augment, mix
from rayecg.train.average import move_average
from rayecg.train.losses import class_weights, make_loss
from rayecg.train.outcome import conclude, monitored, validated
from rayecg.train.resident import Windows
from rayecg.train.run import STATE, Run, State, Workers, load_state, save_state
from rayecg.train.schedule import epoch_order, learning_rate

#: Batches that are read and sent to the device ahead of need.
AHEAD = 2


def train_run(
    run: Run,
    windows: Mapping[str, Windows],
    folder: Path,
    workers: Workers | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> dict[str, Any]:
    """Train one run, from its last epoch if it was interrupted, and write its files.

    Parameters
    ----------
    run
        What to train.
    windows
        Of the splits `train` and `validation`.
    folder
        Gets `checkpoint/`, `validation.parquet`, `curves.csv`, and `state.pt`, which the caller
        removes when it has noted the result.
    workers
        The worker group; the first worker alone writes.
    on_epoch
        Called after each epoch with its row of the curves.

    Returns
    -------
    dict
        What `run.json` says of a run that ended well.

    Raises
    ------
    DataError
        If the loss stops being finite.
    """
    workers = workers or Workers()
    settings, train = run.settings, windows["train"]
    torch.manual_seed(run.seed)
    inputs, n_outputs = ModelInputs.of(run.input), len(run.task.label_names)
    architecture = run.architecture
    model = build_model(architecture.name, inputs, n_outputs, architecture.hyperparameters)
    model.to(workers.device)
    if run.input.image is not None:
        # In which convolutions of images are faster.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight_C = class_weights(train.target_WC, settings.loss.class_weights)
    started = time.perf_counter()
    if hasattr(model, "fit"):
        return _fit_run(run, model, windows, weight_C, folder, workers, on_epoch)
    optimizer = _optimizer(settings, model)
    state = load_state(folder / STATE, run.key, model, optimizer, workers.device)
    trained, kept = workers.wrap(model), model
    average: Callable[[int], None] | None = None
    if settings.compile:
        # Validation, whose last batch is smaller, stays eager.
        trained = cast("nn.Module", torch.compile(trained))
    if settings.ema is not None:
        kept = copy.deepcopy(model)
        kept.load_state_dict(state.average or model.state_dict())
        average = functools.partial(move_average, kept, model, settings.ema)
    loss_of = make_loss(run.task.kind, settings.loss, weight_C, workers.device)
    while not _finished(state, settings):
        row = _train_epoch(run, state, trained, average, optimizer, loss_of, train, workers)
        row |= validated(run, kept, windows, workers)
        score = monitored(row, run)
        state.curves.append(row)
        # An undefined score (no label with both classes) is beaten by any other.
        if not state.best or score > state.best_score or math.isnan(state.best_score):
            state.best_epoch, state.best_score = state.epoch, score
            state.best = copy.deepcopy(kept.state_dict())
        if kept is not model:
            state.average = kept.state_dict()
        state.epoch += 1
        if workers.rank == 0:
            save_state(folder / STATE, run.key, state, model, optimizer)
        on_epoch(row)
    model.load_state_dict(state.best)
    return _summarised(run, model, windows, state, weight_C, folder, workers, started)


def _fit_run(
    run: Run,
    model: nn.Module,
    windows: Mapping[str, Windows],
    weight_C: np.ndarray | None,
    folder: Path,
    workers: Workers,
    on_epoch: Callable[[dict[str, float]], None],
) -> dict[str, Any]:
    """Fit a model that is not trained by gradients; its only epoch is a row like any other.

    With several workers each fits the same, so that none waits for another's data.
    """
    train, started = windows["train"], time.perf_counter()
    fit: Any = model.fit
    fit(train.all_WM[train.row_W], train.target_WC, run.task.kind, weight_C, run.seed)
    model.eval()
    seconds = time.perf_counter() - started
    row = {"epoch": 0, "loss": math.nan, "learning_rate": math.nan}
    row |= {"examples_per_s": len(train) / seconds}
    row |= validated(run, model, windows, workers)
    on_epoch(row)
    state = State(1, 0, monitored(row, run), model.state_dict(), {}, [row])
    return _summarised(run, model, windows, state, weight_C, folder, workers, started)


def _summarised(
    run: Run,
    model: nn.Module,
    windows: Mapping[str, Windows],
    state: State,
    weight_C: np.ndarray | None,
    folder: Path,
    workers: Workers,
    started: float,
) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    if workers.rank == 0:
        summary = conclude(run, model, windows, state, weight_C, folder, workers.device)
        summary["seconds"] = round(time.perf_counter() - started, 3)
    return workers.agree(summary)


def _optimizer(settings: TrainSettings, model: nn.Module) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    # Biases and norms have one dimension; pulling them to zero only slows them. Others may say so.
    own = list(model.parameters())
    free = [p for p in own if p.ndim <= 1 or getattr(p, "no_decay", False)]
    decayed = [p for p in own if not any(p is one for one in free)]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return kind(groups, lr=settings.learning_rate)


def _finished(state: State, settings: TrainSettings) -> bool:
    if state.epoch >= settings.epochs:
        return True
    waited = state.epoch - 1 - state.best_epoch
    return settings.patience is not None and state.epoch > 0 and waited >= settings.patience


def _train_epoch(
    run: Run,
    state: State,
    model: nn.Module,
    average: Callable[[int], None] | None,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    train: Windows,
    workers: Workers,
) -> dict[str, float]:
    settings, epoch = run.settings, state.epoch
    so_far = [monitored(row, run) for row in state.curves]
    order = epoch_order(len(train), settings, run.seed, epoch)
    # Without its last, smaller batch an epoch has equal batches; a tiny archive has only that one.
    n_batches = max(len(order) // settings.batch_size, 1)
    n_steps = math.ceil(n_batches / settings.accumulate)
    torch.manual_seed(run.seed * 1_000_003 + epoch * 1009 + workers.rank)
    model.train()
    started, rate = time.perf_counter(), 0.0
    # On the device, so that no step waits for the one before it.
    total = torch.zeros((), dtype=torch.float64, device=workers.device)
    batches = made_ahead(
        _batches(order[: n_batches * settings.batch_size], settings, train, workers)
    )
    for i, (x_BLT, own_BM, target_BC) in enumerate(batches):
        step, place = divmod(i, settings.accumulate)
        progress = (epoch * n_steps + step) / (settings.epochs * n_steps)
        rate = learning_rate(settings, progress, so_far)
        for group in optimizer.param_groups:
            group["lr"] = rate
        side_BM = own_BM if own_BM.shape[1] else None
        x_BLT = augment(x_BLT, settings.augment, run.input.fs)
        x_BLT, side_BM, target_BC = mix(x_BLT, side_BM, target_BC, settings.augment.mixup)
        with torch.autocast(
            workers.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"
        ):
            logit_BC = model(x_BLT) if side_BM is None else model(x_BLT, side_BM)
        loss = loss_of(logit_BC.float(), target_BC)
        total += loss.detach()
        # The last step of an epoch may be made of fewer batches.
        n_added = min(settings.accumulate, n_batches - step * settings.accumulate)
        (loss / n_added).backward()
        if place + 1 < n_added:
            continue
        if settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average(epoch * n_steps + step)
    # Of all workers: if one alone gave up, the others would wait for it.
    mean = workers.mean(float(total) / n_batches)
    if not math.isfinite(mean):
        raise DataError(f"run {run.name}: the training loss is not finite in epoch {epoch}")
    seconds = time.perf_counter() - started
    return {
        "epoch": epoch,
        "loss": mean,
        "learning_rate": rate,
        "examples_per_s": min(len(order), n_batches * settings.batch_size) / seconds,
    }


Batch = tuple[torch.Tensor, ...]


def _batches(
    order: np.ndarray, settings: TrainSettings, train: Windows, workers: Workers
) -> Iterator[Callable[[], Batch]]:
    """Give for each batch of an epoch what brings this worker's part of it to the device."""
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        yield functools.partial(_fetch, train, np.sort(rows[workers.rank :: workers.size]), workers)


def _fetch(train: Windows, rows: np.ndarray, workers: Workers) -> Batch:
    taken = (*train.take(rows), train.target_WC[rows].astype(np.float32))
    return tuple(_sent(part, workers.device) for part in taken)


def made_ahead(calls: Iterator[Callable[[], Batch]]) -> Iterator[Batch]:
    """Make batches in a thread, a few of them before they are asked for."""
    with ThreadPoolExecutor(1, "batches") as thread:
        made: deque[Future[Batch]] = deque()
        for call in calls:
            made.append(thread.submit(call))
            if len(made) > AHEAD:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()


def _sent(part: np.ndarray, device: torch.device) -> torch.Tensor:
    """Send a part of a batch to the device; to a GPU from pinned memory, while it computes."""
    own = torch.from_numpy(part)
    if device.type == "cuda":
        own = own.pin_memory()
    return own.to(device, non_blocking=True)
