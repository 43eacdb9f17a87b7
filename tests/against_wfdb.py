"""Write records with `wfdb` or by hand, and compare what the reader gives with what `wfdb` gives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import wfdb
from wfdb.io._signal import INVALID_SAMPLE_VALUE, SAMPLE_VALUE_RANGE

from rayecg.archives.wfdb_reader import Frames, read_record
from rayecg.core.record import Record, invalid_value
from rayecg.signal.leads import standard_name, standard_order

PER_MILLIVOLT = {"V": 1e-3, "mV": 1.0, "uV": 1e3, "nV": 1e6}
#: Formats that `wfdb` writes; it reads the others too.
WRITTEN = ("16", "24", "32", "80", "212", "508", "516", "524")


def assert_equals_wfdb(path: Path, frames: Frames = "expand") -> Record:
    """Compare a record with `wfdb`'s reading of it: samples to the bit, mV to one rounding."""
    ours = read_record(path, frames=frames)
    # `wfdb` gives every sample its type by a step that fails for big-endian ones (format 61).
    with patch.object(wfdb.Record, "convert_dtype"):
        theirs = wfdb.rdrecord(str(path), physical=False, smooth_frames=False)
    theirs.e_d_signal = [row_T.astype(np.int64) for row_T in theirs.e_d_signal]
    width = [own or 1 for own in theirs.samps_per_frame]
    digital, physical = theirs.e_d_signal, theirs.dac(expanded=True)
    invalid = [
        row_T == (INVALID_SAMPLE_VALUE[fmt] if fmt != "8" else np.nan)
        for row_T, fmt in zip(digital, theirs.fmt, strict=True)
    ]
    if frames == "average":
        averaged = wfdb.rdrecord(str(path), physical=False)
        digital, physical = list(averaged.d_signal.T), list(averaged.dac().T)
        pairs = zip(invalid, width, strict=True)
        # Where `wfdb` counts the mark of an invalid sample as a value, the frame is invalid.
        invalid = [row_T.reshape(-1, own).any(axis=1) for row_T, own in pairs]
    kept = [i for i, unit in enumerate(theirs.units) if unit in PER_MILLIVOLT]
    names = [standard_name(theirs.sig_name[i] or "") or f"lead{i}" for i in kept]
    order = standard_order(names)
    assert list(ours.leads) == [names[i] for i in order]
    wide = max(width[i] for i in kept) if frames == "expand" else 1
    assert ours.fs == theirs.fs * wide
    assert ours.physical.dtype == np.float32
    mark = invalid_value(ours.digital.dtype)
    for row, i in enumerate(kept[position] for position in order):
        if frames == "expand" and width[i] < wide:
            assert f"up_sampled:{theirs.fs * width[i]:g}:{ours.leads[row]}" in ours.flags
            continue
        valid_T = ~invalid[i]
        np.testing.assert_array_equal(ours.digital[row] == mark, ~valid_T)
        np.testing.assert_array_equal(np.isnan(ours.physical[row]), ~valid_T)
        np.testing.assert_array_equal(ours.digital[row][valid_T], digital[i][valid_T])
        expected_T = physical[i][valid_T] / PER_MILLIVOLT[theirs.units[i]]
        assert_rounded_once(ours.physical[row][valid_T], expected_T)
    return ours


def assert_rounded_once(found: np.ndarray, expected: np.ndarray, more: float = 0.0) -> None:
    """Compare float32 with float64: half a unit in the last place, and what else is allowed (mV).

    2^-50 stands for the two or three roundings of float64 on either side, the unit's factor among
    them.
    """
    error = np.abs(found.astype(np.float64) - expected)
    assert (error <= np.abs(expected) * (2.0**-24 + 2.0**-50) + more).all()


def write(
    folder: Path, d_TL: np.ndarray, fmt: str, names: Sequence[str], **header: Sequence | int
) -> Path:
    """Write a record of one format, one sample a frame, by `wfdb.wrsamp`."""
    n_leads = d_TL.shape[1]
    wanted = {"fs": 250, "units": ["mV"] * n_leads, "adc_gain": [200.0] * n_leads} | header
    wanted.setdefault("baseline", [0] * n_leads)
    wfdb.wrsamp(
        "r",
        sig_name=list(names),
        d_signal=d_TL.astype(np.int64),
        fmt=[fmt] * n_leads,
        write_dir=str(folder),
        **wanted,
    )
    return folder / "r"


def write_frames(folder: Path, rows: Sequence[np.ndarray], **header: Sequence | float) -> Path:
    """Write a record of any formats, files and frames by `wfdb`; a row holds a signal's samples."""
    n = len(rows)
    wanted: dict = {"fs": 250, "units": ["mV"] * n, "adc_gain": [200.0] * n} | header
    wanted = {"baseline": [0] * n, "samps_per_frame": [1] * n} | wanted
    wanted = {"sig_name": ["II", "V1", "V5", "MLII", "aVF", "X"][:n]} | wanted
    record = wfdb.Record(record_name="r", e_d_signal=[r.astype(np.int64) for r in rows], **wanted)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # it says offsets
        record.set_d_features(expanded=True)
        record.set_defaults()
        record.wrsamp(expanded=True, write_dir=str(folder))
    return folder / "r"


def limits(fmt: str) -> tuple[int, int]:
    """Give the smallest and largest value of a format; the smallest marks an invalid sample."""
    return SAMPLE_VALUE_RANGE[fmt]


def _words(dtype: str, zero: int = 0) -> Callable[[np.ndarray], bytes]:
    return lambda samples_S: (samples_S.astype(np.int64) + zero).astype(dtype).tobytes()


def _thirds(samples_S: np.ndarray) -> np.ndarray:
    padded_S = np.concatenate([samples_S, np.zeros(-len(samples_S) % 3, dtype=np.int64)])
    return padded_S.reshape(-1, 3).T.astype(np.int64) & 0x3FF


def _encode_310(samples_S: np.ndarray) -> bytes:
    first, second, third = _thirds(samples_S)
    words = np.stack([first << 1 | (third & 31) << 11, second << 1 | (third >> 5) << 11], axis=1)
    whole, left = divmod(len(samples_S), 3)
    return words.astype("<u2").tobytes()[: whole * 4 + (0, 2, 4)[left]]


def _encode_311(samples_S: np.ndarray) -> bytes:
    first, second, third = _thirds(samples_S)
    words = first | second << 10 | third << 20
    return words.astype("<u4").tobytes()[: -(-len(samples_S) * 4 // 3)]


#: Formats that `wfdb` reads and does not write, from a file's samples to its bytes.
ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "8": _words("i1"),
    "61": _words(">i2"),
    "160": _words("<u2", 2**15),
    "310": _encode_310,
    "311": _encode_311,
}


def write_by_hand(
    folder: Path,
    rows: Sequence[np.ndarray],
    fmt: str,
    per_frame: Sequence[int],
    skew: Sequence[int] | None = None,
    offset: int = 0,
) -> Path:
    """Write a record of one file in a format that `wfdb` does not write; checksums are right.

    For format 8 the rows are differences, and the sums are of what they add up to from 5.
    """
    skew = skew or [0] * len(rows)
    n_frames = len(rows[0]) // per_frame[0]
    frames = [row.reshape(n_frames, own) for row, own in zip(rows, per_frame, strict=True)]
    raw = ENCODERS[fmt](np.concatenate(frames, axis=1).reshape(-1))
    (folder / "r.dat").write_bytes(b"\xa5" * offset + raw)
    lines = [f"r {len(rows)} 250 {n_frames}"]
    for i, (row, own) in enumerate(zip(rows, per_frame, strict=True)):
        values = np.cumsum(row, dtype=np.int64) + 5 if fmt == "8" else row
        form = f"{fmt}x{own}:{skew[i]}+{offset}"
        first = 5 if fmt == "8" else values[0]
        lines.append(f"r.dat {form} 200(3)/mV 16 0 {first} {int(values.sum()) % 65536} 0 s{i}")
    (folder / "r.hea").write_text("\n".join(lines) + "\n")
    return folder / "r"
