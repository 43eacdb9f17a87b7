"""What training ends with: figures on validation, and the files of a run.

Legend: W window, N example, M side column, C label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from rayecg.core.files import write_table, write_text
from rayecg.core.outputs import OperatingPoint, probabilities
from rayecg.core.predictions import WINDOW_COLUMNS, label_fields, output_columns
from rayecg.core.settings import to_tree
from rayecg.core.train_settings import LossSettings, OperatingPointSettings
from rayecg.core.versions import versions
from rayecg.metrics.classification import evaluate
from rayecg.metrics.operating_point import choose_operating_point, decision_weights
from rayecg.models.backends import window_logits
from rayecg.models.catalogue import count_parameters
from rayecg.models.checkpoint import save_checkpoint
from rayecg.models.predictor import combine_logits
from rayecg.train.losses import make_loss
from rayecg.train.reference import (
    limits,
    quality_reference,
    score_reference,
    training_data,
    training_records,
    validation_metrics,
)
from rayecg.train.resident import Windows
from rayecg.train.run import CPU, Run, State, Workers

#: Windows that the network sees at a time outside training; see `Predictor`.
EVALUATION_BATCH = 64
#: Windows that are copied out of the files at a time; a multiple of the batch.
CHUNK = 64 * 32


def monitored(row: Mapping[str, float], run: Run) -> float:
    """Give what an epoch is worth, more being better."""
    if run.settings.monitor == "loss":
        return -row["validation_loss"]
    return row[f"validation_{run.task.primary_metric}"]


def validation_outputs(
    run: Run, model: nn.Module, validation: Windows, device: torch.device
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give logits and targets of the validation examples, and their rows."""
    n_labels, parts = len(run.task.label_names), []
    for start in range(0, len(validation), CHUNK):
        here = np.arange(start, min(start + CHUNK, len(validation)))
        x_WLT, side_WM = validation.take(here)
        parts.append(window_logits(model.eval(), x_WLT, side_WM, EVALUATION_BATCH, device))
    logit_WC = np.concatenate([np.empty((0, n_labels)), *parts])
    rows_N, first_N = np.unique(validation.example_W, return_index=True)
    logit_NC = combine_logits(logit_WC, first_N, run.input.combine)
    return logit_NC, validation.target_WC[first_N], rows_N


def validated(
    run: Run, model: nn.Module, windows: Mapping[str, Windows], workers: Workers
) -> dict[str, float]:
    """Give the validation columns of an epoch's row: the plain loss and the primary metric."""
    scores = None
    if workers.rank == 0:
        logit_NC, target_NC, _ = validation_outputs(
            run, model, windows["validation"], workers.device
        )
        with torch.no_grad():
            loss = make_loss(run.task.kind, LossSettings(), None, CPU)(
                torch.from_numpy(logit_NC), torch.from_numpy(target_NC.astype(np.float64))
            )
        # No figure of an epoch rests on calibrated probabilities.
        settings = replace(run.settings.operating_point, calibrator="none")
        point = _operating_point(run, logit_NC, target_NC, windows["train"], settings)
        probability_NC = probabilities(logit_NC, run.task.kind)
        decision_NC = point.decide(probability_NC)
        found = evaluate(target_NC, probability_NC, decision_NC, run.task.label_names)
        metric = run.task.primary_metric
        scores = {"validation_loss": float(loss), f"validation_{metric}": found[metric]}
    return workers.agree(scores)


def _operating_point(
    run: Run,
    logit_NC: np.ndarray,
    target_NC: np.ndarray,
    train: Windows,
    settings: OperatingPointSettings,
) -> OperatingPoint:
    """Choose on validation; what the rule reads of the classes' frequencies is the training split's."""
    kind, weights = run.task.kind, None
    if settings.rule == "weighted_argmax":
        _, first_N = np.unique(train.example_W, return_index=True)
        weights = decision_weights(train.target_WC[first_N], kind, settings)
    return choose_operating_point(logit_NC, target_NC, kind, "validation", settings, weights)


def conclude(
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
    logit_NC, target_NC, rows_N = validation_outputs(run, model, validation, device)
    settings = run.settings.operating_point
    point = _operating_point(run, logit_NC, target_NC, windows["train"], settings)
    probability_NC = probabilities(logit_NC, run.task.kind)
    decision_NC, calibrated_NC = point.decide(probability_NC), point.calibrate(logit_NC)
    columns = output_columns(labels, logit_NC, probability_NC, calibrated_NC, decision_NC)
    own = validation.examples.select(["record_id", "offset"]).take(pa.array(rows_N))
    table = pa.Table.from_arrays(
        [*own.columns, *columns], schema=pa.schema([*WINDOW_COLUMNS, *label_fields(labels)])
    )
    write_table(folder / "validation.parquet", table)
    curve_names = list(state.curves[0])
    lines = [",".join(curve_names)]
    lines += [",".join(f"{row[name]:.8g}" for name in curve_names) for row in state.curves]
    write_text(folder / "curves.csv", "\n".join(lines) + "\n")
    n_parameters, train = count_parameters(model), windows["train"]
    records = training_records(train)
    training = {
        "seed": run.seed,
        "split": run.task.split.name,
        "fold": run.task.split.fold,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "selection": {
            "metric": "loss" if run.settings.monitor == "loss" else run.task.primary_metric,
            "split": "validation",
        },
        "class_weights": None
        if weight_C is None
        else {"split": "train", "values": weight_C.tolist()},
        "pretraining": None,  # weights start at random
        "n_examples": train.n_used,
        "n_dropped": {name: own.examples.num_rows - own.n_used for name, own in windows.items()},
        "shards_key": run.shards_key,
        "synthetic": run.synthetic,
        "data": training_data(run, train, records),
        "reference": {
            "quality": None if records is None else quality_reference(records),
            "scores": score_reference(
                labels, target_NC, probability_NC, calibrated_NC, decision_NC
            ),
        },
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
        "operating_point": to_tree(point),
        "metrics": validation_metrics(
            run, validation, rows_N, target_NC, probability_NC, decision_NC
        ),
        "limits": limits(run, train, records),
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
