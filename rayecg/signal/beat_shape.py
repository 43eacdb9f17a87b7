"""How a beat looks beside the other beats of its record: nothing is fitted across records.

Legend: L lead, T time, B beat, K beat that others are compared with, M column.
"""

from __future__ import annotations

import numpy as np

#: What is compared, from and to (s after R). Chosen, with the columns below, by patient-grouped
#: cross-validation within DS1 of MIT-BIH: with the P wave, the neighbouring beats' shapes and the
#: highest and lowest values, supraventricular beats of other patients were told worse.
REGIONS = {"qrs": (-0.08, 0.12), "t": (0.12, 0.45)}
#: What is measured of each region; see `shape_columns`.
OF_REGION = ("correlation", "energy", "distance")
#: What is measured of the beat.
OF_BEAT = ("qrs_width", "qrs_frequency", "beats_alike")
#: Columns of one lead.
OF_LEAD = (*(f"{region}_{name}" for region in REGIONS for name in OF_REGION), *OF_BEAT)

#: How much of a beat is cut out (s around R); its median is its level.
BEAT_S = (-0.3, 0.5)
#: Stretch that holds also a wide QRS (s around R).
WIDE_QRS_S = (-0.15, 0.2)
#: A beat is moved by up to this (s) to fit the median QRS.
REACH_S = 0.04
#: Correlation of two QRS that makes beats look alike.
ALIKE = 0.9
#: Each beat is compared with so many, spread over the record.
MOST_COMPARED = 400
#: Keeps divisions and logarithms finite, in the unit of the signal (mV).
TINY = 1e-6


def around(x_T: np.ndarray, time_B: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Cut the same stretch around each time, beats by times; beyond the ends the last value is held."""
    return x_T[np.clip(time_B[:, None] + np.arange(start, stop), 0, len(x_T) - 1)]


def unit(x_BT: np.ndarray) -> np.ndarray:
    """Give rows of mean 0 and length 1, so that products are correlations; a flat row becomes 0."""
    centred_BT = x_BT - x_BT.mean(axis=-1, keepdims=True)
    length_B1 = np.linalg.norm(centred_BT, axis=-1, keepdims=True)
    return centred_BT / np.maximum(length_B1, TINY)


def align(x_T: np.ndarray, time_B: np.ndarray, start: int, stop: int, reach: int) -> np.ndarray:
    """Move each time by up to `reach` samples to where the stretch around it fits the median best."""
    usual_T = unit(np.median(around(x_T, time_B, start, stop), axis=0))
    shift_S = np.arange(-reach, reach + 1)
    # As near as fits equally well: a flat lead moves no beat.
    shift_S = shift_S[np.argsort(np.abs(shift_S), kind="stable")]
    fit_BS = [unit(around(x_T, time_B + shift, start, stop)) @ usual_T for shift in shift_S]
    return time_B + shift_S[np.argmax(fit_BS, axis=0)]


def shape_columns(x_T: np.ndarray, fs: float, beat_times: np.ndarray) -> np.ndarray:
    """Compare each beat of one lead with the record's usual beat.

    The usual beat is the median of the beats whose QRS look like that of the beat with the most such
    beats. Of each region: correlation with the usual beat; energy (log of the ratio of standard
    deviations); distance (root mean square of the difference, as a share of the usual QRS from top to
    bottom). Then the log ratios to the usual beat of the QRS's width (standard deviation of its
    slope's energy in time) and mean frequency, and the share of the record's beats that look alike.

    Parameters
    ----------
    x_T
        One lead, any unit; zeros throughout if it is absent.
    fs
        Hz.
    beat_times
        R peaks, samples, rising.

    Returns
    -------
    np.ndarray
        float32, beats by `OF_LEAD`; NaN for an absent lead.
    """
    columns: dict[str, np.ndarray] = {}
    if not len(beat_times) or not x_T.any():
        return np.full((len(beat_times), len(OF_LEAD)), np.nan, dtype=np.float32)

    def at(seconds: float) -> int:
        return round(seconds * fs)

    start, stop = (at(s) for s in REGIONS["qrs"])
    time_B = align(x_T, np.round(beat_times).astype(np.int64), start, stop, at(REACH_S))
    beat_BT = around(x_T, time_B, at(BEAT_S[0]), at(BEAT_S[1]))
    beat_BT = beat_BT - np.median(beat_BT, axis=1, keepdims=True)

    def region(x: np.ndarray, name: str) -> np.ndarray:
        start, stop = (at(s) - at(BEAT_S[0]) for s in REGIONS[name])
        return x[..., start:stop]

    qrs_BT = unit(region(beat_BT, "qrs"))
    compared = np.linspace(0, len(time_B) - 1, min(len(time_B), MOST_COMPARED))
    compared_K = compared.round().astype(np.int64)
    alike_B = (qrs_BT @ qrs_BT[compared_K].T > ALIKE).mean(axis=1)
    most = compared_K[alike_B[compared_K].argmax()]
    usual_B = qrs_BT @ qrs_BT[most] > ALIKE
    usual_B[most] = True  # a flat QRS does not even look like itself
    usual_T = np.median(beat_BT[usual_B], axis=0)
    scale = max(float(np.ptp(region(usual_T, "qrs"))), TINY)
    for name in REGIONS:
        own_BT, own_T = region(beat_BT, name), region(usual_T, name)
        difference_BT = own_BT - own_T
        difference_BT = difference_BT - difference_BT.mean(axis=1, keepdims=True)
        values = (
            unit(own_BT) @ unit(own_T),
            np.log((own_BT.std(axis=1) + TINY) / (own_T.std() + TINY)),
            np.sqrt(np.mean(difference_BT**2, axis=1)) / scale,
        )
        columns |= {f"{name}_{key}": v for key, v in zip(OF_REGION, values, strict=True)}
    width_B, frequency_B = _width_and_frequency(
        around(x_T, time_B, at(WIDE_QRS_S[0]), at(WIDE_QRS_S[1])), fs
    )
    columns["qrs_width"] = np.log(width_B / np.median(width_B[usual_B]))
    columns["qrs_frequency"] = np.log(frequency_B / np.median(frequency_B[usual_B]))
    columns["beats_alike"] = alike_B
    return np.stack([columns[name] for name in OF_LEAD], axis=1).astype(np.float32)


def _width_and_frequency(qrs_BT: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """Give how far the slope's energy spreads in time (s), and the mean frequency (Hz)."""
    energy_BT = np.diff(qrs_BT, axis=1).astype(np.float64) ** 2
    energy_B = energy_BT.sum(axis=1)
    time_T = np.arange(energy_BT.shape[1]) / fs
    whole_B = np.maximum(energy_B, TINY**2)
    centre_B = energy_BT @ time_T / whole_B
    spread_B = energy_BT @ time_T**2 / whole_B - centre_B**2
    size_B = qrs_BT.std(axis=1, dtype=np.float64) * np.sqrt(qrs_BT.shape[1])
    frequency_B = np.sqrt(energy_B) * fs / (2 * np.pi * np.maximum(size_B, TINY))
    # Nothing is narrower than a sample, nor slower than a flat line that ends.
    return np.sqrt(np.maximum(spread_B, fs**-2)), np.maximum(frequency_B, 0.1)
