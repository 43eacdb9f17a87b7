"""Several runs' outputs, row by row: their mean, and what becomes of rows that one of them lacks.

Legend: M member, N row (example or record), C label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import log_softmax

from rayecg.core.errors import DataError
from rayecg.core.files import read_table
from rayecg.core.outputs import Kind, OperatingPoint, probabilities
from rayecg.core.predictions import (
    RECORD_COLUMNS,
    STATUSES,
    WINDOW_COLUMNS,
    label_fields,
    output_columns,
)

#: What names a row.
EXAMPLE, RECORD = ["record_id", "offset"], ["record_id"]
#: What tells of one run: null in an ensemble's rows, whose card and manifest name its members.
OF_A_RUN = ("checkpoint", "code_version")


def mean_logits(logit_MNC: np.ndarray, kind: Kind) -> np.ndarray:
    """Give the logits of the mean of the members' probabilities: log-odds, or logs for multiclass.

    In logs all the way, because a probability may round to 0 or 1. A row that is not finite in every
    member is NaN.
    """
    mean_NC = np.full(logit_MNC.shape[1:], np.nan)
    whole_N = np.isfinite(logit_MNC).all(axis=(0, 2))
    own_MNC = logit_MNC[:, whole_N]
    if kind == "multilabel":
        log_yes_NC, log_no_NC = (
            np.logaddexp.reduce(-np.logaddexp(0, sign * own_MNC), axis=0) for sign in (-1, 1)
        )
        mean_NC[whole_N] = log_yes_NC - log_no_NC  # the number of members cancels out
    else:
        log_sum_NC = np.logaddexp.reduce(log_softmax(own_MNC, axis=2), axis=0)
        mean_NC[whole_N] = log_sum_NC - np.log(len(own_MNC))
    return mean_NC


@dataclass(frozen=True)
class Labels:
    """What a card says of the task: its kind, what an example is, and the labels' names."""

    kind: Kind
    unit: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> Labels:
        """Read it from the card's section."""
        return cls(task["kind"], task["unit"], tuple(task["labels"]))


@dataclass(frozen=True)
class Averaged:
    """Members' rows put together: their keys, the mean's logits, whether every member decided."""

    rows: pd.Index
    logit_NC: np.ndarray
    decided_N: np.ndarray

    def table(self, point: OperatingPoint, task: Labels, left: pa.Table | None = None) -> pa.Table:
        """Give outputs beside the keys, or beside `left`; no decision where a member had none."""
        if left is None:
            keys = [pa.array(self.rows.get_level_values(name)) for name in EXAMPLE]
            left = pa.Table.from_arrays(keys, schema=pa.schema(WINDOW_COLUMNS))
        probability_NC = probabilities(self.logit_NC, task.kind)
        decision_NC = np.where(self.decided_N[:, None], point.decide(probability_NC), -1)
        calibrated_NC = point.calibrate(self.logit_NC)
        columns = output_columns(
            task.names, self.logit_NC, probability_NC, calibrated_NC, decision_NC
        )
        schema = pa.schema([*left.schema, *label_fields(task.names)])
        return pa.Table.from_arrays([*left.columns, *columns], schema=schema)


def averaged(files: Mapping[str, Path], keys: list[str], task: Labels, alike: bool) -> Averaged:
    """Average members' tables row by row; a row that one of them lacks has no probability.

    Raises
    ------
    DataError
        If a row stands twice, or members that must be `alike` have different rows.
    """
    logits, decisions = ([f"{o}_{label}" for label in task.names] for o in ("logit", "decision"))
    frames: list[pd.DataFrame] = []
    for run, file in files.items():
        frame = read_table(file, columns=[*keys, *logits, *decisions]).to_pandas().set_index(keys)
        where = f"{run}, {file.stem}"
        if frame.index.has_duplicates:
            twice = frame.index[frame.index.duplicated()]
            raise DataError(f"{where}: expected each row once, came twice: {_first(twice)}")
        if alike and frames:
            apart = frame.index.symmetric_difference(frames[0].index)
            if len(apart):
                raise DataError(
                    f"{where}: expected the rows of {next(iter(files))}, but {len(apart)} are in one "
                    f"of them alone, the first: {_first(apart)}"
                )
        frames.append(frame)
    rows = frames[0].index
    for frame in frames[1:]:
        rows = rows.union(frame.index)
    frames = [frame.reindex(rows) for frame in frames]
    logit_MNC = np.stack([frame[logits].to_numpy(np.float64) for frame in frames])
    decided_NC = np.logical_and.reduce([frame[decisions].notna().to_numpy() for frame in frames])
    return Averaged(rows, mean_logits(logit_MNC, task.kind), decided_NC.all(axis=1))


def _first(rows: pd.Index) -> str:
    return ", ".join(f"{name} {value}" for name, value in rows[:1].to_frame().iloc[0].items())


def targets_of(file: Path, fold: int | None, rows: pd.Index, task: Labels) -> np.ndarray:
    """Give the targets of validation examples.

    Raises
    ------
    DataError
        If a row is no such example.
    """
    examples = read_table(file).to_pandas()
    own = examples["split"] == "validation"
    if fold is not None:
        own &= examples["fold"] == fold
    known = examples[own].set_index(EXAMPLE)
    strange = rows.difference(known.index)
    if len(strange):
        raise DataError(f"{file.name}: no example of the validation split: {_first(strange)}")
    found: np.ndarray = known.loc[rows, [f"target_{label}" for label in task.names]].to_numpy()
    return found


def worst_of(places: Sequence[Path], rows: pd.Index) -> pa.Table:
    """Give what is said of each record by the member that fared worst with it, the first of equals."""
    names = [field.name for field in RECORD_COLUMNS]
    said = [name for name in names if name not in OF_A_RUN]
    tables, rank_MN = [], np.empty((len(places), len(rows)), dtype=np.int64)
    for own_N, place in zip(rank_MN, places, strict=True):
        table = read_table(place, columns=said)
        order = pd.Index(table["record_id"].to_pylist()).get_indexer(rows)
        tables.append(table.take(pa.array(order)))
        own_N[:] = [STATUSES.index(status) for status in tables[-1]["status"].to_pylist()]
    worst_N = rank_MN.argmax(axis=0)
    chosen = pa.concat_tables(tables).take(pa.array(worst_N * len(rows) + np.arange(len(rows))))
    for name in OF_A_RUN:
        chosen = chosen.append_column(name, pa.nulls(len(rows), pa.string()))
    return chosen.select(names).cast(pa.schema(RECORD_COLUMNS))
