"""Where recordings to score come from: shards, or a raw archive; one way to read both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayecg.archives.base import Archive
from rayecg.archives.wfdb_reader import Checks
from rayecg.core.batch import BATCH, Batch, Item, batches, shard_batches
from rayecg.core.errors import RecordError, SettingsError
from rayecg.core.files import MANIFEST, fingerprint, read_json, read_table
from rayecg.core.hashing import hashed_ids
from rayecg.core.record import Record
from rayecg.core.selection import select_rows
from rayecg.core.shard_format import INDEX_NAMES, RECORDS, read_records, shard_files
from rayecg.score.plan import Plan, make_plan, record_facts
from rayecg.signal.assessment import assess

#: Samples of a batch at which it ends before it is full: they bound a worker's memory.
BATCH_BYTES = 2**25


class ShardSource:
    """The records of a `make_shards` output, the quarantined ones among them.

    Parameters
    ----------
    folder
        Where it lies.
    select, limit
        As for `ArchiveSource`.
    """

    def __init__(self, folder: Path, select: str | None = None, limit: int | None = None) -> None:
        self.folder = folder
        manifest = read_json(folder / MANIFEST)
        self.key: str = manifest["key"]
        self.n_input: int = manifest["n_input"]
        self.synthetic: bool = manifest["synthetic"]
        self._wanted: set[str] | None = None
        if select is not None or limit is not None:
            chosen = chosen_rows(self.index(), select, limit)
            self._wanted = set(chosen["record_id"].to_pylist())
            self.n_input = len(self._wanted)
            self.key = fingerprint([self.key, sorted(self._wanted)])

    def index(self) -> pa.Table:
        """List the records, those in quarantine last."""
        parts = [self.folder / RECORDS, self.folder / "quarantine.parquet"]
        return pa.concat_tables(read_table(part, columns=INDEX_NAMES) for part in parts)

    def plan(
        self,
        earlier: pa.Table | None,
        size: int | None,
        hash_key: bytes | None,
        replace: bool = False,
    ) -> None:
        """Give no plan: the shards' files are the units, and their own manifest says which."""
        return

    def units(self, plan: Plan | None = None) -> list[str]:
        """List the work units: one for each shard, and one for the quarantine."""
        return [*(file.stem for file in shard_files(self.folder)), "quarantine"]

    def payload(self, unit: str, plan: Plan | None = None) -> dict[str, Any]:
        """Give what a worker needs to read a unit."""
        return {"unit": unit, "wanted": self._wanted}

    def sample(self, n_records: int) -> dict[str, Any]:
        """Give what a worker needs to read records of a shard that holds some of those chosen."""
        for unit in self.units():
            file = self.folder / "records" / f"{unit}.parquet"
            if self._wanted is None or unit == "quarantine":
                break
            if not self._wanted.isdisjoint(
                read_table(file, columns=["record_id"])["record_id"].to_pylist()
            ):
                break
        return self.payload(unit)

    def n_bytes(self) -> int:
        """Give the size of the files."""
        return sum(file.stat().st_size for file in shard_files(self.folder))

    def batches(self, payload: dict[str, Any]) -> Iterator[Batch]:
        """Yield the records of a unit, some at a time."""
        unit, wanted = payload["unit"], payload["wanted"]
        if unit == "quarantine":
            items = (
                (row, RecordError(row["error_code"], row["error"]))
                for row in read_table(self.folder / "quarantine.parquet").to_pylist()
                if wanted is None or row["record_id"] in wanted
            )
            yield from batches(items)
        elif wanted is None:
            yield from shard_batches(self.folder / "records" / f"{unit}.parquet")
        else:
            yield from batches(read_records(self.folder / "records" / f"{unit}.parquet", wanted))

    def __getstate__(self) -> dict[str, Any]:
        # Units say which records are wanted, so workers need not hold them besides.
        return vars(self) | {"_wanted": None}


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
        hash_key: bytes | None,
        replace: bool = False,
    ) -> Plan:
        """Plan the units, keeping those of an earlier plan; see `rayecg.score.plan.make_plan`."""
        record_ids = hashed_ids(self._index["record_id"].to_pylist(), hash_key)
        facts = record_facts(self._index, self.archive.file_facts(self._index), hash_key)
        return make_plan(record_ids, facts, size, earlier, replace)

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
        items: list[Item] = []
        n_bytes = 0
        for row, found in zip(rows, self.archive.read_each(rows, self.checks), strict=True):
            items.append((row, found))
            n_bytes += found.digital_LT.nbytes if isinstance(found, Record) else 0
            if len(items) == BATCH or n_bytes >= BATCH_BYTES:
                yield Batch.of(_flagged(items))
                n_bytes, items = 0, []
        if items:
            yield Batch.of(_flagged(items))

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
