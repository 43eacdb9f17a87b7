"""Quality of recordings: numbers for every record and lead, and the flags that follow from them.

Legend: N record, L lead, T time, C chunk of samples, S second, M measure.

Sums over samples are sums of integers or run in a fixed order, and no record sees another: the same
record gives the same numbers in any batch. Invalid samples are cut out before a lead is measured and
left out where leads are compared. Only `measure` imports numba, and its first call compiles.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayecg.core.record import invalid_value

#: What a flag means; the first six come as `flag:lead`.
FLAGS = {
    "invalid": "every sample of the lead is marked invalid",
    "some_invalid": "some samples of the lead are marked invalid",
    "flat": "the lead stands still, for a tenth of the record or longer",
    "saturated": "the lead stands at its own extremes again and again, as if clipped",
    "noise": "high-frequency noise in the lead, also between the beats",
    "wander": "the lead's baseline wanders",
    "einthoven": "the limb leads contradict one another",
    "limb_reversal": "limb electrodes seem to be interchanged",
}

# Thresholds; the notes of `measure` say what they do.

#: Share of the record in which a lead stands still, and the shortest time that counts, s. Between
#: beats, 35,902 leads of PTB-XL (500 Hz) keep one value for 0.36 s at most, two faulty ones for 1.6
#: and 7.3 s; those of LUDB for 0.58 s.
FLAT, STILL_SECONDS = 0.1, 1.0
#: Share of the record in runs at the lead's own extremes, the shortest run that counts, in s and in
#: samples (shorter ones are rounded peaks), and the ADC units that a lead must span at least.
SATURATED, CLIP_SECONDS, CLIP_SAMPLES, CLIP_SPAN = 0.01, 0.02, 3, 16
NOISE_MV, WANDER_MV, EINTHOVEN_MV = 0.025, 0.2, 0.04
#: Contradictions of the limb leads up to this many ADC units are rounding.
ROUNDING = 2.0
#: Electrodes are interchanged if lead I or II correlates less than this with V6, or if one of I, II,
#: III has less than this share of the amplitude that the other two have.
AGAINST_CHEST, NEARLY_FLAT = -0.5, 0.12

#: Time between samples that are compared, and length of a block: long enough to know the noise in
#: it, short enough to lie between two QRS complexes.
LAG_SECONDS, BLOCK_SECONDS = 0.01, 0.1
#: Samples summed by one expression, which compiles to vector instructions.
CHUNK = 8
#: Seconds within which wander is a spread; a long record has many such epochs.
EPOCH = 10
#: Mean absolute second difference of white Gaussian noise of standard deviation 1, and the share of
#: it that a second's second quietest block of n samples has, 1 - QUIET / sqrt(n): simulated at 100,
#: 250, 360, 500 and 1000 Hz.
BEND, QUIET = math.sqrt(12.0 / math.pi), 1.04


@dataclass(frozen=True)
class Quality:
    """What `measure` found: float32, NaN where a number cannot be had, and one bool.

    Attributes
    ----------
    invalid_NL
        Share of invalid samples; below 1 while one is valid.
    flat_NL
        Share of the record in stretches of exactly one value of `STILL_SECONDS` or longer; of any
        length, if all valid samples are equal. 0 where none is valid.
    saturated_NL
        Share of the record in runs of `CLIP_SECONDS` or longer at the lead's own smallest or largest
        value, an ADC's rail or not. Runs that touch an end of the record do not count: in PTB-XL
        about 60 leads end with 0.11 s of one value that happens to be an extreme.
    noise_NL
        mV: standard deviation of the white noise that would read the same. Mean absolute second
        difference over 10 ms in blocks of 0.1 s; of each second the second quietest block counts, so
        that QRS complexes do not, and the mean over seconds is taken. NaN below about 0.12 s.
    wander_NL
        mV: standard deviation of the means over a second, within epochs of 10 s. NaN below 2 s.
    einthoven_N
        mV: the largest of the mean absolute values of II - I - III, aVR + (I + II) / 2,
        aVL - (I - III) / 2 and aVF - (II + III) / 2 about their means, less `ROUNDING` ADC units in
        each sample. NaN where no three such leads are there.
    reversal_N
        Whether limb electrodes seem to be interchanged.
    """

    invalid_NL: np.ndarray
    flat_NL: np.ndarray
    saturated_NL: np.ndarray
    noise_NL: np.ndarray
    wander_NL: np.ndarray
    einthoven_N: np.ndarray
    reversal_N: np.ndarray


def measure(
    digital_NLT: np.ndarray,
    gain_NL: np.ndarray,
    baseline_NL: np.ndarray,
    fs: float,
    leads: Sequence[str],
) -> Quality:
    """Measure the quality of records of one layout.

    Parameters
    ----------
    digital_NLT
        int16 or int32 samples; the smallest value of the type marks an invalid one.
    gain_NL, baseline_NL
        ADC units per mV, which may be negative, and the ADC value of 0 mV, which changes nothing.
    fs
        Sampling rate in Hz.
    leads
        Lead names; the six limb leads and V6 (V5 where there is no V6) are compared by theirs.

    Raises
    ------
    ValueError
        If the arrays do not fit together or hold no sample, or the rate is not above 0.

    Notes
    -----
    FIGURES
    """
    digital_NLT = _checked(digital_NLT, gain_NL, baseline_NL, fs, leads)
    n_records, n_leads, n_times = digital_NLT.shape
    place = {lead: i for i, lead in reversed(list(enumerate(leads)))}
    compared = [place.get(lead, -1) for lead in ("I", "II", "III", "aVR", "aVL", "aVF")]
    block = max(1, round(BLOCK_SECONDS * fs / CHUNK))
    # A sum of eight second differences is at most 5 bits wider than a sample.
    wide = np.int32 if digital_NLT.dtype == np.int16 else np.int64
    measures_MNL = np.empty((5, n_records, n_leads), dtype=np.float32)
    einthoven_N = np.empty(n_records, dtype=np.float32)
    reversal_N = np.empty(n_records, dtype=np.bool_)
    _compiled()(
        digital_NLT,
        invalid_value(digital_NLT.dtype),
        np.ascontiguousarray(gain_NL, dtype=np.float64),
        np.array([*compared, place.get("V6", place.get("V5", -1))], dtype=np.int64),
        max(1, round(LAG_SECONDS * fs)),
        block,
        max(1, round(fs / (CHUNK * block))),
        max(2, math.ceil(STILL_SECONDS * fs)),
        max(CLIP_SAMPLES, math.ceil(CLIP_SECONDS * fs)),
        np.empty(n_times + n_times // CHUNK, dtype=wide),
        measures_MNL,
        einthoven_N,
        reversal_N,
    )
    return Quality(*measures_MNL, einthoven_N=einthoven_N, reversal_N=reversal_N)


def flags(quality: Quality, leads: Sequence[str]) -> list[tuple[str, ...]]:
    """Name what breaks a threshold, record by record, in the order of `FLAGS`."""
    found: list[list[str]] = [[] for _ in quality.einthoven_N]
    for name, hit_NL in {
        "invalid": quality.invalid_NL == 1,
        "some_invalid": (quality.invalid_NL > 0) & (quality.invalid_NL < 1),
        "flat": quality.flat_NL >= FLAT,
        "saturated": quality.saturated_NL >= SATURATED,
        "noise": quality.noise_NL > NOISE_MV,
        "wander": quality.wander_NL > WANDER_MV,
    }.items():
        for n, i in np.argwhere(hit_NL).tolist():
            found[n].append(f"{name}:{leads[i]}")
    for name, hit_N in {
        "einthoven": quality.einthoven_N > EINTHOVEN_MV,
        "limb_reversal": quality.reversal_N,
    }.items():
        for n in np.flatnonzero(hit_N).tolist():
            found[n].append(name)
    return [tuple(names) for names in found]


def _checked(
    digital_NLT: np.ndarray,
    gain_NL: np.ndarray,
    baseline_NL: np.ndarray,
    fs: float,
    leads: Sequence[str],
) -> np.ndarray:
    """Give the samples as the loops want them, which needs no copy as a rule."""
    shape, kind = digital_NLT.shape, digital_NLT.dtype
    if (
        kind not in (np.int16, np.int32)
        or len(shape) != 3
        or shape[1] != len(leads)
        or not shape[2]
    ):
        raise ValueError(
            f"expected int16 or int32 records by {len(leads)} leads by times, came {kind} of {shape}"
        )
    for own_NL in (gain_NL, baseline_NL):
        if np.shape(own_NL) != shape[:2]:
            raise ValueError(f"expected gain and baseline for {shape[:2]}, came {np.shape(own_NL)}")
    if not 0 < fs < math.inf:
        raise ValueError(f"expected a sampling rate above 0 Hz, came {fs}")
    own_NLT = np.require(digital_NLT, kind.newbyteorder("="), ["C", "A"]).view()
    # Memory from a shard may be read-only; if all is, there is one type to compile for.
    own_NLT.flags.writeable = False
    return own_NLT


_LOCK = threading.Lock()


def _compiled() -> Callable[..., None]:
    """Compile the loops below, once and in their own places, where they find one another."""
    with _LOCK:
        if not hasattr(_measure, "py_func"):
            for loop in (_runs, _chunks, _noise, _wander, _contradiction, _reversal, _measure):
                globals()[loop.__name__] = _jit(loop)
    return _measure


def _jit(loop: Callable[..., Any]) -> Callable[..., Any]:
    from numba import njit  # half a second, which those who do not measure need not wait for

    try:
        return njit(cache=True, nogil=True, error_model="numpy")(loop)
    except RuntimeError:  # there is no folder to keep what is compiled
        return njit(nogil=True, error_model="numpy")(loop)


def _runs(lead_T: np.ndarray, low: int, high: int, least: int, inner: bool) -> int:
    """Count the samples in runs of `least` or more equal ones, `low` or below, or `high` or above.

    Runs that touch an end of the lead are left out if `inner`.
    """
    n_times, total, i = len(lead_T), 0, least - 1
    # `i` is the last sample of a window with no part of an earlier run in it. A run that fills the
    # window ends at `i` or later, any other starts after the last change: few samples are looked at.
    while i < n_times:
        value, first, start = lead_T[i], i - least + 1, i + 1
        if value <= low or value >= high:
            start = i
            while start > first and lead_T[start - 1] == value:
                start -= 1
            if start == first:
                stop = i + 1
                while stop < n_times and lead_T[stop] == value:
                    stop += 1
                if not inner or (first > 0 and stop < n_times):
                    total += stop - first
                start = stop
        i = start + least - 1
    return total


def _chunks(x_T: np.ndarray, n: int, sum_C: np.ndarray) -> None:
    """Sum the first `n` chunks."""
    for c in range(n):
        i = CHUNK * c
        early = (x_T[i] + x_T[i + 1]) + (x_T[i + 2] + x_T[i + 3])
        sum_C[c] = early + (x_T[i + 4] + x_T[i + 5]) + (x_T[i + 6] + x_T[i + 7])


def _noise(lead_T: np.ndarray, lag: int, block: int, second: int, work_T: np.ndarray) -> float:
    """Give the noise in ADC units; `block` is in chunks, `second` in blocks."""
    n_bends = len(lead_T) - 2 * lag
    n_blocks, n_times = n_bends // (CHUNK * block), CHUNK * block
    if n_blocks < 1:
        return np.nan
    bend_T, sum_C = work_T[:n_bends], work_T[n_bends:]
    here_T, after_T = lead_T[lag:], lead_T[2 * lag :]
    for i in range(n_bends):
        bend_T[i] = abs(lead_T[i] - 2 * here_T[i] + after_T[i])
    _chunks(bend_T, n_blocks * block, sum_C)
    total, n_seconds = 0, 0
    for first in range(0, n_blocks, second):
        last = min(first + second, n_blocks)
        if first > 0 and 2 * (last - first) < second:
            break  # in a part of a second, a quiet block is a matter of luck
        quietest, quiet = np.int64(2**62), np.int64(2**62)
        for b in range(first, last):
            own = np.int64(0)
            for c in range(b * block, (b + 1) * block):
                own += sum_C[c]
            quiet = min(quiet, max(own, quietest))
            quietest = min(quietest, own)
        total += quiet if last - first > 1 else quietest
        n_seconds += 1
    return total / (n_seconds * n_times * BEND * (1.0 - QUIET / math.sqrt(n_times)))


def _wander(lead_T: np.ndarray, second: int, sum_C: np.ndarray) -> float:
    """Give the baseline wander in ADC units; `second` is in chunks."""
    n_seconds = len(lead_T) // (CHUNK * second)
    if n_seconds < 2:
        return np.nan
    _chunks(lead_T, n_seconds * second, sum_C)
    mean_S = np.zeros(n_seconds)
    for s in range(n_seconds):
        total = np.int64(0)
        for c in range(s * second, (s + 1) * second):
            total += sum_C[c]
        mean_S[s] = total / (CHUNK * second)
    n_epochs, squares = max(1, (n_seconds + EPOCH // 2) // EPOCH), 0.0
    for e in range(n_epochs):
        first, last, level = e * n_seconds // n_epochs, (e + 1) * n_seconds // n_epochs, 0.0
        for s in range(first, last):
            level += mean_S[s] / (last - first)
        for s in range(first, last):
            squares += (mean_S[s] - level) ** 2
    return math.sqrt(squares / n_seconds)


def _contradiction(
    digital_LT: np.ndarray,
    gain_L: np.ndarray,
    invalid: int,
    a: int,
    b: int,
    c: int,
    weights: tuple[int, int, int],
) -> float:
    """Give the mean absolute weighted sum of three leads about its mean, less rounding, in mV.

    NaN where a lead's place is -1 or no sample is valid in all three.
    """
    if a < 0 or b < 0 or c < 0:
        return np.nan
    a_T, b_T, c_T = digital_LT[a], digital_LT[b], digital_LT[c]
    unit = max(abs(gain_L[a]), abs(gain_L[b]), abs(gain_L[c]))
    u, v, w = weights[0] / gain_L[a], weights[1] / gain_L[b], weights[2] / gain_L[c]
    rounding = math.floor(ROUNDING * unit * max(abs(u), abs(v), abs(w)) + 0.5)
    u, v, w = u * unit, v * unit, w * unit
    mean, n_valid = 0, 0
    for about_mean in (False, True):
        total, n_valid = np.int64(0), 0
        for i in range(len(a_T)):
            valid = (a_T[i] != invalid) & (b_T[i] != invalid) & (c_T[i] != invalid)
            # A whole number: sums of such may be taken in any order, and so compile to vectors.
            rest = math.floor(u * a_T[i] + v * b_T[i] + w * c_T[i] + 0.5)
            if about_mean:
                rest = max(abs(rest - mean) - rounding, 0)
            total += rest if valid else 0
            n_valid += valid
        if n_valid == 0:
            return np.nan
        mean = math.floor(total / n_valid + 0.5)
    return total / (n_valid * unit * weights[0])


def _reversal(
    digital_LT: np.ndarray,
    gain_L: np.ndarray,
    invalid: int,
    one: int,
    two: int,
    chest: int,
    lag: int,
) -> bool:
    """Tell whether limb electrodes seem to be interchanged, by the places of I, II and V6."""
    if one < 0 or two < 0 or chest < 0:
        return False
    one_T, two_T, chest_T = digital_LT[one], digital_LT[two], digital_LT[chest]
    # Sums of products of the differences in I, II, III and V6.
    s11 = s22 = s33 = s66 = s16 = s26 = 0.0
    for i in range(0, len(one_T) - lag, lag):
        j = i + lag
        if (
            min(one_T[i], one_T[j]) == invalid
            or min(two_T[i], two_T[j]) == invalid
            or min(chest_T[i], chest_T[j]) == invalid
        ):
            continue
        d1 = (one_T[j] - one_T[i]) / gain_L[one]
        d2 = (two_T[j] - two_T[i]) / gain_L[two]
        d6 = (chest_T[j] - chest_T[i]) / gain_L[chest]
        s11, s22, s33 = s11 + d1 * d1, s22 + d2 * d2, s33 + (d2 - d1) * (d2 - d1)
        s66, s16, s26 = s66 + d6 * d6, s16 + d1 * d6, s26 + d2 * d6
    least = min(s11, s22, s33)
    middle = max(min(s11, s22), min(max(s11, s22), s33))
    return (
        s16 < AGAINST_CHEST * math.sqrt(s11 * s66)
        or s26 < AGAINST_CHEST * math.sqrt(s22 * s66)
        or 0.0 < least < NEARLY_FLAT**2 * middle
    )


def _measure(
    digital_NLT: np.ndarray,
    invalid: int,
    gain_NL: np.ndarray,
    places: np.ndarray,
    lag: int,
    block: int,
    second: int,
    still: int,
    clip: int,
    work_T: np.ndarray,
    measures_MNL: np.ndarray,
    einthoven_N: np.ndarray,
    reversal_N: np.ndarray,
) -> None:
    """Fill the last three arrays; `work_T` is memory to work in."""
    n_records, n_leads, n_times = digital_NLT.shape
    valid_T = np.empty(n_times, digital_NLT.dtype)
    i, ii, iii, avr, avl, avf, chest = places
    for n in range(n_records):
        for lead in range(n_leads):
            lead_T, n_valid = digital_NLT[n, lead], n_times
            low, high = lead_T[0], lead_T[0]
            for t in range(n_times):
                low, high = min(low, lead_T[t]), max(high, lead_T[t])
            if low == invalid:
                low, n_valid = high, 0
                for t in range(n_times):
                    if lead_T[t] != invalid:
                        low = min(low, lead_T[t])
                        valid_T[n_valid] = lead_T[t]
                        n_valid += 1
            own_T = lead_T if n_valid == n_times else valid_T[:n_valid]
            gain, n_still, n_clipped = abs(gain_NL[n, lead]), n_valid, 0
            if low < high:
                n_still = _runs(own_T, high, low, still, False)
            if np.int64(high) - np.int64(low) >= CLIP_SPAN:
                n_clipped = _runs(own_T, low, high, clip, True)
            # Not 1 while a sample is valid, however many are not.
            share = min(np.float32((n_times - n_valid) / n_times), np.float32(1.0 - 2.0**-24))
            measures_MNL[0, n, lead] = share if n_valid else 1.0
            measures_MNL[1, n, lead] = n_still / n_times
            measures_MNL[2, n, lead] = n_clipped / n_times
            measures_MNL[3, n, lead] = _noise(own_T, lag, block, second, work_T) / gain
            measures_MNL[4, n, lead] = _wander(own_T, block * second, work_T) / gain
        own_LT, gain_L = digital_NLT[n], gain_NL[n]
        worst = _contradiction(own_LT, gain_L, invalid, ii, i, iii, (1, -1, -1))
        # Twice the others, so that the weights are whole.
        for a, b, c, signs in (
            (avr, i, ii, (2, 1, 1)),
            (avl, i, iii, (2, -1, 1)),
            (avf, ii, iii, (2, -1, -1)),
        ):
            found = _contradiction(own_LT, gain_L, invalid, a, b, c, signs)
            worst = found if np.isnan(worst) or found > worst else worst
        einthoven_N[n] = worst
        reversal_N[n] = _reversal(own_LT, gain_L, invalid, i, ii, chest, lag)
