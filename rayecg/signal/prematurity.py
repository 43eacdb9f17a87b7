"""How early each beat comes, against many measures of the recording's usual interval.

Where premature beats come in runs that pauses interrupt, the intervals nearby are theirs: what they
are early against are long intervals of the whole recording, weighed by the time they take.

Legend: B beat, K neighbouring beat.
"""

from __future__ import annotations

import numpy as np

#: Beats either side that are near, and around.
NEAR, AROUND = 8, 32
#: Usual intervals of the recording that both intervals of a beat are compared with.
USUAL = ("q50", "q75", "q90", "mean", "half_time")
#: Measures of irregularity that ratios are divided by, and what is added to them first: the jitter of
#: R peaks and breathing move logarithms of intervals by about as much.
IRREGULARITY = ("change_near", "change_around", "spread_around")
LEAST_IRREGULARITY = 0.03
#: Ratios that are divided by irregularity, and how far they may reach.
SCALED = (
    "before_to_around",
    "before_to_q75",
    "before_to_half_time",
    "after_to_around",
    "after_to_q75",
)
FURTHEST = 12.0
#: Columns; see `prematurity_columns`.
PREMATURITY = (
    *(f"early_{which}_to_{usual}" for usual in USUAL for which in ("before", "after")),
    "early_before_to_around",
    "early_after_to_around",
    "early_before_to_around80",
    "early_before_to_longest_near",
    "early_before_to_previous",
    "early_next_to_after",
    "early_before_to_ten",
    "early_after_to_ten",
    "early_before_to_past",
    "early_ten_to_mean",
    *(f"early_{name}" for name in IRREGULARITY),
    *(f"early_{ratio}_per_{name}" for name in IRREGULARITY for ratio in SCALED),
)


def prematurity_columns(beat_times: np.ndarray, fs: float) -> np.ndarray:
    """Compare the intervals before and after each beat with usual ones, as natural logarithms.

    Usual are: quantiles and the mean of the recording's intervals, and the interval such that half of
    the recording's time lies in longer ones; the median and 80 % quantile of 65 intervals around, the
    longest of 17, the mean of ten, the mean of those up to this beat, and the neighbours. Irregularity
    is the median change from one logarithm to the next, near and around, and their interquartile
    range; some ratios are also divided by it.

    Parameters
    ----------
    beat_times
        All beats of a recording, samples, rising.
    fs
        Hz.

    Returns
    -------
    np.ndarray
        float32, beats by `PREMATURITY`; NaN where the recording has no such interval.
    """
    n_beats = len(beat_times)
    if n_beats < 2:
        return np.full((n_beats, len(PREMATURITY)), np.nan, dtype=np.float32)
    rr = np.diff(np.asarray(beat_times, dtype=np.float64)) / fs
    before_B, after_B = (
        np.log(np.pad(rr, pad, constant_values=np.nan)) for pad in ((1, 0), (0, 1))
    )
    sorted_rr = np.sort(rr)
    half = np.searchsorted(np.cumsum(sorted_rr), sorted_rr.sum() / 2)
    usual = dict(zip(USUAL, np.log([*np.quantile(rr, (0.5, 0.75, 0.9)), rr.mean()]), strict=False))
    usual["half_time"] = np.log(sorted_rr[min(int(half), len(rr) - 1)])
    around_BK = _context(before_B, AROUND, AROUND)
    change_B = np.abs(np.diff(before_B, prepend=np.nan))
    own = {"before": before_B, "after": after_B}
    ratio = {f"{w}_to_{name}": own[w] - value for name, value in usual.items() for w in own}
    median_B = quantile(around_BK, 0.5)
    ten_B = _log_mean(_context(before_B, 4, 5))
    ratio |= {
        "before_to_around": before_B - median_B,
        "after_to_around": after_B - median_B,
        "before_to_around80": before_B - quantile(around_BK, 0.8),
        "before_to_longest_near": before_B - quantile(_context(before_B, NEAR, NEAR), 1.0),
        "before_to_previous": np.diff(before_B, prepend=np.nan),
        "next_to_after": np.diff(after_B, append=np.nan),
        "before_to_ten": before_B - ten_B,
        "after_to_ten": after_B - ten_B,
        "before_to_past": before_B - _log_mean(_context(before_B, 10, 0)),
        "ten_to_mean": ten_B - usual["mean"],
    }
    irregularity = {
        "change_near": quantile(_context(change_B, NEAR, NEAR), 0.5),
        "change_around": quantile(_context(change_B, AROUND, AROUND), 0.5),
        "spread_around": quantile(around_BK, 0.75) - quantile(around_BK, 0.25),
    }
    scaled = [
        np.clip(ratio[name] / (value_B + LEAST_IRREGULARITY), -FURTHEST, FURTHEST)
        for value_B in irregularity.values()
        for name in SCALED
    ]
    columns = [*ratio.values(), *irregularity.values(), *scaled]
    return np.stack(columns, axis=1).astype(np.float32)


def quantile(value_BK: np.ndarray, share: float) -> np.ndarray:
    """Give a quantile of what is known in each row; NaN where nothing is.

    As `np.nanquantile`, which takes one row after another.
    """
    sorted_BK = np.sort(value_BK, axis=1)  # NaN comes last
    last_B = np.maximum((~np.isnan(value_BK)).sum(axis=1) - 1, 0)
    place_B = share * last_B
    low_B = place_B.astype(np.int64)
    high_B = np.minimum(low_B + 1, last_B)
    row_B = np.arange(len(sorted_BK))
    low_value_B = sorted_BK[row_B, low_B]
    return low_value_B + (place_B - low_B) * (sorted_BK[row_B, high_B] - low_value_B)


def _context(value_B: np.ndarray, n_before: int, n_after: int) -> np.ndarray:
    """Give the values of each beat and its neighbours, NaN beyond the ends."""
    padded = np.pad(value_B, (n_before, n_after), constant_values=np.nan)
    return np.lib.stride_tricks.sliding_window_view(padded, n_before + n_after + 1)


def _log_mean(log_BK: np.ndarray) -> np.ndarray:
    """Give the logarithm of the mean of the known intervals of each row; NaN where none is."""
    known_B = (~np.isnan(log_BK)).sum(axis=1)
    sum_B = np.nansum(np.exp(log_BK), axis=1)
    return np.log(np.divide(sum_B, known_B, out=np.full(len(sum_B), np.nan), where=known_B > 0))
