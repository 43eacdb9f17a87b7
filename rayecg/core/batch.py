"""Recordings on their way through scoring: columns, not one object for each.

Legend: B record of the batch, N record of a group, L lead, T time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayecg.core.errors import DataError
from rayecg.core.record import Record
from rayecg.core.shard_format import (
    INDEX_FIELDS,
    has_windows,
    index_table,
    read_records,
    row_batches,
)

#: Records of a batch, where nothing speaks for another number: the windows of so many, 10 s of twelve
#: leads at 100 Hz each, stay in a core's cache from one step to the next.
BATCH = 256
#: Labels are no business of scoring.
BATCH_NAMES = [own.name for own in INDEX_FIELDS if own.name not in ("codes", "likelihoods")]
_SHARD_COLUMNS = (*BATCH_NAMES, "flags", "gain", "baseline", "beat_times", "n_times")
_FLAGS = pa.list_(pa.string())

Item = tuple[Mapping[str, Any], Record | Exception]


@dataclass(frozen=True)
class Group:
    """Records of the same leads, rate and type.

    Attributes
    ----------
    position_N
        Where each stands in its batch.
    digital_NLT
        Their samples: one array, or one for each where lengths differ or they lie apart.
    gain_NL, baseline_NL
        As for `Record`.
    fs, leads
        As for `Record`.
    n_times_N
        Samples of each.
    beat_times_N
        As for `Record`, lists; null where there are none.
    """

    position_N: np.ndarray
    digital_NLT: np.ndarray | Sequence[np.ndarray]
    gain_NL: np.ndarray
    baseline_NL: np.ndarray
    fs: float
    leads: tuple[str, ...]
    n_times_N: np.ndarray
    beat_times_N: pa.Array

    def record(self, n: int) -> Record:
        """Give one of them as an object, without its flags and the beats' symbols."""
        beats = self.beat_times_N[n]
        return Record(
            digital_LT=self.digital_NLT[n],
            gain_L=self.gain_NL[n],
            baseline_L=self.baseline_NL[n],
            fs=self.fs,
            leads=self.leads,
            beat_times=beats.values.to_numpy(zero_copy_only=False) if beats.is_valid else None,
        )


@dataclass(frozen=True)
class Batch:
    """Some records, read or not.

    Attributes
    ----------
    index
        The columns `BATCH_NAMES`, records in order.
    flags_B
        Lists of text; null for records that were not read.
    groups
        Those that were read.
    errors
        Why the others were not, by their place.
    """

    index: pa.Table
    flags_B: pa.Array
    groups: tuple[Group, ...]
    errors: Mapping[int, Exception] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the records."""
        return int(self.index.num_rows)

    @classmethod
    def of(cls, items: Sequence[Item]) -> Batch:
        """Make a batch of index rows, each with its record or with why there is none."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        errors: dict[int, Exception] = {}
        for i, (_, found) in enumerate(items):
            if isinstance(found, Record):
                layout = (found.leads, found.fs, found.digital_LT.dtype.name)
                alike.setdefault(layout, []).append(i)
            else:
                errors[i] = found
        flags = [list(found.flags) if isinstance(found, Record) else None for _, found in items]
        return cls(
            index_table([row for row, _ in items]).select(BATCH_NAMES),
            pa.array(flags, _FLAGS),
            tuple(_group(own, items) for own in alike.values()),
            errors,
        )


def _group(positions: list[int], items: Sequence[Item]) -> Group:
    records = [found for _, found in (items[i] for i in positions) if isinstance(found, Record)]
    return Group(
        position_N=np.array(positions),
        digital_NLT=[record.digital_LT for record in records],
        gain_NL=np.stack([record.gain_L for record in records]),
        baseline_NL=np.stack([record.baseline_L for record in records]),
        fs=records[0].fs,
        leads=records[0].leads,
        n_times_N=np.array([record.digital_LT.shape[1] for record in records]),
        beat_times_N=pa.array([record.beat_times for record in records], pa.list_(pa.int64())),
    )


def batches(items: Iterable[Item], size: int = BATCH) -> Iterator[Batch]:
    """Yield batches of `size` records, the last one smaller."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield Batch.of(chunk)


def shard_batches(file: str | Path, size: int = BATCH) -> Iterator[Batch]:
    """Yield the records of a shard, `size` at a time, the last batch smaller.

    Samples are views of Arrow's memory, and stand as they are in the file but for records that are
    stored as several windows: these are joined.

    Raises
    ------
    DataError
        If the file is not a shard.
    """
    if has_windows(file):
        yield from batches(read_records(file), size)
        return
    for table, samples_NLT, layout in row_batches(file, size, _SHARD_COLUMNS):
        used_N = table["n_times"].to_numpy().astype(np.int64)
        whole = bool((used_N == layout.n_times).all())
        n_leads = len(layout.leads)
        group = Group(
            position_N=np.arange(len(samples_NLT)),
            digital_NLT=samples_NLT
            if whole
            else [own_LT[:, :n] for own_LT, n in zip(samples_NLT, used_N, strict=True)],
            gain_NL=_by_lead(table["gain"], n_leads),
            baseline_NL=_by_lead(table["baseline"], n_leads).astype(np.int64),
            fs=layout.fs,
            leads=layout.leads,
            n_times_N=used_N,
            beat_times_N=table["beat_times"].combine_chunks(),
        )
        flags_B = table["flags"].combine_chunks()
        if flags_B.null_count:
            flags_B = pa.array([flags or [] for flags in flags_B.to_pylist()], _FLAGS)
        yield Batch(table.select(BATCH_NAMES), flags_B, (group,))


def _by_lead(column: pa.ChunkedArray, n_leads: int) -> np.ndarray:
    values = column.combine_chunks().flatten().to_numpy()
    if len(values) != len(column) * n_leads:
        raise DataError(f"expected {n_leads} gains and baselines in every row, came {len(values)}")
    return values.reshape(-1, n_leads)
