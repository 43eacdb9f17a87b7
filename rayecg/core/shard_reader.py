"""Reading shards: row groups, batches of rows, records.

Samples that are not compressed are not copied: a row group's lie in the file as they do in memory.

Legend: N row, L lead, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayecg.core.errors import DataError
from rayecg.core.record import Record
from rayecg.core.shard_format import SIGNAL, Layout, decode_signal


class ShardReader:
    """A shard, open for reading; a context manager.

    Attributes
    ----------
    layout
        What its rows have in common.

    Raises
    ------
    DataError
        If the file is not a shard.
    """

    def __init__(self, file: str | Path) -> None:
        try:
            # Read, not mapped: the columns beside the samples are small, and mapping costs a fault
            # for every page.
            self._parquet = pq.ParquetFile(file, pre_buffer=False)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{file}: not a readable Parquet file ({error})") from None
        self._file, self._mapped = file, pa.memory_map(str(file))
        schema = self._parquet.schema_arrow
        for name in (SIGNAL, "offset"):
            if name not in schema.names:
                raise DataError(f"{file}: expected a column {name!r} in the shard")
        self.layout = Layout.from_field(schema.field(SIGNAL))

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._parquet.close()
        self._mapped.close()

    def has_windows(self) -> bool:
        """Tell whether a record lies here in several rows, or a part of one."""
        with self._damage_said():
            offsets = self._parquet.read(["offset"], use_threads=False)["offset"]
        return bool(offsets.to_numpy().any())

    def groups(self, columns: Sequence[str] | None = None) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield the row groups: the other columns (all, or those that are named), and the samples."""
        for i in range(self._parquet.num_row_groups):
            with self._damage_said():
                table = self._columns(i, columns)
                parts = list(self._samples(i, max(table.num_rows, 1)))
            yield table, parts[0] if len(parts) == 1 else np.concatenate(parts)

    def batches(self, size: int, columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield rows as `groups` does, `size` at a time, the last of a row group fewer.

        A batch's samples are still in the core's cache when they are worked on, which a row group's
        are not.
        """
        for i in range(self._parquet.num_row_groups):
            with self._damage_said():
                table, start = self._columns(i, columns), 0
                for samples_NLT in self._samples(i, size):
                    yield table.slice(start, len(samples_NLT)), samples_NLT
                    start += len(samples_NLT)

    @contextmanager
    def _damage_said(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{self._file}: not a readable Parquet file ({error})") from None

    def _columns(self, group: int, columns: Sequence[str] | None) -> pa.Table:
        if columns is None:
            columns = [name for name in self._parquet.schema_arrow.names if name != SIGNAL]
        return self._parquet.read_row_group(group, columns, use_threads=False)

    def _samples(self, group: int, size: int) -> Iterator[np.ndarray]:
        data = self._uncompressed(group)
        if data is None:
            for batch in self._parquet.iter_batches(size, [group], [SIGNAL], use_threads=False):
                yield decode_signal(pa.Table.from_batches([batch]))[0]
            return
        layout, dtype = self.layout, np.dtype(self.layout.dtype).newbyteorder("<")
        n_bytes = size * layout.n_bytes
        for start in range(0, len(data), n_bytes):
            part = data[start : start + n_bytes]
            if part.ctypes.data % dtype.itemsize:
                part = part.copy()  # numpy is slow where numbers lie across their places
            yield part.view(dtype).reshape(-1, len(layout.leads), layout.n_times)

    def _uncompressed(self, group: int) -> np.ndarray | None:
        """Give the bytes of a row group's samples as they lie in the file, None if they do not.

        A column chunk that is one uncompressed page is the page's header, and then its values, since
        a column without nulls and lists has no levels.
        """
        facts = self._parquet.metadata.row_group(group)
        column = facts.column(self._parquet.schema_arrow.get_field_index(SIGNAL))
        n_bytes = facts.num_rows * self.layout.n_bytes
        if column.path_in_schema != SIGNAL or column.compression != "UNCOMPRESSED" or not n_bytes:
            return None
        expected = _page_header(n_bytes)
        self._mapped.seek(column.data_page_offset)
        if column.has_dictionary_page or self._mapped.read(len(expected)) != expected:
            return None
        self._mapped.seek(column.data_page_offset + column.total_compressed_size - n_bytes)
        return np.frombuffer(self._mapped.read_buffer(n_bytes), np.uint8)


def _page_header(n_bytes: int) -> bytes:
    """Give how the header of a data page of so many bytes begins: Thrift's compact protocol.

    Field 1, an integer: 0, the kind of page. Field 2, an integer: its size. Integers are zigzag and
    in sevens of bits, the lowest first.
    """
    left, size = 2 * n_bytes, bytearray()
    while left >= 0x80:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([0x15, 0x00, 0x15, *size, left])


def row_groups(
    file: str | Path, columns: Sequence[str] | None = None
) -> Iterator[tuple[pa.Table, np.ndarray, Layout]]:
    """Yield the row groups of a shard: the other columns, the samples, and the layout.

    The samples are a view, not a copy: of the file where they are not compressed, else of Arrow's
    memory. `columns` names the columns to read beside them; None reads all.

    Raises
    ------
    DataError
        If the file is not a shard.
    """
    with ShardReader(file) as shard:
        for table, samples_NLT in shard.groups(columns):
            yield table, samples_NLT, shard.layout


def read_records(
    file: str | Path, record_ids: set[str] | None = None
) -> Iterator[tuple[dict[str, Any], Record]]:
    """Yield `(row, record)` for the records of a shard, all or the named ones alone.

    `row` has the columns of the index, `status`, `waveform_sha256` and the measures of quality. One
    row group is in memory at a time, and the windows of one record.
    """
    pieces: list[np.ndarray] = []
    last: tuple[dict[str, Any], Layout] | None = None
    for table, samples_NLT, layout in row_groups(file):
        if record_ids is not None:
            wanted = [
                i for i, name in enumerate(table["record_id"].to_pylist()) if name in record_ids
            ]
            if not wanted:
                continue
            table, samples_NLT = table.take(wanted), samples_NLT[wanted]
        for row, digital_LT in zip(table.to_pylist(), samples_NLT, strict=True):
            if last is not None and not row["offset"]:
                yield _record(*last, pieces)
                last, pieces = None, []
            pieces.append(digital_LT[:, : row["n_times"]])
            last = last or (row, layout)
    if last is not None:
        yield _record(*last, pieces)


def _record(
    row: dict[str, Any], layout: Layout, pieces: list[np.ndarray]
) -> tuple[dict[str, Any], Record]:
    beats, symbols = row.pop("beat_times"), row.pop("beat_symbols")
    record = Record(
        digital_LT=pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1),
        gain_L=np.array(row.pop("gain")),
        baseline_L=np.array(row.pop("baseline")),
        fs=layout.fs,
        leads=layout.leads,
        flags=tuple(row.pop("flags") or ()),
        beat_times=None if beats is None else np.array(beats, dtype=np.int64),
        beat_symbols=None if symbols is None else tuple(symbols),
    )
    for name in ("offset", "n_times"):
        row.pop(name)
    return row, record
