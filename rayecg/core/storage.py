"""Trees of files to read, on disk or in an object store, behind one small door.

A name is a path below the folder, with forward slashes. What a name can reach is the folder's own
content: not `..`, not an absolute path, not a symbolic link that leads elsewhere.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rayecg.core.errors import DataError, RecordError, SettingsError

#: Waits (s) before a store that does not answer is asked again; after the last the job stops, to be
#: continued later. A record is never given up because of the network.
PATIENCE_S = (0.5, 1, 2, 4, 8, 16, 30)
#: Files asked of an object store at a time, by one worker.
REMOTE_THREADS = 16

_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
# A pipe in the archive would otherwise wait for its other end.
_OPEN |= getattr(os, "O_NONBLOCK", 0)


class Folder:
    """A folder on disk.

    Parameters
    ----------
    root
        Where it lies.

    Raises
    ------
    SettingsError
        If there is no such folder.
    """

    remote = False

    def __init__(self, root: str | Path) -> None:
        self.root = str(Path(root).expanduser().resolve())
        if not os.path.isdir(self.root):
            raise SettingsError(f"expected a folder, found none at {root}")
        self._prefix = self.root.rstrip("/") + "/"
        # Bound to this instance: a method's own cache would outlive it.
        self._stays_inside = functools.lru_cache(4096)(self._stays_inside_uncached)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root,)

    def __str__(self) -> str:
        return self.root

    def read(self, name: str, offset: int = 0, need: int | None = None) -> tuple[bytes, int]:
        """Read a file, or a piece of it.

        Parameters
        ----------
        name
            Which file.
        offset, need
            First byte, and how many; None reads all that follow.

        Returns
        -------
        tuple
            The bytes, and the size of the whole file. If the file holds fewer than were asked for,
            nothing is read and the bytes are empty.

        Raises
        ------
        RecordError
            `missing_file`, `outside_archive`.
        """
        handle = self._open(name)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise RecordError("missing_file", f"{self._prefix}{name}: not a regular file")
            size = found.st_size
            count = max(size - offset, 0) if need is None else need
            if offset + count > size:
                return b"", size
            # Files of signals are often under a megabyte, and a single call then reads all.
            data = os.pread(handle, count, offset)
            while len(data) < count:
                more = os.pread(handle, min(count - len(data), 1 << 30), offset + len(data))
                if not more:
                    return b"", offset + len(data)
                data += more
            return data, size
        except OSError as error:
            raise RecordError(
                "missing_file", f"{self._prefix}{name}: {error.strerror or error}"
            ) from None
        finally:
            os.close(handle)

    def size(self, name: str) -> int:
        """Give a file's size in bytes; errors as for `read`."""
        return self.read(name, need=0)[1]

    def _open(self, name: str) -> int:
        check_name(name, self)
        above = name.rpartition("/")[0]
        if not self._stays_inside(above):
            raise RecordError("outside_archive", f"{self._prefix}{above}: a link that leaves it")
        path = self._prefix + name
        try:
            return os.open(path, _OPEN)
        except OSError as error:
            if error.errno == errno.ELOOP:  # the file itself is a link
                if not self._stays_inside_uncached(name):
                    raise RecordError(
                        "outside_archive", f"{path}: a link that leaves the archive's folder"
                    ) from None
                try:
                    return os.open(os.path.realpath(path), _OPEN)
                except OSError as again:
                    error = again
            raise RecordError("missing_file", f"{path}: {error.strerror}") from None
        except ValueError as error:  # a zero byte in the name
            raise RecordError("missing_file", f"{path!r}: {error}") from None

    def _stays_inside_uncached(self, name: str) -> bool:
        real = os.path.realpath(self._prefix + name)
        return real == self.root or real.startswith(self._prefix)

    def walk(self, suffix: str) -> list[str]:
        """List the files whose names end so, sorted; links are not followed into other folders."""
        found, waiting = [], [""]
        while waiting:
            below = waiting.pop()
            try:
                with os.scandir(self._prefix + below) as entries:
                    for entry in entries:
                        if entry.name.endswith(suffix):
                            found.append(below + entry.name)
                        elif entry.is_dir(follow_symlinks=False):
                            waiting.append(f"{below}{entry.name}/")
            except OSError as error:
                raise DataError(f"{self._prefix}{below}: {error.strerror}") from None
        return sorted(found)

    def has(self, pattern: str) -> bool:
        """Say whether the folder's top level holds a name of this pattern."""
        with os.scandir(self.root) as entries:
            return any(fnmatch.fnmatch(entry.name, pattern) for entry in entries)

    def facts(self, names: Iterable[str]) -> np.ndarray:
        """Give size and time of modification (ns) of files, -1 where there is none, int64 (n, 2)."""
        facts = []
        for name in names:
            try:
                found = os.stat(self._prefix + name)
                facts.append((found.st_size, found.st_mtime_ns))
            except (OSError, ValueError):
                facts.append((-1, -1))
        return np.array(facts, dtype=np.int64).reshape(-1, 2)

    @contextmanager
    def local(self, names: Iterable[str]) -> Iterator[Path]:
        """Give a folder on this machine that holds the named files, for a library that opens them.

        Files that are missing are left out; names keep their last part.
        """
        names = list(names)
        above = {name.rpartition("/")[0] for name in names}
        for name in names:
            os.close(self._open(name))  # the same refusals as for reading
        if len(above) == 1:
            yield Path(self._prefix + above.pop())
            return
        raise ValueError(f"expected files of one folder, came {names}")


class RemoteFolder(Folder):
    """A folder in an object store, by a URI that `pyarrow.fs` or fsspec understands.

    `s3://`, `gs://`, `hdfs://` are pyarrow's own; any other scheme is fsspec's. The store's settings
    come from its usual places, for S3 the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …) or
    the URI's query (`?endpoint_override=…&scheme=http&region=…`).
    """

    remote = True

    def __init__(self, uri: str) -> None:
        self.uri = uri
        parts = urlsplit(uri)
        # What is printed must not hold a password or a key.
        self.root = f"{parts.scheme}://{parts.hostname or ''}{parts.path}".rstrip("/")
        self._prefix = self.root + "/"
        self._listed: dict[str, tuple[int, int]] | None = None
        try:
            self._files, path = _file_system(uri)
            found = self._files.get_file_info(path)
        except (OSError, ValueError, ImportError, TypeError) as error:
            raise SettingsError(f"{self.root}: cannot be opened ({_first_line(error)})") from None
        self._path = path.rstrip("/") + "/"
        if found.type.name in ("NotFound", "File"):
            raise SettingsError(f"expected a folder, found none at {self.root}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri,)

    def read(self, name: str, offset: int = 0, need: int | None = None) -> tuple[bytes, int]:
        """Read a file, or a piece of it; see `Folder.read`."""
        check_name(name, self)

        def attempt() -> tuple[bytes, int]:
            with self._files.open_input_file(self._path + name) as stream:
                size = stream.size()
                count = max(size - offset, 0) if need is None else need
                if offset + count > size:
                    return b"", size
                data = stream.read_at(count, offset)
                return (data if len(data) == count else b""), size

        return self._patiently(attempt, name)

    def _patiently(self, attempt: Any, name: str) -> Any:
        for wait in (*PATIENCE_S, None):
            try:
                return attempt()
            except FileNotFoundError:
                raise RecordError("missing_file", f"{self._prefix}{name}: no such object") from None
            except OSError as error:
                if wait is None or isinstance(error, PermissionError):
                    raise DataError(
                        f"{self._prefix}{name}: the store does not give it ({_first_line(error)}); "
                        "the same command continues"
                    ) from None
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _list(self) -> dict[str, tuple[int, int]]:
        if self._listed is None:
            from pyarrow import fs

            selector = fs.FileSelector(self._path.rstrip("/"), recursive=True)
            infos = self._patiently(lambda: self._files.get_file_info(selector), "")
            start = len(self._path)
            self._listed = {
                info.path[start:]: (info.size, info.mtime_ns if info.mtime_ns is not None else -1)
                for info in infos
                if info.is_file
            }
        return self._listed

    def walk(self, suffix: str) -> list[str]:
        """List the files whose names end so, sorted."""
        return sorted(name for name in self._list() if name.endswith(suffix))

    def has(self, pattern: str) -> bool:
        """Say whether the folder's top level holds a name of this pattern."""
        from pyarrow import fs

        infos = self._patiently(
            lambda: self._files.get_file_info(fs.FileSelector(self._path.rstrip("/"))), ""
        )
        return any(fnmatch.fnmatch(info.base_name, pattern) for info in infos)

    def facts(self, names: Iterable[str]) -> np.ndarray:
        """Give size and time of modification (ns) of files; see `Folder.facts`."""
        listed = self._list()
        facts = [listed.get(name, (-1, -1)) for name in names]
        return np.array(facts, dtype=np.int64).reshape(-1, 2)

    @contextmanager
    def local(self, names: Iterable[str]) -> Iterator[Path]:
        """Give a temporary folder with copies of the named files; see `Folder.local`."""
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                (Path(folder) / name.rpartition("/")[2]).write_bytes(self.read(name)[0])
            yield Path(folder)


def open_folder(path: str | Path) -> Folder:
    """Open a folder by path or URI.

    Raises
    ------
    SettingsError
        If there is none, or the store is not known.
    """
    text = str(path)
    if text.startswith("file://"):
        text = urlsplit(text).path
    return RemoteFolder(text) if "://" in text else Folder(text)


def check_name(name: str, folder: object) -> None:
    """Refuse a name that is not a path below its folder.

    Raises
    ------
    RecordError
        `outside_archive`.
    """
    if (
        not name
        or name[0] in "/~"
        or "\\" in name
        or (".." in name and ".." in name.split("/"))
        or (":" in name and name[1:2] == ":")
    ):
        raise RecordError("outside_archive", f"{folder}: names {name[:200]!r}, outside of it")


def _file_system(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError):  # a scheme that Arrow does not know
        import fsspec

        store, path = fsspec.core.url_to_fs(uri)
        return fs.PyFileSystem(fs.FSSpecHandler(store)), path


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
