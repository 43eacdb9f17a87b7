"""Any tree of WFDB records, without labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.archives import wfdb_reader
from rayecg.archives.base import Archive
from rayecg.archives.wfdb_header import read_header
from rayecg.core.errors import DataError, RecordError
from rayecg.core.index_file import PIECE, TableQueue
from rayecg.core.record import Record
from rayecg.core.shard_format import index_columns
from rayecg.core.storage import Folder, Level
from rayecg.signal.leads import with_derived_leads


class WfdbFolder(Archive):
    """Every `.hea` below a folder; the relative path is the record's id.

    The segments of a record that are named after it (`NAME_0001`, `NAME_layout`, as PhysioNet does)
    belong to it; a segment of another name is a record of its own besides.
    """

    def index(self) -> pa.Table:
        """List the records by relative path."""
        left, paths = self.settings.limit, []
        for names, _ in self._pieces(left):  # without the facts, for which each file is asked
            paths.append(pa.array(names[:left], pa.string()))
            if left is not None:
                left -= len(names)
                if left <= 0:
                    break
        return _as_index(pa.concat_arrays(paths))

    def deciding_facts(self, index: pa.Table) -> np.ndarray:
        """Give size and time of every file: a header may name any of them."""
        return np.concatenate([level.facts() for level in self.folder.levels()])

    def listing(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield the index with size and time of each record's files, added up.

        Its files are those that are called after it: `NAME.x`, and the segments `NAME_0001.x` that
        are no records of their own.
        """
        for paths, facts_R2 in self._listed(self.settings.limit):
            yield _as_index(paths), facts_R2

    def _listed(self, limit: int | None) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Yield paths of records, and their facts as `listing` gives them; no more than the limit."""
        left, sums = limit, _Sums()
        for names, levels in self._pieces(limit):
            for paths, facts_R2 in sums.add(names, levels):
                yield paths[:left], facts_R2[:left]
                if left is not None:
                    left -= len(paths)
                    if left <= 0:
                        return

    def _pieces(self, limit: int | None) -> Iterator[tuple[list[str], list[Level]]]:
        """Yield the paths of records, with the folders or parts of one that hold these and their files.

        They are about `PIECE` names at a time; from the limit on, each part of a folder by itself. A
        path is there once, so that no record is listed twice.
        """
        n_found, n_names = 0, 0
        headers = _Headers(self.folder)
        names: list[str] = []
        levels: list[Level] = []
        goes_on = False
        for level in self.folder.levels():
            own = headers.records(level)
            is_part, goes_on = goes_on or level.follows is not None, level.follows is not None
            if own or is_part:  # what a record's header is called after may lie in another part
                names += own
                levels.append(level)
                n_found += len(own)
                n_names += len(level.files) + len(level.folders)
            if levels and (n_names >= PIECE or (limit is not None and n_found >= limit)):
                yield names, levels
                names, levels, n_names = [], [], 0
        if levels:
            yield names, levels
        if not n_found:
            raise DataError(f"{self.folder}: expected WFDB headers (*.hea), found none")


class _Headers:
    """Tells records from segments, as the names of headers come in order.

    A segment that is named after its record comes right behind it, so that few headers are read; one
    with a dot in its name, which WFDB does not permit, may come before it and is a record, too.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._last: str | None = None
        #: Records of several segments that the last name begins with, each with its segments.
        self._whole: list[tuple[str, set[str]]] = []

    def records(self, level: Level) -> list[str]:
        """Give the paths of the records in a folder, or in a part of one."""
        found = []
        for header in level.called(".hea"):
            name = header.removesuffix(".hea")
            if self._last is not None and name.startswith(self._last):
                self._whole.append((self._last, self._segments(self._last)))
            while self._whole and not name.startswith(self._whole[-1][0]):
                self._whole.pop()
            if not any(name in segments for _, segments in self._whole):
                found.append(name)
            self._last = name
        return found

    def _segments(self, name: str) -> set[str]:
        try:
            segments = read_header(self._folder, name).segments or ()
        except RecordError:
            return set()  # the shards stage meets the same error and gives the record its row
        above = name[: name.rfind("/") + 1]
        return {above + segment.name for segment in segments}


class _Sums:
    """Adds up size and time of each record's files, as these come in order.

    A folder's parts may part the files of a record. Such a record waits for the rest; those behind it
    wait with it, on disk: `rec.hea` for all of its folder where the others are `rec_00001.hea`, …
    """

    def __init__(self) -> None:
        self._n_records = 0
        #: Records whose files may go on, and the number of each.
        self._open: dict[str, int] = {}
        #: What came for these since they were put to wait, by their numbers.
        self._late: dict[int, np.ndarray] = {}
        #: Records that wait, and the number of the first in each table; an open one is a first one.
        self._waiting, self._starts = TableQueue(), deque[int]()
        #: Files whose header is still to come, by their name without its end.
        self._stems: list[str] = []
        self._facts_S2 = np.zeros((0, 2), np.int64)

    def add(self, names: list[str], levels: list[Level]) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Yield the paths of records that are complete, and their facts."""
        follows = levels[-1].follows or ""
        open_before, first = self._open, self._n_records
        self._n_records += len(names)
        record_R = pa.array([*open_before, *names], pa.string())
        facts_R2 = self._added_up(record_R, levels, follows)
        goes_on_R = pc.is_in(record_R, _beginnings(follows, "._")).to_numpy(zero_copy_only=False)

        n_open = len(open_before)
        for number, more in zip(open_before.values(), facts_R2[:n_open], strict=True):
            self._late[number] = self._late.get(number, 0) + more
        opened_N = np.flatnonzero(goes_on_R[n_open:])
        self._open = {
            name: number
            for (name, number), goes_on in zip(open_before.items(), goes_on_R[:n_open], strict=True)
            if goes_on
        } | {names[i]: first + i for i in opened_N.tolist()}
        yield from self._in_order(record_R[n_open:], facts_R2[n_open:], first, opened_N.tolist())

    def _added_up(self, record_R: pa.Array, levels: list[Level], follows: str) -> np.ndarray:
        """Give what files add up to for each record; those whose header is to come wait for it."""
        facts_R2 = np.zeros((len(record_R), 2), np.int64)
        facts_F2 = np.concatenate([self._facts_S2, *(level.facts() for level in levels)])
        files = (_stem(file) for level in levels for file in level.files)
        stem_F = pa.array([*self._stems, *files], pa.string())
        above_F = pc.replace_substring_regex(stem_F, "_[^_/]*$", "")

        own_F = pc.index_in(stem_F, record_R)
        waits_F = pc.and_(pc.is_null(own_F), pc.is_in(stem_F, _beginnings(follows, ".")))
        place_F = pc.coalesce(own_F, pc.index_in(above_F, record_R))
        place_F = pc.if_else(waits_F, -1, pc.fill_null(place_F, -1)).to_numpy()
        of_some_F = np.flatnonzero(place_F >= 0)
        np.add.at(facts_R2, place_F[of_some_F], facts_F2[of_some_F])

        waiting = stem_F.filter(waits_F).dictionary_encode()
        self._stems = waiting.dictionary.to_pylist()
        self._facts_S2 = np.zeros((len(self._stems), 2), np.int64)
        own = np.flatnonzero(waits_F.to_numpy(zero_copy_only=False))
        np.add.at(self._facts_S2, waiting.indices.to_numpy(), facts_F2[own])
        return facts_R2

    def _in_order(
        self, record_N: pa.Array, facts_N2: np.ndarray, first: int, opened: list[int]
    ) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Yield what waits no more, then of the new records those that need not wait."""
        are_open = set(self._open.values())
        while self._starts and self._starts[0] not in are_open:
            table = self._waiting.take()
            facts = np.column_stack([table["size"], table["time"]])
            facts[0] += self._late.pop(self._starts.popleft(), 0)
            yield table["path"].combine_chunks(), facts
        for start, stop in pairwise(sorted({0, *opened, len(record_N)})):
            own, (size_N, time_N) = slice(start, stop), facts_N2[start:stop].T
            if self._starts or start in opened:
                self._waiting.put(pa.table({"path": record_N[own], "size": size_N, "time": time_N}))
                self._starts.append(first + start)
            else:
                yield record_N[own], facts_N2[own]


def _stem(file: str) -> str | None:
    """Give a file's path without what follows the last dot, None where there is none."""
    dot = file.rfind(".")
    return file[:dot] if dot > file.rfind("/") else None


def _beginnings(name: str, signs: str) -> pa.Array:
    """Give what comes before each of some signs in the last part of a path."""
    places = range(name.rfind("/") + 1, len(name))
    return pa.array([name[:i] for i in places if name[i] in signs], pa.string())


def _as_index(paths: pa.Array) -> pa.Table:
    return index_columns({"record_id": paths, "path": paths})


def read_one(path: str | Path) -> Record:
    """Read one record by its path, as an archive gives it: see `Archive.read`."""
    return with_derived_leads(wfdb_reader.read_record(path))
