"""What lies in a folder of an object store, held as compact as can be: it may be millions of files."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.core.sorted_names import SortedNames, in_parts, key_of
from rayecg.core.storage import Level, level_of

_AS_BYTES = methodcaller("as_py")


@dataclass(frozen=True)
class Inside:
    """What lies in one folder.

    Attributes
    ----------
    entries
        `key` of files and folders, sorted, as `storage.level_of` takes it; `size` and `time` (ns) of
        files, -1 where the store does not state it, null for folders.
    folders
        Their names, with a slash behind each.
    """

    entries: pa.Table
    folders: SortedNames

    @classmethod
    def of(cls, infos: list[Any], start: int) -> Inside:
        """Take apart the answer of a store (`pyarrow.fs.FileInfo`), in whose paths names begin at `start`."""
        files = [info for info in infos if info.is_file]
        names = [info.path[start:].encode() for info in files]
        folders = [f"{info.path[start:]}/".encode() for info in infos if not info.is_file]
        # A store may have both, an object and others below its name, which is listed once.
        taken = set(names) if folders else set()
        names += [name for name in folders if name[:-1] not in taken]
        none = [None] * (len(names) - len(files))
        entries = pa.table(
            {
                "key": pa.array([key_of(name) for name in names], pa.large_binary()),
                "size": pa.array([*(_stated(info.size) for info in files), *none], pa.int64()),
                "time": pa.array([*(_stated(info.mtime_ns) for info in files), *none], pa.int64()),
            }
        )
        return cls(entries.sort_by("key").combine_chunks(), SortedNames(folders))

    def __len__(self) -> int:
        return self.entries.num_rows

    def levels(self) -> Iterator[Level]:
        """Yield the folder in parts."""
        for part, follows in in_parts(self._keys()):
            yield level_of("", part, follows, self.facts_of)

    def _keys(self) -> Iterator[bytes]:
        for batch in self.entries.to_batches(max_chunksize=1 << 12):
            yield from batch.column(0).to_pylist()

    def facts_of(self, names: list[str]) -> np.ndarray:
        """Give size and time of files by name, -1 where there is none, int64 (n, 2)."""
        keys = [key_of(name.encode(errors="surrogatepass")) for name in names]
        # Who asks does so about names that are near each other: the others are left out.
        all_keys = self.entries["key"].chunk(0)
        start = bisect_left(all_keys, min(keys, default=b""), key=_AS_BYTES)
        stop = bisect_right(all_keys, max(keys, default=b""), key=_AS_BYTES)
        rows = self.entries.slice(start, stop - start)
        found = rows.take(pc.index_in(pa.array(keys, pa.large_binary()), rows["key"]))
        facts = [pc.fill_null(found[name], -1).to_numpy() for name in ("size", "time")]
        return np.column_stack(facts)


def _stated(number: int | None) -> int:
    return -1 if number is None else number
