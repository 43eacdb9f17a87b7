"""What an archive kind provides: a list of its records, and the reading of one of them."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from rayecg.archives.wfdb_reader import Checks, read_record
from rayecg.core.errors import DataError, RecordError, SettingsError
from rayecg.core.experiment import ArchiveSettings
from rayecg.core.files import fingerprint
from rayecg.core.record import Record

#: Lies in the folder of every simulated archive.
SYNTHETIC_MARKER = "synthetic.json"


class Archive:
    """Base of the archive kinds; a kind overrides `index`, and `read` if WFDB is not all of it.

    Parameters
    ----------
    settings
        Kind, path, rate, limit.
    """

    #: The archive's own protocol: a column of the index, and its values allowed in each split.
    official_split: ClassVar[dict[str, Any] | None] = None
    #: A file or pattern that must lie in the archive's folder.
    landmark = "*"
    #: The rates (Hz) it is published at, for `settings.rate` to choose from; None takes any.
    rates: ClassVar[tuple[int, ...] | None] = ()
    #: A record's files: its path with each of these.
    suffixes: tuple[str, ...] = (".hea", ".dat")

    def __init__(self, settings: ArchiveSettings) -> None:
        if not settings.path:
            raise SettingsError(
                f"archive.path: the archive kind {settings.kind!r} needs the folder it lies in "
                "(--set archive.path=FOLDER)"
            )
        if "://" in settings.path:
            raise SettingsError(f"archive.path: only local folders are read, came {settings.path}")
        if settings.rate is not None and self.rates is not None and settings.rate not in self.rates:
            known = " or ".join(map(str, self.rates)) or "none: it has one rate"
            raise SettingsError(f"archive.rate: expected {known}, came {settings.rate}")
        self.settings = settings
        self.root = Path(settings.path).expanduser().resolve()
        if not self.root.is_dir():
            raise SettingsError(
                f"archive.path: expected the folder of a {settings.kind} archive, found none at "
                f"{settings.path}"
            )
        if next(self.root.glob(self.landmark), None) is None:
            raise DataError(
                f"{settings.path}: not a {settings.kind} archive (it has no {self.landmark})"
            )

    @property
    def synthetic(self) -> bool:
        """Whether the recordings were simulated; every figure that rests on them says so."""
        return (self.root / SYNTHETIC_MARKER).exists()

    def index(self) -> pa.Table:
        """List the records: a table with the columns of `shard_format.INDEX_FIELDS`."""
        raise NotImplementedError(type(self).__name__)

    def checked_index(self) -> pa.Table:
        """Give the index, which must list at least one record, and each once.

        Raises
        ------
        DataError
            If it does not.
        """
        index = self.index()
        if not index.num_rows:
            raise DataError(f"{self.settings.path}: the archive lists no record")
        counts = Counter(index["record_id"].to_pylist())
        record_id, n = counts.most_common(1)[0]
        if n > 1:
            raise DataError(f"{self.settings.path}: the index lists record {record_id!r} {n} times")
        return index

    def fingerprint(self, index: pa.Table) -> str:
        """Fingerprint the index, and size and time of the files that it names."""
        stats = []
        for path in index["path"].to_pylist():
            for suffix in self.suffixes:
                try:
                    found = os.stat(f"{self.root / path}{suffix}")
                    stats.append((found.st_size, found.st_mtime_ns))
                except OSError:
                    stats.append((-1, -1))
        return fingerprint([index.to_pydict(), stats])

    def read(self, row: Mapping[str, Any], checks: Checks = "error") -> Record:
        """Read the record that an index row names; see `wfdb_reader.read_record`."""
        if not row["path"]:
            raise RecordError("missing_file", "the archive's index names no file for it")
        # By its letters alone: a folder inside the archive may be a link to another disk.
        if os.path.isabs(row["path"]) or os.path.normpath(row["path"]).startswith(".."):
            raise RecordError("outside_archive", f"the archive's index names {row['path']!r}")
        return read_record(self.root / row["path"], checks)

    def __reduce__(self) -> tuple[type[Archive], tuple[ArchiveSettings]]:
        # A worker may have another current folder.
        return type(self), (dataclasses.replace(self.settings, path=str(self.root)),)
