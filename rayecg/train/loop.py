"""One run: plain torch, no Ray.

Legend: B batch, W window, L lead, T time, N example, C label.

Everything random in an epoch is drawn from (seed, epoch), and the learning rate is a function of the
step, so that a run continued from the state of an epoch ends in the weights of one that was never
interrupted.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from rayecg.core.errors import DataError
from rayecg.core.experiment import ArchitectureSettings, InputSettings, TrainSettings
from rayecg.core.files import replacing, write_table, write_text
from rayecg.core.outputs import probabilities
from rayecg.core.predictions import WINDOW_COLUMNS, label_fields, output_columns
from rayecg.core.settings import to_tree
from rayecg.core.versions import versions
from rayecg.metrics.classification import evaluate
from rayecg.metrics.operating_point import choose_operating_point
from rayecg.models.catalogue import ModelInputs, build_model, count_parameters
from rayecg.models.checkpoint import save_checkpoint
from rayecg.models.predictor import window_logits
from rayecg.tasks.task import Task
from rayecg.train.augment import augment
from rayecg.train.losses import class_weights, make_loss
from rayecg.train.resident import Windows

CPU = torch.device("cpu")
#: A run under way: its last whole epoch.
STATE = "state.pt"
#: Windows that the network sees at a time outside training; see `Predictor`.
EVALUATION_BATCH = 64


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

    `wrap` makes a network data-parallel; `agree` gives every worker the first one's value.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    agree: Callable[[Any], Any] = lambda value: value


@dataclass
class State:
    """How far a run is; written after every epoch."""

    epoch: int
    best_epoch: int
    best_score: float
    best: dict[str, torch.Tensor]
    curves: list[dict[str, float]]


def learning_rate(settings: TrainSettings, progress: float) -> float:
    """Give the learning rate at a share of the run, 0 to 1.

    `one_cycle` (Smith and Topin 2018) rises over the first quarter from 1/25 of the peak and falls
    to 1/10,000, both along a cosine; `cosine` falls from the peak to 0.
    """
    peak = settings.learning_rate

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    if settings.schedule == "constant":
        return peak
    if settings.schedule == "cosine":
        return cosine(peak, 0.0, progress)
    if progress < 0.25:
        return cosine(peak / 25, peak, progress / 0.25)
    return cosine(peak, peak / 1e4, (progress - 0.25) / 0.75)


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
    optimizer = _optimizer(settings, model)
    state = _load_state(folder / STATE, run.key, model, optimizer, workers.device)
    trained = workers.wrap(model)
    weight_C = class_weights(train.target_WC) if settings.loss == "weighted" else None
    loss_of = make_loss(run.task.kind, weight_C, workers.device)
    started = time.perf_counter()
    while not _finished(state, settings):
        row = _train_epoch(run, state.epoch, trained, optimizer, loss_of, train, workers)
        scores = None
        if workers.rank == 0:
            found, loss = _validate(run, model, windows["validation"], workers.device)
            scores = {"validation_loss": loss, f"validation_{run.task.primary_metric}": found}
        row |= workers.agree(scores)
        score = row[f"validation_{run.task.primary_metric}"]
        state.curves.append(row)
        # An undefined score (no label with both classes) is beaten by any other.
        if not state.best or score > state.best_score or math.isnan(state.best_score):
            state.best_epoch, state.best_score = state.epoch, score
            state.best = copy.deepcopy(model.state_dict())
        state.epoch += 1
        if workers.rank == 0:
            _save_state(folder / STATE, run.key, state, model, optimizer)
        on_epoch(row)
    model.load_state_dict(state.best)
    summary: dict[str, Any] = {}
    if workers.rank == 0:
        summary = _conclude(run, model, windows, state, weight_C, folder, workers.device)
        summary["seconds"] = round(time.perf_counter() - started, 3)
    return workers.agree(summary)


def _optimizer(settings: TrainSettings, model: nn.Module) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    # Biases and norms have one dimension; pulling them to zero only slows them.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
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


def epoch_order(n_windows: int, settings: TrainSettings, seed: int, epoch: int) -> np.ndarray:
    """Give the windows of an epoch in their order, drawn from (seed, epoch) alone."""
    order = np.random.default_rng([seed, epoch]).permutation(n_windows)
    return order[: settings.examples_per_epoch]


def _train_epoch(
    run: Run,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    train: Windows,
    workers: Workers,
) -> dict[str, float]:
    settings = run.settings
    order = epoch_order(len(train), settings, run.seed, epoch)
    # Without its last, smaller batch an epoch has equal batches; a tiny archive has only that one.
    n_batches = max(len(order) // settings.batch_size, 1)
    torch.manual_seed(run.seed * 1_000_003 + epoch * 1009 + workers.rank)
    model.train()
    total, started, rate = 0.0, time.perf_counter(), 0.0
    for i in range(n_batches):
        rate = learning_rate(settings, (epoch * n_batches + i) / (settings.epochs * n_batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = order[i * settings.batch_size : (i + 1) * settings.batch_size]
        rows = np.sort(rows[workers.rank :: workers.size])
        x_BLT = torch.from_numpy(train.x_WLT[rows]).to(workers.device)
        x_BLT = augment(x_BLT, settings.augment, run.input.fs)
        target_BC = torch.from_numpy(train.target_WC[rows].astype(np.float32)).to(workers.device)
        with torch.autocast(
            workers.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"
        ):
            logit_BC = model(x_BLT)
        loss = loss_of(logit_BC.float(), target_BC)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        optimizer.step()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise DataError(f"run {run.name}: the training loss is not finite in epoch {epoch}")
    seconds = time.perf_counter() - started
    return {
        "epoch": epoch,
        "loss": total / n_batches,
        "learning_rate": rate,
        "examples_per_s": min(len(order), n_batches * settings.batch_size) / seconds,
    }


def example_logits(logit_WC: np.ndarray, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Average the logits of each example's windows; gives them and the examples' rows."""
    rows_N, start_N = np.unique(windows.example_W, return_index=True)
    sums_NC = np.add.reduceat(logit_WC, start_N, axis=0)
    counts_N = np.diff(np.append(start_N, len(logit_WC)))
    return sums_NC / counts_N[:, None], rows_N


def _validation_outputs(
    model: nn.Module, validation: Windows, device: torch.device
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give logits and targets of the validation examples, and their rows."""
    logit_WC = window_logits(model.eval(), validation.x_WLT, EVALUATION_BATCH, device)
    logit_NC, rows_N = example_logits(logit_WC, validation)
    _, first_N = np.unique(validation.example_W, return_index=True)
    return logit_NC, validation.target_WC[first_N], rows_N


def _validate(
    run: Run, model: nn.Module, validation: Windows, device: torch.device
) -> tuple[float, float]:
    logit_NC, target_NC, _ = _validation_outputs(model, validation, device)
    with torch.no_grad():
        loss = make_loss(run.task.kind, None, CPU)(
            torch.from_numpy(logit_NC), torch.from_numpy(target_NC.astype(np.float64))
        )
    point = choose_operating_point(logit_NC, target_NC, run.task.kind, "validation")
    probability_NC = probabilities(logit_NC, run.task.kind)
    found = evaluate(target_NC, probability_NC, point.decide(probability_NC), run.task.label_names)
    return found[run.task.primary_metric], float(loss)


def _conclude(
    run: Run,
    model: nn.Module,
    windows: Mapping[str, Windows],
    state: State,
    weight_C: np.ndarray | None,
    folder: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Choose the operating point on validation, and write checkpoint, predictions and curves."""
    validation, labels = windows["validation"], run.task.label_names
    logit_NC, target_NC, rows_N = _validation_outputs(model, validation, device)
    point = choose_operating_point(logit_NC, target_NC, run.task.kind, "validation")
    probability_NC = probabilities(logit_NC, run.task.kind)
    decision_NC = point.decide(probability_NC)
    columns = output_columns(
        labels, logit_NC, probability_NC, point.calibrate(logit_NC), decision_NC
    )
    own = validation.examples.select(["record_id", "offset"]).take(pa.array(rows_N))
    table = pa.Table.from_arrays(
        [*own.columns, *columns], schema=pa.schema([*WINDOW_COLUMNS, *label_fields(labels)])
    )
    write_table(folder / "validation.parquet", table)
    curve_names = list(state.curves[0])
    lines = [",".join(curve_names)]
    lines += [",".join(f"{row[name]:.8g}" for name in curve_names) for row in state.curves]
    write_text(folder / "curves.csv", "\n".join(lines) + "\n")
    n_parameters = count_parameters(model)
    training = {
        "seed": run.seed,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "selection": {"metric": run.task.primary_metric, "split": "validation"},
        "class_weights": None
        if weight_C is None
        else {"split": "train", "values": weight_C.tolist()},
        "n_examples": windows["train"].n_used,
        "n_dropped": {name: own.examples.num_rows - own.n_used for name, own in windows.items()},
        "shards_key": run.shards_key,
        "synthetic": run.synthetic,
        "settings": to_tree(run.settings),
    }
    card = {
        "architecture": run.architecture.name,
        "hyperparameters": to_tree(run.architecture.hyperparameters),
        "n_parameters": n_parameters,
        "task": {
            "name": run.task.name,
            "version": run.task.version,
            "kind": run.task.kind,
            "unit": run.task.unit,
            "labels": list(labels),
        },
        "input": to_tree(run.input),
        "combine": "mean logit of the windows",
        "operating_point": to_tree(point),
        "training": training,
        "versions": versions(),
    }
    save_checkpoint(folder / "checkpoint", model, card)
    return {
        "n_parameters": n_parameters,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "validation": evaluate(target_NC, probability_NC, decision_NC, labels),
        "examples_per_s": float(np.median([row["examples_per_s"] for row in state.curves])),
    }


def _save_state(
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


def _load_state(
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
    return State(epoch=0, best_epoch=-1, best_score=float("nan"), best={}, curves=[])
