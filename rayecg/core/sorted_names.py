"""Names of files in the order in which folders are listed, however many a single folder holds.

In this order `.` and `_` come before every other character, so that all files of a record and of
its segments (`a.dat`, `a.hea`, `a_0001.dat`) are neighbours: `a-1.hea` and `a0.hea` come behind them.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

import pyarrow as pa

from rayecg.core.index_file import no_room_said

#: Names in memory; what goes beyond is put away on disk, so many at a time.
HELD = 1 << 16
#: Names that are read back at a time, of each run on disk.
AT_ONCE = 1 << 10
#: Most names of a part of a folder.
PART = 1 << 14

#: The first is in no UTF-8, so that no key holds the byte 0: what is put behind a key does not change
#: its place.
_FIRST = b"\xff/._"
_IN_ORDER = _FIRST + bytes(byte for byte in range(256) if byte not in _FIRST)
_RANK = bytes(_IN_ORDER.index(byte) for byte in range(256))


def key_of(name: bytes) -> bytes:
    """Give what a name is sorted by. UTF-8 has the order of its characters."""
    return name.translate(_RANK)


def name_of(key: bytes) -> bytes:
    """Give the name of a key."""
    return key.translate(_IN_ORDER)


class SortedNames:
    """Byte strings that are put in any order and come back sorted.

    Up to `HELD` stay in memory. The others lie in a file without a name, in sorted runs, of which
    `AT_ONCE` each are in memory while they are merged.

    Parameters
    ----------
    names
        The first ones.

    Raises
    ------
    DataError
        If the disk of temporary files has no room for them.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self._held: list[bytes] = []
        #: Of each run, its first batch and the next one's.
        self._runs: list[tuple[int, int]] = []
        self._file: IO[bytes] | None = None
        self._reader: pa.ipc.RecordBatchFileReader | None = None
        for name in names:
            self.add(name)

    def add(self, name: bytes) -> None:
        """Put a name; not after the first was taken."""
        self._held.append(name)
        if len(self._held) >= HELD:
            self._put_away()

    def __iter__(self) -> Iterator[bytes]:
        self._held.sort()
        if self._file is None:
            return iter(self._held)
        if self._reader is None:
            with no_room_said():
                self._writer.close()
                self._file.flush()
            self._reader = pa.ipc.open_file(pa.PythonFile(self._file, "r"))
        return heapq.merge(self._held, *(_read(self._reader, *run) for run in self._runs))

    def _put_away(self) -> None:
        schema = pa.schema([("name", pa.binary())])
        self._held.sort()
        with no_room_said():
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                options = pa.ipc.IpcWriteOptions(compression="zstd")
                self._writer = pa.ipc.new_file(self._file, schema, options=options)
            start = self._runs[-1][1] if self._runs else 0
            batches = range(0, len(self._held), AT_ONCE)
            for first in batches:
                names = pa.array(self._held[first : first + AT_ONCE], pa.binary())
                self._writer.write_batch(pa.record_batch([names], schema))
        self._runs.append((start, start + len(batches)))
        self._held = []


def _read(reader: pa.ipc.RecordBatchFileReader, start: int, stop: int) -> Iterator[bytes]:
    for number in range(start, stop):
        yield from reader.get_batch(number).column(0).to_pylist()


def in_parts(keys: Iterable[bytes]) -> Iterator[tuple[list[bytes], bytes | None]]:
    """Yield `PART` keys at a time, with the one that follows, None after the last; at least one part."""
    left = iter(keys)
    follows = next(left, None)
    while True:
        part = [] if follows is None else [follows, *islice(left, PART - 1)]
        follows = next(left, None)
        yield part, follows
        if follows is None:
            return
