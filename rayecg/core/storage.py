"""Trees of files to read, on disk or in an object store (`remote`), behind one small door.

A name is a path below the folder, with forward slashes. What a name can reach is the folder's own
content: not `..`, not an absolute path, not a symbolic link that leads elsewhere.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from rayecg.core.errors import DataError, RecordError, SettingsError, printable
from rayecg.core.sorted_names import SortedNames, in_parts, key_of, name_of

#: Files asked of an object store at a time, by one worker.
REMOTE_THREADS = 16

#: The machine's or the disk's trouble, which the next file would meet, too.
_NO_FILES_FAULT = {
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
}  # fmt: skip

_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
# A pipe in the archive would otherwise wait for its other end.
_OPEN |= getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True)
class Level:
    """What lies in one folder of a tree, or a part of it, by its name below the tree's root.

    Attributes
    ----------
    files, folders
        In the order of `sorted_names`.
    follows
        What the folder's next part begins with; None where this is the last one.
    facts
        Gives size and time of the files, as `Folder.facts` does.
    """

    files: list[str]
    folders: list[str]
    follows: str | None
    facts: Callable[[], np.ndarray]

    def called(self, suffix: str) -> list[str]:
        """Give the names that end so, in order; that of a folder is refused when it is read as a file's."""
        files = [name for name in self.files if name.endswith(suffix)]
        folders = [name for name in self.folders if name.endswith(suffix)]
        if not folders:
            return files
        return sorted(files + folders, key=lambda name: key_of(name.encode()))


def level_of(
    above: str,
    keys: list[bytes],
    follows: bytes | None,
    facts: Callable[[list[str]], np.ndarray],
) -> Level:
    """Build a part of the folder `above` from what `in_parts` gives; a folder's key is one with a slash."""
    names = [above + name_of(key).decode() for key in keys]
    files = [name for name in names if name[-1] != "/"]
    return Level(
        files,
        [name[:-1] for name in names if name[-1] == "/"] if len(files) < len(names) else [],
        None if follows is None else above + name_of(follows).decode().removesuffix("/"),
        functools.partial(facts, files),
    )


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
        self._device = os.stat(self.root).st_dev
        # Bound to this instance: a method's own cache would outlive it.
        self._stays_inside = functools.lru_cache(4096)(self._stays_inside_uncached)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root,)

    def __str__(self) -> str:
        return self.root

    def read(
        self, name: str, offset: int = 0, need: int | None = None, limit: int | None = None
    ) -> tuple[bytes, int]:
        """Read a file, or a piece of it.

        Parameters
        ----------
        name
            Which file.
        offset, need
            First byte, and how many; None reads all that follow.
        limit
            Most bytes to read where `need` does not say; None reads any number.

        Returns
        -------
        tuple
            The bytes, and the size of the whole file. If the file holds fewer than were asked for,
            or more than the limit, nothing is read and the bytes are empty.

        Raises
        ------
        RecordError
            `missing_file`, `outside_archive`.
        DataError
            If it is the folder itself that cannot be read any more.
        """
        handle = self._open(name)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise RecordError("missing_file", f"{self._prefix}{name}: not a regular file")
            size = found.st_size
            count = max(size - offset, 0) if need is None else need
            if offset + count > size or (limit is not None and count > limit):
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
            self._check_stands(name, error)
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
        path = self._prefix + name
        try:
            if not self._stays_inside(above):
                raise RecordError(
                    "outside_archive", f"{self._prefix}{above}: a link that leaves it"
                )
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
            self._check_stands(name, error)
            raise RecordError("missing_file", f"{path}: {error.strerror}") from None
        except ValueError as error:  # a zero byte in the name, or what no file name can hold
            raise RecordError("missing_file", f"{path!r}: {error}") from None

    def _check_stands(self, name: str, error: OSError) -> None:
        """Raise `DataError` where a file's error is not its own: the other records would share it."""
        if error.errno in _NO_FILES_FAULT:
            raise DataError(
                f"{self._prefix}{name}: cannot be read ({error.strerror}); mend that, or take the file "
                "away: the same command continues"
            ) from None
        try:
            # Through the folder, not beside it; where a disk was, an empty folder may be left.
            stands = os.stat(self._prefix + ".").st_dev == self._device
        except OSError:
            stands = False
        if not stands:
            raise DataError(
                f"{self.root}: the folder went away ({error.strerror} at {name}); bring it back, the "
                "same command continues"
            ) from None

    def _stays_inside_uncached(self, name: str) -> bool:
        real = os.path.realpath(self._prefix + name)
        return real == self.root or real.startswith(self._prefix)

    def levels(self) -> Iterator[Level]:
        """Yield this folder and each below it, in order; links are not followed into other folders.

        A folder's files come before what lies in its folders. One of many names is given in parts, and
        memory is bounded: see `sorted_names`. A name that is not UTF-8 is listed with escapes for its
        bytes, and refused when it is read: no table could hold it as it stands.

        Raises
        ------
        DataError
            If one of them cannot be listed, or the disk of temporary files has no room for the names.
        """
        waiting: list[Iterator[bytes]] = [iter([b""])]
        while waiting:
            above = next(waiting[-1], None)
            if above is None:
                waiting.pop()
                continue
            keys, folders = self._scan(above)
            waiting.append(map(above.__add__, folders))
            shown = _listable(above).decode()
            for part, follows in in_parts(keys):
                yield level_of(shown, part, follows, self.facts)

    def _scan(self, above: bytes) -> tuple[SortedNames, SortedNames]:
        """List a folder: keys of all that lies in it, and its folders, with a slash behind them."""
        keys, folders = SortedNames(), SortedNames()
        try:
            with os.scandir(os.fsencode(self._prefix) + above) as entries:
                for entry in entries:
                    name = entry.name
                    if entry.is_dir(follow_symlinks=False):
                        name += b"/"
                        folders.add(name)
                    keys.add(key_of(_listable(name)))
        except OSError as error:
            raise DataError(f"{self._prefix}{os.fsdecode(above)}: {error.strerror}") from None
        return keys, folders

    def walk(self, suffix: str) -> Iterator[str]:
        """Yield the files whose names end so, folder by folder; errors as for `levels`."""
        for level in self.levels():
            yield from level.called(suffix)

    def has(self, pattern: str) -> bool:
        """Say whether the folder's top level holds a name of this pattern."""
        try:
            with os.scandir(self.root) as entries:
                return any(fnmatch.fnmatch(entry.name, pattern) for entry in entries)
        except OSError as error:
            raise DataError(f"{self.root}: {error.strerror}") from None

    def facts(self, names: Iterable[str]) -> np.ndarray:
        """Give size and time of modification (ns) of files, -1 where there is none, int64 (n, 2).

        Raises
        ------
        DataError
            If it is the folder itself that cannot be read any more.
        """
        names = list(names)
        facts = np.full((len(names), 2), -1, np.int64)
        for i, name in enumerate(names):
            try:
                found = os.stat(self._prefix + name)
                facts[i] = found.st_size, found.st_mtime_ns
            except OSError as error:
                self._check_stands(name, error)
            except ValueError:
                continue
        return facts

    @contextmanager
    def local(self, names: Iterable[str]) -> Iterator[Path]:
        """Give a folder on this machine that holds the named files, for a library that opens them.

        Names keep their last part. Errors are those of `read`.
        """
        names = list(names)
        above = {name.rpartition("/")[0] for name in names}
        for name in names:
            os.close(self._open(name))  # the same refusals as for reading
        if len(above) == 1:
            yield Path(self._prefix + above.pop())
            return
        raise ValueError(f"expected files of one folder, came {names}")

    def at_hand(self, name: str) -> Path:
        """Give a path under which a library can open a file, until another file is asked for.

        Errors are those of `read`, but a link may lead anywhere: it is for names that no header states.
        """
        check_name(name, self)
        path = Path(self._prefix + name)
        try:
            path.stat()
        except OSError as error:
            self._check_stands(name, error)
            raise RecordError("missing_file", f"{path}: {error.strerror}") from None
        return path


def _listable(name: bytes) -> bytes:
    """Give a name as a table can hold it, no two alike; one with a backslash is never read anyway."""
    if name.isascii() and b"\\" not in name:
        return name
    return printable(os.fsdecode(name).replace("\\", "\\\\")).encode()


def open_folder(path: str | Path) -> Folder:
    """Open a folder by path or URI.

    Raises
    ------
    SettingsError
        If there is none, or the store is not known.
    """
    text = without_file_scheme(str(path))
    if "://" not in text:
        return Folder(text)
    from rayecg.core.remote import RemoteFolder  # which builds on this module

    return RemoteFolder(text)


def without_file_scheme(path: str) -> str:
    """Give the path that a `file://` URI names; what is none stays as it is."""
    return unquote(urlsplit(path).path) if path.startswith("file://") else path


def shown_path(path: str) -> str:
    """Give an archive's path as settings files may hold it: a URI without keys, or a folder's name."""
    if "://" not in path:
        return printable(Path(path).name)
    from rayecg.core.remote import without_secrets

    return without_secrets(path)[0]


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
        raise RecordError(
            "outside_archive", f"{folder}: names {name[:200]!r}, which is no plain path below it"
        )
