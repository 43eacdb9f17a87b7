"""From a recording in mV to the windows a network reads: one path for training and for scoring.

Legend: W window, L lead, T time, M side column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayecg.core.errors import RecordError
from rayecg.core.experiment import InputSettings
from rayecg.signal.filters import bandpass, bridge, resample
from rayecg.signal.side import side_columns

#: Above this share of invalid samples in the leads that are read, a record is degraded.
MAX_INVALID = 0.2
#: A lead of a smaller deviation (mV) is flat, and not spread out: resampling leaves ripple of 1e-5 mV.
FLAT_MV = 1e-4


@dataclass(frozen=True)
class Prepared:
    """The windows of one recording.

    Attributes
    ----------
    x_WLT
        float32, at the input's rate.
    offset_W
        Where each window stands, in samples at the recording's own rate: its first sample, or its R
        peak for beats.
    limits
        The limits of the input that the recording breaks; empty if none.
    side_WM
        float32, the columns beside each window (see `rayecg.signal.side`); none for most networks.
    """

    x_WLT: np.ndarray
    offset_W: np.ndarray
    limits: tuple[str, ...]
    side_WM: np.ndarray


def prepare(
    signal_LT: np.ndarray,
    fs: float,
    leads: Sequence[str],
    settings: InputSettings,
    beat_times: np.ndarray | None = None,
    rhythm_times: np.ndarray | None = None,
    row: Mapping[str, Any] | None = None,
) -> Prepared:
    """Cut a recording into the windows that a network reads.

    Leads are chosen by name, the whole record is filtered, resampled once (polyphase, with
    anti-aliasing) and normalised, then cut. Absent leads reach the network as 0 (or refuse the record,
    if the input says so), invalid samples as a straight line between their neighbours; a limit says so.

    Parameters
    ----------
    signal_LT
        mV, leads by times; NaN marks invalid samples.
    fs
        Its sampling rate in Hz.
    leads
        Its lead names.
    settings
        What the network reads.
    beat_times
        R peaks in samples at `fs`: one window for each, centred. None cuts consecutive windows
        instead, the last one ending with the recording.
    rhythm_times
        All R peaks of the recording, rising, `beat_times` among them: what rhythm is taken from. None
        if `beat_times` are all.
    row
        What is known of the patient (`age`, `sex`), for networks that read it.

    Raises
    ------
    RecordError
        `missing_leads` if the record has none of the wanted leads, or not all where they must be,
        `all_invalid` if those it has hold no valid sample, `too_large` if its rate is far below the
        wanted one, `bad_annotation` if a beat lies outside the recording.
    ValueError
        If the array is not leads by times.
    """
    check_shape(signal_LT, leads)
    limits = []
    position = {lead: i for i, lead in enumerate(leads)}
    present = [lead for lead in settings.leads if lead in position]
    least = len(settings.leads) if settings.absent_leads == "refuse" else 1
    if len(present) < least:
        raise RecordError(
            "missing_leads",
            f"expected leads {' '.join(settings.leads)}, the record has {' '.join(leads)}",
        )
    if len(present) < len(settings.leads):
        absent = [lead for lead in settings.leads if lead not in position]
        if settings.absent_leads != "accept":
            limits.append(f"absent_leads:{' '.join(absent)}")
    own_LT = np.asarray(signal_LT[[position[lead] for lead in present]], dtype=np.float32)
    invalid_LT = ~np.isfinite(own_LT)
    if invalid_LT.all():
        raise RecordError("all_invalid", f"no valid sample in {' '.join(present)}")
    if invalid_LT.any():
        if invalid_LT.mean() > MAX_INVALID:
            limits.append(f"invalid_samples:{invalid_LT.mean():.2f}")
        own_LT = bridge(own_LT, invalid_LT)
    if settings.bandpass_hz is not None:
        own_LT = bandpass(own_LT, fs, settings.bandpass_hz)
    if fs < settings.fs:
        limits.append(f"up_sampled:{fs:g}")
    own_LT = resample(own_LT, fs, settings.fs)
    if settings.normalisation == "record":
        mean_L1 = own_LT.mean(axis=1, keepdims=True)
        spread_L1 = own_LT.std(axis=1, keepdims=True)
        own_LT = (own_LT - mean_L1) / np.where(spread_L1 > FLAT_MV, spread_L1, 1.0)
    if len(present) < len(settings.leads):
        x_LT = np.zeros((len(settings.leads), own_LT.shape[1]), dtype=np.float32)
        x_LT[[settings.leads.index(lead) for lead in present]] = own_LT
    else:
        x_LT = own_LT
    n_times, scale = settings.n_times, settings.fs / fs
    if beat_times is not None:
        beat_W = np.asarray(beat_times)
        outside = (beat_W < 0) | (beat_W >= np.shape(signal_LT)[1])
        if outside.any():
            raise RecordError(
                "bad_annotation",
                f"expected beats within {np.shape(signal_LT)[1]} samples, one stands at "
                f"{beat_W[outside][0]}",
            )
        rhythm = np.unique(beat_W if rhythm_times is None else rhythm_times)
        centre_W = np.round(beat_W * scale).astype(np.int64)
        x_WLT = _cut(x_LT, centre_W - n_times // 2, n_times)
        # Not rounded: intervals are known better than in steps of the rate that is read at.
        side_WM = side_columns(settings, x_LT, len(x_WLT), row, beat_W * scale, rhythm * scale)
        return Prepared(x_WLT, beat_W, tuple(limits), side_WM)
    length = x_LT.shape[1]
    if length < n_times:
        limits.append(f"too_short:{length / settings.fs:.2f} s")
    last = max(length - n_times, 0)
    start_W = np.append(np.arange(0, last, n_times), last)
    # A tail of under a tenth of a window adds nothing that its neighbour has not seen.
    if len(start_W) > 1 and start_W[-1] - start_W[-2] < n_times // 10:
        start_W = start_W[:-1]
    offset_W = np.round(start_W / scale).astype(np.int64)
    side_WM = side_columns(settings, x_LT, len(start_W), row, None, None)
    return Prepared(_cut(x_LT, start_W, n_times), offset_W, tuple(limits), side_WM)


def check_shape(signal_LT: np.ndarray, leads: Sequence[str]) -> None:
    """Refuse with `ValueError` an array that is not leads by times."""
    if np.ndim(signal_LT) != 2 or len(signal_LT) != len(leads):
        shape = np.shape(signal_LT)
        raise ValueError(f"expected an array of {len(leads)} leads by times, came shape {shape}")


def _cut(x_LT: np.ndarray, start_W: np.ndarray, n_times: int) -> np.ndarray:
    """Cut windows; what lies before the start or after the end of the recording is 0."""
    before = int(max(0, -start_W.min(initial=0)))
    after = int(max(0, start_W.max(initial=0) + n_times - x_LT.shape[1]))
    if before or after:
        x_LT = np.pad(x_LT, ((0, 0), (before, after)))
    if not len(start_W):
        return np.empty((0, x_LT.shape[0], n_times), dtype=np.float32)
    views_LST = np.lib.stride_tricks.sliding_window_view(x_LT, n_times, axis=1)
    return np.ascontiguousarray(views_LST[:, start_W + before].transpose(1, 0, 2))
