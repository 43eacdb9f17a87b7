"""What an archive kind provides: a list of its records, and the reading of one of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.archives import wfdb_reader
from rayecg.archives.wfdb_reader import Checks
from rayecg.core.errors import DataError, RecordError, SettingsError, printable
from rayecg.core.experiment import ArchiveSettings
from rayecg.core.files import fingerprint
from rayecg.core.index_file import PIECE
from rayecg.core.record import Record
from rayecg.core.storage import REMOTE_THREADS, open_folder
from rayecg.signal.leads import with_derived_leads

In = TypeVar("In")
Out = TypeVar("Out")

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
    #: Releases by name, and how many records each has; empty where none is published.
    releases: ClassVar[dict[str, int]] = {}
    #: A record's files: its path with each of these.
    suffixes: tuple[str, ...] = (".hea", ".dat")

    def __init__(self, settings: ArchiveSettings) -> None:
        if not settings.path:
            raise SettingsError(
                f"archive.path: the archive kind {settings.kind!r} needs the folder it lies in "
                "(--set archive.path=FOLDER)"
            )
        if settings.rate is not None and self.rates is not None and settings.rate not in self.rates:
            known = " or ".join(map(str, self.rates)) or "none: it has one rate"
            raise SettingsError(f"archive.rate: expected {known}, came {settings.rate}")
        self.settings = settings
        try:
            self.folder = open_folder(settings.path)
        except SettingsError as error:
            raise SettingsError(
                f"archive.path: expected the folder of a {settings.kind} archive; {error}"
            ) from None
        if not self.folder.has(self.landmark):
            raise DataError(
                f"{self.folder}: not a {settings.kind} archive (it has no {self.landmark})"
            )

    @property
    def name(self) -> str:
        """The last part of the archive's path."""
        return printable(self.folder.root.rpartition("/")[2])

    @property
    def synthetic(self) -> bool:
        """Whether the recordings were simulated; every figure that rests on them says so."""
        return self.folder.has(SYNTHETIC_MARKER)

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
            raise DataError(f"{self.folder}: the archive lists no record")
        counts = pc.value_counts(index["record_id"])
        place = pc.index(counts.field("counts"), pc.max(counts.field("counts"))).as_py()
        record_id, n = (counts[place][name].as_py() for name in ("values", "counts"))
        if n > 1:
            raise DataError(f"{self.folder}: the index lists record {record_id!r} {n} times")
        return index

    def fingerprint(self, index: pa.Table) -> str:
        """Fingerprint the index, and size and time of the files that it names."""
        digest = hashlib.sha256()
        # In pieces: as Python objects an index of a million records takes a gigabyte.
        for start in range(0, index.num_rows, PIECE):
            piece = index.slice(start, PIECE)
            digest.update(fingerprint(piece.to_pydict()).encode())
        digest.update(self.deciding_facts(index).tobytes())
        return digest.hexdigest()[:16]

    def deciding_facts(self, index: pa.Table) -> np.ndarray:
        """Give size and time of every file that may decide what the records are."""
        return np.concatenate([facts for _, facts in self._with_facts(index)])

    def listing(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield the index, some records at a time, with size and time of each record's files.

        The facts are int64, records by two numbers for each of some files. Errors are those of
        `checked_index`.
        """
        yield from self._with_facts(self.checked_index())

    def _with_facts(self, index: pa.Table) -> Iterator[tuple[pa.Table, np.ndarray]]:
        for start in range(0, max(index.num_rows, 1), PIECE):
            piece = index.slice(start, PIECE)
            paths = piece["path"].to_pylist()
            names = [f"{path}{suffix}" for path in paths for suffix in self.suffixes]
            yield piece, self.folder.facts(names).reshape(len(paths), 2 * len(self.suffixes))

    def read(self, row: Mapping[str, Any], checks: Checks = "error") -> Record:
        """Read the record that an index row names, missing limb leads derived.

        Raises
        ------
        RecordError
            With one of the codes of `rayecg.core.errors.ERROR_CODES`.
        """
        if not row["path"]:
            raise RecordError("missing_file", "the archive's index names no file for it")
        return with_derived_leads(wfdb_reader.read(self.folder, row["path"], checks))

    def read_each(
        self, rows: Iterable[Mapping[str, Any]], checks: Checks = "error"
    ) -> Iterator[Record | Exception]:
        """Read records one after another; one that cannot be read gives its error.

        Raises
        ------
        DataError
            If the archive itself cannot be reached: that is no record's fault.
        """

        def attempt(row: Mapping[str, Any]) -> Record | Exception:
            try:
                return self.read(row, checks)
            except DataError:
                raise
            except Exception as error:  # one record's trouble is that record's row
                return error

        return self.map_files(attempt, rows)

    def map_files(self, function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """Apply a function that reads files, in order; several at a time where that saves waiting."""
        if not self.folder.remote:
            yield from map(function, items)
            return
        pool = ThreadPoolExecutor(REMOTE_THREADS)
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                # So many are under way that none waits, and so few that memory stays small.
                if len(waiting) > 2 * REMOTE_THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # After an error the rest would be asked for in vain, each with its full patience.
            pool.shutdown(wait=False, cancel_futures=True)

    def __reduce__(self) -> tuple[type[Archive], tuple[ArchiveSettings]]:
        # A worker may have another current folder.
        path = getattr(self.folder, "uri", self.folder.root)
        return type(self), (dataclasses.replace(self.settings, path=path),)
