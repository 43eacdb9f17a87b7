"""Which records belong to which unit of work: fixed when they are first seen, kept ever after.

A unit is a run of records of the index. The plan in the output folder says which, and what each
record's files were; a later start keeps the units whose records are as they were, and makes new units
of the others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.core.errors import SettingsError
from rayecg.core.hashing import hashed

#: Records of a unit, where the settings leave it open: several units for every actor, and few enough
#: that a unit's own cost (a call, two files) does not count.
UNITS_EACH, SMALLEST, LARGEST = 12, 16, 4096
#: Bytes of files that a unit has at most, if it has several records: an actor holds its rows, and a
#: day of beats has a hundred thousand.
UNIT_BYTES = 2**28
#: Records that are Python objects at a time.
_PIECE = 1 << 16

SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("facts", pa.uint64(), nullable=False),
    ]
)
#: What pandas hashes texts under where nothing is said.
_NO_KEY = "0123456789123456"
#: What of the index decides a record's row, beside its files.
_DECIDES = ("record_id", "path", "patient_id", "strat_fold", "age", "sex", "site", "device")


@dataclass(frozen=True)
class Plan:
    """Units by name, each with its rows of the index.

    Attributes
    ----------
    rows
        For each unit the index rows that it scores, in order.
    table
        What is stored: `SCHEMA`.
    """

    rows: dict[str, np.ndarray]
    table: pa.Table


def record_facts(index: pa.Table, files: np.ndarray, key: bytes | None = None) -> np.ndarray:
    """Fingerprint each record by its index row and its files.

    Parameters
    ----------
    index
        With the columns of `rayecg.core.shard_format.INDEX_FIELDS`.
    files
        int64, records by numbers: size and time of each file.
    key
        Under which ids are hashed: without it nobody can try which record a fingerprint is of.

    Returns
    -------
    np.ndarray
        uint64.
    """
    own = hashed("", key, "facts")[:16] if key else _NO_KEY
    own_index = index.select(_DECIDES)
    # Not an integer here and, beside a missing one, a float there: they hash otherwise.
    fold = pc.cast(index["strat_fold"], pa.float64())
    own_index = own_index.set_column(_DECIDES.index("strat_fold"), "strat_fold", fold)
    found: list[np.ndarray] = [np.empty(0, np.uint64)]
    for start in range(0, index.num_rows, _PIECE):
        frame = own_index.slice(start, _PIECE).to_pandas()
        frame[[f"file{i}" for i in range(files.shape[1])]] = files[start : start + _PIECE]
        # Missing numbers and texts hash alike wherever they stand.
        found.append(pd.util.hash_pandas_object(frame, index=False, hash_key=own).to_numpy())
    return np.concatenate(found)


def unit_size(n_records: int, n_actors: int, n_bytes: int = 0) -> int:
    """Choose how many of some records, whose files have so many bytes, a unit has."""
    size = min(max(-(-n_records // (UNITS_EACH * n_actors)), SMALLEST), LARGEST)
    return max(min(size, UNIT_BYTES * n_records // max(n_bytes, 1)), 1)


def make_plan(
    record_ids: pa.Array,
    facts: np.ndarray,
    size: int,
    earlier: pa.Table | None = None,
    replace: bool = False,
) -> Plan:
    """Plan the units of an archive.

    Parameters
    ----------
    record_ids
        Of the index, each once; hashed if ids are.
    facts
        Of `record_facts`.
    size
        Records of a new unit.
    earlier
        The plan that stands in the output.
    replace
        Whether a plan whose records are gone is replaced, or refused.

    Raises
    ------
    SettingsError
        If records of the earlier plan are gone, and it is not to be replaced.
    """
    rows: dict[str, np.ndarray] = {}
    kept = SCHEMA.empty_table()
    new_R = np.ones(len(record_ids), dtype=bool)
    first = 0
    if earlier is not None and earlier.num_rows:
        # Columns, not objects: a plan may have millions of rows.
        place_E = pc.index_in(earlier["record_id"], value_set=record_ids).combine_chunks()
        if place_E.null_count and replace:
            return make_plan(record_ids, facts, size)
        if place_E.null_count:
            one = earlier["record_id"].filter(place_E.is_null())[0]
            raise SettingsError(
                f"{place_E.null_count} records that were scored here are not among the records to "
                f"score now (the first: {one}); use another output folder, or --replace"
            )
        row_E = place_E.to_numpy().astype(np.int64)
        units = earlier["unit"].combine_chunks().dictionary_encode()
        unit_E = units.indices.to_numpy()
        whole_U = np.ones(len(units.dictionary), dtype=bool)
        np.logical_and.at(whole_U, unit_E, facts[row_E] == earlier["facts"].to_numpy())
        in_order_E = np.argsort(unit_E, kind="stable")
        edge_U = np.searchsorted(unit_E[in_order_E], np.arange(len(whole_U) + 1))
        for u, unit in enumerate(units.dictionary.to_pylist()):
            first = max(first, int(unit.partition("-")[0]) + 1)
            if whole_U[u]:
                rows[unit] = row_E[in_order_E[edge_U[u] : edge_U[u + 1]]]
        kept = earlier.filter(pa.array(whole_U[unit_E]))
        new_R[row_E[whole_U[unit_E]]] = False
    left_R = np.flatnonzero(new_R)
    tables = [kept]
    for i, start in enumerate(range(0, len(left_R), size)):
        own_R = left_R[start : start + size]
        ids, own_facts = record_ids.take(pa.array(own_R)), facts[own_R]
        unit = _name(first + i, ids, own_facts)
        rows[unit] = own_R
        columns = [pa.repeat(unit, len(own_R)), ids, pa.array(own_facts)]
        tables.append(pa.Table.from_arrays(columns, schema=SCHEMA))
    return Plan(rows, pa.concat_tables(tables))


def _name(number: int, record_ids: pa.Array, facts: np.ndarray) -> str:
    """Name a unit by its contents, too: other records never pass for these."""
    digest = hashlib.sha256("\n".join(record_ids.to_pylist()).encode())
    digest.update(facts.astype("<u8").tobytes())
    return f"{number:06d}-{digest.hexdigest()[:8]}"
