"""Recordings on their way through scoring: columns, not one object for each.

Legend: B record of the batch, N record of a group, L lead, T time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.core.errors import DataError
from rayecg.core.record import Record
from rayecg.core.shard_format import INDEX_FIELDS, Layout, index_table
from rayecg.core.shard_reader import ShardReader, read_records

#: Records of a batch: so many that what is done once for each batch does not count.
BATCH = 1024
#: Samples of a batch at which it ends before it is full: they bound a worker's memory.
BATCH_BYTES = 2**24
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


def bounded(items: Iterable[Item], size: int = BATCH) -> Iterator[list[Item]]:
    """Yield `size` records at a time, or fewer that have `BATCH_BYTES` of samples."""
    own: list[Item] = []
    n_bytes = 0
    for item in items:
        own.append(item)
        n_bytes += item[1].digital_LT.nbytes if isinstance(item[1], Record) else 0
        if len(own) == size or n_bytes >= BATCH_BYTES:
            yield own
            own, n_bytes = [], 0
    if own:
        yield own


def batches(items: Iterable[Item], size: int = BATCH) -> Iterator[Batch]:
    """Yield batches of `bounded` records."""
    return map(Batch.of, bounded(items, size))


def shard_batches(
    file: str | Path, size: int = BATCH, wanted: pa.Array | None = None
) -> Iterator[Batch]:
    """Yield the records of a shard, all or those whose ids are `wanted`, at most `size` at a time.

    Samples are views of the file or of Arrow's memory, and stand as they are in the file but for
    records that are stored as several windows: these are joined.

    Raises
    ------
    DataError
        If the file is not a shard.
    """
    with ShardReader(file) as shard:
        if shard.has_windows():
            ids = None if wanted is None else set(wanted.to_pylist())
            yield from batches(read_records(file, ids), size)
            return
        # Shards of long recordings have fewer rows at a time: a batch's samples bound the memory.
        size = min(size, max(BATCH_BYTES // max(shard.layout.n_bytes, 1), 1))
        for table, samples_NLT in shard.batches(size, _SHARD_COLUMNS):
            if wanted is not None:
                own_N = pc.is_in(table["record_id"], value_set=wanted)
                table, samples_NLT = table.filter(own_N), samples_NLT[own_N.to_numpy()]
                if not table.num_rows:
                    continue
            yield _shard_batch(table, samples_NLT, shard.layout)


def _shard_batch(table: pa.Table, samples_NLT: np.ndarray, layout: Layout) -> Batch:
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
    return Batch(table.select(BATCH_NAMES), flags_B, (group,))


def _by_lead(column: pa.ChunkedArray, n_leads: int) -> np.ndarray:
    values = column.combine_chunks().flatten().to_numpy()
    if len(values) != len(column) * n_leads:
        raise DataError(f"expected {n_leads} gains and baselines in every row, came {len(values)}")
    return values.reshape(-1, n_leads)
