"""Tables that other programs wrote, CSV or Parquet, with ids that stay text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from rayecg.core.errors import DataError, SettingsError

#: Bytes of a CSV that are in memory at a time as text.
_BLOCK = 2**22
#: A header longer than this is none.
_LONGEST_HEADER = 2**20
#: What stands for nothing in a cell.
_NOTHING = ["", "nan", "NaN"]


@dataclass(frozen=True)
class TableFile:
    """A table whose header was read: its file, its name in messages, its columns, how it is written.

    `separator` is None for Parquet.
    """

    path: Path
    name: str
    names: tuple[str, ...]
    separator: str | None

    def read(self, columns: Sequence[str], texts: Sequence[str], words: Sequence[str]) -> pa.Table:
        """Read some columns: `texts` as strings, `words` as strings of few values, others as floats.

        Raises
        ------
        DataError
            If the file is damaged or a cell is no number.
        """
        try:
            if self.separator is None:
                return self._parquet(columns, texts, words)
            return self._csv(columns, texts, words)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise DataError(f"{self.name}: cannot be read as a table: {_said(error)}") from None

    def _csv(self, columns: Sequence[str], texts: Sequence[str], words: Sequence[str]) -> pa.Table:
        kinds = dict.fromkeys(columns, pa.float64())
        kinds |= dict.fromkeys(texts, pa.string())
        kinds |= dict.fromkeys(words, pa.dictionary(pa.int32(), pa.string()))
        convert = pa.csv.ConvertOptions(
            column_types=kinds,
            include_columns=list(columns),
            null_values=_NOTHING,
            strings_can_be_null=True,
        )
        with pa.input_stream(self.path, compression="detect") as stream:
            reader = pa.csv.open_csv(
                stream,
                read_options=pa.csv.ReadOptions(block_size=_BLOCK),
                parse_options=pa.csv.ParseOptions(delimiter=self.separator),
                convert_options=convert,
            )
            return pa.Table.from_batches(reader, reader.schema).unify_dictionaries()

    def _parquet(
        self, columns: Sequence[str], texts: Sequence[str], words: Sequence[str]
    ) -> pa.Table:
        table = pq.read_table(self.path, columns=list(columns), partitioning=None)
        for i, name in enumerate(table.column_names):
            column = table[name]
            if name in texts:
                column = _as_text(column)
            elif name in words:
                column = _as_text(column).dictionary_encode()
            else:
                column = _plain(column).cast(pa.float64())
            table = table.set_column(i, name, column)
        return table.select(list(columns))


def open_table(path: Path) -> TableFile:
    """Look at a table's first bytes and header.

    Raises
    ------
    SettingsError
        If there is no such file.
    DataError
        If it is empty, not UTF-8, or no table.
    """
    name = path.name
    if path.is_dir():
        raise SettingsError(f"{path}: expected a CSV or Parquet file, found a folder")
    if not path.is_file():
        raise SettingsError(f"{path}: expected a CSV or Parquet file, found none")
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            return TableFile(path, name, tuple(pq.read_schema(path).names), None)
        with pa.input_stream(path, compression="detect") as stream:
            first = stream.read(_LONGEST_HEADER)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{name}: cannot be read as a table: {_said(error)}") from None
    if not first.strip():
        raise DataError(f"{name}: expected a table, the file is empty")
    try:
        text = first.partition(b"\n")[0].decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{name}: expected CSV in UTF-8, or Parquet; this is neither")
    separator = max(",;\t", key=text.count)
    header = next(csv.reader(io.StringIO(text.rstrip("\r")), delimiter=separator), [])
    return TableFile(path, name, tuple(header), separator)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Undo the encoding that pandas calls categorical."""
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Write a column's values as text; pandas makes floats of whole numbers beside an empty cell."""
    column = _plain(column)
    if pa.types.is_floating(column.type):
        values = [None if v is None or v != v else v for v in column.to_pylist()]
        whole = all(value is None or float(value).is_integer() for value in values)
        texts = [None if v is None else str(int(v) if whole else v) for v in values]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return column.cast(pa.string())


def _said(error: Exception) -> str:
    """Give an error's first line; Arrow's name the row or the column."""
    line = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return f"{line} (expected UTF-8)" if "invalid UTF8" in line else line
