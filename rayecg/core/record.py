"""One recording in memory.

Legend: L lead, T time.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field

import numpy as np

#: Limit on leads x times of one record: 12 leads at 1000 Hz for 24 h are 1.04e9.
MAX_SAMPLES = 1_100_000_000


def invalid_value(dtype: np.dtype) -> int:
    """Give the sentinel that marks an invalid sample: the smallest value of the type."""
    return int(np.iinfo(dtype).min)


@dataclass(frozen=True)
class Record:
    """Digital samples with what turns them into mV.

    Attributes
    ----------
    digital_LT
        int16 or int32 samples; the smallest value of the type marks an invalid sample.
    gain_L
        ADC units per mV.
    baseline_L
        The ADC value of 0 mV.
    fs
        Sampling rate in Hz.
    leads
        Lead names, standard spelling where the lead is a standard one.
    flags
        What was found on reading, as `flag` or `flag:lead`.
    beat_times, beat_symbols
        Annotated beats: positions in samples at `fs`, and their annotation symbols; None where the
        archive has no beat annotations.
    """

    digital_LT: np.ndarray
    gain_L: np.ndarray
    baseline_L: np.ndarray
    fs: float
    leads: tuple[str, ...]
    flags: tuple[str, ...] = ()
    beat_times: np.ndarray | None = field(default=None)
    beat_symbols: tuple[str, ...] | None = field(default=None)

    @property
    def digital(self) -> np.ndarray:
        """The samples, leads by times."""
        return self.digital_LT

    @property
    def physical(self) -> np.ndarray:
        """The samples in mV, float32, leads by times; invalid ones are NaN."""
        return to_millivolts(self.digital_LT, self.gain_L, self.baseline_L)

    @functools.cached_property
    def sha256(self) -> str:
        """Fingerprint of the waveform: leads, rate and samples."""
        head = f"{self.fs:g} {' '.join(self.leads)} {self.digital_LT.dtype} ".encode()
        digest = hashlib.sha256(head)
        digest.update(np.ascontiguousarray(self.digital_LT).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Assessment:
    """What was measured of one record, None where nothing was.

    Attributes
    ----------
    flags
        As `flag` or `flag:lead`; `rayecg.signal.quality` says what they mean.
    invalid_fraction, noise_mv, wander_mv
        For each lead: the share of invalid samples, and the levels of noise and of baseline wander.
    einthoven_mv
        How far the limb leads contradict one another; None where they are not all there.
    """

    flags: tuple[str, ...] = ()
    invalid_fraction: np.ndarray | None = None
    noise_mv: np.ndarray | None = None
    wander_mv: np.ndarray | None = None
    einthoven_mv: float | None = None


def to_millivolts(
    digital_LT: np.ndarray,
    gain_L: np.ndarray,
    baseline_L: np.ndarray,
    out: np.ndarray | None = None,
    *,
    all_valid: bool = False,
) -> np.ndarray:
    """Turn digital samples into mV.

    Parameters
    ----------
    digital_LT
        Integer samples, leads by times.
    gain_L, baseline_L
        ADC units per mV, and the ADC value of 0 mV.
    out
        Float32 array to write into; None makes a new one.
    all_valid
        Whether it is known that no sample is invalid.

    Returns
    -------
    np.ndarray
        float32, the same shape; NaN where a sample is invalid. Each value is rounded once, from
        float64.
    """
    gain_L = np.asarray(gain_L, dtype=np.float64)
    baseline_L = np.asarray(baseline_L)
    gain32_L = gain_L.astype(np.float32)
    physical_LT = np.empty(digital_LT.shape, np.float32) if out is None else out
    small = digital_LT.dtype == np.int16 and np.abs(baseline_L).max(initial=0) < 2**23
    if small and (gain32_L == gain_L).all():
        # Differences of such integers are exact in float32, so the division rounds once, as it does
        # for float64 and then float32, in a fraction of the time. In place: an operation that also
        # converts takes twice as long.
        physical_LT[...] = digital_LT
        if baseline_L.any():
            physical_LT -= baseline_L.astype(np.float32)[:, None]
        same = bool((gain32_L == gain32_L[:1]).all())
        physical_LT /= gain32_L[0] if same and len(gain32_L) else gain32_L[:, None]
    else:
        physical_LT[...] = (digital_LT - baseline_L[:, None]) / gain_L[:, None]
    invalid = invalid_value(digital_LT.dtype)
    if not all_valid and digital_LT.min(initial=0) == invalid:
        physical_LT[digital_LT == invalid] = np.nan
    return physical_LT
