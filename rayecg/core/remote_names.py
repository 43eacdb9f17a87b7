"""What lies in a folder of an object store: it may be millions of files."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator

import numpy as np

from rayecg.core.s3_pages import Entry
from rayecg.core.sorted_names import SortedNames, in_parts, key_of
from rayecg.core.storage import Level, level_of

#: What follows a key: a byte below all that keys hold, then size and time.
_FACTS = struct.Struct(">xqq")


class Inside:
    """What lies in one folder, in order; beyond some thousand names it is on disk.

    Parameters
    ----------
    entries
        In any order, with names below the tree's root.

    Attributes
    ----------
    folders
        Names of the folders, with a slash behind each.

    Raises
    ------
    DataError
        If the disk of temporary files has no room for them.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._rows, self.folders, self._n_rows = SortedNames(), SortedNames(), 0
        for name, size, time in entries:
            raw = name.encode()
            if raw.endswith(b"/"):
                self.folders.add(raw)
            self._rows.add(key_of(raw) + _FACTS.pack(size, time))
            self._n_rows += 1

    def __len__(self) -> int:
        return self._n_rows

    def levels(self) -> Iterator[Level]:
        """Yield the folder in parts."""
        for part, follows in in_parts(self._once()):
            keys = [_key_in(row) for row in part]
            after = None if follows is None else _key_in(follows)
            yield level_of("", keys, after, functools.partial(_facts_in, part))

    def _once(self) -> Iterator[bytes]:
        """Yield the rows; a store may have both, an object and others below its name: then the first."""
        slash, before = key_of(b"/"), None
        for row in self._rows:
            key = _key_in(row)
            if before is None or key != before + slash:
                yield row
            before = key


def _key_in(row: bytes) -> bytes:
    return row[: -_FACTS.size]


def _facts_in(rows: list[bytes], files: list[str]) -> np.ndarray:
    """Give size and time of the files among some rows."""
    slash = key_of(b"/")
    facts = [_FACTS.unpack(row[-_FACTS.size :]) for row in rows if not _key_in(row).endswith(slash)]
    return np.array(facts, np.int64).reshape(len(files), 2)
