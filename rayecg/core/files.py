"""Files that are whole or not there: atomic writes, fingerprints, manifests."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayecg.core.errors import DataError, SettingsError

MANIFEST = "manifest.json"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write beside `path`, then rename onto it, so that a reader sees all of it or nothing.

    The temporary name is unique: an orphaned worker of a killed job may be writing the same file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def as_json(value: Any) -> str:
    """Give the text of a JSON file, keys in the order given."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, as_json(value))


def read_json(path: str | Path, kind: type = dict) -> Any:
    """Read a JSON file that holds an object, or a list if `kind` says so.

    Raises
    ------
    DataError
        If it is missing, not JSON, or of another kind.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\u" in text:  # which may spell half a character, and no file can hold that
            as_json(value).encode()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    except RecursionError:
        raise DataError(f"{path}: not readable JSON (too many brackets in one another)") from None
    if not isinstance(value, kind):
        raise DataError(f"{path}: expected a JSON {kind.__name__}, came {type(value).__name__}")
    return value


def write_table(path: str | Path, table: pa.Table, **options: Any) -> None:
    """Write a Parquet file atomically."""
    with replacing(path) as beside:
        pq.write_table(table, beside, **options)


def read_table(path: str | Path, **options: Any) -> pa.Table:
    """Read a Parquet file, or a folder of them in the order of their names.

    Raises
    ------
    DataError
        If there is none, or it is not Parquet.
    """
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise DataError(f"{path}: expected Parquet files here, found none")
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, partitioning=None, **options))
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{file}: not a readable Parquet file ({error})") from None
    return pa.concat_tables(tables, promote_options="permissive")


def count_row_groups(path: str | Path) -> int:
    """Count the row groups of a Parquet file; errors as for `read_table`."""
    try:
        return int(pq.read_metadata(path).num_row_groups)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None


def read_table_pieces(path: str | Path, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
    """Read some columns of a Parquet file, a few rows at a time, each with its row group's number.

    Errors are those of `read_table`.
    """
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(row_groups=[group], columns=columns):
                    yield group, pa.Table.from_batches([batch]).select(columns)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Fill a folder beside `path`, then rename it; an existing folder is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    beside.mkdir()
    try:
        yield beside
        if path.exists():
            shutil.rmtree(path)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def fingerprint(value: Any) -> str:
    """Give 16 hexadecimal digits that change when a JSON-able value changes."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: str | Path) -> str:
    """Give the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finished(folder: str | Path, key: str) -> dict[str, Any] | None:
    """Give a stage's manifest if it stands complete for the same inputs and settings.

    Parameters
    ----------
    folder
        The stage's output.
    key
        Fingerprint of inputs and settings; a manifest with another key counts as absent.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    manifest = read_json(path)
    return manifest if manifest.get("key") == key else None


def check_totals(manifest: dict[str, Any], where: str | Path) -> None:
    """Fail unless `n_ok`, `n_degraded` and `n_quarantined` add up to `n_input`.

    Raises
    ------
    DataError
        With the four counts.
    """
    counts: Sequence[int] = [manifest[f"n_{s}"] for s in ("ok", "degraded", "quarantined")]
    if sum(counts) != manifest["n_input"]:
        raise DataError(
            f"{where}: {manifest['n_input']} records went in, "
            f"{' + '.join(map(str, counts))} came out (ok + degraded + quarantined)"
        )


_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.part")


def _remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of killed writers; one that is still alive then fails to rename."""
    for path in [path for path in folder.rglob(".*.part") if _LEFTOVER.fullmatch(path.name)]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def only_job_on(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process; the hold falls with the process, however it ends.

    Raises
    ------
    DataError
        If another live process holds it, or it cannot be written.
    SettingsError
        If it is a URI.
    """
    folder = Path(folder)
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):  # Path has made one slash of two
        raise SettingsError(f"{folder}: output goes to a folder on disk, not to a URI")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - open for as long as the hold
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{folder}: another job is writing here; wait for it or use another"
            ) from None
        _remove_leftovers(folder)
        try:
            yield
        finally:
            _remove_leftovers(folder)
