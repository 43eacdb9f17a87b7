"""The rows of `predictions/` and `windows/`, built of a batch's columns and of what a checkpoint said.

Legend: B record, W window.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rayecg.core.batch import Batch
from rayecg.core.hashing import Kind, hashed, hashed_ids
from rayecg.core.predictions import RECORD_COLUMNS, WINDOW_COLUMNS, label_fields, output_columns
from rayecg.core.shard_format import DUPLICATE
from rayecg.models.predictor import Answer, Prediction

_TEXTS = pa.list_(pa.string())


@dataclass(frozen=True)
class Stamps:
    """What every row of a run says of it.

    Attributes
    ----------
    checkpoint, code_version
        Fingerprints of both.
    hash_key
        Under which ids are hashed; paths and the text of errors, which name files, are left out
        then. None leaves all as it is.
    """

    checkpoint: str
    code_version: str
    hash_key: bytes | None = None


def record_table(batch: Batch, prediction: Prediction, stamps: Stamps) -> pa.Table:
    """Build the rows of `predictions/`: one per input record, whatever came of it."""
    key, n = stamps.hash_key, len(batch)
    codes, texts = zip(*(error or (None, None) for error in prediction.errors), strict=True)
    # What a group's records share is listed once, and taken for each of them.
    group_B = np.full(n, -1, dtype=np.int32)
    n_times_B = np.zeros(n, dtype=np.int64)
    for g, group in enumerate(batch.groups):
        group_B[group.position_N] = g
        n_times_B[group.position_N] = group.n_times_N
    unread_B = group_B < 0
    place_B = pa.array(group_B, mask=unread_B)
    leads = pa.array([list(group.leads) for group in batch.groups], _TEXTS)
    rates = pa.array([float(group.fs) for group in batch.groups], pa.float64())
    columns = {
        "record_id": _ids(batch.index["record_id"], key, "record"),
        "path": batch.index["path"] if key is None else pa.nulls(n, pa.string()),
        "patient_id": _ids(batch.index["patient_id"], key, "patient"),
        "status": prediction.status,
        "error_code": codes,
        "error": texts if key is None else pa.nulls(n, pa.string()),
        "abstain": prediction.abstain,
        "limits": prediction.limits,
        "flags": batch.flags_B if key is None else _hashed_flags(batch.flags_B.to_pylist(), key),
        "leads": leads.take(place_B),
        "fs": rates.take(place_B),
        "n_times": pa.array(n_times_B, mask=unread_B),
        "n_windows": np.bincount(prediction.window_record, minlength=n),
        "checkpoint": pa.repeat(stamps.checkpoint, n),
        "code_version": pa.repeat(stamps.code_version, n),
    }
    return _table("predictions", columns, prediction.labels, prediction.records)


def window_table(batch: Batch, prediction: Prediction, stamps: Stamps, unit: str) -> pa.Table:
    """Build the rows of `windows/`: beats, and the windows of records that have several."""
    owner_W, answer = prediction.window_record, prediction.windows
    if unit == "beat":
        kept_W = np.ones(len(owner_W), dtype=bool)
    else:
        kept_W = np.bincount(owner_W, minlength=len(batch))[owner_W] > 1
        if not kept_W.any():
            return _schema("windows", prediction.labels).empty_table()
    ids = batch.index["record_id"].take(pa.array(owner_W[kept_W]))
    columns = {
        "record_id": _ids(ids, stamps.hash_key, "record"),
        "offset": prediction.window_offset[kept_W],
    }
    own = Answer(
        answer.logit[kept_W],
        answer.probability[kept_W],
        answer.calibrated[kept_W],
        answer.decision[kept_W],
    )
    return _table("windows", columns, prediction.labels, own)


@functools.cache
def _schema(kind: str, labels: tuple[str, ...]) -> pa.Schema:
    fields = RECORD_COLUMNS if kind == "predictions" else WINDOW_COLUMNS
    return pa.schema([*fields, *label_fields(labels)])


def _table(kind: str, columns: dict[str, Any], labels: tuple[str, ...], answer: Answer) -> pa.Table:
    schema = _schema(kind, labels)
    arrays = [
        column
        if isinstance(column, (pa.Array, pa.ChunkedArray))
        else pa.array(column, type=schema.field(name).type)
        for name, column in columns.items()
    ]
    arrays += output_columns(
        labels, answer.logit, answer.probability, answer.calibrated, answer.decision
    )
    return pa.Table.from_arrays(arrays, schema=schema)


def _ids(column: pa.ChunkedArray, key: bytes | None, kind: Kind) -> pa.ChunkedArray | pa.Array:
    if key is None:
        return column
    return pa.array(hashed_ids(column.to_pylist(), key, kind), pa.string())


def _hashed_flags(flags_B: Sequence[Sequence[str] | None], key: bytes) -> list[list[str] | None]:
    """Hash the ids that flags name: a copy's flag says which record it is a copy of."""

    def own(flag: str) -> str:
        name = flag.removeprefix(DUPLICATE)
        return flag if name == flag else f"{DUPLICATE}{hashed(name, key, 'record')}"

    return [None if flags is None else [own(flag) for flag in flags] for flags in flags_B]
