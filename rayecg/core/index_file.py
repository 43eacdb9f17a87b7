"""Rows of an index that lie on disk while a job uses them: an archive may have many millions."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from rayecg.core.errors import DataError

#: Rows that are read at a time.
ROWS = 4096
#: Rows that are worked on at a time.
PIECE = 1 << 14
#: The column that numbers the rows.
ROW = "row_"


class IndexFile:
    """Tables of one schema, put away in the order they came; their rows are read back by number.

    The file has no name: it goes with the process, however that ends.

    Parameters
    ----------
    tables
        At least one.

    Attributes
    ----------
    names
        Of the columns.

    Raises
    ------
    DataError
        If the disk of temporary files has no room for them.
    """

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._n_rows = 0
        with no_room_said():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._write(iter(tables))
        self._reader = pa.ipc.open_file(pa.PythonFile(self._file, "r"))

    def __len__(self) -> int:
        return self._n_rows

    def _write(self, tables: Iterator[pa.Table]) -> None:
        left = next(tables)
        self.names = left.column_names
        self._schema = left.schema.append(pa.field(ROW, pa.int64()))
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with no_room_said():
            writer = pa.ipc.new_file(self._file, self._schema, options=options)
        for table in tables:
            whole = len(left) // ROWS * ROWS
            self._append(writer, left.slice(0, whole))
            left = pa.concat_tables([left.slice(whole), table])
        self._append(writer, left)
        with no_room_said():
            writer.close()
            self._file.flush()

    def _append(self, writer: pa.ipc.RecordBatchFileWriter, rows: pa.Table) -> None:
        # Of one size, so that a row's number says which batch it is in.
        for start in range(0, len(rows), ROWS):
            (batch,) = rows.slice(start, ROWS).combine_chunks().to_batches()
            number = pa.array(np.arange(self._n_rows, self._n_rows + len(batch)))
            with no_room_said():
                writer.write_batch(pa.record_batch([*batch.columns, number], self._schema))
            self._n_rows += len(batch)

    def take(self, rows_N: np.ndarray) -> pa.Table:
        """Give rows by their numbers, in the order of these."""
        batch_N = rows_N // ROWS
        by_batch_N = np.argsort(batch_N, kind="stable")
        edges = np.flatnonzero(np.diff(batch_N[by_batch_N])) + 1
        parts = [
            self._reader.get_batch(int(batch_N[own_N[0]]))
            .select(self.names)
            .take(pa.array(rows_N[own_N] % ROWS))
            for own_N in np.split(by_batch_N, edges)
            if len(own_N)
        ]
        schema = self._schema.remove(len(self.names))
        table = pa.Table.from_batches(parts, schema).combine_chunks()
        back_N = np.empty_like(by_batch_N)
        back_N[by_batch_N] = np.arange(len(back_N))
        return table.take(pa.array(back_N))

    def pieces(self, names: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield all rows in order, `PIECE` at a time; of all columns, or of some."""
        each = PIECE // ROWS
        for start in range(0, self._reader.num_record_batches, each):
            stop = min(start + each, self._reader.num_record_batches)
            batches = [self._reader.get_batch(b) for b in range(start, stop)]
            yield pa.Table.from_batches(batches).select(names or self.names)

    def chosen(self, rows_N: np.ndarray) -> IndexFile:
        """Put some of the rows away in a file of their own."""
        edges = range(0, max(len(rows_N), 1), PIECE)
        return IndexFile(self.take(rows_N[start : start + PIECE]) for start in edges)

    def dataset(self, names: Sequence[str]) -> pyarrow.dataset.Dataset:
        """Give some columns, and the number of each row as `ROW`, as others read them piece by piece."""
        schema = pa.schema([self._schema.field(name) for name in (*names, ROW)])
        return pyarrow.dataset.dataset(door(self._file), schema, format="ipc")


class TableQueue:
    """Tables that wait on disk, for the first that was put to be the first that is taken."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._starts: deque[int] = deque()

    def put(self, table: pa.Table) -> None:
        """Put a table behind the others; `DataError` if the disk of temporary files has no room."""
        with no_room_said():
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
            if not self._starts:
                self._file.truncate(0)
            start = self._file.seek(0, os.SEEK_END)
            with pa.ipc.new_stream(self._file, table.schema) as writer:
                writer.write_table(table)
            self._file.flush()
        self._starts.append(start)

    def take(self) -> pa.Table:
        """Take the first table."""
        assert self._file is not None
        self._file.seek(self._starts.popleft())
        return pa.ipc.open_stream(self._file).read_all()


def mapped(file: IO[bytes]) -> pa.Buffer:
    """Give what a file holds, which the system reads when it is looked at and may drop again."""
    file.flush()
    return pa.memory_map(door(file)).read_buffer()


def door(file: IO[bytes]) -> str:
    """Name a file that is open and may have no name."""
    return f"/dev/fd/{file.fileno()}"


@contextmanager
def no_room_said(what: str = "the index of the archive") -> Iterator[None]:
    """Say what to do where the disk of temporary files has no room for something.

    Raises
    ------
    DataError
        For an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{what} cannot be put away among the temporary files "
            f"({error.strerror or error}); TMPDIR names another folder for them"
        ) from None
