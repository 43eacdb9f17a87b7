"""Shift of scores and of quality against what a card says of its training.

Legend: K bin of the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.special import chdtri, ndtri

#: Of the population stability index: below the first no shift, above the second a large one. They are
#: conventions of credit scoring (Siddiqi 2006, Credit Risk Scorecards), not derived for recordings.
PSI_SOME, PSI_LARGE = 0.1, 0.25
#: With fewer rows, here or in the reference, nothing is said of shift.
FEWEST = 100
#: What chance alone makes in fewer cases is told; a difference of shares also needs this size.
CHANCE, DIFFERENCE = 0.01, 0.02
#: Scores are higher, or lower, if the gap to the other side is no more than this of the gap to theirs.
ONE_SIDED = 0.1
AS_BEFORE = "as in validation"


def score_shift(
    count_K: np.ndarray, shares_K: Iterable[float], n_reference: int, growth: float = 0.0
) -> dict[str, Any]:
    """Compare scores with those of the reference.

    Parameters
    ----------
    count_K
        Scores in each bin of the reference.
    shares_K, n_reference
        The reference's share of each bin, and of how many examples.
    growth
        The share that is decided positive less that of the reference.

    Returns
    -------
    dict
        `psi`: the population stability index, sum of (p - q) ln(p / q), half a row being added to each
        bin as none may be empty. `ks`: the largest difference of cumulative shares at the bins' edges.
        `chance`: what the index of as many independent rows of one distribution exceeds in one of a
        hundred cases; (1 / n + 1 / m) times a chi-squared quantile of K - 1 degrees of freedom
        (Yurdakul and Naranjo 2020, Statistical properties of the population stability index). Rows of
        one patient are not independent, which makes it larger. `reading`: what it comes to, in words:
        "much" and "somewhat" say how large the index is; "higher" and "lower" are said only where
        nearly all of the difference lies on one side and `growth` does not go the other way. The
        first three are None with fewer than `FEWEST` rows on a side.
    """
    n, n_bins, shares = int(count_K.sum()), len(count_K), np.asarray(list(shares_K), dtype=float)
    if min(n, n_reference) < FEWEST:
        few = f"too few to say ({n} here, {n_reference} in the reference; {FEWEST} wanted)"
        return {"psi": None, "ks": None, "chance": None, "reading": few}
    p_K = (count_K + 0.5) / (n + 0.5 * n_bins)
    q_K = (shares * n_reference + 0.5) / (n_reference + 0.5 * n_bins)
    psi = float(((p_K - q_K) * np.log(p_K / q_K)).sum())
    gap_K = np.cumsum(count_K / n - shares)
    chance = float(chdtri(max(n_bins - 1, 1), CHANCE)) * (1 / n + 1 / n_reference)
    reading = AS_BEFORE
    if psi >= PSI_SOME and psi > chance:
        lower, higher = max(float(gap_K.max()), 0.0), max(float(-gap_K.min()), 0.0)
        how = "otherwise spread"
        if lower <= ONE_SIDED * higher and growth >= 0:
            how = "higher"
        elif higher <= ONE_SIDED * lower and growth <= 0:
            how = "lower"
        reading = f"{'much' if psi >= PSI_LARGE else 'somewhat'} {how} than in validation"
    ks = float(np.abs(gap_K).max())
    return {"psi": rounded(psi), "ks": rounded(ks), "chance": rounded(chance), "reading": reading}


def flag_shift(
    counts: Mapping[str, int], n_read: int, quality: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Compare shares of flags with those of the training records.

    Parameters
    ----------
    counts, n_read
        Recordings with each flag, and how many were read.
    quality
        `training.reference.quality` of a card; None, or one that was not measured, compares nothing.

    Returns
    -------
    dict
        By flag `n` and `share`; with a reference also `reference`, `difference` and `reading`, which is
        empty unless the shares differ by `DIFFERENCE` and by more than chance makes.
    """
    known = quality["flags"] if quality and quality["measured"] else None
    flags = {}
    for name in sorted({*counts, *(known or ())}):
        share = counts.get(name, 0) / n_read if n_read else None
        own: dict[str, Any] = {
            "n": counts.get(name, 0),
            "share": share_of(counts.get(name, 0), n_read),
        }
        if known is not None and quality is not None and share is not None:
            before, m = known.get(name, 0.0), quality["n_records"]
            own |= {"reference": before, "difference": rounded(share - before), "reading": ""}
            pooled = (share * n_read + before * m) / (n_read + m)
            error = (pooled * (1 - pooled) * (1 / n_read + 1 / m)) ** 0.5
            least = max(DIFFERENCE, float(ndtri(1 - CHANCE / 2)) * error)
            if min(n_read, m) >= FEWEST and abs(share - before) >= least:
                how = "more" if share > before else "fewer"
                own["reading"] = (
                    f"{name}: flagged in {how} recordings than in training "
                    f"({percent(share)} here, {percent(before)} there)"
                )
        flags[name] = own
    return flags


def rounded(value: float | None) -> float | None:
    """Give six digits; None for what is not defined."""
    return float(f"{value:.6g}") if value is not None and np.isfinite(value) else None


def share_of(n: int, of: int) -> float | None:
    """Give a share to six digits, and 1 for all of them alone; None of nothing."""
    if not of:
        return None
    return 1.0 if n == of else min(float(f"{n / of:.6g}"), 1 - 1e-6)


def percent(share: float | None) -> str:
    """Give a share in percent, never rounded to all or to none."""
    if share is None:
        return "-"
    if 0 < share < 0.001:
        return "< 0.1 %"
    # From here on three digits would say 100.
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.3g} %"
