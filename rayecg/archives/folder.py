"""Any tree of WFDB records, without labels."""

from __future__ import annotations

import pyarrow as pa

from rayecg.archives.base import Archive
from rayecg.core.errors import DataError
from rayecg.core.shard_format import index_table


class WfdbFolder(Archive):
    """Every `.hea` below a folder; the relative path is the record's id."""

    suffixes = (".hea", ".dat", ".mat")

    def index(self) -> pa.Table:
        """List the records by relative path."""
        names = [name.removesuffix(".hea") for name in self.folder.walk(".hea")]
        if not names:
            raise DataError(f"{self.folder}: expected WFDB headers (*.hea), found none")
        rows = [{"record_id": name, "path": name} for name in names[: self.settings.limit]]
        return index_table(rows)
