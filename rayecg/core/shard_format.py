"""The Parquet schema of a shard, and the one function that decodes it.

A shard holds records of one layout: the same leads, rate, length and type. The samples are a
`fixed_size_binary` column (leads by times, C order, little endian), whose field metadata say
`leads`, `fs`, `n_times`, `dtype` and `unit`; mV = (value - baseline) / gain, per lead. That column
reads ten times faster than Parquet's list types, which widen int16 to int32, and stays readable
with plain pyarrow, pandas and DuckDB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayecg.core.errors import DataError, RecordError
from rayecg.core.record import Record
from rayecg.core.units import unit_files

#: What an archive's index says of a record, in every shard, quarantine and prediction table.
INDEX_FIELDS = [
    pa.field("record_id", pa.string(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    pa.field("patient_id", pa.string()),
    pa.field("strat_fold", pa.int16()),
    pa.field("age", pa.float32()),
    pa.field("sex", pa.string()),
    pa.field("site", pa.string()),
    pa.field("device", pa.string()),
    pa.field("codes", pa.list_(pa.string())),
    pa.field("likelihoods", pa.list_(pa.float32())),
]
INDEX_NAMES = [field.name for field in INDEX_FIELDS]

#: What reading adds, beside the samples.
RECORD_FIELDS = [
    pa.field("status", pa.string(), nullable=False),
    pa.field("flags", pa.list_(pa.string())),
    pa.field("waveform_sha256", pa.string(), nullable=False),
    pa.field("gain", pa.list_(pa.float64())),
    pa.field("baseline", pa.list_(pa.int32())),
    pa.field("beat_times", pa.list_(pa.int32())),
    pa.field("beat_symbols", pa.list_(pa.string())),
]

QUARANTINE_SCHEMA = pa.schema(
    [*INDEX_FIELDS, pa.field("error_code", pa.string()), pa.field("error", pa.string())]
)

SIGNAL = "signal"
#: Of one record's samples: Arrow counts the bits of a fixed-size value in 32 bits.
MAX_BYTES = 2**28 - 1


@dataclass(frozen=True)
class Layout:
    """What the records of one shard have in common; `fs` in Hz."""

    leads: tuple[str, ...]
    fs: float
    n_times: int
    dtype: str

    @classmethod
    def of(cls, record: Record) -> Layout:
        """Give a record's layout.

        Raises
        ------
        RecordError
            `too_large`, if its samples are more than a shard can hold.
        """
        digital_LT = record.digital_LT
        if digital_LT.nbytes > MAX_BYTES:
            raise RecordError(
                "too_large",
                f"expected up to {MAX_BYTES} bytes of samples, came {digital_LT.nbytes}",
            )
        return cls(record.leads, float(record.fs), digital_LT.shape[1], digital_LT.dtype.name)

    def field(self) -> pa.Field:
        """Give the Arrow field of the samples, its metadata stating this layout."""
        width = len(self.leads) * self.n_times * np.dtype(self.dtype).itemsize
        metadata = {
            "leads": json.dumps(self.leads),
            "fs": repr(self.fs),
            "n_times": str(self.n_times),
            "dtype": self.dtype,
            "unit": "adc",
        }
        return pa.field(SIGNAL, pa.binary(width), nullable=False, metadata=metadata)

    @classmethod
    def from_field(cls, field: pa.Field) -> Layout:
        """Read a layout back from the field of the samples."""
        text = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        return cls(
            tuple(json.loads(text["leads"])),
            float(text["fs"]),
            int(text["n_times"]),
            text["dtype"],
        )


def index_table(rows: Sequence[Mapping[str, Any]], extra: Sequence[pa.Field] = ()) -> pa.Table:
    """Build a table of index rows; columns a row lacks are null."""
    schema = pa.schema([*INDEX_FIELDS, *extra])
    columns = [
        pa.array([row.get(field.name) for row in rows], type=field.type, from_pandas=True)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def shard_table(rows: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> pa.Table:
    """Build a shard from index rows (each with `status`) and their records of one layout."""
    layout = Layout.of(records[0])
    filled = [
        {
            **row,
            "flags": list(record.flags),
            "waveform_sha256": record.sha256,
            "gain": np.asarray(record.gain_L, dtype=np.float64),
            "baseline": np.asarray(record.baseline_L, dtype=np.int32),
            "beat_times": record.beat_times,
            "beat_symbols": record.beat_symbols,
        }
        for row, record in zip(rows, records, strict=True)
    ]
    table = index_table(filled, RECORD_FIELDS)
    samples = np.stack([record.digital_LT for record in records])
    signal = pa.FixedSizeBinaryArray.from_buffers(
        layout.field().type, len(records), [None, pa.py_buffer(samples.tobytes())]
    )
    return table.append_column(layout.field(), signal)


def decode_signal(table: pa.Table) -> tuple[np.ndarray, Layout]:
    """Give the samples of a shard.

    Returns
    -------
    tuple
        Integers, records by leads by times (a view of the table's memory where the column is one
        chunk), and the layout.

    Raises
    ------
    DataError
        If the table has no such column.
    """
    if SIGNAL not in table.column_names:
        raise DataError(f"expected a column {SIGNAL!r} in the shard, found {table.column_names}")
    layout = Layout.from_field(table.schema.field(SIGNAL))
    width = table.schema.field(SIGNAL).type.byte_width
    shape = (len(layout.leads), layout.n_times)
    parts = []
    for chunk in table[SIGNAL].chunks:
        data = np.frombuffer(
            chunk.buffers()[1], np.uint8, count=len(chunk) * width, offset=chunk.offset * width
        )
        parts.append(data.view(np.dtype(layout.dtype).newbyteorder("<")).reshape(-1, *shape))
    if not parts:
        return np.empty((0, *shape), dtype=layout.dtype), layout
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)), layout


def shard_files(folder: str | Path) -> list[Path]:
    """List the shards of a `make_shards` output, in order."""
    return unit_files(Path(folder), "records")


def read_records(
    file: str | Path, record_ids: set[str] | None = None
) -> Iterator[tuple[dict[str, Any], Record]]:
    """Yield `(row, record)` for the records of a shard, all or the named ones alone.

    `row` has the columns of the index, `status` and `waveform_sha256`. Arrow drops the records that
    are not asked for.
    """
    filters = None if record_ids is None else pc.field("record_id").isin(sorted(record_ids))
    table = pq.read_table(file, filters=filters, partitioning=None)
    if not table.num_rows:
        return
    samples_NLT, layout = decode_signal(table)
    rows = table.drop_columns([SIGNAL]).to_pylist()
    for row, digital_LT in zip(rows, samples_NLT, strict=True):
        beats = row.pop("beat_times")
        symbols = row.pop("beat_symbols")
        record = Record(
            digital_LT=digital_LT,
            gain_L=np.array(row.pop("gain")),
            baseline_L=np.array(row.pop("baseline")),
            fs=layout.fs,
            leads=layout.leads,
            flags=tuple(row.pop("flags") or ()),
            beat_times=None if beats is None else np.array(beats, dtype=np.int64),
            beat_symbols=None if symbols is None else tuple(symbols),
        )
        yield row, record
