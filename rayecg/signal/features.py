"""Hand-made features as side inputs: rhythm and shape of beats, measurements of a recording.

Every column is made of one recording alone. What is compared is compared with the recording's own
usual values, so that it means the same in every patient.

Legend: W window (a beat), L lead, T time, B beat of the recording, K neighbouring RR interval,
M column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rayecg.signal.beat_shape import OF_LEAD, shape_columns
from rayecg.signal.beats import LOWEST_FS, rr_context
from rayecg.signal.measurements import measure, measurement_names
from rayecg.signal.prematurity import PREMATURITY, prematurity_columns, quantile

#: Groups of which each beat has its own values.
BEATWISE = ("intervals", "rhythm", "prematurity", "beat_shape")
#: Intervals either side that are "near" and "around".
NEAR, AROUND = 8, 32
#: Quantiles of the recording's RR intervals that stand for its usual one. Where premature beats are
#: the rule every median is theirs, local or not; the upper ones are of sinus rhythm still.
USUAL = (0.5, 0.75, 0.9)

#: Columns of `intervals`; see `interval_columns`.
INTERVALS = ("log_rr_before", "log_rr_after", "log_rr_around")
#: Intervals either side that the last of them is the mean of.
MEAN_OF = 5

#: Columns of `rhythm`; see `rhythm_columns`. Chosen by patient-grouped cross-validation within DS1 of
#: MIT-BIH: the intervals themselves, and ratios of neighbouring ones, gained nothing or lost.
RHYTHM = (
    *(
        f"rr_{which}_to_{usual}"
        for usual in ("near", "around", *(f"record{round(100 * q)}" for q in USUAL))
        for which in ("before", "after")
    ),
    "rr_before_to_near80",
    "rr_before_to_around80",
    "rr_before_to_past",
    "rr_both_to_around",
    "rr_before_rank",
    "rr_change_near",
    "rr_change_around",
    "rr_large_change_near",
    "rr_spread_near",
    "rr_spread_around",
)


def feature_names(groups: Sequence[str], leads: Sequence[str]) -> tuple[str, ...]:
    """Name the columns of some groups of features, in their order.

    Parameters
    ----------
    groups
        Of "intervals", "rhythm", "prematurity", "beat_shape", "measurements".
    leads
        Leads that are read; the last two groups measure each.
    """
    names = {
        "intervals": INTERVALS,
        "rhythm": RHYTHM,
        "prematurity": PREMATURITY,
        "beat_shape": tuple(f"{lead}_{name}" for lead in leads for name in OF_LEAD),
        "measurements": measurement_names(leads),
    }
    return tuple(name for group in groups for name in names[group])


def feature_columns(
    groups: Sequence[str],
    signal_LT: np.ndarray,
    fs: float,
    leads: Sequence[str],
    beat_W: np.ndarray | None,
    rhythm_times: np.ndarray | None,
) -> np.ndarray:
    """Compute features of a recording.

    Parameters
    ----------
    groups
        Of "intervals", "rhythm", "prematurity", "beat_shape", "measurements".
    signal_LT
        The recording as it is read, leads by times; absent leads are 0. Amplitudes among the
        measurements are in its unit: mV where `normalisation` is "none", as is meant; the rest does
        not depend on it.
    fs
        Hz.
    leads
        Names of the first axis.
    beat_W
        R peaks of the windows, samples at `fs`, not necessarily whole; None where windows are no
        beats.
    rhythm_times
        All R peaks of the recording, `beat_W` among them; None if those are all.

    Returns
    -------
    np.ndarray
        float32, windows by `feature_names`, or one row for all windows if `beat_W` is None; NaN for
        what cannot be measured.

    Raises
    ------
    ValueError
        If features of beats are asked for and there are none, a beat is not among all beats, or the
        rate is too low to find beats at.
    """
    beat_B: np.ndarray | None = None
    if beat_W is None:
        wrong = [group for group in groups if group in BEATWISE]
        if wrong:
            raise ValueError(
                f"expected beats for the features {', '.join(wrong)}, came a recording"
            )
        if "measurements" in groups and fs < LOWEST_FS:
            raise ValueError(
                f"measurements: expected fs of {LOWEST_FS:g} Hz or more, to find beats at, "
                f"came {fs:g}"
            )
        own_W = np.zeros(1, dtype=np.int64)
    else:
        beat_B = np.unique(beat_W if rhythm_times is None else rhythm_times)
        if len(beat_W) and not np.isin(beat_W, beat_B).all():
            raise ValueError("expected all beats of windows among the recording's, one is not")
        own_W = np.searchsorted(beat_B, beat_W)
    found = [np.empty((len(own_W), 0), dtype=np.float32)]
    for group in groups:
        if group == "measurements":
            row_M = measure(signal_LT, fs, leads, beat_B)
            found.append(np.broadcast_to(row_M, (len(own_W), len(row_M))))
        elif group in OF_RHYTHM:
            assert beat_B is not None
            found.append(OF_RHYTHM[group](beat_B, fs)[own_W])
        else:
            assert beat_B is not None
            found += [shape_columns(lead_T, fs, beat_B)[own_W] for lead_T in signal_LT]
    return np.concatenate(found, axis=1)


def interval_columns(beat_times: np.ndarray, fs: float) -> np.ndarray:
    """Give natural logarithms of RR intervals in s: before the beat, after it, the mean of ten.

    Source: de Chazal et al. 2004, with the logarithms of Llamedo and Martínez 2011. A linear model
    makes ratios of them.

    Parameters
    ----------
    beat_times
        All beats of a recording, samples, rising.
    fs
        Hz.

    Returns
    -------
    np.ndarray
        float32, beats by `INTERVALS`; NaN where the recording has no such interval. At its ends the
        mean is of those there are.
    """
    rr_BK = rr_context(beat_times, fs, MEAN_OF, MEAN_OF).astype(np.float64)
    known_B = (~np.isnan(rr_BK)).sum(axis=1)
    mean_B = np.divide(
        np.nansum(rr_BK, axis=1), known_B, out=np.full(len(rr_BK), np.nan), where=known_B > 0
    )
    columns = (rr_BK[:, MEAN_OF - 1], rr_BK[:, MEAN_OF], mean_B)
    return np.log(np.stack(columns, axis=1)).astype(np.float32)


def rhythm_columns(beat_times: np.ndarray, fs: float) -> np.ndarray:
    """Describe the rhythm at each beat.

    Natural logarithms of the ratios of the intervals before and after it to medians of the 8 and of
    the 32 intervals either side and to quantiles of the recording; of the interval before also to the
    80 % quantiles nearby and to the median of the ten before it; of the mean of both to the median
    around; the share of the recording's intervals that are shorter; and how irregular it is nearby and
    around: median (and large, 90 %) change from one logarithm to the next, and their interquartile
    range.

    Parameters
    ----------
    beat_times
        All beats of a recording, samples, rising.
    fs
        Hz.

    Returns
    -------
    np.ndarray
        float32, beats by `RHYTHM`; NaN where the recording has no such interval.
    """
    rr_BK = rr_context(beat_times, fs, AROUND, AROUND).astype(np.float64)
    if len(beat_times) < 2:
        return np.full((len(beat_times), len(RHYTHM)), np.nan, dtype=np.float32)
    log_BK = np.log(rr_BK)
    before_B, after_B = log_BK[:, AROUND - 1], log_BK[:, AROUND]
    near_BK, past_BK = log_BK[:, AROUND - NEAR : AROUND + NEAR], log_BK[:, AROUND - 11 : AROUND - 1]
    change_BK = np.abs(np.diff(log_BK, axis=1))
    near_change_BK = change_BK[:, AROUND - NEAR : AROUND + NEAR - 1]
    log_rr = np.sort(before_B[1:])
    # Times are whole samples of some rate, and so intervals are often equal: these share a rank.
    shorter_B, up_to_B = (np.searchsorted(log_rr, before_B, side) for side in ("left", "right"))
    rank_B = np.where(np.isnan(before_B), np.nan, (shorter_B + up_to_B) / (2 * len(log_rr)))
    usual = [quantile(near_BK, 0.5), quantile(log_BK, 0.5), *np.quantile(log_rr, USUAL)]
    mean_B = np.log((rr_BK[:, AROUND - 1] + rr_BK[:, AROUND]) / 2)
    columns = [
        *(own_B - other for other in usual for own_B in (before_B, after_B)),
        before_B - quantile(near_BK, 0.8),
        before_B - quantile(log_BK, 0.8),
        before_B - quantile(past_BK, 0.5),
        mean_B - usual[1],
        rank_B,
        quantile(near_change_BK, 0.5),
        quantile(change_BK, 0.5),
        quantile(near_change_BK, 0.9),
        quantile(near_BK, 0.75) - quantile(near_BK, 0.25),
        quantile(log_BK, 0.75) - quantile(log_BK, 0.25),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


#: Groups that are made of the times of beats alone.
OF_RHYTHM: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "intervals": interval_columns,
    "rhythm": rhythm_columns,
    "prematurity": prematurity_columns,
}
