"""What a cardiologist measures of a recording: rate, waves, intervals and axes, from its median beat.

Legend: L lead, T time, B beat, K time of the median beat.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from rayecg.signal.beat_shape import TINY, align, around, unit
from rayecg.signal.beats import detect_beats, detection_lead

#: Columns of the recording: rate (1/s); of the logarithms of RR intervals, the median change from one
#: to the next, and the shortest and the longest against the median; share of the beats that look
#: like the median one; QRS width, PR and QT interval (s); how large P is against the QRS; and the
#: frontal axes of QRS and T (radians, 0 along lead I, pi/2 along aVF).
OVERALL = (
    "heart_rate",
    "rr_change",
    "rr_shortest",
    "rr_longest",
    "beats_alike",
    "qrs_width",
    "pr_interval",
    "qt_interval",
    "p_share",
    "qrs_axis",
    "t_axis",
)
#: Columns of each lead: the amplitudes of the waves (mV against the level before the QRS; Q and S are
#: 0 or below, R 0 or above), the level of ST, and when R stands in the QRS (s).
OF_LEAD = ("p_wave", "q_wave", "r_wave", "s_wave", "st_level", "t_wave", "r_time")

#: How far the median beat reaches either side of R (s).
BEFORE_S, AFTER_S = 0.4, 0.6
#: So many beats, spread over the recording, are enough for a median.
MOST_BEATS = 512
#: Beats are fitted to the median over so much around R (s), moved by up to the second (s).
FIT_S, REACH_S = 0.1, 0.04
#: Correlation of a QRS with the median one that makes a beat look alike.
ALIKE = 0.8
#: The QRS lies within this time of R (s) where the slope, averaged over the second time (s), is above
#: this share of its highest.
QRS_REACH_S, SLOPE_S, QRS_SLOPE = 0.14, 0.02, 0.12
#: Where it is less steep for longer than this (s), the QRS is over.
PAUSE_S = 0.03
#: The level before the QRS is the mean over so long (s); ST is measured so long after the QRS (s).
LEVEL_S, ST_S = 0.02, 0.06
#: P lies so long before the QRS (s), at most and at least, and after the T before it.
P_S = (0.3, 0.02)
#: T begins so long after the QRS (s), and lies within this share of the RR interval after R.
T_GAP_S, T_SHARE = 0.08, 0.7
#: P under this share of the QRS is not seen.
SMALLEST_P = 0.02
#: P and T are smoothed by a Gaussian of this standard deviation (s) before their ends are sought.
SLOW_S = 0.01


def measurement_names(leads: Sequence[str]) -> tuple[str, ...]:
    """Name the columns: the recording's, then each lead's."""
    return (*OVERALL, *(f"{lead}_{name}" for lead in leads for name in OF_LEAD))


def measure(
    x_LT: np.ndarray, fs: float, leads: Sequence[str], beat_times: np.ndarray | None = None
) -> np.ndarray:
    """Measure a recording.

    The slope of all leads together bounds the QRS. T ends where the tangent at its steepest fall meets
    the lowest level that follows; P, seen backwards, begins the same way.

    Parameters
    ----------
    x_LT
        mV, leads by times (in another unit, so are the amplitudes); an absent lead is 0.
    fs
        Hz; intervals come in its steps.
    leads
        Lead names. The axes need I, and aVF or II.
    beat_times
        R peaks, samples, rising; None finds them.

    Returns
    -------
    np.ndarray
        float32, a value for each of `measurement_names`; NaN where it cannot be measured, as where a
        wave does not end within the time that it is sought in.
    """
    found = dict.fromkeys(measurement_names(leads), np.nan)
    present = [i for i, lead_T in enumerate(x_LT) if lead_T.any()]
    if present:
        x_LT, leads = x_LT[present], [leads[i] for i in present]
        guide = detection_lead(leads)
        beat_B = detect_beats(x_LT[guide], fs) if beat_times is None else np.asarray(beat_times)
        if len(beat_B):
            found |= _rhythm(beat_B / fs)
            beat_LK, found["beats_alike"] = median_beat(x_LT, fs, beat_B, guide)
            found |= _waves(beat_LK, fs, leads, found["heart_rate"])
    return np.array(list(found.values()), dtype=np.float32)


def _rhythm(beat_s: np.ndarray) -> dict[str, float]:
    rr = np.diff(beat_s)
    if not len(rr):
        return {}
    usual, shortest, longest = np.median(rr), rr.min(), rr.max()
    found = {
        "heart_rate": 1 / usual,
        "rr_shortest": np.log(shortest / usual),
        "rr_longest": np.log(longest / usual),
    }
    if len(rr) > 1:
        found["rr_change"] = np.median(np.abs(np.diff(np.log(rr))))
    return found


def median_beat(
    x_LT: np.ndarray, fs: float, beat_times: np.ndarray, guide: int
) -> tuple[np.ndarray, float]:
    """Give the median of the beats that look alike, and their share.

    Parameters
    ----------
    x_LT
        Leads by times.
    fs
        Hz.
    beat_times
        R peaks, samples.
    guide
        Lead that beats are aligned and compared by.

    Returns
    -------
    tuple
        Leads by times around R, `BEFORE_S` to `AFTER_S`; the share of beats it was taken of.
    """
    chosen = np.linspace(0, len(beat_times) - 1, min(len(beat_times), MOST_BEATS)).round()
    time_B = np.round(beat_times[chosen.astype(np.int64)]).astype(np.int64)
    before, after, fit = (round(s * fs) for s in (BEFORE_S, AFTER_S, FIT_S))
    inside_B = (time_B >= before) & (time_B + after < x_LT.shape[1])
    if inside_B.any():  # half a beat is held at its last value, which is better than nothing
        time_B = time_B[inside_B]
    time_B = align(x_LT[guide], time_B, -fit, fit, round(REACH_S * fs))
    qrs_BT = unit(around(x_LT[guide], time_B, -fit, fit))
    alike_B = qrs_BT @ unit(np.median(qrs_BT, axis=0)) > ALIKE
    share = alike_B.mean()
    if alike_B.any():
        time_B = time_B[alike_B]
    beats = [np.median(around(lead_T, time_B, -before, after), axis=0) for lead_T in x_LT]
    return np.stack(beats), float(share)


def _waves(beat_LK: np.ndarray, fs: float, leads: Sequence[str], rate: float) -> dict[str, float]:
    """Find QRS, P and T in the median beat, and measure them."""
    r, n_times = round(BEFORE_S * fs), beat_LK.shape[1]
    rr = fs / rate if np.isfinite(rate) else np.inf
    onset, offset, whole = _qrs(beat_LK, fs)
    beat_LK = beat_LK - beat_LK[:, max(onset - round(LEVEL_S * fs), 0) : onset + 1].mean(1)[:, None]
    st = min(offset + round(ST_S * fs), n_times - 1)
    t_start = min(offset + round(T_GAP_S * fs), n_times - 1)
    t_stop = int(max(min(r + T_SHARE * rr, n_times), t_start + 1))
    t_end = _end(beat_LK[:, t_start:t_stop], fs)
    # P comes after the T before it, which ended as this one does.
    free = r + T_SHARE * rr - rr if t_end is None else t_start + t_end - rr
    p_stop = max(onset - round(P_S[1] * fs), 1)
    p_start = int(np.clip(np.ceil(max(onset - P_S[0] * fs, free)), 0, p_stop - 1))
    # The level before P is not that after it: P is what stands above a line between both.
    p_LK = beat_LK[:, p_start:p_stop]
    p_LK = p_LK - np.linspace(p_LK[:, 0], p_LK[:, -1], p_LK.shape[1], axis=1)
    p_share = _size(p_LK).max() / max(_size(beat_LK[:, onset : offset + 1]).max(), TINY)
    p_length = _end(p_LK[:, ::-1], fs) if p_share >= SMALLEST_P else None
    found = {"p_share": p_share}
    if whole:
        found["qrs_width"] = (offset - onset) / fs
        if p_length is not None:
            found["pr_interval"] = (onset - (p_stop - 1) + p_length) / fs
        if t_end is not None:
            found["qt_interval"] = (t_start + t_end - onset) / fs
    area_L, t_area_L = beat_LK[:, onset : offset + 1].sum(1), beat_LK[:, t_start:t_stop].sum(1)
    found |= {"qrs_axis": _axis(area_L, leads), "t_axis": _axis(t_area_L, leads)}
    for lead, lead_K in zip(leads, beat_LK, strict=True):
        qrs_K = lead_K[onset : offset + 1]
        r_at = int(qrs_K.argmax())
        values = (
            _largest(lead_K[p_start:p_stop]),
            min(qrs_K[: r_at + 1].min(), 0.0),
            max(qrs_K[r_at], 0.0),
            min(qrs_K[r_at:].min(), 0.0),
            lead_K[st],
            _largest(lead_K[t_start:t_stop]),
            r_at / fs,
        )
        found |= {f"{lead}_{name}": float(v) for name, v in zip(OF_LEAD, values, strict=True)}
    return found


def _qrs(beat_LK: np.ndarray, fs: float) -> tuple[int, int, bool]:
    """Give the first and the last sample of the QRS, and whether neither is a limit of the search."""
    slope_LK = np.gradient(beat_LK.astype(np.float64), axis=1)
    energy_K = ndimage.uniform_filter1d((slope_LK**2).sum(0), max(round(SLOPE_S * fs), 1))
    steep_K = np.sqrt(np.maximum(energy_K, 0.0))  # a running sum may end a little below 0
    r, reach = round(BEFORE_S * fs), round(QRS_REACH_S * fs)
    near_K = steep_K[r - reach : r + reach + 1]
    steep = np.flatnonzero(near_K > QRS_SLOPE * near_K.max())
    if not len(steep):
        return r - 1, r + 1, False
    # A pause longer than those within a QRS parts it from a P or T that is as steep.
    parts = np.split(steep, np.flatnonzero(np.diff(steep) > round(PAUSE_S * fs)) + 1)
    steepest = int(near_K.argmax())
    first, last = next((int(p[0]), int(p[-1])) for p in parts if p[0] <= steepest <= p[-1])
    return r - reach + first, r - reach + last, first > 0 and last < 2 * reach


def _end(wave_LK: np.ndarray, fs: float) -> float | None:
    """Give where the largest wave ends, samples, or None where its top or end is a limit of the search.

    It ends where the tangent at its steepest fall meets the lowest that follows. Leads are summed
    with the weights that they have at the top: so noise of single leads counts little, and has a sign,
    which a root mean square would take away.
    """
    wave_LK = ndimage.gaussian_filter1d(wave_LK, SLOW_S * fs, axis=1, mode="nearest")
    top = int(_size(wave_LK).argmax())
    sum_K = wave_LK[:, top] @ wave_LK[:, top:]
    fall_K = -np.diff(sum_K)
    if top == 0 or not len(fall_K) or fall_K.max() <= 0:
        return None
    steepest = int(fall_K.argmax())
    middle = (sum_K[steepest] + sum_K[steepest + 1]) / 2
    length = steepest + 0.5 + (middle - sum_K[steepest:].min()) / fall_K[steepest]
    return top + length if length < len(fall_K) else None


def _size(x_LK: np.ndarray) -> np.ndarray:
    """Give the root mean square over leads."""
    return np.sqrt(np.mean(x_LK**2, axis=0))


def _axis(area_L: np.ndarray, leads: Sequence[str]) -> float:
    """Give the angle in the frontal plane; leads I and aVF are at right angles, aVF is 2/sqrt(3) short."""
    area = dict(zip(leads, area_L.tolist(), strict=True))
    if "I" not in area or not {"aVF", "II"} & set(area):
        return np.nan
    avf = area["aVF"] if "aVF" in area else area["II"] - area["I"] / 2
    return float(np.arctan2(2 / np.sqrt(3) * avf, area["I"]))


def _largest(value_K: np.ndarray) -> float:
    """Give the value furthest from 0, with its sign."""
    return float(value_K[np.abs(value_K).argmax()])
