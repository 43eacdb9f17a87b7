"""Places to write to, on disk or in an object store, behind one small door.

A name is a path below the place, with forward slashes. A reader sees a file whole or not at all,
and one live job at a time holds a place.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayecg.core.errors import DataError
from rayecg.core.files import only_job_on, replacing
from rayecg.core.remote import Remote
from rayecg.core.storage import check_name, without_file_scheme

#: How often (s) a job in an object store shows that it lives.
BEAT_S = 5.0
#: For how many beats a claim must stand still before its job counts as dead.
DEAD_AFTER = 3

_CLAIMS = ".claims"
#: Files of the place's own keeping, and what a killed writer left: no names of anyone's.
_OWN = re.compile(rf"(.*/)?(\.lock|{re.escape(_CLAIMS)}(/.*)?|\.[^/]+\.part(/.*)?)")
#: Stores that show an object when it is whole, and no sooner.
_WHOLE = ("s3", "gcs", "abfs")

_ADVICE = {
    errno.ENOSPC: "no space left; free some, the same command continues",
    errno.EDQUOT: "the quota is used up; free some, the same command continues",
    errno.EROFS: "read-only; make it writable or use another place, the same command continues",
    errno.EACCES: "no permission; allow it or use another place, the same command continues",
}
_ADVICE[errno.EPERM] = _ADVICE[errno.EACCES]


class Destination:
    """A folder on disk to write to; it is made when something is written.

    Parameters
    ----------
    folder
        Where it lies.
    """

    #: Where the files lie on this machine's disk, None for a store.
    folder: Path | None

    def __init__(self, folder: str | Path) -> None:
        self.folder = self._root = Path(folder).expanduser()

    def __str__(self) -> str:
        return str(self._root)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker may have another current folder.
        return type(self), (os.path.abspath(self._root),)

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file, whole or not at all; one that stands is replaced.

        Raises
        ------
        DataError
            If it cannot be written, or (in a store) another job has taken the place over.
        RecordError
            If the name leads elsewhere.
        """
        check_name(name, self)
        with self._advised(name), replacing(self._root / name) as beside:
            beside.write_bytes(data)

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises
        ------
        DataError
            If there is none, or it cannot be read.
        """
        check_name(name, self)
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self}/{name}: cannot be read ({error.strerror})") from None

    def names(self, prefix: str = "") -> list[str]:
        """List the files below a sub-folder, sorted, as names for `read`; unfinished ones left out.

        Raises
        ------
        DataError
            If it cannot be listed; a folder that is not there has no files.
        """
        return sorted(name for name in self._all(prefix.strip("/")) if not _OWN.fullmatch(name))

    def exists(self, name: str) -> bool:
        """Say whether there is a file of this name."""
        check_name(name, self)
        return (self._root / name).is_file()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises
        ------
        DataError
            If it cannot be removed, or (in a store) another job has taken the place over.
        """
        check_name(name, self)
        with self._advised(name), suppress(FileNotFoundError, NotADirectoryError):
            (self._root / name).unlink()

    def hold(self) -> AbstractContextManager[None]:
        """Hold the place for this job.

        On disk the hold falls with the process. A store has no locks: there the job shows by a claim
        that it lives, and one that follows a killed job first watches that one's claim for some
        seconds. Of two jobs that start together at most one goes on.

        Raises
        ------
        DataError
            If another live job holds it, or it cannot be written.
        """
        return only_job_on(self._root)

    def check_held(self) -> None:
        """Fail if another job has taken the place over from this one, which holds it; cheap.

        A lock on disk cannot be lost. `write` and `remove` ask for themselves, but only in the process
        that holds the place: what is written by workers, that one must ask for.

        Raises
        ------
        DataError
            If it has, or the store does not answer.
        """

    def _all(self, below: str) -> Iterator[str]:
        def fail(error: OSError) -> None:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from None

        for above, _, files in os.walk(self._root / below, onerror=fail):
            for file in files:
                yield Path(above, file).relative_to(self._root).as_posix()

    @contextmanager
    def _advised(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = _ADVICE.get(error.errno or 0, error.strerror or str(error))
            raise DataError(f"{self}/{name}: cannot be written ({why})") from None


class RemoteDestination(Remote, Destination):
    """A folder in an object store to write to; see `Destination`, and `Remote` for URIs and errors.

    A large object goes up in parts, and stands when the last has arrived. The parts of one that was
    given up are the store's to clear away (for S3 a lifecycle rule on incomplete multipart uploads).

    Parameters
    ----------
    uri
        Where it lies.
    """

    folder = None

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._claim: str | None = None  # this process's own, while it holds the place
        self._shown_at = 0.0  # when (s) the beat began that last got through
        self._lost = False

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write an object, again where the store does not answer; see `Destination.write`."""
        check_name(name, self)
        self.check_held()
        self._put(name, data)

    def read(self, name: str) -> bytes:
        """Read an object; see `Destination.read`."""
        check_name(name, self)
        data = self._content(name)
        if data is None:
            raise DataError(f"{self._prefix}{name}: cannot be read (no such object)")
        return data

    def exists(self, name: str) -> bool:
        """Say whether there is an object of this name."""
        check_name(name, self)
        return self._exists(name)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there; see `Destination.remove`."""
        check_name(name, self)
        self.check_held()

        def attempt() -> None:
            with suppress(FileNotFoundError):
                self._files.delete_file(self._path + name)

        self._done(name, "removed", attempt)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the place for this job; see `Destination.hold`."""
        claim = f"{_CLAIMS}/{uuid.uuid4().hex}.json"
        self._lost = False
        self._show_life(claim, 0)
        self._claim = claim
        over = threading.Event()
        beating = threading.Thread(target=self._keep_showing, args=(claim, over), daemon=True)
        beating.start()
        try:
            self._outwait_others(claim)
            yield
        finally:
            over.set()
            beating.join()
            self._claim = None
            with suppress(DataError):  # what is left counts as dead
                self.remove(claim)

    def check_held(self) -> None:
        """Fail if another job has taken the place over from this one; see `Destination.check_held`."""
        # Nobody takes a claim for dead so soon. Who was held up for longer looks before it does harm.
        if self._claim and time.monotonic() - self._shown_at > (DEAD_AFTER - 1) * BEAT_S:
            self._look(self._claim)
        if self._lost:
            raise DataError(f"{self}: another job has taken this place over; this one stops")

    def _content(self, name: str) -> bytes | None:
        """Read an object, None if there is none."""

        def attempt() -> bytes | None:
            try:
                with self._files.open_input_stream(self._path + name) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._done(name, "read", attempt)

    def _exists(self, name: str, waits: tuple[float, ...] | None = None) -> bool:
        path = self._path + name
        return self._done(
            name, "read", lambda: bool(self._files.get_file_info(path).is_file), waits
        )

    def _put(
        self, name: str, data: bytes | pa.Buffer, waits: tuple[float, ...] | None = None
    ) -> None:
        buffer = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
        final = self._path + name
        whole = self._files.type_name in _WHOLE
        above, _, base = final.rpartition("/")
        path = final if whole else f"{above}/.{base}.{uuid.uuid4().hex}.part"

        def attempt() -> None:
            if not whole:
                self._files.create_dir(above, recursive=True)
            with self._files.open_output_stream(path) as stream:
                stream.write(buffer)
            if not whole:
                with suppress(FileNotFoundError):  # not every store moves onto what stands
                    self._files.delete_file(final)
                self._files.move(path, final)

        # A stream that is dropped publishes what it was given, be it nothing. In a thread of its own
        # no signal comes between the calls; a part that fails makes the closing fail.
        with ThreadPoolExecutor(1) as pool:
            self._done(name, "written", lambda: pool.submit(attempt).result(), waits)

    def _done(
        self, name: str, verb: str, attempt: Any, waits: tuple[float, ...] | None = None
    ) -> Any:
        try:
            return self._patiently(attempt, self._prefix + name, waits)
        except FileNotFoundError:
            raise DataError(f"{self._prefix}{name}: cannot be {verb} (no such object)") from None
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._prefix}{name}: cannot be {verb} ({self._why(error)})"
            ) from None

    def _all(self, below: str) -> Iterator[str]:
        from pyarrow import fs

        where = (self._path + below).rstrip("/")
        what = fs.FileSelector(where, recursive=True, allow_not_found=True)
        infos = self._done(below, "listed", lambda: self._files.get_file_info(what))
        return (info.path[len(self._path) :] for info in infos if info.is_file)

    def _show_life(self, claim: str, beat: int, waits: tuple[float, ...] | None = None) -> None:
        content = {"host": socket.gethostname(), "process": os.getpid(), "beat": beat}
        now = time.monotonic()
        self._put(claim, json.dumps(content).encode(), waits)
        self._shown_at = now

    def _look(self, claim: str, waits: tuple[float, ...] | None = None) -> None:
        """Find out whether the own claim is gone: another job has taken this one for dead then."""
        if not self._exists(claim, waits):
            self._lost = True

    def _keep_showing(self, claim: str, over: threading.Event) -> None:
        """Rewrite the own claim at every beat, until it is gone."""
        beat = 0
        while not self._lost and not over.wait(BEAT_S):
            beat += 1
            with suppress(DataError):  # cut off: the next beat tries again, and does not wait
                self._look(claim, waits=())
                if not self._lost:
                    self._show_life(claim, beat, waits=())

    def _outwait_others(self, own: str) -> None:
        """Go on once no other claim is left; those that do not move are removed."""
        before = self._claims(own)
        if not before:
            return
        for _ in range(2 * DEAD_AFTER):
            time.sleep(BEAT_S / 2)
            now = self._claims(own)
            if any(before.get(claim) != content for claim, content in now.items()):
                break
        else:
            for claim in before:
                self.remove(claim)
            # One that wrote between being judged and being removed shows itself again.
            time.sleep(BEAT_S)
            if not self._claims(own):
                return
        raise DataError(f"{self}: another job is writing here; wait for it or use another")

    def _claims(self, own: str) -> dict[str, bytes]:
        """Read the claims of others; one may go between being listed and being read."""
        found = {claim: self._content(claim) for claim in self._all(_CLAIMS) if claim != own}
        return {claim: content for claim, content in found.items() if content is not None}


def open_destination(path_or_uri: str | Path) -> Destination:
    """Give a place to write to by path or URI; schemes are those of `storage.open_folder`.

    Raises
    ------
    SettingsError
        If the store is not known, refuses it, or has a file there.
    DataError
        If the store does not answer.
    """
    text = str(path_or_uri)
    if isinstance(path_or_uri, Path):  # which has made one slash of two
        text = re.sub(r"^([a-z][a-z0-9+.-]+):/(?!/)", r"\1://", text)
    text = without_file_scheme(text)
    return RemoteDestination(text) if "://" in text else Destination(text)
