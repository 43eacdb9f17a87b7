"""Another sampling rate for a record, in its own ADC units."""

from __future__ import annotations

import dataclasses

import numpy as np

from rayecg.core.record import Record, invalid_value
from rayecg.signal.filters import bridge, resample, resampling_ratio


def resample_record(record: Record, fs: int) -> Record:
    """Resample a record, its values rounded back to its own ADC units.

    The error of the rounding is at most half a unit (0.5 / gain mV). Values that leave the type are
    held at its ends and flagged, as is a rate that was lower; the neighbourhood of an invalid sample
    stays invalid.
    """
    if record.fs == fs:
        return record
    dtype = record.digital_LT.dtype
    limits = np.iinfo(dtype)
    invalid_LT = record.digital_LT == invalid_value(dtype)
    values_LT = record.digital_LT.astype(np.float64)  # which holds every int32
    flags = list(record.flags)
    if record.fs < fs:
        flags.append(f"up_sampled:{record.fs:g}")
    if invalid_LT.any():
        values_LT = bridge(values_LT, invalid_LT)
    out_LT = np.round(resample(values_LT, record.fs, fs))
    if out_LT.max() > limits.max or out_LT.min() <= limits.min:
        flags.append("out_of_range")
    stored_LT = np.clip(out_LT, limits.min + 1, limits.max).astype(dtype)
    if invalid_LT.any():
        share_LT = resample(invalid_LT.astype(np.float32), record.fs, fs)
        stored_LT[np.abs(share_LT) > 0.01] = limits.min
    beats = record.beat_times
    if beats is not None:
        beats = (
            np.round(beats * float(resampling_ratio(record.fs, fs)))
            .astype(np.int64)
            .clip(max=stored_LT.shape[1] - 1)
        )
    return dataclasses.replace(
        record,
        digital_LT=stored_LT,
        fs=float(fs),
        flags=tuple(flags),
        beat_times=beats,
    )
