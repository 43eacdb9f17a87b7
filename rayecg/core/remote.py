"""Folders in object stores: what `storage.open_folder` gives for a URI, and what writing there shares."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import parse_qsl, unquote

import numpy as np

from rayecg.core.errors import DataError, RecordError, SettingsError
from rayecg.core.index_file import door, no_room_said
from rayecg.core.remote_names import Inside
from rayecg.core.s3_pages import Entry, S3Pages
from rayecg.core.storage import REMOTE_THREADS, Folder, Level, check_name

Out = TypeVar("Out")

#: Waits (s) before a store that does not answer is asked again; after the last the job stops, to be
#: continued later. A record is never given up because of the network.
PATIENCE_S = (0.5, 1, 2, 4, 8, 16, 30)
#: How long (s) one attempt waits for a store's first word.
ANSWER_S = 5

#: Names of files that are listed before they are needed.
HELD = 1 << 16
#: Folders that are taken at a time from those that wait.
TAKEN = 1 << 10
#: Of an object, in bytes.
LONGEST_NAME = 1024
#: Bytes of a file that are asked for at a time where it is copied, and how many such pieces are.
COPIED, COPIES = 1 << 23, 4

#: What a store says of a name that it does not have, or that no object can have.
_FINAL = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    ImportError,
    TypeError,
    MemoryError,
)
#: In the text of an error: the store answers, and its answer will be the same again.
_REFUSALS = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET|PERMISSION_DENIED|"
    "UNAUTHENTICATED|Not a regular file|^Bucket .* not found|Unable to load|"
    r"HTTP status (3\d\d|4(?!08|25|29)\d\d)\)"
)
#: Settings in a URI that are no secret, and tell what is wrong.
_OPEN_SETTINGS = ("endpoint_override", "region", "scheme")


class Remote:
    """A place in an object store: how it is opened, asked with patience, and spoken of without secrets.

    `s3://`, `gs://`, `abfs://`, `hdfs://` are pyarrow's own; any other scheme is fsspec's. The
    store's settings come from its usual places, for S3 the environment (`AWS_ACCESS_KEY_ID`,
    `AWS_ENDPOINT_URL`, …) or the URI (`s3://KEY:SECRET@bucket/path?region=…&scheme=http&
    endpoint_override=HOST:PORT`), whose secrets no message repeats.

    Parameters
    ----------
    uri
        Where it lies.

    Raises
    ------
    SettingsError
        If there is a file instead, or the store refuses it.
    DataError
        If the store does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.root, self._secrets = without_secrets(uri)
        self._prefix = self.root + "/"

        def attempt() -> tuple[Any, str, Any]:
            files, path = _file_system(uri)
            return files, path, files.get_file_info(path)

        try:
            self._files, path, found = self._patiently(attempt, self.root, PATIENCE_S[:4])
        except (OSError, ValueError, ImportError, TypeError) as error:
            raise SettingsError(f"{self.root}: cannot be opened ({self._why(error)})") from None
        self._path = path.rstrip("/") + "/" if path else ""
        self._found = found.type.name != "NotFound"
        if found.type.name == "File":
            raise SettingsError(f"expected a folder, found none at {self.root}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri,)

    def __str__(self) -> str:
        return self.root

    def _patiently(
        self, attempt: Callable[[], Out], what: str, waits: tuple[float, ...] | None = None
    ) -> Out:
        """Do what needs the store, again where it does not answer; a refusal is PermissionError."""
        for wait in (*(PATIENCE_S if waits is None else waits), None):
            try:
                return attempt()
            except (*_FINAL, PermissionError):
                raise
            except Exception as error:  # libraries of stores have exceptions of their own
                if _REFUSALS.search(str(error)):
                    raise PermissionError(self._why(error)) from None
                if wait is None:
                    raise DataError(
                        f"{what}: the store does not serve it ({self._why(error)}); the same "
                        "command continues"
                    ) from None
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _why(self, error: BaseException) -> str:
        """Give the first line of an error's text without the secrets of the URI."""
        text = str(error).replace(self.uri, self.root)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = re.sub("AWS4-HMAC-SHA256.*", "***", text)  # the header that signs a request
        return (text.strip().splitlines() or [type(error).__name__])[0][:200]


class RemoteFolder(Remote, Folder):
    """A folder to read in an object store, by a URI that `pyarrow.fs` or fsspec understands.

    Parameters
    ----------
    uri
        Where it lies; see `Remote`.

    Raises
    ------
    SettingsError
        If there is no such folder, or the store refuses it.
    DataError
        If the store does not answer.
    """

    remote = True

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._pages = S3Pages(self._files) if self._files.type_name == "s3" else None
        self._copy: tuple[str, IO[bytes]] | None = None
        if not self._found:
            raise SettingsError(f"expected a folder, found none at {self.root}")

    def read(
        self, name: str, offset: int = 0, need: int | None = None, limit: int | None = None
    ) -> tuple[bytes, int]:
        """Read a file, or a piece of it; see `Folder.read`.

        Raises
        ------
        RecordError
            `missing_file`, `outside_archive`.
        DataError
            If the store does not answer.
        """
        check_name(name, self)

        def attempt() -> tuple[bytes, int]:
            with self._files.open_input_file(self._path + name) as stream:
                size = stream.size()
                count = max(size - offset, 0) if need is None else need
                if offset + count > size or (limit is not None and count > limit):
                    return b"", size
                data = stream.read_at(count, offset) if count else b""
                if len(data) != count:
                    raise OSError(f"sent {len(data)} bytes of {count}")
                return data, size

        place = self._prefix + name
        try:
            return self._patiently(attempt, place)
        except PermissionError as error:
            # One object may be refused; keys that have expired are no record's fault.
            self._ask_for_folder()
            raise RecordError("missing_file", f"{place}: {self._why(error)}") from None
        except OSError:
            raise RecordError("missing_file", f"{place}: no such object") from None
        except ValueError as error:  # a name that no object can have
            raise RecordError("missing_file", f"{place!r}: {self._why(error)}") from None

    def _ask_for_folder(self, name: str = "") -> Any:
        """Ask for the folder itself, or for something in it; raises `DataError` if that is not given."""
        what = (self._path + name).rstrip("/")
        try:
            return self._patiently(lambda: self._files.get_file_info(what), self.root)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.root}: cannot be read ({self._why(error)})") from None

    def _entries(self, above: str) -> Iterator[Entry]:
        """Yield what lies in a folder, in any order, by its name below this one.

        One that is not there is empty; one that is refused is an `OSError` or `ValueError`.
        """
        where = self._path + above
        shown = f"{self.root.partition('://')[0]}://{where}".rstrip("/")
        if self._pages is None:
            yield from self._whole(where, shown)
            return
        token = None
        while True:
            attempt = functools.partial(self._pages.page, where, token)
            page, token = self._patiently(attempt, shown)
            for name, size, time_ns in page:
                yield above + name, size, time_ns
            if token is None:
                return

    def _whole(self, where: str, shown: str) -> Iterator[Entry]:
        """Yield what lies in a folder of a store that gives all its names at once."""
        from pyarrow import fs

        def infos(recursive: bool) -> list[Any]:
            what = fs.FileSelector(where.rstrip("/"), allow_not_found=True, recursive=recursive)
            return self._patiently(lambda: list(self._files.get_file_info(what)), shown)

        found, start = infos(False), len(where)
        if not all(info.path[start:] for info in found):
            # Keys with two slashes: a folder without a name, which is not listed by itself. No archive
            # means that, but its files are listed all the same, to be refused one by one.
            own = f"{where}/"
            found = [info for info in found if info.path[start:]]
            found += [info for info in infos(True) if info.path.startswith(own) and info.is_file]
        for info in found:
            name = info.path[len(self._path) :]
            if info.is_file:
                yield name, _stated(info.size), _stated(info.mtime_ns)
            else:
                yield f"{name}/", -1, -1

    def levels(self) -> Iterator[Level]:
        """Yield this folder and each below it, in order; see `Folder.levels`.

        The next ones are asked for meanwhile, as long as those that came hold no more than `HELD` names.
        S3 gives a folder's names some at a time, other stores all at once, which then are in memory for
        that moment.
        """
        asked: dict[str, Future[Inside]] = {}
        waiting: list[str | Iterator[str]] = [""]
        pool, left = ThreadPoolExecutor(REMOTE_THREADS), threading.Event()
        try:
            while waiting:
                above = waiting.pop()
                if not isinstance(above, str):
                    if taken := list(islice(above, TAKEN)):
                        waiting += [above, *reversed(taken)]
                    continue
                n_came = sum(len(one.result()) for one in asked.values() if _came(one))
                ahead = REMOTE_THREADS if n_came < HELD else 1
                for one in (above, *reversed(waiting[1 - ahead :] if ahead > 1 else [])):
                    if isinstance(one, str) and one not in asked:
                        asked[one] = pool.submit(self._inside, one, left)
                try:
                    inside = asked.pop(above).result()
                except (OSError, ValueError) as error:
                    raise self._unlisted(above, error) from None
                waiting.append(map(bytes.decode, inside.folders))
                yield from inside.levels()
        finally:
            # Who needs no more does not wait for answers that nobody needs.
            left.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _unlisted(self, above: str, error: Exception) -> DataError:
        return DataError(f"{self._prefix}{above}: cannot be listed ({self._why(error)})")

    def _inside(self, above: str, left: threading.Event) -> Inside:
        """List what lies in a folder, as long as somebody waits for it."""
        return Inside(takewhile(lambda _: not left.is_set(), self._entries(above)))

    def has(self, pattern: str) -> bool:
        """Say whether the folder's top level holds a name of this pattern."""
        if pattern == "*":
            return True  # a store has no empty folders, and a list may be long
        if not any(sign in pattern for sign in "*?["):
            return bool(self._ask_for_folder(pattern).type.name != "NotFound")
        try:
            names = (name.removesuffix("/") for name, _, _ in self._entries(""))
            return any(fnmatch.fnmatch(name, pattern) for name in names)
        except (OSError, ValueError) as error:
            raise self._unlisted("", error) from None

    def facts(self, names: Iterable[str]) -> np.ndarray:
        """Give size and time of modification (ns) of files; see `Folder.facts`."""
        names = list(names)
        wanted = set(names)
        found = {}

        def look(above: str) -> None:
            try:
                check_name(f"{above}file", self)
                if len(above.encode()) <= LONGEST_NAME:
                    entries = self._entries(above)
                    found.update({name: own for name, *own in entries if name in wanted})
            except (RecordError, ValueError, FileNotFoundError, NotADirectoryError):
                return  # a name that no folder can have
            except OSError as error:
                raise self._unlisted(above, error) from None

        pool = ThreadPoolExecutor(REMOTE_THREADS)
        try:
            # Of whole folders: one answer is for a thousand files.
            list(pool.map(look, {name[: name.rfind("/") + 1] for name in names}))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        facts = [found.get(name, (-1, -1)) for name in names]
        return np.array(facts, np.int64).reshape(len(names), 2)

    @contextmanager
    def local(self, names: Iterable[str]) -> Iterator[Path]:
        """Give a temporary folder with copies of the named files; see `Folder.local`."""
        names = list(names)
        if len({name.rpartition("/")[0] for name in names}) != 1:
            raise ValueError(f"expected files of one folder, came {names}")
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                (Path(folder) / name.rpartition("/")[2]).write_bytes(self.read(name)[0])
            yield Path(folder)

    def at_hand(self, name: str) -> Path:
        """Give a path under which a library can open a copy of a file; see `Folder.at_hand`.

        The copy is a temporary file without a name, so that no kill leaves it behind.

        Raises
        ------
        RecordError
            `missing_file`, `outside_archive`.
        DataError
            If the store does not answer, or there is no room for a copy.
        """
        if self._copy is None or self._copy[0] != name:
            self._copy = None
            data, size = self.read(name, limit=COPIED)
            with no_room_said(f"{self._prefix}{name}"):
                file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the copy is wanted
                file.write(data)
                if size > COPIED:
                    self._copy_large(name, size, file)
                file.flush()
            self._copy = name, file
        return Path(door(self._copy[1]))

    def _copy_large(self, name: str, size: int, file: IO[bytes]) -> None:
        """Copy a file piece by piece: no more than some pieces are in memory, and under way."""

        def copy(start: int) -> None:
            count = min(COPIED, size - start)
            data, now = self.read(name, start, count)
            if now != size:
                raise DataError(f"{self._prefix}{name}: was replaced while it was read")
            left = memoryview(data)
            while left:
                left = left[os.pwrite(file.fileno(), left, start + count - len(left)) :]

        pool = ThreadPoolExecutor(COPIES)
        try:
            for copied in [pool.submit(copy, start) for start in range(0, size, COPIED)]:
                copied.result()
        finally:
            # After an error the rest would be asked for in vain. What is under way writes to the file.
            pool.shutdown(cancel_futures=True)


def _stated(number: int | None) -> int:
    return -1 if number is None else number


def _came(answer: Future[Any]) -> bool:
    return answer.done() and answer.exception() is None


def _file_system(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        store, path = fs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError) as error:
        if isinstance(error, ValueError) and "Unrecognized filesystem" not in str(error):
            raise
        import fsspec  # type: ignore[import-untyped]

        store, path = fsspec.core.url_to_fs(uri)
        return fs.PyFileSystem(fs.FSSpecHandler(store)), path
    if store.type_name not in ("s3", "gcs"):
        return store, path
    # A URI cannot say how often a store that does not answer is asked: ten times and up to 100 s for
    # S3, 15 min for GCS. `_patiently` asks again, so that one attempt shall be short.
    make, (options,) = store.__reduce__()
    if store.type_name == "gcs":
        options["retry_time_limit"] = options["retry_time_limit"] or timedelta(seconds=ANSWER_S)
        return make(options), path
    for name in ("connect_timeout", "request_timeout"):
        options[name] = options[name] if options[name] > 0 else ANSWER_S
    options["allow_delayed_open"] = True  # what is small is written by one request, not by three
    return fs.S3FileSystem(
        **options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2)
    ), path


def without_secrets(uri: str) -> tuple[str, tuple[str, ...]]:
    """Give a URI without user, password and query, and what of it no message may repeat."""
    scheme, _, rest = uri.partition("://")
    first = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user = ""
    if ":" in first and "@" in rest:  # a password that was not quoted may hold any character
        user, _, rest = rest.rpartition("@")
    elif "@" in first:
        user, _, rest = rest.partition("@")
    place, _, query = rest.partition("?")
    name, _, password = user.partition(":")
    hidden = [user, name, password, query]
    hidden += [value for key, value in parse_qsl(query) if key not in _OPEN_SETTINGS]
    secrets = {text for part in hidden for text in (part, unquote(part)) if len(text) > 3}
    shown = f"{scheme}://{place.partition('#')[0]}".rstrip("/")
    return shown, tuple(sorted(secrets, key=len, reverse=True))
