"""Where recordings to score come from: shards, or a raw archive; one way to read both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from rayecg.core.files import MANIFEST, fingerprint, read_json, read_table
from rayecg.core.hashing import hashed_ids
from rayecg.core.record import Record
from rayecg.core.selection import select_rows
from rayecg.core.shard_format import (
    INDEX_NAMES,
    RECORDS,
    shard_files,
)
from rayecg.score.plan import Plan, make_plan, record_facts, unit_size
from rayecg.signal.assessment import assess

#: Records whose quality is measured at a time.
AT_ONCE = 256
#: The unit of shards that were not written: records that could not be read.
QUARANTINE = "quarantine"


class ShardSource:
    """The records of a `make_shards` output, the quarantined ones among them.

    Parameters
    ----------
    folder
        Where it lies.
    select, limit
        As for `ArchiveSource`.

    Raises
    ------
    DataError
        If it is no such output.
    """

    def __init__(self, folder: Path, select: str | None = None, limit: int | None = None) -> None:
        self.folder = folder
        manifest = read_json(folder / MANIFEST)
        if manifest.get("stage") != "shards":
            raise DataError(
                f"{folder}: expected the output of jobs/make_shards.py, its manifest is of "
                f"{manifest.get('stage', 'something else')!r}"
            )
        self.key: str = manifest["key"]
        self.n_input: int = manifest["n_input"]
        self.synthetic: bool = manifest["synthetic"]
        self._units = {file.stem: None for file in shard_files(folder)} | {QUARANTINE: None}
        if select is not None or limit is not None:
            chosen = chosen_rows(self.index(), select, limit)["record_id"]
            self._units = {
                unit: own for unit in self._units if len(own := self._chosen_of(unit, chosen))
            }
            self.n_input = len(chosen)
            self.key = fingerprint([self.key, select, limit])

    def index(self) -> pa.Table:
        """List the records, those in quarantine last."""
        parts = [self.folder / RECORDS, self._file(QUARANTINE)]
        return pa.concat_tables(read_table(part, columns=INDEX_NAMES) for part in parts)

    def _file(self, unit: str) -> Path:
        return self.folder / ("" if unit == QUARANTINE else "records") / f"{unit}.parquet"

    def _chosen_of(self, unit: str, chosen: pa.ChunkedArray) -> pa.ChunkedArray:
        """Give the records of a unit that were chosen."""
        own = pc.unique(read_table(self._file(unit), columns=["record_id"])["record_id"])
        return own.filter(pc.is_in(own, value_set=chosen))

    def plan(
        self,
        earlier: pa.Table | None,
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
        return {"unit": unit, "wanted": self._units[unit]}

    def sample(self, n_records: int) -> dict[str, Any]:
        """Give what a worker needs to read records of the first unit."""
        return self.payload(next(iter(self._units)))

    def n_bytes(self) -> int:
        """Give the size of the files that are read."""
        return sum(self._file(unit).stat().st_size for unit in self._units)

    def batches(self, payload: dict[str, Any]) -> Iterator[Batch]:
        """Yield the records of a unit, some at a time."""
        file, wanted = self._file(payload["unit"]), payload["wanted"]
        if payload["unit"] != QUARANTINE:
            yield from shard_batches(file, wanted=wanted)
            return
        table = read_table(file)
        if wanted is not None:
            table = table.filter(pc.is_in(table["record_id"], value_set=wanted))
        rows = table.to_pylist()
        yield from batches((row, RecordError(row["error_code"], row["error"])) for row in rows)

    def singles(self, payload: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each record's index row, and what a worker needs to read it alone."""
        rows = read_table(self._file(payload["unit"]), columns=INDEX_NAMES).to_pylist()
        row_of = {row["record_id"]: row for row in rows}  # one of those of a record in windows
        wanted = row_of if payload["wanted"] is None else payload["wanted"].to_pylist()
        for record_id in wanted:
            yield row_of[record_id], {**payload, "wanted": pa.array([record_id])}

    def __getstate__(self) -> dict[str, Any]:
        # Units carry which of their records are wanted, so workers need no list of them.
        return vars(self) | {"_units": {}}


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
        self._index = chosen_rows(archive.checked_index(), select, limit)
        settings = archive.settings
        #: Of the kind of thing that is read; which records is the plan's affair.
        self.key = fingerprint([settings.kind, archive.name, settings.rate, checks])
        self.n_input: int = self._index.num_rows
        self.synthetic = archive.synthetic

    def index(self) -> pa.Table:
        """List the records."""
        return self._index

    def plan(
        self,
        earlier: pa.Table | None,
        size: int | None,
        n_actors: int,
        hash_key: bytes | None,
        replace: bool = False,
    ) -> Plan:
        """Plan the units, keeping those of an earlier plan; see `rayecg.score.plan.make_plan`."""
        record_ids = self._index["record_id"].combine_chunks()
        if hash_key is not None:
            record_ids = pa.array(hashed_ids(record_ids.to_pylist(), hash_key, "record"))
        files = self.archive.file_facts(self._index)
        n_bytes = int(files[:, ::2].clip(min=0).sum())
        size = size or unit_size(len(record_ids), n_actors, n_bytes)
        return make_plan(
            record_ids, record_facts(self._index, files, hash_key), size, earlier, replace
        )

    def units(self, plan: Plan | None) -> list[str]:
        """List the work units of a plan."""
        assert plan is not None
        return list(plan.rows)

    def payload(self, unit: str, plan: Plan | None) -> dict[str, Any]:
        """Give what a worker needs to read a unit: its rows of the index."""
        assert plan is not None
        return {"unit": unit, "rows": self._index.take(pa.array(plan.rows[unit]))}

    def sample(self, n_records: int) -> dict[str, Any]:
        """Give what a worker needs to read some records, from everywhere in the index."""
        rows = np.unique(np.linspace(0, self.n_input - 1, n_records).astype(np.int64))
        return {"unit": "", "rows": self._index.take(pa.array(rows))}

    def n_bytes(self) -> int:
        """Give the size of the files."""
        sizes = self.archive.file_facts(self._index)[:, ::2]
        return int(sizes.clip(min=0).sum())

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
        return {name: value for name, value in vars(self).items() if name != "_index"}


Source = ShardSource | ArchiveSource


def chosen_rows(index: pa.Table, select: str | None, limit: int | None) -> pa.Table:
    """Give the rows of an index that are to be scored.

    Raises
    ------
    SettingsError
        If these are none.
    """
    if limit is not None and limit < 1:
        raise SettingsError(f"--limit: expected 1 or more, came {limit}")
    chosen = index if select is None else select_rows(index, select)
    return chosen if limit is None else chosen.slice(0, limit)


def _flagged(items: Sequence[Item]) -> list[Item]:
    """Measure the quality of the records that were read, and add its flags."""
    assessments = iter(assess([found for _, found in items if isinstance(found, Record)]))
    return [
        (row, replace(found, flags=(*found.flags, *next(assessments).flags)))
        if isinstance(found, Record)
        else (row, found)
        for row, found in items
    ]
