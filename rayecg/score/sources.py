"""Where recordings to score come from: shards, or a raw archive; one way to read both."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rayecg.archives.base import Archive
from rayecg.archives.wfdb_reader import Checks
from rayecg.core.errors import RecordError
from rayecg.core.files import MANIFEST, fingerprint, read_json, read_table
from rayecg.core.record import Record
from rayecg.core.shard_format import read_records, shard_files
from rayecg.signal.assessment import assess

Item = tuple[dict[str, Any], Record | Exception]
T = TypeVar("T")

#: Records that are prepared at a time; it bounds a worker's memory.
CHUNK = 64


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items, the last one shorter."""
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


class ShardSource:
    """The records of a `make_shards` output, the quarantined ones among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_json(folder / MANIFEST)
        self.key: str = manifest["key"]
        self.n_input: int = manifest["n_input"]

    def units(self) -> list[dict[str, Any]]:
        """List the work units: one for each shard, and one for the quarantine."""
        units = [{"unit": file.stem, "file": str(file)} for file in shard_files(self.folder)]
        return [*units, {"unit": "quarantine", "file": ""}]

    def records(self, unit: dict[str, Any]) -> Iterator[Item]:
        """Yield the rows of a unit, each with its record or with why there is none."""
        if unit["file"]:
            yield from read_records(unit["file"])
            return
        for row in read_table(self.folder / "quarantine.parquet").to_pylist():
            yield row, RecordError(row["error_code"], row["error"])


class ArchiveSource:
    """The records of a raw archive, read as they are scored."""

    def __init__(
        self, archive: Archive, records_per_unit: int = 256, checks: Checks = "error"
    ) -> None:
        self.archive, self.checks = archive, checks
        self._index = archive.checked_index()
        self._size = records_per_unit
        self.key = fingerprint([archive.fingerprint(self._index), checks])
        self.n_input: int = self._index.num_rows

    def units(self) -> list[dict[str, Any]]:
        """List the work units: runs of consecutive index rows."""
        return [
            {"unit": f"{i:06d}", "rows": self._index.slice(start, self._size).to_pylist()}
            for i, start in enumerate(range(0, self.n_input, self._size))
        ]

    def records(self, unit: dict[str, Any]) -> Iterator[Item]:
        """Yield the rows of a unit, each with its record or with why there is none."""
        found = self.archive.read_each(unit["rows"], self.checks)
        for chunk in chunks(zip(unit["rows"], found, strict=True), CHUNK):
            read = [record for _, record in chunk if isinstance(record, Record)]
            assessments = iter(assess(read))
            for row, record in chunk:
                if isinstance(record, Record):
                    flags = (*record.flags, *next(assessments).flags)
                    record = dataclasses.replace(record, flags=flags)
                yield row, record

    def __getstate__(self) -> dict[str, Any]:
        # Units carry their rows, so workers need no index.
        return {name: value for name, value in vars(self).items() if name != "_index"}


Source = ShardSource | ArchiveSource
