"""MIT-BIH Arrhythmia Database: 48 half-hour records of two leads, every beat annotated.

Source: Moody and Mark 2001, IEEE Eng. Med. Biol. 20(3):45-50; PhysioNet release 1.0.0.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from rayecg.archives.base import Archive
from rayecg.archives.wfdb_header import read_header
from rayecg.archives.wfdb_reader import Checks
from rayecg.core.errors import DataError, RecordError
from rayecg.core.record import Record
from rayecg.core.shard_format import index_table

#: Annotation symbols that mark a beat (WFDB Applications Guide, annotation codes).
BEAT_SYMBOLS = frozenset("NLRBAaJSVrFejnE/fQ?")

#: Development and test records of de Chazal et al. 2004 (IEEE TBME 51(7):1196-1206).
DS1 = [
    "101",
    "106",
    "108",
    "109",
    "112",
    "114",
    "115",
    "116",
    "118",
    "119",
    "122",
    "124",
    "201",
    "203",
    "205",
    "207",
    "208",
    "209",
    "215",
    "220",
    "223",
    "230",
]
DS2 = [
    "100",
    "103",
    "105",
    "111",
    "113",
    "117",
    "121",
    "123",
    "200",
    "202",
    "210",
    "212",
    "213",
    "214",
    "219",
    "221",
    "222",
    "228",
    "231",
    "232",
    "233",
    "234",
]

_AGE_SEX = re.compile(r"(-?\d+)\s+([MF])\b")


class MitBih(Archive):
    """Records with their reference beats (`.atr`). A record's name stands for its patient.

    Records 201 and 202 come from one man; the tasks state that alias, and the audit reads it.
    """

    landmark = "*.atr"
    suffixes = (".hea", ".dat", ".atr")
    releases: ClassVar = {"1.0.0": 48}
    official_split: ClassVar = {"by": "record_id", "train": DS1, "validation": DS1, "test": DS2}

    def index(self) -> pa.Table:
        """List the records that have an annotation file, by name."""
        rows = []
        names = [name.removesuffix(".atr") for name in self.folder.walk(".atr") if "/" not in name]
        names = names[: self.settings.limit]
        for name, facts in zip(names, self.map_files(self._age_and_sex, names), strict=True):
            rows.append({"record_id": name, "path": name, "patient_id": name, **facts})
        if not rows:
            raise DataError(f"{self.folder}: expected records with .atr files")
        return index_table(rows)

    def _age_and_sex(self, name: str) -> dict[str, Any]:
        """Read age and sex from the first comment (`69 M 1085 1629 x1`); a negative age is unknown."""
        try:
            comments = read_header(self.folder, name).comments
        except RecordError:  # the shards stage meets the same error and gives the record its row
            return {}
        found = _AGE_SEX.match(comments[0]) if comments else None
        if not found:
            return {}
        age = int(found[1])
        return {"age": float(age) if age >= 0 else None, "sex": found[2]}

    def read(self, row: Mapping[str, Any], checks: Checks = "error") -> Record:
        """Read a record and its beats; raises `bad_annotation` beside the codes of WFDB."""
        record = super().read(row, checks)
        with self.folder.local([f"{row['path']}.atr"]) as folder:
            stem = folder / row["path"].rpartition("/")[2]
            try:
                times, symbols = read_beats(stem, record.digital_LT.shape[1])
            except RecordError as error:  # a copy's place says nothing to the reader
                message = error.message.replace(str(stem), f"{self.folder}/{row['path']}")
                raise RecordError(error.code, message) from None
        return dataclasses.replace(record, beat_times=times, beat_symbols=symbols)


def read_beats(path: Path, n_times: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the beats of a record's `.atr` file.

    Parameters
    ----------
    path
        Path of the record without extension.
    n_times
        Length of the record in samples.

    Returns
    -------
    tuple
        Positions in samples, in increasing order, and the symbol of each.

    Raises
    ------
    RecordError
        `bad_annotation`.
    """
    times, symbols = _read_annotations(path)
    beat = np.array([symbol in BEAT_SYMBOLS for symbol in symbols], dtype=bool)
    times = times[beat]
    if len(times) and (times.min() < 0 or times.max() >= n_times):
        raise RecordError(
            "bad_annotation", f"{path}.atr: a beat at {times.max()}, the signal ends at {n_times}"
        )
    return times, tuple(np.asarray(symbols)[beat].tolist())


def read_flutter(path: Path, n_times: int) -> list[tuple[int, int]]:
    """Read the episodes of ventricular flutter or fibrillation in a record's `.atr` file.

    They stand between `[` and `]` (WFDB Applications Guide, annotation codes); no beat is annotated
    inside, only flutter waves (`!`). Of MIT-BIH's records, 207 has them.

    Parameters
    ----------
    path, n_times
        As for `read_beats`.

    Returns
    -------
    list
        First and last sample of each episode; one that is not closed lasts to the end.

    Raises
    ------
    RecordError
        `bad_annotation`.
    """
    episodes, start = [], None
    times, symbols = _read_annotations(path)
    for time, symbol in zip(times.tolist(), symbols, strict=True):
        if symbol == "[" and start is None:
            start = time
        elif symbol == "]" and start is not None:
            episodes.append((start, time))
            start = None
        elif symbol in "[]":
            raise RecordError("bad_annotation", f"{path}.atr: {symbol} at {time} without its other")
    if start is not None:
        episodes.append((start, n_times - 1))
    return episodes


def _read_annotations(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read positions and symbols of a record's `.atr` file, all that there are."""
    import wfdb  # its import is slow, and other archives need no annotations

    try:
        found = wfdb.rdann(str(path), "atr")
        closed = Path(f"{path}.atr").read_bytes().endswith(b"\0\0")
    except Exception as error:  # whatever the library raises on damaged bytes, it is this record's
        raise RecordError(
            "bad_annotation", f"{path}.atr: cannot be read ({type(error).__name__}: {error})"
        ) from None
    if not closed:  # `wfdb` takes what there is of a file that was cut short
        raise RecordError("bad_annotation", f"{path}.atr: expected a zero word at its end")
    return np.asarray(found.sample, dtype=np.int64), list(found.symbol)
