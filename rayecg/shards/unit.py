"""One unit of work: a run of index rows is read, checked, measured and written.

Legend: N record, L lead, T time.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayecg.archives.base import Archive
from rayecg.core.errors import record_error
from rayecg.core.experiment import ShardSettings
from rayecg.core.files import replacing
from rayecg.core.record import Assessment, Record
from rayecg.core.shard_format import (
    MAX_ROW_BYTES,
    QUARANTINE_SCHEMA,
    ROW_GROUP_BYTES,
    Layout,
    shard_batch,
    shard_schema,
)
from rayecg.core.units import Units, failure_as_row
from rayecg.signal.assessment import assess

#: Records that are read before their quality is measured together, and the bytes that end it earlier.
CHUNK, CHUNK_BYTES = 256, 2**25
#: A shard is closed at this size, before the unit's number of records is reached.
MAX_FILE_BYTES = 2**28
#: Shards of one unit that may be open for records of different layouts.
MAX_OPEN = 8
#: Lengths that odd records are padded to, times powers of ten: at most a third is padding.
_ROOMY = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)


class Found(NamedTuple):
    """A record that was read: its index row's number, and what was found of it."""

    row: int
    record: Record
    assessment: Assessment


class UnitWriter:
    """Reads the records of a unit and writes its files; called for each unit, in a Ray task.

    Parameters
    ----------
    archive, settings
        As for `make_shards`.
    units
        Names the files and keeps the ledger.
    """

    def __init__(self, archive: Archive, settings: ShardSettings, units: Units) -> None:
        self.archive, self.settings, self.units = archive, settings, units

    @failure_as_row
    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write one unit; returns its ledger entry, or why the archive cannot be reached."""
        unit = item["unit"]
        index = pa.ipc.open_stream(item["rows"]).read_all()
        refused: list[tuple[int, Exception]] = []
        with ExitStack() as stack:
            shards = _Shards(self.units, unit, self.settings, index, stack)
            for chunk in self._chunks(index, refused):
                shards.add(chunk)
            shards.close()
        files = list(shards.names)
        if refused:
            table = _quarantine(index, refused)
            files += self.units.write("quarantine", unit, table)
        entry = {
            "n_input": index.num_rows,
            "n_ok": index.num_rows - len(refused),
            "n_degraded": 0,
            "n_quarantined": len(refused),
        }
        self.units.finish(unit, entry, files)
        return entry

    def _chunks(
        self, index: pa.Table, refused: list[tuple[int, Exception]]
    ) -> Iterator[list[Found]]:
        """Yield so many records at a time that they are measured together and fit into memory."""
        rows: list[int] = []
        records: list[Record] = []
        n_bytes = 0
        found = self.archive.read_each(index.to_pylist(), self.settings.checks)
        for row, record in enumerate(found):
            if isinstance(record, Record) and self.settings.fs is not None:
                from rayecg.shards.resample import resample_record  # scipy takes its time to start

                try:
                    record = resample_record(record, self.settings.fs)
                except Exception as error:  # one record's trouble is that record's row
                    record = error
            if not isinstance(record, Record):
                refused.append((row, record))
                continue
            if self.settings.windows == "first" and self.settings.window_s is not None:
                record = _first(record, round(self.settings.window_s * record.fs))
            rows.append(row)
            records.append(record)
            n_bytes += record.digital_LT.nbytes
            if len(records) == CHUNK or n_bytes >= CHUNK_BYTES:
                yield self._assessed(rows, records)
                rows, records, n_bytes = [], [], 0
        if records:
            yield self._assessed(rows, records)

    def _assessed(self, rows: list[int], records: list[Record]) -> list[Found]:
        assessments = assess(records) if self.settings.quality else [Assessment()] * len(records)
        return [Found(*found) for found in zip(rows, records, assessments, strict=True)]


class _Shards:
    """The shards of a unit, one open for each layout."""

    def __init__(
        self,
        units: Units,
        unit: str,
        settings: ShardSettings,
        index: pa.Table,
        stack: ExitStack,
    ) -> None:
        self.units, self.unit, self.settings = units, unit, settings
        self.index, self.stack = index, stack
        #: Of the files, as the ledger has them.
        self.names: list[str] = []
        self._open: dict[Layout, _Shard] = {}

    def add(self, chunk: list[Found]) -> None:
        """Give each record of a chunk to the shard of its layout."""
        groups: dict[tuple[Any, ...], list[Found]] = {}
        n_of = Counter(found.record.digital_LT.shape[1] for found in chunk)
        for found in chunk:
            record = found.record
            n_times = record.digital_LT.shape[1]
            # A length that many share is kept; the odd ones share roomier rows.
            room = n_times if n_of[n_times] * 8 >= len(chunk) else _roomy(n_times)
            key = (record.leads, record.fs, record.digital_LT.dtype, room)
            groups.setdefault(key, []).append(found)
        for key, members in groups.items():
            layout = self._layout(*key)
            shard = self._open.get(layout)
            if shard is None:
                while len(self._open) >= MAX_OPEN:
                    self._open.pop(next(iter(self._open))).close()
                part = f"{self.unit}-{len(self.names):04d}"
                self.names.append(self.units.name("records", part))
                file = self.units.file("records", part)
                shard = _Shard(file, layout, self.settings, self.index, self.stack)
                self._open[layout] = shard
            shard.add(members)
            if shard.n_bytes >= MAX_FILE_BYTES:
                self._open.pop(layout).close()

    def _layout(self, leads: tuple[str, ...], fs: float, dtype: np.dtype, room: int) -> Layout:
        if self.settings.window_s is not None:
            room = max(round(self.settings.window_s * fs), 1)
        largest = max(MAX_ROW_BYTES // (len(leads) * dtype.itemsize), 1)
        return Layout(leads, float(fs), min(room, largest), dtype.name)

    def close(self) -> None:
        """Close every shard that is open."""
        for shard in self._open.values():
            shard.close()
        self._open.clear()


class _Shard:
    """One Parquet file, written row group by row group beside its place."""

    def __init__(
        self,
        file: Path,
        layout: Layout,
        settings: ShardSettings,
        index: pa.Table,
        stack: ExitStack,
    ) -> None:
        self.layout, self.index, self.n_bytes = layout, index, 0
        self._width = layout.n_bytes
        self._group = max(ROW_GROUP_BYTES // self._width, 1)
        self._rows: list[tuple[Found, int]] = []
        # Left by an error, the unfinished file is removed; closed, it is renamed.
        self._own = ExitStack()
        stack.push(self._own)
        beside = self._own.enter_context(replacing(file))
        self._writer = self._own.enter_context(
            pq.ParquetWriter(
                beside,
                shard_schema(layout),
                compression=settings.compression,
                compression_level=1 if settings.compression == "zstd" else None,
                use_dictionary=False,
                # Statistics of the samples are of no use and cost their size again.
                write_statistics=["record_id", "patient_id", "strat_fold"],
            )
        )

    def add(self, members: Sequence[Found]) -> None:
        """Take records of this layout; whole row groups are written at once."""
        room = self.layout.n_times
        for found in members:
            n_times = found.record.digital_LT.shape[1]
            for offset in range(0, n_times, room):
                self._rows.append((found, offset))
                if len(self._rows) == self._group:
                    self._flush()

    def _flush(self) -> None:
        found = [one for one, _ in self._rows]
        index = self.index.take(pa.array([one.row for one in found], pa.int64()))
        batch = shard_batch(
            index,
            [one.record for one in found],
            self.layout,
            [one.assessment for one in found],
            [offset for _, offset in self._rows],
        )
        self._writer.write_batch(batch)
        self.n_bytes += len(self._rows) * self._width
        self._rows = []

    def close(self) -> None:
        """Write what is left, and give the file its name."""
        if self._rows:
            self._flush()
        self._own.close()


def _first(record: Record, n_times: int) -> Record:
    """Keep the start of a record, with the beats that are in it."""
    if record.digital_LT.shape[1] <= n_times:
        return record
    times, symbols = record.beat_times, record.beat_symbols
    if times is not None:
        inside = times < n_times
        times = times[inside]
        symbols = tuple(np.asarray(symbols, dtype=object)[inside].tolist())
    return dataclasses.replace(
        record,
        digital_LT=np.ascontiguousarray(record.digital_LT[:, :n_times]),
        beat_times=times,
        beat_symbols=symbols,
    )


def _roomy(n_times: int) -> int:
    """Give the next of a ladder of lengths, so that odd lengths do not make a shard each."""
    scale = 10 ** max(len(str(n_times)) - 2, 0)
    for step in (*_ROOMY, 100):
        if n_times <= step * scale:
            return step * scale
    return n_times


def _quarantine(index: pa.Table, refused: Sequence[tuple[int, Exception]]) -> pa.Table:
    rows = index.take(pa.array([row for row, _ in refused], pa.int64()))
    codes, errors = zip(*(record_error(error) for _, error in refused), strict=True)
    columns = [*rows.columns, pa.array(codes, pa.string()), pa.array(errors, pa.string())]
    return pa.Table.from_arrays(columns, schema=QUARANTINE_SCHEMA)
