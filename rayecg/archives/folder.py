"""Any tree of WFDB records, without labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.archives import wfdb_reader
from rayecg.archives.base import Archive
from rayecg.archives.wfdb_header import read_header
from rayecg.core.errors import DataError, RecordError
from rayecg.core.index_file import PIECE
from rayecg.core.record import Record
from rayecg.core.shard_format import index_columns
from rayecg.core.storage import Level
from rayecg.signal.leads import with_derived_leads


class WfdbFolder(Archive):
    """Every `.hea` below a folder; the relative path is the record's id.

    The segments of a record that are named after it (`NAME_0001`, `NAME_layout`, as PhysioNet does)
    belong to it; a segment of another name is a record of its own besides.
    """

    def index(self) -> pa.Table:
        """List the records by relative path."""
        return pa.concat_tables(index for index, _ in self._pieces())

    def deciding_facts(self, index: pa.Table) -> np.ndarray:
        """Give size and time of every file: a header may name any of them."""
        return np.concatenate([level.facts() for level in self.folder.levels()])

    def listing(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield the index with size and time of each record's files, added up.

        Its files are those that are called after it: `NAME.x`, and the segments `NAME_0001.x` that
        are no records of their own.
        """
        for index, levels in self._pieces():
            facts_F2 = np.concatenate([level.facts() for level in levels])
            facts_R2 = np.zeros((index.num_rows, 2), np.int64)
            files = itertools.chain.from_iterable(level.files for level in levels)
            first = 0
            # A single folder may hold millions of files.
            while names := list(itertools.islice(files, 4 * PIECE)):
                stem_F = pa.array([name.rpartition(".")[0] for name in names], pa.string())
                above_F = pc.replace_substring_regex(stem_F, "_[^_/]*$", "")
                places = (pc.index_in(own_F, index["path"]) for own_F in (stem_F, above_F))
                place_F = pc.fill_null(pc.coalesce(*places), -1).to_numpy()
                of_some_F = np.flatnonzero(place_F >= 0)
                np.add.at(facts_R2, place_F[of_some_F], facts_F2[first + of_some_F])
                first += len(names)
            yield index, facts_R2

    def _pieces(self) -> Iterator[tuple[pa.Table, list[Level]]]:
        """Yield records, about `PIECE` at a time, with the folders that they lie in.

        A path is there once, so that no record is listed twice.
        """
        left, found = self.settings.limit, False
        names: list[str] = []
        levels: list[Level] = []
        for level in itertools.chain(self.folder.levels(), (None,)):
            if level is not None and (own := self._records(level)):
                names += own
                levels.append(level)
            last = level is None or (left is not None and len(names) >= left)
            if names and (last or len(names) >= PIECE):
                column = pa.array(names[:left], pa.string())
                yield index_columns({"record_id": column, "path": column}), levels
                left = None if left is None else left - len(column)
                names, levels, found = [], [], True
            if last:
                break
        if not found:
            raise DataError(f"{self.folder}: expected WFDB headers (*.hea), found none")

    def _records(self, level: Level) -> list[str]:
        """Give the paths of the records in a folder."""
        # In the order of the names without their ends, which is another than with them.
        names = sorted(name.removesuffix(".hea") for name in level.called(".hea"))
        segments = self._segments(names)
        return [name for name in names if name not in segments] if segments else names

    def _segments(self, names: list[str]) -> set[str]:
        """Find what belongs to a record of several segments.

        Sorted, a segment that is named after its record comes right behind it, so that few headers
        are read for this.
        """
        found: set[str] = set()
        for name, following in itertools.pairwise(names):
            if not following.startswith(name):
                continue
            try:
                segments = read_header(self.folder, name).segments or ()
            except RecordError:
                continue  # the shards stage meets the same error and gives the record its row
            above = name[: name.rfind("/") + 1]
            own = {above + segment.name for segment in segments}
            found |= {segment for segment in own if segment.startswith(name) and segment != name}
        return found


def read_one(path: str | Path) -> Record:
    """Read one record by its path, as an archive gives it: see `Archive.read`."""
    return with_derived_leads(wfdb_reader.read_record(path))
