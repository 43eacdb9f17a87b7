"""Any tree of WFDB records, without labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.archives import wfdb_reader
from rayecg.archives.base import PIECE, Archive
from rayecg.archives.wfdb_header import read_header
from rayecg.core.errors import DataError, RecordError
from rayecg.core.record import Record
from rayecg.core.shard_format import index_columns
from rayecg.signal.leads import with_derived_leads


class WfdbFolder(Archive):
    """Every `.hea` below a folder; the relative path is the record's id.

    The segments of a record that are named after it (`NAME_0001`, `NAME_layout`, as PhysioNet does)
    belong to it; a segment of another name is a record of its own besides.
    """

    def index(self) -> pa.Table:
        """List the records by relative path."""
        # In the order of the names without their ends, which is another than with them.
        names = sorted(name.removesuffix(".hea") for name in self.folder.walk(".hea"))
        segments = self._segments(names)
        if segments:
            names = [name for name in names if name not in segments]
        if not names:
            raise DataError(f"{self.folder}: expected WFDB headers (*.hea), found none")
        column = pa.array(names[: self.settings.limit], pa.string())
        return index_columns({"record_id": column, "path": column})

    def deciding_facts(self, index: pa.Table) -> np.ndarray:
        """Give size and time of every file: a header may name any of them."""
        return np.concatenate([self.folder.facts(names) for names in self._files()])

    def file_facts(self, index: pa.Table) -> np.ndarray:
        """Give size and time of each record's files, added up: of those that are called after it.

        `NAME.x`, and the segments `NAME_0001.x` that are no records of their own.
        """
        facts_R = np.zeros((index.num_rows, 2), np.int64)
        for names in self._files():
            # Columns, which take a fraction of what a dictionary of all paths would.
            stem_F = pa.array([name.rpartition(".")[0] for name in names], pa.string())
            above_F = pc.replace_substring_regex(stem_F, "_[^_/]*$", "")
            places = (pc.index_in(own_F, index["path"]) for own_F in (stem_F, above_F))
            place_F = pc.fill_null(pc.coalesce(*places), -1).to_numpy()
            own_F = np.flatnonzero(place_F >= 0)
            np.add.at(facts_R, place_F[own_F], self.folder.facts([names[i] for i in own_F]))
        return facts_R

    def _files(self) -> Iterator[list[str]]:
        """Yield the names of all files, some at a time."""
        left = self.folder.walk()
        while names := list(itertools.islice(left, PIECE)):
            yield names

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
