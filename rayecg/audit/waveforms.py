"""Short low-rate waveforms of the records that stand on a side, read out of the shards.

A window is 10 s of a record at 50 Hz between 0.5 and 20 Hz: enough to tell two recordings apart, and
a twentieth of the memory. Of a standard 12-lead record the four leads that follow from I and II are
left out. Windows lie in a temporary file, so that memory does not grow with the archive.

Legend: N window or beat, L lead, T time, F frequency.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import fft

from rayecg.core.errors import DataError
from rayecg.core.record import Record, to_millivolts
from rayecg.core.shard_format import (
    SIGNAL,
    Layout,
    shard_files,
)
from rayecg.core.shard_reader import read_records
from rayecg.signal.filters import bridge

#: Of the windows: their rate (Hz), length (s), and pass band (Hz).
FS, WINDOW_S, BAND_HZ = 50, 10.0, (0.5, 20.0)
N_TIMES = round(FS * WINDOW_S)
#: A shorter record has too few beats to be told from another one's.
LEAST_S = 5.0
#: Windows of all records together: beyond it, each record gives the same number, evenly spaced.
MOST_WINDOWS = 60_000
#: Leads that are compared; of more, the commonest.
MOST_LEADS = 8
#: Sums of I and II, left out where both are there.
DERIVED = ("III", "aVR", "aVL", "aVF")
#: A lead with a larger share of invalid samples counts as absent.
MOST_INVALID = 0.2
#: RMS (mV) below which a lead shows nothing but its own steps: flat records are exact copies anyway.
LEAST_MV = 1e-3


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of records, standardised.

    Attributes
    ----------
    leads
        Of the second axis of `x_NLT`.
    record_N
        The record of each, as its place in `record_ids`.
    start_N
        Where each begins in its record, s.
    used_N
        Time points of each that are signal; what follows is 0.
    scale_N
        mV of 1 in `x_NLT`: the RMS over the leads that are there.
    x_NLT
        float16, on disk; each lead has mean 0, and one that is absent is 0.
    record_ids
        The records that gave a window.
    short, flat, absent
        Records that gave none: under 5 s, without a signal, not in the shards.
    """

    leads: tuple[str, ...]
    record_N: np.ndarray
    start_N: np.ndarray
    used_N: np.ndarray
    scale_N: np.ndarray
    x_NLT: np.ndarray
    record_ids: tuple[str, ...]
    short: tuple[str, ...]
    flat: tuple[str, ...]
    absent: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.record_N)


def low_rate(signal_LT: np.ndarray, fs: float) -> np.ndarray:
    """Bring mV at `fs` Hz to 50 Hz between 0.5 and 20 Hz.

    By the discrete Fourier transform of the whole stretch, so that its ends are joined; what that does
    to the first and last tenth of a second is alike in a copy and small in 10 s.

    Returns
    -------
    np.ndarray
        float32, (..., T) with T the stretch's length at 50 Hz.
    """
    n_times = signal_LT.shape[-1]
    n_low = round(n_times / fs * FS)
    spectrum_LF = fft.rfft(signal_LT.astype(np.float32), axis=-1)
    kept_LF = np.zeros((*signal_LT.shape[:-1], n_low // 2 + 1), dtype=np.complex64)
    n_kept = min(kept_LF.shape[-1], spectrum_LF.shape[-1])
    kept_LF[..., :n_kept] = spectrum_LF[..., :n_kept]
    hz_F = np.arange(kept_LF.shape[-1]) * fs / n_times
    kept_LF[..., (hz_F < BAND_HZ[0]) | (hz_F > BAND_HZ[1])] = 0
    low_LT: np.ndarray = fft.irfft(kept_LF, n_low, axis=-1) * np.float32(n_low / n_times)
    return low_LT


def read_windows(
    shards: Path, record_ids: Sequence[str], most_windows: int = MOST_WINDOWS
) -> Windows:
    """Read windows of the named records.

    A record of 5 to 10 s gives what there is; a longer one gives consecutive windows of 10 s, all of
    them or, where all records together would give more than `most_windows`, evenly spaced ones.

    Parameters
    ----------
    shards
        A `make_shards` output.
    record_ids
        Which records.
    most_windows
        Of all records together; each gives one at least.

    Raises
    ------
    DataError
        If a shard cannot be read.
    """
    wanted = set(record_ids)
    leads = common_leads(shards)
    each = max(1, most_windows // max(len(wanted), 1))
    kept: list[str] = []
    short: list[str] = []
    flat: list[str] = []
    seen: set[str] = set()
    rows: list[tuple[int, float, int, float]] = []
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the windows are
    for record_id, record in _records(shards, wanted):
        seen.add(record_id)
        if record.digital_LT.shape[1] < LEAST_S * record.fs:
            short.append(record_id)
            continue
        own = list(_windows_of(record, leads, each))
        if not own:
            flat.append(record_id)
            continue
        for start, x_LT, scale in own:
            padded_LT = np.zeros((len(leads), N_TIMES), dtype=np.float16)
            padded_LT[:, : x_LT.shape[1]] = x_LT
            file.write(padded_LT.tobytes())
            rows.append((len(kept), start, x_LT.shape[1], scale))
        kept.append(record_id)
    file.flush()
    shape = (len(rows), len(leads), N_TIMES)
    x_NLT = np.memmap(file, np.float16, "r", shape=shape) if rows else np.zeros(shape, np.float16)
    record_N, start_N, used_N, scale_N = (
        np.array([row[i] for row in rows], dtype=kind)
        for i, kind in enumerate((np.int64, np.float64, np.int64, np.float64))
    )
    absent = tuple(sorted(wanted - seen))
    return Windows(
        leads,
        record_N,
        start_N,
        used_N,
        scale_N,
        x_NLT,
        tuple(kept),
        tuple(short),
        tuple(flat),
        absent,
    )


def common_leads(shards: Path) -> tuple[str, ...]:
    """Give the leads that the most shards have, at most eight, without those that follow from others."""
    found: Counter[str] = Counter()
    for leads, n_rows in _layouts(shards):
        follow = DERIVED if {"I", "II"} <= set(leads) else ()
        found.update({lead: n_rows for lead in leads if lead not in follow})
    return tuple(lead for lead, _ in found.most_common(MOST_LEADS))


def shard_leads(shards: Path) -> set[str]:
    """Give every lead of any shard."""
    return {lead for leads, _ in _layouts(shards) for lead in leads}


def _layouts(shards: Path) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield leads and number of rows of each shard."""
    for file in shard_files(shards):
        try:
            shard = pq.ParquetFile(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{file}: not a readable Parquet file ({error})") from None
        with shard:
            leads = Layout.from_field(shard.schema_arrow.field(SIGNAL)).leads
            n_rows = shard.metadata.num_rows
        yield leads, n_rows


def _records(shards: Path, wanted: set[str]) -> Iterator[tuple[str, Record]]:
    files = shard_files(shards)
    if not files:
        raise DataError(f"{shards}: expected the shards of a benchmark, found none")
    for file in files:
        for row, record in read_records(file, wanted):
            yield row["record_id"], record


def _windows_of(
    record: Record, leads: Sequence[str], most: int
) -> Iterator[tuple[float, np.ndarray, float]]:
    """Yield start (s), standardised signal and scale (mV) of a record's windows that show any."""
    n_times = record.digital_LT.shape[1]
    length = min(round(WINDOW_S * record.fs), n_times)
    n_windows = n_times // length
    places = np.unique(np.linspace(0, n_windows - 1, min(most, n_windows)).round().astype(int))
    for place in places:
        start = int(place) * length
        x_LT = _leads_of(record, leads, start, start + length)
        low_LT = low_rate(x_LT, record.fs)[:, :N_TIMES]
        rms_L = np.sqrt((low_LT**2).mean(axis=1))
        low_LT[rms_L < LEAST_MV] = 0
        if not (rms_L >= LEAST_MV).any():
            continue
        scale = float(np.sqrt((rms_L[rms_L >= LEAST_MV] ** 2).mean()))
        yield start / record.fs, low_LT / scale, scale


def _leads_of(record: Record, leads: Sequence[str], start: int, stop: int) -> np.ndarray:
    """Give a stretch of the named leads in mV, invalid samples bridged; 0 where a lead is absent."""
    there = [lead for lead in leads if lead in record.leads]
    rows = [record.leads.index(lead) for lead in there]
    digital_LT = record.digital_LT[rows, start:stop]
    own_LT = to_millivolts(
        digital_LT, np.asarray(record.gain_L)[rows], np.asarray(record.baseline_L)[rows]
    )
    invalid_LT = ~np.isfinite(own_LT)
    if invalid_LT.any():
        invalid_LT[invalid_LT.mean(axis=1) > MOST_INVALID] = True
        own_LT = bridge(own_LT, invalid_LT)
    x_LT = np.zeros((len(leads), stop - start), dtype=np.float32)
    x_LT[[leads.index(lead) for lead in there]] = own_LT
    return x_LT


def read_beats(
    shards: Path, record_ids: np.ndarray, offset_N: np.ndarray, half_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Read the surroundings of beats at 50 Hz, in mV with each lead's mean taken off.

    Parameters
    ----------
    shards
        A `make_shards` output.
    record_ids, offset_N
        The record of each beat, and its place in it, in samples at the shards' rate.
    half_s
        How far the surroundings reach to either side, s.

    Returns
    -------
    tuple
        float32, (N, L, T) with 0 for leads that are absent, and which beats were read: those whose
        surroundings lie in the record.
    """
    leads = common_leads(shards)
    half_low = round(half_s * FS)
    x_NLT = np.zeros((len(record_ids), len(leads), 2 * half_low + 1), dtype=np.float32)
    read_N = np.zeros(len(record_ids), dtype=bool)
    places: dict[str, np.ndarray] = {}
    order = np.argsort(record_ids, kind="stable")
    names, first = np.unique(record_ids[order], return_index=True)
    for name, own in zip(names, np.split(order, first[1:]), strict=True):
        places[str(name)] = own
    for record_id, record in _records(shards, set(places)):
        # A whole record may be a day long; a stretch with one second beside the beat is enough.
        half = round((half_s + 1.0) * record.fs)
        step_T = np.arange(-half_low, half_low + 1) / FS
        for n in places[record_id]:
            peak = int(offset_N[n])
            start, stop = peak - half, peak + half
            if start < 0 or stop > record.digital_LT.shape[1]:
                continue
            low_LT = low_rate(_leads_of(record, leads, start, stop), record.fs)
            at_T = np.round((half / record.fs + step_T) * FS).astype(int)
            x_LT = low_LT[:, at_T]
            x_NLT[n] = x_LT - x_LT.mean(axis=1, keepdims=True)
            read_N[n] = True
    return x_NLT, read_N
