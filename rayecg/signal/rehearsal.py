"""Recordings rearranged: rhythms that few patients have, of beats that other patients had.

A rearranged recording is a list of beats of one recording and the RR interval before each; nothing
is drawn but the order of beats and the lengths of intervals.

Legend: B beat of a recording, K beat of a rearranged one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

#: Beats of a rearranged recording.
BEATS_IN_RUNS, BEATS_IRREGULAR = 700, 600
#: Runs have this mean length, at least and at most; so many ordinary beats follow one and a pause, on
#: average and at most; the pause is up to so many intervals; premature intervals move towards the
#: usual one by up to this share of the way. The second are milder.
RUN, FOLLOW, PAUSE, MILD = ((2.0, 20.0), (2.0, 30.0)), 3.0, (3.0, 4.0), ((0.0, 0.6), (0.2, 0.9))
#: Share of the usual interval that mild ones move towards.
MILDEST = 0.95
#: From one premature beat the next that the recording had follows, but for this share of times.
JUMPS = 0.05
#: How often another beat (a ventricular one) follows a pause, and how much longer the interval after
#: it is; a recording has them if there are more than the third.
OTHER, AFTER_OTHER, FEWEST_OTHERS = 0.03, 1.3, 5
#: Median interval (s) and spread of the logarithms of irregular rhythms, and their shortest (s).
MEDIAN_S, SPREAD, SHORTEST_S = (0.45, 1.1), (0.08, 0.3), 0.28


@dataclass(frozen=True)
class Rearranged:
    """Positions of beats among those of their recording, and the interval (s) before each."""

    beat_K: np.ndarray
    rr_K: np.ndarray


def recordings(log_before_B: np.ndarray, log_after_B: np.ndarray) -> Iterator[np.ndarray]:
    """Part beats where one's interval after it is not the next one's before it.

    Parameters
    ----------
    log_before_B, log_after_B
        Logarithms of the intervals of beats, recording after recording.

    Yields
    ------
    np.ndarray
        Positions of beats that follow one another.
    """
    if len(log_before_B):
        apart = np.flatnonzero(log_before_B[1:] != log_after_B[:-1]) + 1  # also where either is NaN
        yield from np.split(np.arange(len(log_before_B)), apart)


def runs_and_pauses(
    rr_B: np.ndarray,
    ordinary_B: np.ndarray,
    premature_B: np.ndarray,
    milder: bool,
    rng: np.random.Generator,
) -> Rearranged | None:
    """Make runs of the premature beats, parted by pauses and few ordinary beats: a sick sinus.

    Parameters
    ----------
    rr_B
        Interval before each beat of a recording (s); NaN where it has none.
    ordinary_B, premature_B
        Which beats are which; others are sprinkled in.
    milder
        Whether premature beats come less early, and pauses may be longer.
    rng
        Decides on everything.

    Returns
    -------
    Rearranged or None
        None if there are no premature or no ordinary beats.
    """
    known_B = np.isfinite(rr_B)
    early = np.flatnonzero(premature_B & known_B)
    usual = np.flatnonzero(ordinary_B & known_B)
    other = np.flatnonzero(~premature_B & ~ordinary_B & known_B)
    if not len(early) or not len(usual):
        return None
    after_early = usual[premature_B[usual - 1] & (usual > 0)]
    if len(after_early) < 3:  # what stands after premature beats is too little to draw from
        after_early = usual
    median = float(np.median(rr_B[usual]))
    run, follow = rng.uniform(*RUN[milder]), rng.uniform(0, FOLLOW)
    pause, mild = rng.uniform(1, PAUSE[milder]), rng.uniform(*MILD[milder])
    beats: list[int] = []
    intervals: list[float] = []

    def add(beat: int, interval: float) -> None:
        beats.append(beat)
        intervals.append(interval)

    at = int(rng.integers(len(early)))
    while len(beats) < BEATS_IN_RUNS:
        for _ in range(rng.geometric(1 / run)):
            own = float(rr_B[early[at]])
            add(early[at], own ** (1 - mild) * (MILDEST * median) ** mild if own < median else own)
            at = (at + 1) % len(early) if rng.random() > JUMPS else int(rng.integers(len(early)))
        first = rng.choice(after_early)
        add(first, max(float(rr_B[first]), median) * rng.uniform(1, pause))
        for beat in rng.choice(usual, rng.poisson(follow)):
            add(beat, float(rr_B[beat]))
        if len(other) > FEWEST_OTHERS and rng.random() < OTHER:
            beat, last = rng.choice(other), rng.choice(usual)
            add(beat, float(rr_B[beat]))
            add(last, AFTER_OTHER * float(rr_B[last]))
    return Rearranged(np.array(beats, dtype=np.int64), np.array(intervals))


def irregular(
    rr_B: np.ndarray, ordinary_B: np.ndarray, premature_B: np.ndarray, rng: np.random.Generator
) -> Rearranged | None:
    """Draw every interval from one log-normal distribution: an atrium that fibrillates.

    No beat is premature there; the premature ones are left out, and others keep shorter intervals.

    Returns
    -------
    Rearranged or None
        None if nothing stays.
    """
    kept = np.flatnonzero(~premature_B)
    if not len(kept):
        return None
    start = int(rng.integers(0, max(len(kept) - BEATS_IRREGULAR, 1)))
    kept = kept[start : start + BEATS_IRREGULAR]
    median, spread = rng.uniform(*MEDIAN_S), rng.uniform(*SPREAD)
    rr_K = np.maximum(median * np.exp(spread * rng.standard_normal(len(kept))), SHORTEST_S)
    rr_K = np.where(ordinary_B[kept], rr_K, np.fmin(rr_K, rr_B[kept]))
    return Rearranged(kept, rr_K)
