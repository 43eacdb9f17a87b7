"""What an archive kind provides: a list of its records, and the reading of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from rayecg.archives.wfdb_reader import Checks, read_record
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import ArchiveSettings
from rayecg.core.record import Record


class Archive:
    """Base of the archive kinds; a kind overrides `index`, and `read` if WFDB is not all of it.

    Parameters
    ----------
    settings
        Kind, path, rate, limit.
    """

    #: Whether its recordings were simulated; every figure that rests on them says so.
    synthetic = False
    #: The archive's own protocol: a column of the index, and its values allowed in each split.
    official_split: ClassVar[dict[str, Any] | None] = None
    #: A file or pattern that must lie in the archive's folder.
    landmark = "*"

    def __init__(self, settings: ArchiveSettings) -> None:
        if not settings.path:
            raise SettingsError(
                f"archive.path: the archive kind {settings.kind!r} needs the folder it lies in "
                "(--set archive.path=FOLDER)"
            )
        if "://" in settings.path:
            raise SettingsError(f"archive.path: only local folders are read, came {settings.path}")
        self.settings = settings
        self.root = Path(settings.path).expanduser().resolve()
        if not self.root.is_dir():
            raise DataError(f"{settings.path}: expected a folder with a {settings.kind} archive")
        if next(self.root.glob(self.landmark), None) is None:
            raise DataError(
                f"{settings.path}: not a {settings.kind} archive (it has no {self.landmark})"
            )

    def index(self) -> pa.Table:
        """List the records: a table with the columns of `shard_format.INDEX_FIELDS`."""
        raise NotImplementedError(type(self).__name__)

    def read(self, row: Mapping[str, Any], checks: Checks = "error") -> Record:
        """Read the record that an index row names; see `wfdb_reader.read_record`."""
        return read_record(self.root / row["path"], checks)

    def __reduce__(self) -> tuple[type[Archive], tuple[ArchiveSettings]]:
        return type(self), (self.settings,)
