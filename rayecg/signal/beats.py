"""Beats: where they are, whether a detector found them, and the rhythm around each.

Legend: T time, B beat, P pair, K neighbouring interval.

Sources
-------
- Pan, Tompkins 1985, IEEE Trans. Biomed. Eng. 32(3):230-236: the detector's family.
- Zong, Moody, Jiang 2003, Comput. Cardiol. 30:737-740: 250 ms within which there is one beat.
- ANSI/AAMI EC57:2012, and WFDB's `bxb`: how detections are compared with a reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy import signal as filters

from rayecg.signal.filters import bandpass, bridge

#: EC57: a detection counts for a reference beat that is at most so far away (s).
MATCH_S = 0.15

#: Below this rate (Hz) there is nothing above 32 Hz, and the first pass filters up to 30.
LOWEST_FS = 65.0
#: Band (Hz) whose slope tells a QRS from P and T.
STEEP_BAND = (5.0, 20.0)
#: Band (Hz) whose largest deflection is the R peak: wide beats keep their shape in it.
PEAK_BAND = (3.0, 30.0)
#: Slopes are averaged over the width of a QRS (s).
QRS_S = 0.1
#: One beat within this time (s).
REFRACTORY_S = 0.25
#: Within this time (s), the weaker of two waves is a P or T wave if it is half as steep.
T_WAVE_S, T_WAVE_SHARE = 0.36, 0.5
#: Share of the usual steepness around that makes a beat, and a beat that is searched for.
THRESHOLD, SEARCHED_THRESHOLD = 0.3, 0.15
#: A beat is searched for in gaps of so many usual intervals.
LONG_GAP = 1.66
#: What is usual is a median over so many beats either side, and so many intervals either side.
LEVEL_BEATS, RHYTHM_INTERVALS = 8, 4
#: The usual steepness never falls below this share of the record's: an electrode that came off
#: leaves noise, not beats.
LOWEST_LEVEL = 0.1
#: The R peak lies within this time (s) of the steepest part.
REACH_S = 0.075
#: Deflections below this (mV) are no beats, however silent the rest is.
SMALLEST_MV = 0.01
#: Keeps a division by a steepness of 0 from being one.
TINY = float(np.finfo(np.float64).tiny)


def detection_lead(leads: Sequence[str]) -> int:
    """Give the position of the lead that beats are sought in: MLII, else II, else V5, else the first.

    Records are held with the standard leads first. V5 is what the two MIT-BIH records without MLII
    have as the first signal of their files, so that on MIT-BIH the rule is "MLII, else the first".
    """
    for lead in ("MLII", "II", "V5"):
        if lead in leads:
            return list(leads).index(lead)
    return 0


def detect_beats(signal_T: np.ndarray, fs: float) -> np.ndarray:
    """Find the R peaks of one lead.

    sleepecg's Pan-Tompkins detector passes first and shows how steep the beats of each stretch are.
    The second pass looks at all steep places again, with what comes before and after: one stays if
    it has a share of the usual steepness around it, and is no P or T wave of a much steeper
    neighbour; gaps are searched once more with half the threshold; each beat is then moved to the
    largest deflection near it.

    Differs from Pan and Tompkins by: medians over both sides instead of running averages of the past;
    the rule for T waves (half as steep, within 360 ms) drops P waves too; the two thresholds are
    shares of the usual steepness alone, without a noise level; 250 ms instead of 200 between beats.
    Theirs are 1.66 intervals as a gap, and half the threshold in it.

    What was chosen on MIT-BIH: the rules were made with all its records in sight. The values of
    `REFRACTORY_S` (of 0.2, 0.25, 0.28), `THRESHOLD` (0.25, 0.3, 0.35, 0.4), the upper edge of
    `STEEP_BAND` (15, 20, 25) and `PEAK_BAND` were compared on DS1 alone; `reports/mitbih_detection`
    gives DS1 and DS2 apart.

    Parameters
    ----------
    signal_T
        mV; samples that are not finite are invalid. A line is drawn over them, and no beat lies there.
    fs
        Its sampling rate in Hz, 100 or more for good results; below 65 Hz nothing is found.

    Returns
    -------
    np.ndarray
        int64, samples, rising; empty if the signal is flat, too short or all invalid.
    """
    import sleepecg  # its import is slow

    nothing = np.empty(0, dtype=np.int64)
    signal_T = np.asarray(signal_T, dtype=np.float64)
    n_times, n_refractory = len(signal_T), round(REFRACTORY_S * fs)
    invalid_T = ~np.isfinite(signal_T)
    if fs < LOWEST_FS or n_times < 2 * n_refractory or invalid_T.all():
        return nothing
    signal_T = bridge(signal_T[None], invalid_T[None])[0]
    signal_T -= np.median(signal_T)
    if np.ptp(signal_T) < SMALLEST_MV:
        return nothing
    # The library reserves memory for a beat every 0.2 s and none more: two seconds make room.
    held_T = np.pad(signal_T, (0, round(2 * fs)), mode="edge")
    first_B = sleepecg.detect_heartbeats(held_T, fs)
    first_B = first_B[first_B < n_times]
    steep_T = _steepness(signal_T, fs)
    candidate_B = filters.find_peaks(steep_T, distance=max(n_refractory, 1))[0]
    if not len(first_B) or not len(candidate_B):
        return nothing
    level_B = ndimage.maximum_filter1d(steep_T, 2 * round(QRS_S * fs) + 1)[first_B]
    beat_B, n_passes = first_B, 2  # the second time, the level is that of the beats that stayed
    for _ in range(n_passes):
        usual_B = ndimage.median_filter(level_B, 2 * LEVEL_BEATS + 1, mode="nearest")
        usual_B = np.maximum(usual_B, max(LOWEST_LEVEL * np.median(usual_B), TINY))
        strength_B = steep_T[candidate_B] / np.interp(candidate_B, beat_B, usual_B)
        strong_B = strength_B > THRESHOLD
        beat_B = _without_p_and_t(candidate_B[strong_B], strength_B[strong_B], T_WAVE_S * fs)
        if not len(beat_B):
            return nothing
        level_B = steep_T[beat_B]
    searched_B = strength_B > SEARCHED_THRESHOLD
    beat_B = _search_gaps(
        beat_B, candidate_B[searched_B], strength_B[searched_B], round(T_WAVE_S * fs)
    )
    peak_T = np.abs(bandpass(signal_T[None], fs, PEAK_BAND)[0])
    beat_B = _highest_near(peak_T, beat_B, round(REACH_S * fs))
    return beat_B[(peak_T[beat_B] >= SMALLEST_MV) & ~invalid_T[beat_B]]


def _steepness(signal_T: np.ndarray, fs: float) -> np.ndarray:
    """Give the root mean square slope over the width of a QRS, mV/s."""
    slope_T = np.gradient(bandpass(signal_T[None], fs, STEEP_BAND)[0].astype(np.float64)) * fs
    mean_T = ndimage.uniform_filter1d(slope_T**2, max(round(QRS_S * fs), 1))
    return np.sqrt(np.maximum(mean_T, 0.0))  # a running sum may end a little below 0


def _without_p_and_t(time_B: np.ndarray, strength_B: np.ndarray, within: float) -> np.ndarray:
    """Leave out waves that stand close to one more than twice as strong, before or after it."""
    kept: list[int] = []
    for i in range(len(time_B)):
        while kept and time_B[i] - time_B[kept[-1]] < within:
            if strength_B[kept[-1]] >= T_WAVE_SHARE * strength_B[i]:
                break
            kept.pop()
        near = bool(kept) and time_B[i] - time_B[kept[-1]] < within
        if not near or strength_B[i] >= T_WAVE_SHARE * strength_B[kept[-1]]:
            kept.append(i)
    return time_B[kept]


def _search_gaps(
    beat_B: np.ndarray, candidate_B: np.ndarray, strength_B: np.ndarray, margin: int
) -> np.ndarray:
    """Add the strongest candidate of every gap that is too long for the rhythm around it."""
    rr_B = np.diff(beat_B)
    usual_B = ndimage.median_filter(rr_B, 2 * RHYTHM_INTERVALS + 1, mode="nearest")
    added = []
    for gap in np.flatnonzero(rr_B > LONG_GAP * usual_B):
        start = np.searchsorted(candidate_B, beat_B[gap] + margin)
        stop = np.searchsorted(candidate_B, beat_B[gap + 1] - margin)
        if start < stop:
            added.append(candidate_B[start + np.argmax(strength_B[start:stop])])
    return np.sort(np.concatenate([beat_B, np.array(added, dtype=beat_B.dtype)]))


def _highest_near(value_T: np.ndarray, time_B: np.ndarray, reach: int) -> np.ndarray:
    """Move each time to the highest value within reach."""
    near_BK = np.clip(time_B[:, None] + np.arange(-reach, reach + 1), 0, len(value_T) - 1)
    return np.take_along_axis(near_BK, value_T[near_BK].argmax(axis=1)[:, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Matched:
    """How detections agree with reference beats.

    Attributes
    ----------
    tp, fn, fp
        Reference beats that were detected, that were missed, and detections of no reference beat.
    pair_P2
        Positions of each pair among the reference beats and among the detections, rising in both.
    """

    tp: int
    fn: int
    fp: int
    pair_P2: np.ndarray


def match_beats(
    reference_times: np.ndarray, detected_times: np.ndarray, tolerance: float
) -> Matched:
    """Pair reference beats and detections one to one, as WFDB's `bxb` does.

    The earlier of the next two is paired with the other if they are no further apart than the
    tolerance, unless the other is as near to the one that follows; then it stays alone.

    Parameters
    ----------
    reference_times, detected_times
        Rising, in the same unit.
    tolerance
        Largest distance of a pair, in that unit.
    """
    reference, detected = np.asarray(reference_times), np.asarray(detected_times)
    # Lists, because single elements of an array are slow; nothing is near the end marks.
    times = [[*reference.tolist(), np.inf], [*detected.tolist(), np.inf]]
    at, pairs = [0, 0], []
    while at[0] < len(reference) and at[1] < len(detected):
        early = int(times[1][at[1]] < times[0][at[0]])
        time, other = times[early][at[early]], times[1 - early][at[1 - early]]
        if other - time <= tolerance and other - time < abs(other - times[early][at[early] + 1]):
            pairs.append(tuple(at))
            at[1 - early] += 1
        at[early] += 1
    tp = len(pairs)
    pair_P2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Matched(tp, len(reference) - tp, len(detected) - tp, pair_P2)


def compare_beats(
    reference_times: np.ndarray,
    detected_times: np.ndarray,
    fs: float,
    start_s: float = 0.0,
    left_out: Sequence[tuple[int, int]] = (),
) -> Matched:
    """Compare detections with a reference as EC57 asks: 150 ms, a learning period, VF left out.

    All beats are paired first, so that a pair across an edge is a pair. Then a pair counts by its
    reference beat, and what is alone by itself.

    Parameters
    ----------
    reference_times, detected_times
        Samples at `fs`, rising.
    fs
        Hz.
    start_s
        Length of the learning period (s); what lies in it does not count.
    left_out
        Stretches (first and last sample) that do not count: those of ventricular flutter.
    """
    reference, detected = np.asarray(reference_times), np.asarray(detected_times)
    matched = match_beats(reference, detected, round(MATCH_S * fs))
    counts: list[np.ndarray] = []
    for times in (reference, detected):
        inside = times < start_s * fs
        for first, last in left_out:
            inside |= (times >= first) & (times <= last)
        counts.append(~inside)
    paired = counts[0][matched.pair_P2[:, 0]]
    alone = [np.delete(own, matched.pair_P2[:, i]).sum() for i, own in enumerate(counts)]
    return Matched(int(paired.sum()), int(alone[0]), int(alone[1]), matched.pair_P2[paired])


def rr_context(beat_times: np.ndarray, fs: float, n_before: int, n_after: int) -> np.ndarray:
    """Give the RR intervals around each beat.

    Parameters
    ----------
    beat_times
        All beats of a recording, samples at `fs`, rising.
    fs
        Hz.
    n_before, n_after
        How many intervals end at a beat or earlier, and begin at it or later.

    Returns
    -------
    np.ndarray
        float32, s, beats by `n_before + n_after` intervals in their order in time; NaN where the
        recording has none.
    """
    n_beats, n_intervals = len(beat_times), n_before + n_after
    if not n_beats or not n_intervals:
        return np.empty((n_beats, n_intervals), dtype=np.float32)
    rr = np.diff(np.asarray(beat_times, dtype=np.float64)) / fs
    padded = np.pad(rr, (n_before, n_after), constant_values=np.nan).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(padded, n_intervals).copy()
