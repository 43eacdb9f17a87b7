"""Any tree of WFDB records, without labels."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from rayecg.archives import wfdb_reader
from rayecg.archives.base import Archive
from rayecg.core.errors import DataError
from rayecg.core.record import Record
from rayecg.core.shard_format import index_table
from rayecg.signal.leads import with_derived_leads


class WfdbFolder(Archive):
    """Every `.hea` below a folder; the relative path is the record's id."""

    suffixes: tuple[str, ...] = (".hea", ".dat", ".mat")

    def index(self) -> pa.Table:
        """List the records by relative path."""
        found = self.folder.walk(WfdbFolder.suffixes)
        names = [name.removesuffix(".hea") for name in found if name.endswith(".hea")]
        # The fingerprint need not ask for files of a kind that there are none of.
        ends = {name[name.rfind(".") :] for name in found}
        self.suffixes = tuple(suffix for suffix in WfdbFolder.suffixes if suffix in ends)
        if not names:
            raise DataError(f"{self.folder}: expected WFDB headers (*.hea), found none")
        rows = [{"record_id": name, "path": name} for name in names[: self.settings.limit]]
        return index_table(rows)


def read_one(path: str | Path) -> Record:
    """Read one record by its path, as an archive gives it: see `Archive.read`."""
    return with_derived_leads(wfdb_reader.read_record(path))
