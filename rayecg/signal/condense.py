"""Recordings in which a kind of beat is the rule, made of recordings in which it is the exception.

Legend: L lead, T time, B beat, K kept beat.
"""

from __future__ import annotations

import numpy as np

#: Kept on either side of a wanted beat: what is premature is so beside an ordinary beat.
NEIGHBOURS = 1
#: Fewer kept beats than these have no rhythm of their own.
FEWEST = 40


def condense(
    signal_LT: np.ndarray, beat_times: np.ndarray, wanted_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Cut out of a recording all beats but the wanted ones and their neighbours.

    A beat is kept or goes together with the interval before it, so that each kept beat has the RR
    interval it had, and pieces are joined at R peaks.

    Parameters
    ----------
    signal_LT
        Leads by times.
    beat_times
        R peaks, whole samples, rising.
    wanted_B
        Which of them are wanted.

    Returns
    -------
    tuple
        The shorter signal, the R peaks in it, and which of the beats these are; None if too few
        beats are left.
    """
    kept_B = np.convolve(wanted_B, np.ones(2 * NEIGHBOURS + 1), mode="same") > 0.5
    kept_K = np.flatnonzero(kept_B)
    if not wanted_B.any() or len(kept_K) < FEWEST:
        return None
    # Sample t belongs to the first beat at or after it; what follows the last beat, to that one.
    owner_T = np.searchsorted(beat_times, np.arange(signal_LT.shape[1]))
    kept_T = np.append(kept_B, kept_B[-1])[owner_T]
    time_T = np.cumsum(kept_T) - 1
    return signal_LT[:, kept_T], time_T[beat_times[kept_K]], kept_K
