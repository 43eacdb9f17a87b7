"""The Parquet schema of a shard, and the one function that decodes it.

A shard holds records of one layout: the same leads, rate and type, and room for the same number of
samples. The samples are a `fixed_size_binary` column (leads by times, C order, little endian), whose
field metadata say `leads`, `fs`, `n_times`, `dtype` and `unit`; mV = (value - baseline) / gain, per
lead, and the smallest value of the type marks an invalid sample. That column reads ten times faster
than Parquet's list types, which widen int16 to int32, and stays readable with plain pyarrow, pandas
and DuckDB. `rayecg.core.shard_reader` reads shards.

A row is a record, or a window of one: `offset` says where it starts and `n_times` how much of the
row's room is used; what follows is invalid. The windows of a record are consecutive rows of one
shard, the first of which has its beats.

Legend: N row, L lead, T time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayecg.core.errors import DataError
from rayecg.core.record import Assessment, Record, invalid_value
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
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("n_times", pa.int32(), nullable=False),
    pa.field("invalid_fraction", pa.list_(pa.float32())),
    pa.field("noise_mv", pa.list_(pa.float32())),
    pa.field("wander_mv", pa.list_(pa.float32())),
    pa.field("einthoven_mv", pa.float32()),
]

QUARANTINE_SCHEMA = pa.schema(
    [*INDEX_FIELDS, pa.field("error_code", pa.string()), pa.field("error", pa.string())]
)

SIGNAL = "signal"
#: The table of all records of a `make_shards` output, without their samples: a row group for each shard.
RECORDS = "records.parquet"
#: How the flag of an exact copy begins; the id of the record it is a copy of follows.
DUPLICATE = "duplicate:"
#: Of one row's samples: Arrow counts the bits of a fixed-size value in 32 bits, and a reader holds
#: a row group of such rows. A longer record is stored as windows.
MAX_ROW_BYTES = 2**26
#: Of one row group: small enough to hold one in memory, large enough to read at full speed.
ROW_GROUP_BYTES = 2**24


@dataclass(frozen=True)
class Layout:
    """What the records of one shard have in common; `fs` in Hz."""

    leads: tuple[str, ...]
    fs: float
    n_times: int
    dtype: str

    @classmethod
    def of(cls, record: Record) -> Layout:
        """Give the layout of rows that have just the room for a record."""
        digital_LT = record.digital_LT
        return cls(record.leads, float(record.fs), digital_LT.shape[1], digital_LT.dtype.name)

    @property
    def n_bytes(self) -> int:
        """Give the size of a row's samples."""
        return len(self.leads) * self.n_times * np.dtype(self.dtype).itemsize

    def field(self) -> pa.Field:
        """Give the Arrow field of the samples, its metadata stating this layout."""
        metadata = {
            "leads": json.dumps(self.leads),
            "fs": repr(self.fs),
            "n_times": str(self.n_times),
            "dtype": self.dtype,
            "unit": "adc",
        }
        return pa.field(SIGNAL, pa.binary(self.n_bytes), nullable=False, metadata=metadata)

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


def index_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Build a table of index rows; columns a row lacks are null."""
    return index_columns(
        {field.name: [row.get(field.name) for row in rows] for field in INDEX_FIELDS}, len(rows)
    )


def index_columns(
    columns: Mapping[str, Sequence[Any] | pa.Array], n_rows: int | None = None
) -> pa.Table:
    """Build an index from its columns; those not given are null."""
    n_rows = len(columns["record_id"]) if n_rows is None else n_rows
    arrays = [
        _column(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(n_rows, field.type)
        for field in INDEX_FIELDS
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(INDEX_FIELDS))


def _column(values: Sequence[Any] | pa.Array, dtype: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    return pa.array(values, dtype, from_pandas=True)


def shard_schema(layout: Layout) -> pa.Schema:
    """Give the schema of a shard."""
    return pa.schema([*INDEX_FIELDS, *RECORD_FIELDS, layout.field()])


def shard_batch(
    index: pa.Table,
    records: Sequence[Record],
    layout: Layout,
    assessments: Sequence[Assessment] | None = None,
    offsets: Sequence[int] | None = None,
) -> pa.RecordBatch:
    """Build rows of a shard.

    Parameters
    ----------
    index
        An index row for each.
    records
        Of the layout's leads, rate and type.
    layout
        How much room a row has; what a record does not fill is invalid.
    assessments
        What was measured of each record.
    offsets
        Where each row's window begins in its record; 0 by default.
    """
    offsets = offsets or [0] * len(records)
    assessments = assessments or [Assessment()] * len(records)
    room = layout.n_times
    samples_NLT = np.empty((len(records), len(layout.leads), room), dtype=layout.dtype)
    used = []
    for record, offset, samples_LT in zip(records, offsets, samples_NLT, strict=True):
        part_LT = record.digital_LT[:, offset : offset + room]
        used.append(part_LT.shape[1])
        samples_LT[:, : used[-1]] = part_LT
        if used[-1] < room:
            samples_LT[:, used[-1] :] = invalid_value(samples_LT.dtype)
    times = [record.beat_times for record in records]
    symbols = [record.beat_symbols for record in records]
    columns = {
        "status": ["ok"] * len(records),
        "flags": [
            [*record.flags, *assessment.flags]
            for record, assessment in zip(records, assessments, strict=True)
        ],
        "waveform_sha256": [record.sha256 for record in records],
        "gain": _list_column([record.gain_L for record in records], pa.float64()),
        "baseline": _list_column([record.baseline_L for record in records], pa.int32()),
        "beat_times": [_at_start(*pair) for pair in zip(times, offsets, strict=True)],
        "beat_symbols": [_at_start(*pair) for pair in zip(symbols, offsets, strict=True)],
        "offset": offsets,
        "n_times": used,
        "einthoven_mv": [assessment.einthoven_mv for assessment in assessments],
    }
    for name in ("invalid_fraction", "noise_mv", "wander_mv"):
        parts = [getattr(assessment, name) for assessment in assessments]
        measured = all(part is not None for part in parts)
        columns[name] = _list_column(parts, pa.float32()) if measured else [None] * len(records)
    arrays = [index[field.name].combine_chunks() for field in INDEX_FIELDS]
    for field in RECORD_FIELDS:
        column = columns[field.name]
        arrays.append(column if isinstance(column, pa.Array) else pa.array(column, field.type))
    schema = shard_schema(layout)
    buffers = [None, pa.py_buffer(samples_NLT)]
    signal_type = schema.field(SIGNAL).type
    arrays.append(pa.FixedSizeBinaryArray.from_buffers(signal_type, len(records), buffers))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _at_start(value: Any, offset: int) -> Any:
    """Give a record's value to the first of its windows alone: a day has 100,000 beats."""
    return value if offset == 0 else None


def _list_column(parts: Sequence[np.ndarray], dtype: pa.DataType) -> pa.ListArray:
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(parts), type=dtype))


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
