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

# The thresholds flag the worst few per cent of PTB-XL, or what is far from all but faulty leads.
#: Share of the record in which a lead stands still, and the shortest time that counts, s: between
#: beats leads keep one value for up to 0.36 s in PTB-XL (500 Hz; two faulty ones 1.6 and 7.3 s) and
#: up to 0.58 s in LUDB.
FLAT, STILL_SECONDS = 0.1, 1.0
#: Share of the record in runs at the lead's own extremes, the shortest run that counts, in s and in
#: samples (shorter ones are rounded peaks), and the ADC units that a lead must span at least.
SATURATED, CLIP_SECONDS, CLIP_SAMPLES, CLIP_SPAN = 0.01, 0.02, 3, 16
NOISE_MV, WANDER_MV, EINTHOVEN_MV = 0.025, 0.2, 0.04
#: Contradictions of the limb leads up to this many ADC units are rounding.
ROUNDING = 2.0
#: Electrodes are interchanged if lead I or II correlates less than this with V6, or if one of I, II,
#: III has less than this share of the next larger one's amplitude.
AGAINST_CHEST, NEARLY_FLAT = -0.5, 0.12
#: Time between samples that are compared; a block, which must fit between two QRS complexes.
LAG_SECONDS, BLOCK_SECONDS = 0.01, 0.1
#: Samples summed by one expression, which compiles to vectors; seconds of one spread, for wander.
CHUNK, EPOCH = 8, 10
#: In white Gaussian noise of standard deviation 1, the mean absolute second difference, and the share
#: of it in a second's second quietest block of n samples: 1 - QUIET / sqrt(n), from simulation.
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
        value, an ADC's rail or not. Runs that touch an end of the record do not count: 57 leads of
        PTB-XL end with 0.1 s or more of a value that happens to be an extreme.
    noise_NL
        mV: standard deviation of the white noise that would read the same. Of each second the block
        of 0.1 s with the second least mean absolute second difference over 10 ms counts, so that QRS
        complexes do not. Mains (50 Hz) read 2.1 times their RMS at 500 Hz. NaN below some 0.12 s.
    wander_NL
        mV: standard deviation of the means over a second; of a longer record than 10 s, the mean of
        what its stretches of about 10 s have. NaN below 2 s.
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
    fs: float,
    leads: Sequence[str],
) -> Quality:
    """Measure the quality of records of one layout.

    Parameters
    ----------
    digital_NLT
        int16 or int32 samples; the smallest value of the type marks an invalid one.
    gain_NL
        ADC units per mV, which may be negative. The value of 0 mV changes nothing.
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
    Limb electrodes count as interchanged if, in differences over 10 ms, lead I runs against V6 (right
    and left arm, or all three moved on by one), or lead II does (right arm and left leg, or moved on
    the other way), or one of I, II and III is nearly flat between two that are not (one arm and the
    right leg, or both arms and both legs). Left arm and left leg, and the legs, are not recognised.
    Ventricular pacing and lateral infarcts can be taken for it, and an arm electrode that comes off.
    The signs are a textbook's (Surawicz, Knilans: Chou's Electrocardiography in Clinical Practice);
    correlation with what is not affected is the way of Kors, van Herpen 2001 (Am. J. Cardiol.
    88:396); Haisty et al. 1993 (Am. J. Cardiol. 71:1490) describe the flat lead. An upright aVR is
    not asked for: it would lose a fifth of the interchanged arms, and no NORM record needs it.

    Figures on the 2,992 records of PTB-XL at 500 Hz on which the thresholds were chosen
    (`benchmarks/quality.py`): AUROC of noise against remarks of static noise (451) 0.839 for records,
    0.846 for leads; burst noise (67) is not recognised (0.508, 0.619); wander against baseline drift
    (253) 0.866 and 0.896. `noise` flags 1.8 % of leads (9.2 % of the remarked, 1.0 % in records
    without remark), `wander` 2.7 % (37 %, 2.1 %). `limb_reversal` fires in 1 of 1,348 NORM records
    and 0.43 % of the others; with interchanged arms in 96.3 % and 88.0 %, with right arm and left leg
    in 98.6 % and 89.8 %. With 3 uV of noise and 3 % of II between the legs, the nearly flat lead is
    seen in 80 % of NORM records for right arm and right leg, in 99 % for left arm. `flat` and
    `saturated` fire in one record each, `einthoven` in none, but in 79 of LUDB's 200; I and II
    interchanged, or I or aVR inverted, gives over 0.04 mV in 99 %. At 100 Hz noise reads 0.99 of
    what it does at 500 Hz (median of 500 records, middle half 0.91 to 1.08).
    """
    shape, kind = digital_NLT.shape, digital_NLT.dtype
    if kind not in (np.int16, np.int32) or len(shape) != 3 or not shape[2]:
        raise ValueError(f"expected int16 or int32 records, leads, times, came {kind} {shape}")
    if np.shape(gain_NL) != shape[:2]:
        raise ValueError(f"expected {shape[0]} x {shape[1]} gains, came {np.shape(gain_NL)}")
    if len(leads) != shape[1] or not 0 < fs < math.inf:
        raise ValueError(f"expected {shape[1]} leads and a rate, came {len(leads)} and {fs} Hz")
    # Memory from a shard may be read-only: if all is, there is one type to compile for.
    own_NLT = np.require(digital_NLT, requirements=["C", "A"]).view()
    own_NLT.flags.writeable = False
    place = {lead: i for i, lead in reversed(list(enumerate(leads)))}
    limb = tuple(place.get(lead, -1) for lead in ("I", "II", "III", "aVR", "aVL", "aVF"))
    block = max(1, round(BLOCK_SECONDS * fs / CHUNK))
    second, still = max(1, round(fs / (CHUNK * block))), max(2, math.ceil(STILL_SECONDS * fs))
    clip = max(CLIP_SAMPLES, math.ceil(CLIP_SECONDS * fs))
    # A sum of eight second differences is 5 bits wider than a sample.
    work_T = np.empty(shape[2] + shape[2] // CHUNK, np.int32 if kind == np.int16 else np.int64)
    places = (*limb, place.get("V6", place.get("V5", -1)))
    lengths = (max(1, round(LAG_SECONDS * fs)), block, second, still, clip)
    gain_NL = np.ascontiguousarray(gain_NL, dtype=np.float64)
    given = (own_NLT, invalid_value(kind), gain_NL, places, lengths, work_T)
    try:
        measures_MNL, *per_record = _compiled(keep=True)(*given)
    except (RuntimeError, OSError):  # there is no folder, or no room, to keep what is compiled
        measures_MNL, *per_record = _compiled(keep=False)(*given)
    return Quality(*measures_MNL, *per_record)


def flags(quality: Quality, leads: Sequence[str]) -> list[tuple[str, ...]]:
    """Name what breaks a threshold: for each record `flag:lead` or `flag`, in the order of `FLAGS`."""
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
    for n in np.flatnonzero(quality.einthoven_N > EINTHOVEN_MV).tolist():
        found[n].append("einthoven")
    for n in np.flatnonzero(quality.reversal_N).tolist():
        found[n].append("limb_reversal")
    return [tuple(names) for names in found]


_LOCK = threading.Lock()
_Three = tuple[int, int, int]


def _compiled(keep: bool) -> Callable[..., Any]:
    """Compile the loops below, once and in their own places, where they find one another."""
    from numba import njit  # half a second, which those who do not measure need not wait for

    with _LOCK:
        if not keep or not hasattr(_measure, "py_func"):
            for loop in (_runs, _chunks, _noise, _wander, _contradiction, _reversal, _measure):
                plain = getattr(loop, "py_func", loop)
                globals()[loop.__name__] = njit(cache=keep, nogil=True, error_model="numpy")(plain)
    return _measure


def _runs(lead_T: np.ndarray, low: int, high: int, least: int, inner: bool) -> int:
    """Count samples in (`inner`) runs of `least` or more, `low` or below, or `high` or above."""
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
    total, n_seconds = np.int64(0), 0
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
    n_epochs, spread = max(1, (n_seconds + EPOCH // 2) // EPOCH), 0.0
    for e in range(n_epochs):
        first, last = e * n_seconds // n_epochs, (e + 1) * n_seconds // n_epochs
        level, squares = 0.0, 0.0
        for s in range(first, last):
            level += mean_S[s] / (last - first)
        for s in range(first, last):
            squares += (mean_S[s] - level) ** 2
        spread += math.sqrt(squares / (last - first))
    return spread / n_epochs


def _contradiction(
    digital_LT: np.ndarray, gain_L: np.ndarray, invalid: int, at: _Three, weights: _Three
) -> float:
    """Give the mean absolute weighted sum of three leads about its mean, less rounding, in mV."""
    if min(at) < 0:
        return np.nan
    a_T, b_T, c_T = digital_LT[at[0]], digital_LT[at[1]], digital_LT[at[2]]
    a_gain, b_gain, c_gain = gain_L[at[0]], gain_L[at[1]], gain_L[at[2]]
    unit = max(abs(a_gain), abs(b_gain), abs(c_gain))
    a, b, c = weights[0] * unit / a_gain, weights[1] * unit / b_gain, weights[2] * unit / c_gain
    rounding = math.floor(ROUNDING * max(abs(a), abs(b), abs(c)) + 0.5)
    n_valid, total = 0, np.int64(0)
    for i in range(len(a_T)):
        valid = (a_T[i] != invalid) & (b_T[i] != invalid) & (c_T[i] != invalid)
        # A whole number: sums of such may be taken in any order, and so compile to vectors.
        rest = math.floor(a * a_T[i] + b * b_T[i] + c * c_T[i] + 0.5)
        total += rest if valid else 0
        n_valid += valid
    if n_valid == 0:
        return np.nan
    mean, total = math.floor(total / n_valid + 0.5), np.int64(0)
    for i in range(len(a_T)):
        valid = (a_T[i] != invalid) & (b_T[i] != invalid) & (c_T[i] != invalid)
        rest = math.floor(a * a_T[i] + b * b_T[i] + c * c_T[i] + 0.5)
        total += max(abs(rest - mean) - rounding, 0) if valid else 0
    return total / (n_valid * unit * weights[0])


def _reversal(
    digital_LT: np.ndarray, gain_L: np.ndarray, invalid: int, at: _Three, lag: int
) -> bool:
    """Tell whether limb electrodes seem to be interchanged; `at` are the places of I, II and V6."""
    if min(at) < 0:
        return False
    a_T, b_T, c_T = digital_LT[at[0]], digital_LT[at[1]], digital_LT[at[2]]
    a_mv, b_mv, c_mv = 1.0 / gain_L[at[0]], 1.0 / gain_L[at[1]], 1.0 / gain_L[at[2]]
    # Sums of products of the differences in I, II, III = II - I, and V6.
    s11 = s22 = s33 = s66 = s16 = s26 = 0.0
    for i in range(0, len(a_T) - lag, lag):
        j = i + lag
        earlier = (a_T[i] == invalid) | (b_T[i] == invalid) | (c_T[i] == invalid)
        if earlier | (a_T[j] == invalid) | (b_T[j] == invalid) | (c_T[j] == invalid):
            continue
        d1, d2, d6 = a_mv * (a_T[j] - a_T[i]), b_mv * (b_T[j] - b_T[i]), c_mv * (c_T[j] - c_T[i])
        s11, s22, s33 = s11 + d1 * d1, s22 + d2 * d2, s33 + (d2 - d1) * (d2 - d1)
        s66, s16, s26 = s66 + d6 * d6, s16 + d1 * d6, s26 + d2 * d6
    least, most = min(s11, s22, s33), max(s11, s22, s33)
    flat = 0.0 < least < NEARLY_FLAT**2 * (s11 + s22 + s33 - least - most)
    against_1 = s16 < AGAINST_CHEST * math.sqrt(s11 * s66)
    return flat or against_1 or s26 < AGAINST_CHEST * math.sqrt(s22 * s66)


def _measure(
    digital_NLT: np.ndarray,
    invalid: int,
    gain_NL: np.ndarray,
    at: tuple[int, int, int, int, int, int, int],
    lengths: tuple[int, int, int, int, int],
    work_T: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure all records; `at` are the places of the leads that are compared, -1 for none."""
    n_records, n_leads, n_times = digital_NLT.shape
    lag, block, second, still, clip = lengths
    measures_MNL = np.empty((5, n_records, n_leads), np.float32)
    einthoven_N, reversal_N = np.empty(n_records, np.float32), np.empty(n_records, np.bool_)
    valid_T = np.empty(n_times, digital_NLT.dtype)
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
            gain, n_still, n_clipped, n_extreme = abs(gain_NL[n, lead]), n_valid, 0, 0
            if low < high:
                n_still = _runs(own_T, high, low, still, False)
            for t in range(n_valid):
                n_extreme += (own_T[t] == low) | (own_T[t] == high)
            if n_extreme >= clip and np.int64(high) - np.int64(low) >= CLIP_SPAN:
                n_clipped = _runs(own_T, low, high, clip, True)
            # Not 1 while a sample is valid, however many are not.
            share = min(np.float32((n_times - n_valid) / n_times), np.float32(1.0 - 2.0**-24))
            measures_MNL[0, n, lead] = share if n_valid else 1.0
            measures_MNL[1, n, lead] = n_still / n_times
            measures_MNL[2, n, lead] = n_clipped / n_times
            measures_MNL[3, n, lead] = _noise(own_T, lag, block, second, work_T) / gain
            measures_MNL[4, n, lead] = _wander(own_T, block * second, work_T) / gain
        own_LT, gain_L, worst = digital_NLT[n], gain_NL[n], np.nan
        # All but the first twice, so that the weights are whole.
        for leads, weights in (
            ((at[1], at[0], at[2]), (1, -1, -1)),
            ((at[3], at[0], at[1]), (2, 1, 1)),
            ((at[4], at[0], at[2]), (2, -1, 1)),
            ((at[5], at[1], at[2]), (2, -1, -1)),
        ):
            found = _contradiction(own_LT, gain_L, invalid, leads, weights)
            worst = found if np.isnan(worst) or found > worst else worst
        einthoven_N[n] = worst
        reversal_N[n] = _reversal(own_LT, gain_L, invalid, (at[0], at[1], at[6]), lag)
    return measures_MNL, einthoven_N, reversal_N
