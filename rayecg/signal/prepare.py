"""From a recording in mV to the windows a network reads: one path for training and for scoring.

Legend: W window, L lead, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy import signal

from rayecg.core.errors import RecordError
from rayecg.core.experiment import InputSettings
from rayecg.core.record import MAX_SAMPLES

#: Above this share of invalid samples in the leads that are read, a record is degraded.
MAX_INVALID = 0.2


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
    """

    x_WLT: np.ndarray
    offset_W: np.ndarray
    limits: tuple[str, ...]


def prepare(
    signal_LT: np.ndarray,
    fs: float,
    leads: Sequence[str],
    settings: InputSettings,
    beat_times: np.ndarray | None = None,
) -> Prepared:
    """Cut a recording into the windows that a network reads.

    Leads are chosen by name, the whole record is filtered, resampled once (polyphase, with
    anti-aliasing) and normalised, then cut. Absent leads reach the network as 0, invalid samples as
    a straight line between their neighbours; a limit says so.

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

    Raises
    ------
    RecordError
        `missing_leads` if the record has none of the wanted leads, `all_invalid` if those it has
        hold no valid sample, `too_large` if its rate is far below the wanted one.
    ValueError
        If the array is not leads by times.
    """
    if np.ndim(signal_LT) != 2 or len(signal_LT) != len(leads):
        shape = np.shape(signal_LT)
        raise ValueError(f"expected an array of {len(leads)} leads by times, came shape {shape}")
    limits = []
    position = {lead: i for i, lead in enumerate(leads)}
    present = [lead for lead in settings.leads if lead in position]
    if not present:
        raise RecordError(
            "missing_leads",
            f"expected leads {' '.join(settings.leads)}, the record has {' '.join(leads)}",
        )
    if len(present) < len(settings.leads):
        absent = [lead for lead in settings.leads if lead not in position]
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
        own_LT = _bandpass(own_LT, fs, settings.bandpass_hz)
    if fs < settings.fs:
        limits.append(f"up_sampled:{fs:g}")
    own_LT = resample(own_LT, fs, settings.fs)
    if settings.normalisation == "record":
        mean_L1 = own_LT.mean(axis=1, keepdims=True)
        spread_L1 = own_LT.std(axis=1, keepdims=True)
        own_LT = (own_LT - mean_L1) / np.where(spread_L1 > 1e-6, spread_L1, 1.0)
    if len(present) < len(settings.leads):
        x_LT = np.zeros((len(settings.leads), own_LT.shape[1]), dtype=np.float32)
        x_LT[[settings.leads.index(lead) for lead in present]] = own_LT
    else:
        x_LT = own_LT
    n_times, scale = settings.n_times, settings.fs / fs
    if beat_times is not None:
        start_W = np.round(np.asarray(beat_times) * scale).astype(np.int64) - n_times // 2
        return Prepared(_cut(x_LT, start_W, n_times), np.asarray(beat_times), tuple(limits))
    length = x_LT.shape[1]
    if length < n_times:
        limits.append(f"too_short:{length / settings.fs:.2f} s")
    last = max(length - n_times, 0)
    start_W = np.append(np.arange(0, last, n_times), last)
    # A tail of under a tenth of a window adds nothing that its neighbour has not seen.
    if len(start_W) > 1 and start_W[-1] - start_W[-2] < n_times // 10:
        start_W = start_W[:-1]
    offset_W = np.round(start_W / scale).astype(np.int64)
    return Prepared(_cut(x_LT, start_W, n_times), offset_W, tuple(limits))


def resample(signal_LT: np.ndarray, fs: float, to_fs: float) -> np.ndarray:
    """Resample by a polyphase anti-aliasing filter (`scipy.signal.resample_poly`), rates in Hz.

    The ends are held at their own value, so that an offset does not ring. The result has the type of
    the signal, float32 or float64.

    Raises
    ------
    RecordError
        `too_large`, if a rate that is far too low makes more samples than a record may have.
    """
    if fs == to_fs:
        return signal_LT
    n_samples = round(signal_LT.size * to_fs / fs)
    if n_samples > MAX_SAMPLES:
        raise RecordError(
            "too_large",
            f"{fs:g} Hz to {to_fs:g} Hz would make {n_samples} samples, over {MAX_SAMPLES}",
        )
    ratio = Fraction(to_fs / fs).limit_denominator(1000)
    return signal.resample_poly(
        signal_LT, ratio.numerator, ratio.denominator, axis=1, padtype="edge"
    )


def _bandpass(signal_LT: np.ndarray, fs: float, band: tuple[float, float]) -> np.ndarray:
    """Filter with a Butterworth band-pass of order 3, forward and backward (zero phase)."""
    low, high = band[0], min(band[1], 0.49 * fs)
    sections = signal.butter(3, (low, high), btype="bandpass", fs=fs, output="sos")
    pad = min(signal_LT.shape[1] - 1, int(3 * fs / low))
    filtered_LT = signal.sosfiltfilt(sections, signal_LT.astype(np.float64), axis=1, padlen=pad)
    return filtered_LT.astype(np.float32)


def bridge(signal_LT: np.ndarray, invalid_LT: np.ndarray) -> np.ndarray:
    """Draw straight lines over invalid samples: a step to 0 would ring in every filter.

    At the ends the nearest valid sample is held; a lead without any becomes 0.
    """
    bridged_LT = signal_LT.copy()
    times_T = np.arange(signal_LT.shape[1])
    for lead_T, invalid_T in zip(bridged_LT, invalid_LT, strict=True):
        if invalid_T.all():
            lead_T[:] = 0.0
        elif invalid_T.any():
            lead_T[invalid_T] = np.interp(
                times_T[invalid_T], times_T[~invalid_T], lead_T[~invalid_T]
            )
    return bridged_LT


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
