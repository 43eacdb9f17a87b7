"""Where recordings to score come from: shards, or a raw archive; one way to read both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.archives.base import Archive
from rayecg.archives.wfdb_reader import Checks
from rayecg.core.batch import Batch, Item, batches, bounded, shard_batches
from rayecg.core.errors import DataError, RecordError, SettingsError
from rayecg.core.files import (
    MANIFEST,
    count_row_groups,
    fingerprint,
    read_json,
    read_table,
    read_table_pieces,
)
from rayecg.core.hashing import hashed_ids
from rayecg.core.index_file import IndexFile
from rayecg.core.record import Record
from rayecg.core.selection import select_rows
from rayecg.core.shard_format import INDEX_NAMES, RECORDS
from rayecg.core.storage import open_folder
from rayecg.core.units import unit_files, unit_suffix
from rayecg.score.plan import Plan, make_plan, record_facts, unit_size
from rayecg.signal.assessment import assess

#: Records whose quality is measured at a time.
AT_ONCE = 256
#: The unit of shards that were not written: records that could not be read.
QUARANTINE = "quarantine"
#: The column for size and time of a record's files.
FILES = "files"
#: The column for the number of a record's unit.
UNIT = "unit"
_SHARDS = "records/"


class ShardSource:
    """The records of a `make_shards` output, the quarantined ones among them.

    Parameters
    ----------
    folder
        Where it lies: a path, or a URI.
    select, limit
        As for `ArchiveSource`.

    Raises
    ------
    SettingsError
        If there is no such folder.
    DataError
        If it is no such output.
    """

    def __init__(
        self, folder: str | Path, select: str | None = None, limit: int | None = None
    ) -> None:
        self.folder = open_folder(folder)
        with self._file(MANIFEST) as file:
            manifest = read_json(file)
        if manifest.get("stage") != "shards" or "key" not in manifest:
            raise DataError(
                f"{self.folder}: expected the output of jobs/make_shards.py, its manifest is of "
                f"{manifest.get('stage', 'something else')!r}"
            )
        self.key: str = manifest["key"]
        self.n_input: int = manifest["n_input"]
        self.synthetic: bool = manifest["synthetic"]
        shards = self._shards()
        with self._file(RECORDS) as file:
            n_shards = count_row_groups(file)
        if len(shards) != n_shards:
            raise DataError(
                f"{self.folder}/{_SHARDS}: expected the {n_shards} shards whose records are in "
                f"{RECORDS}, found {len(shards)}; make the shards anew, or bring back what is gone"
            )
        #: The units, and of each the first and the last of the chosen records; None is for all.
        self._units: dict[str, tuple[int, int] | None] = {_unit_of(name): None for name in shards}
        self._units[QUARANTINE] = None
        self._chosen: IndexFile | None = None
        if select is not None or limit is not None:
            self._chosen = chosen_records(self._index(), select, limit)
            self._units = self._parted(list(self._units), self._chosen)
            self.n_input = len(self._chosen)
            self.key = fingerprint([self.key, select, limit])

    def _shards(self) -> list[str]:
        """List the names of the shards, in order."""
        if self.folder.remote:
            names = self.folder.walk(unit_suffix(self.key))
            return sorted(name for name in names if name.startswith(_SHARDS))
        # The folder of a large output may be a link to another disk.
        files = unit_files(Path(self.folder.root), _SHARDS, self.key)
        return [f"{_SHARDS}{file.name}" for file in files]

    def _index(self) -> Iterator[pa.Table]:
        """List the records with the numbers of their units, those in quarantine last."""
        with self._file(RECORDS) as file:
            for number, piece in read_table_pieces(file, INDEX_NAMES):
                yield _numbered(piece, number)
        with self._file(_name_of(QUARANTINE)) as file:
            for _, piece in read_table_pieces(file, INDEX_NAMES):
                yield _numbered(piece, len(self._units) - 1)

    @staticmethod
    def _parted(units: list[str], chosen: IndexFile) -> dict[str, tuple[int, int] | None]:
        """Say which of the chosen records, which are in the units' order, each unit has, if it has any."""
        n_U = np.zeros(len(units), np.int64)
        for piece in chosen.pieces([UNIT]):
            n_U += np.bincount(piece[UNIT].to_numpy(), minlength=len(units))
        end_U = np.cumsum(n_U)
        return {
            unit: (int(end - n), int(end))
            for unit, n, end in zip(units, n_U, end_U, strict=True)
            if n
        }

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        """Give a file as libraries open it; errors name it, and no copy of it."""
        try:
            path = self.folder.at_hand(name)
        except RecordError as error:
            raise DataError(f"{error}; every output of jobs/make_shards.py holds it") from None
        try:
            yield path
        except DataError as error:
            raise DataError(str(error).replace(str(path), f"{self.folder}/{name}")) from None

    def plan(
        self,
        earlier: bytes | None,
        size: int | None,
        n_actors: int,
        hash_key: bytes | None,
        replace: bool = False,
    ) -> None:
        """Give no plan: the shards' files are the units, and their own manifest says which."""
        return

    def units(self, plan: Plan | None = None) -> list[str]:
        """List the work units: one for each shard, and one for the quarantine."""
        return list(self._units)

    def payload(self, unit: str, plan: Plan | None = None) -> dict[str, Any]:
        """Give what a worker needs to read a unit: those of its records that were chosen, or None."""
        own, wanted = self._units[unit], None
        if own is not None:
            assert self._chosen is not None
            wanted = self._chosen.take(np.arange(*own))["record_id"].combine_chunks()
        return {"unit": unit, "wanted": wanted}

    def sample(self, n_records: int) -> dict[str, Any]:
        """Give what a worker needs to read records of the first unit."""
        return self.payload(next(iter(self._units)))

    def n_bytes(self) -> int:
        """Give the size of the files that are read."""
        return int(self.folder.facts(map(_name_of, self._units))[:, 0].clip(min=0).sum())

    def batches(self, payload: dict[str, Any]) -> Iterator[Batch]:
        """Yield the records of a unit, some at a time."""
        with self._file(_name_of(payload["unit"])) as file:
            if payload["unit"] != QUARANTINE:
                yield from shard_batches(file, wanted=payload["wanted"])
                return
            table = read_table(file)
        if payload["wanted"] is not None:
            table = table.filter(pc.is_in(table["record_id"], value_set=payload["wanted"]))
        rows = table.to_pylist()
        yield from batches((row, RecordError(row["error_code"], row["error"])) for row in rows)

    def singles(self, payload: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each record's index row, and what a worker needs to read it alone."""
        with self._file(_name_of(payload["unit"])) as file:
            rows = read_table(file, columns=INDEX_NAMES).to_pylist()
        row_of = {row["record_id"]: row for row in rows}  # one of those of a record in windows
        wanted = row_of if payload["wanted"] is None else payload["wanted"].to_pylist()
        for record_id in wanted:
            yield row_of[record_id], {**payload, "wanted": pa.array([record_id])}

    def __getstate__(self) -> dict[str, Any]:
        # Units carry which of their records are wanted, so workers need no list of them.
        return vars(self) | {"_units": {}, "_chosen": None}


def _name_of(unit: str) -> str:
    return f"{unit}.parquet" if unit == QUARANTINE else f"{_SHARDS}{unit}.parquet"


def _unit_of(name: str) -> str:
    return name.removeprefix(_SHARDS).removesuffix(".parquet")


def _numbered(table: pa.Table, number: int) -> pa.Table:
    return table.append_column(UNIT, pa.array(np.full(len(table), number, np.int32)))


class ArchiveSource:
    """The records of a raw archive, read as they are scored.

    Parameters
    ----------
    archive
        What to read.
    checks
        What a wrong checksum or first sample does.
    select
        A condition on the index; see `rayecg.core.selection`.
    limit
        The first so many of them only.
    """

    def __init__(
        self,
        archive: Archive,
        checks: Checks = "error",
        select: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.archive, self.checks = archive, checks
        #: The index, and under `FILES` size and time of each record's files.
        self.records = chosen_records(
            (index.append_column(FILES, _numbers_of(files)) for index, files in archive.listing()),
            select,
            limit,
        )
        settings = archive.settings
        #: Of the kind of thing that is read; which records is the plan's affair.
        self.key = fingerprint([settings.kind, archive.name, settings.rate, checks])
        self.n_input = len(self.records)
        self.synthetic = archive.synthetic

    def plan(
        self,
        earlier: bytes | None,
        size: int | None,
        n_actors: int,
        hash_key: bytes | None,
        replace: bool = False,
    ) -> Plan:
        """Plan the units, keeping those of an earlier plan; see `rayecg.score.plan.make_plan`."""

        def ids_of(rows_N: np.ndarray) -> pa.Array:
            record_ids = self.records.take(rows_N)["record_id"].combine_chunks()
            if hash_key is None:
                return record_ids
            return pa.array(hashed_ids(record_ids.to_pylist(), hash_key, "record"))

        facts = [
            record_facts(piece, _numbers_in(piece), hash_key) for piece in self.records.pieces()
        ]
        size = size or unit_size(self.n_input, n_actors, self.n_bytes())
        return make_plan(ids_of, np.concatenate(facts), size, earlier, replace)

    def units(self, plan: Plan | None) -> list[str]:
        """List the work units of a plan."""
        assert plan is not None
        return list(plan.rows)

    def payload(self, unit: str, plan: Plan | None) -> dict[str, Any]:
        """Give what a worker needs to read a unit: its rows of the index."""
        assert plan is not None
        return {"unit": unit, "rows": self._rows(plan.rows[unit])}

    def sample(self, n_records: int) -> dict[str, Any]:
        """Give what a worker needs to read some records, from everywhere in the index."""
        rows = np.unique(np.linspace(0, self.n_input - 1, n_records).astype(np.int64))
        return {"unit": "", "rows": self._rows(rows)}

    def _rows(self, rows_N: np.ndarray) -> pa.Table:
        return self.records.take(rows_N).drop_columns([FILES])

    def n_bytes(self) -> int:
        """Give the size of the files."""
        files = (_numbers_in(piece) for piece in self.records.pieces([FILES]))
        return sum(int(own[:, ::2].clip(min=0).sum()) for own in files)

    def batches(self, payload: dict[str, Any]) -> Iterator[Batch]:
        """Yield the records of a unit, some at a time."""
        rows = payload["rows"].to_pylist()
        found = self.archive.read_each(rows, self.checks)
        pieces = bounded(zip(rows, found, strict=True), AT_ONCE)
        yield from batches(item for piece in pieces for item in _flagged(piece))

    def singles(self, payload: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each record's index row, and what a worker needs to read it alone."""
        for i in range(payload["rows"].num_rows):
            own = payload["rows"].slice(i, 1)
            yield own.to_pylist()[0], {**payload, "rows": own}

    def __getstate__(self) -> dict[str, Any]:
        # Units carry their rows, so workers need no index.
        return {name: value for name, value in vars(self).items() if name != "records"}


Source = ShardSource | ArchiveSource


def chosen_records(tables: Iterable[pa.Table], select: str | None, limit: int | None) -> IndexFile:
    """Put those of the records away that are to be scored.

    Raises
    ------
    SettingsError
        For a limit below 1, or a condition that is none or true of no record.
    """
    if limit is not None and limit < 1:
        raise SettingsError(f"--limit: expected 1 or more, came {limit}")
    if select is None:
        return IndexFile(tables if limit is None else _first(tables, limit))
    index = IndexFile(tables)
    return index.chosen(select_rows(index, select)[:limit])


def _first(tables: Iterable[pa.Table], n_rows: int) -> Iterator[pa.Table]:
    """Give the first rows, and ask for no more tables than these need."""
    for table in tables:
        yield table.slice(0, n_rows)
        n_rows -= min(n_rows, table.num_rows)
        if not n_rows:
            return


def _numbers_of(files: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(files.ravel()), files.shape[1])


def _numbers_in(table: pa.Table) -> np.ndarray:
    column = table[FILES].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def _flagged(items: Sequence[Item]) -> list[Item]:
    """Measure the quality of the records that were read, and add its flags."""
    assessments = iter(assess([found for _, found in items if isinstance(found, Record)]))
    return [
        (row, replace(found, flags=(*found.flags, *next(assessments).flags)))
        if isinstance(found, Record)
        else (row, found)
        for row, found in items
    ]
