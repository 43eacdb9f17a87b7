"""What is done to a whole recording before it is cut: bridging, band-pass, resampling.

Legend: L lead, T time.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from scipy import signal

from rayecg.core.errors import RecordError
from rayecg.core.record import MAX_SAMPLES


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


def bandpass(signal_LT: np.ndarray, fs: float, band: tuple[float, float]) -> np.ndarray:
    """Filter with a Butterworth band-pass of order 3, forward and backward (zero phase)."""
    low, high = band[0], min(band[1], 0.49 * fs)
    sections = signal.butter(3, (low, high), btype="bandpass", fs=fs, output="sos")
    pad = min(signal_LT.shape[1] - 1, int(3 * fs / low))
    filtered_LT = signal.sosfiltfilt(sections, signal_LT.astype(np.float64), axis=1, padlen=pad)
    return filtered_LT.astype(np.float32)


def resampling_ratio(fs: float, to_fs: float) -> Fraction:
    """Give the ratio of two rates (Hz) in whole numbers up to 10,000, right to one in 10,000.

    Raises
    ------
    RecordError
        `bad_header`, if there is none.
    """
    ratio = Fraction(to_fs / fs).limit_denominator(10_000)
    if abs(float(ratio) * fs / to_fs - 1) > 1e-4:
        raise RecordError("bad_header", f"a rate of {fs:g} Hz cannot be brought to {to_fs:g} Hz")
    return ratio


def resample(signal_LT: np.ndarray, fs: float, to_fs: float) -> np.ndarray:
    """Resample by a polyphase anti-aliasing filter (`scipy.signal.resample_poly`), rates in Hz.

    The ends are held at their own value, so that an offset does not ring. The result has the type of
    the signal, float32 or float64.

    Raises
    ------
    RecordError
        `too_large`, if a rate that is far too low makes more samples than a record may have;
        `bad_header`, if no filter brings the one rate to the other.
    """
    if fs == to_fs:
        return signal_LT
    n_samples = round(signal_LT.size * to_fs / fs)
    if n_samples > MAX_SAMPLES:
        raise RecordError(
            "too_large",
            f"{fs:g} Hz to {to_fs:g} Hz would make {n_samples} samples, over {MAX_SAMPLES}",
        )
    ratio = resampling_ratio(fs, to_fs)
    return signal.resample_poly(
        signal_LT, ratio.numerator, ratio.denominator, axis=1, padtype="edge"
    )
