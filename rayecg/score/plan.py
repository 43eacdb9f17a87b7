"""Which records belong to which unit of work: fixed when they are first seen, kept ever after.

A unit is a run of records of the index. The plan in the output folder says which, and what each
record's files were; a later start keeps the units whose records are as they were, and makes new units
of the others.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayecg.core.errors import SettingsError
from rayecg.core.hashing import hashed
from rayecg.core.index_file import PIECE, mapped, no_room_said

#: Records of a unit, where the settings leave it open: several units for every actor, and few enough
#: that a unit's own cost (a call, two files) does not count.
UNITS_EACH, SMALLEST, LARGEST = 12, 16, 4096
#: Bytes of files that a unit has at most, if it has several records: an actor holds its rows, and a
#: day of beats has a hundred thousand.
UNIT_BYTES = 2**28

SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("facts", pa.uint64(), nullable=False),
    ]
)
#: What pandas hashes texts under where nothing is said.
_NO_KEY = "0123456789123456"
#: What ids alone are hashed under.
_KEY_OF_IDS = "3210987654321098"
#: What of the index decides a record's row, beside its files.
_DECIDES = ("record_id", "path", "patient_id", "strat_fold", "age", "sex", "site", "device")


@dataclass(frozen=True)
class Plan:
    """Units by name, each with its rows of the index.

    Attributes
    ----------
    rows
        For each unit the index rows that it scores, in order.
    stored
        What a later start reads: the bytes of a Parquet file, see `SCHEMA`.
    """

    rows: dict[str, np.ndarray]
    stored: pa.Buffer


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
    index = index.select(_DECIDES)
    # Not an integer here and, beside a missing one, a float there: they hash otherwise.
    fold = pc.cast(index["strat_fold"], pa.float64())
    frame = index.set_column(_DECIDES.index("strat_fold"), "strat_fold", fold).to_pandas()
    frame[[f"file{i}" for i in range(files.shape[1])]] = files
    # Missing numbers and texts hash alike wherever they stand.
    return pd.util.hash_pandas_object(frame, index=False, hash_key=own).to_numpy()


def unit_size(n_records: int, n_actors: int, n_bytes: int = 0) -> int:
    """Choose how many of some records, whose files have so many bytes, a unit has."""
    size = min(max(-(-n_records // (UNITS_EACH * n_actors)), SMALLEST), LARGEST)
    return max(min(size, UNIT_BYTES * n_records // max(n_bytes, 1)), 1)


def make_plan(
    ids_of: Callable[[np.ndarray], pa.Array],
    facts: np.ndarray,
    size: int,
    earlier: pa.Buffer | bytes | None = None,
    replace: bool = False,
) -> Plan:
    """Plan the units of an archive; what is in memory of a record are numbers.

    Parameters
    ----------
    ids_of
        Gives the records' ids (hashed if ids are) for rows of the index; no two are alike.
    facts
        Of `record_facts`.
    size
        Records of a new unit.
    earlier
        What the plan that stands in the output has `stored`.
    replace
        Whether a plan whose records are gone is replaced, or refused.

    Raises
    ------
    SettingsError
        If records of the earlier plan are gone, and it is not to be replaced.
    """
    new_R = np.ones(len(facts), dtype=bool)
    rows: dict[str, np.ndarray] = {}
    first = 0
    standing = None if earlier is None else _Standing(earlier, ids_of, facts)
    if standing and standing.gone:
        if replace:
            return make_plan(ids_of, facts, size)
        raise SettingsError(
            f"{standing.gone} records that were scored here are not among the records to score now "
            f"(the first: {standing.first_gone}); use another output folder, or --replace"
        )
    with _Stored() as stored:
        if standing:
            first = standing.next_number
            rows = standing.rows
            for own_R in rows.values():
                new_R[own_R] = False
            for table in standing.kept():
                stored.add(table)
        left_R = np.flatnonzero(new_R)
        each = size * max(PIECE // size, 1)
        for start in range(0, len(left_R), each):
            piece_R = left_R[start : start + each]
            ids, own_facts = ids_of(piece_R), facts[piece_R]
            names: list[str] = []
            for k in range(0, len(piece_R), size):
                own_R = piece_R[k : k + size]
                unit = _name(first + len(names), ids.slice(k, size), own_facts[k : k + size])
                rows[unit] = own_R
                names.append(unit)
            first += len(names)
            unit_R = pa.array(np.repeat(names, size)[: len(piece_R)])
            stored.add(pa.table([unit_R, ids, own_facts], schema=SCHEMA))
        return Plan(rows, stored.finished())


class _Stored:
    """A plan's rows on their way into a Parquet file without a name."""

    def __enter__(self) -> _Stored:
        with no_room_said():
            self._file = tempfile.TemporaryFile()
            self._writer = pq.ParquetWriter(self._file, SCHEMA, compression="zstd")
        return self

    def add(self, table: pa.Table) -> None:
        with no_room_said():
            self._writer.write_table(table)

    def finished(self) -> pa.Buffer:
        with no_room_said():
            self._writer.close()
            return mapped(self._file)

    def __exit__(self, *error: object) -> None:
        self._file.close()


class _Standing:
    """An earlier plan beside the records of now: the units that stand, the records that are gone."""

    def __init__(
        self, stored: pa.Buffer | bytes, ids_of: Callable[[np.ndarray], pa.Array], facts: np.ndarray
    ) -> None:
        self._file = pq.ParquetFile(pa.BufferReader(stored))
        self.gone, self.first_gone, self.next_number = 0, "", 0
        key_R = np.empty(len(facts), np.uint64)
        for start in range(0, len(facts), PIECE):
            rows = np.arange(start, min(start + PIECE, len(facts)))
            key_R[rows] = _keys(ids_of(rows))
        in_order_R = np.argsort(key_R)
        key_R = key_R[in_order_R]
        number: dict[str, int] = {}
        unit_E = np.empty(self._file.metadata.num_rows, np.int32)
        row_E = np.empty(len(unit_E), np.int64)
        same_E = np.empty(len(unit_E), bool)
        for own, table in self._pieces():
            key_E = _keys(table["record_id"])
            place_E = np.searchsorted(key_R, key_E).clip(max=len(key_R) - 1)
            gone_E = key_R[place_E] != key_E
            if gone_E.any() and not self.gone:
                self.first_gone = table["record_id"][int(np.argmax(gone_E))].as_py()
            self.gone += int(gone_E.sum())
            row_E[own] = in_order_R[place_E]
            # Facts tell records apart as well: two whose keys are alike do not pass for one another.
            same_E[own] = ~gone_E & (facts[row_E[own]] == table["facts"].to_numpy())
            units = table["unit"].combine_chunks().dictionary_encode()
            numbers = [number.setdefault(u, len(number)) for u in units.dictionary.to_pylist()]
            unit_E[own] = np.array(numbers, np.int32)[units.indices.to_numpy()]
        whole_U = np.ones(len(number), dtype=bool)
        np.logical_and.at(whole_U, unit_E, same_E)
        self._kept_E = whole_U[unit_E]
        by_unit_E = np.argsort(unit_E, kind="stable")
        edge_U = np.searchsorted(unit_E, np.arange(len(number) + 1), sorter=by_unit_E)
        self.rows = {
            unit: row_E[by_unit_E[edge_U[u] : edge_U[u + 1]]]
            for unit, u in number.items()
            if whole_U[u]
        }
        if number:
            self.next_number = 1 + max(int(unit.partition("-")[0]) for unit in number)

    def kept(self) -> Iterator[pa.Table]:
        """Yield the rows of the units that stand."""
        for own, table in self._pieces():
            yield table.filter(pa.array(self._kept_E[own]))

    def _pieces(self) -> Iterator[tuple[slice, pa.Table]]:
        start = 0
        for batch in self._file.iter_batches(PIECE):
            yield slice(start, start + len(batch)), pa.Table.from_batches([batch])
            start += len(batch)


def _keys(record_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Give a number of 64 bits for each id; it has nothing to do with that in its facts."""
    ids = record_ids.to_numpy(zero_copy_only=False)
    return pd.util.hash_array(ids, hash_key=_KEY_OF_IDS, categorize=False)


def _name(number: int, record_ids: pa.Array, facts: np.ndarray) -> str:
    """Name a unit by its contents, too: other records never pass for these."""
    digest = hashlib.sha256("\n".join(record_ids.to_pylist()).encode())
    digest.update(facts.astype("<u8").tobytes())
    return f"{number:06d}-{digest.hexdigest()[:8]}"
