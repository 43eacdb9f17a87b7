"""Near copies among windows: found by what a shift leaves alone, confirmed by lining them up.

Screening. The amplitude spectrum of a window does not change when it is shifted, and little when it is
cropped. The spectra of all leads, divided by the window's energy, are whitened by the principal
components of all windows, so that what every ECG shares counts for little; the cosine between two of
them is a matrix product. Of each window the nearest `N_NEAREST` on the other side go on.

Confirmation. Two windows are lined up at the lag, of all within half a window, at which their
correlation over all leads together is largest; one lag and one gain serve all leads, and the gain is
positive, so that an inverted copy is not taken for one. It is measured where they overlap, at a
sixteenth of a sample, by Fourier transforms.

Legend: N window, L lead, T time, F frequency, D dimension, Q query, K candidate, S lag.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft

from rayecg.audit.waveforms import FS, N_TIMES, WINDOW_S, Windows, read_windows

#: Correlation from which two records are called copies where they overlap whole, and where by half, with a
#: straight line between: fewer beats in common agree more often by accident. Noise of a third of a copy's
#: RMS leaves 1 / sqrt(1 + 1/9) = 0.949, of a quarter 0.970. The most that strangers reached: 0.911 at 5.2 s
#: among 840,000 pairs of PTB-XL (eight leads), 0.926 among 15.7 million pairs of windows of MIT-BIH's DS1
#: and DS2 (two leads), and that was the one man of records 201 and 202. Among 46.8 million pairs of
#: simulated records six reached 0.95, all of them at under 6 s, and none its threshold
#: (`benchmarks/near_duplicates.py`, which with `--shards` prints what strangers of an archive reach).
LEAST, LEAST_OF_HALF = 0.95, 0.97
#: The same on one lead, where regular rhythms of one rate come closer: 0.964 at 9 s among 2.1 million pairs
#: of PTB-XL's lead II.
LEAST_OF_ONE_LEAD = 0.98
#: Correlation from which pairs are kept, so that the closest can be named.
SHOWN = 0.85
#: Candidates of a window. In a test on PTB-XL the true copy was among the first 10 of 2,992 for all
#: of 500 windows that had lost up to 4 s, or 2 s and carried noise of a tenth of their RMS.
N_NEAREST = 50
#: So few pairs are all confirmed, without screening.
FEW_PAIRS = 50_000
#: Principal components that are kept, and the windows that they are learnt from.
N_COMPONENTS, N_LEARNT = 256, 4000
#: Of the transform: windows are padded to more than twice their length, so that nothing wraps.
PADDED = 1024
#: Bins of the spectrum that are averaged, so that a cropped window keeps its own.
BINS = 5
#: The largest lag, s: half of a window must overlap.
MOST_LAG_S = 5.0
#: What the 50 Hz grid may take off a correlation: half a step, 10 ms, leaves cos(2 pi f 10 ms) of a
#: component at f, 0.81 at 10 Hz, below which the most of an ECG's energy lies.
COARSE_LOSS = 0.2
#: Steps of the fine lag in one of the grid.
FINE = 16
_BLOCK = 1024


@dataclass(frozen=True)
class Alignment:
    """Two windows lined up.

    Attributes
    ----------
    correlation
        Of all leads together where they overlap.
    lag_s
        How much later the same stretch lies in the second window.
    gain
        What the first must be multiplied by, mV per mV.
    overlap_s
        How much of them is compared.
    n_leads
        Leads that both have.
    """

    correlation: float
    lag_s: float
    gain: float
    overlap_s: float
    n_leads: int

    @property
    def least(self) -> float:
        """The correlation from which this is a copy."""
        if self.n_leads == 1:
            return LEAST_OF_ONE_LEAD
        missing = 1 - self.overlap_s / WINDOW_S
        return LEAST + (LEAST_OF_HALF - LEAST) * 2 * missing


def spectra(x_NLT: np.ndarray) -> np.ndarray:
    """Give what a shift leaves alone: the amplitude spectra of all leads, of unit length; (N, D)."""
    parts = []
    for start in range(0, len(x_NLT), _BLOCK):
        block_NLT = np.asarray(x_NLT[start : start + _BLOCK], dtype=np.float32)
        amplitude_NLF = np.abs(fft.rfft(block_NLT, PADDED, axis=-1))
        n_bins = int(20.5 / FS * PADDED) // BINS
        binned = amplitude_NLF[..., : n_bins * BINS].reshape(*amplitude_NLF.shape[:2], n_bins, BINS)
        flat_ND = binned.mean(axis=-1).reshape(len(block_NLT), -1)
        parts.append(flat_ND / np.linalg.norm(flat_ND, axis=1, keepdims=True))
    return np.concatenate(parts).astype(np.float32)


def whitened(spectrum_ND: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bring spectra to unit vectors of their principal components, each of unit variance; (N, D)."""
    n = len(spectrum_ND)
    learnt = spectrum_ND
    if n > N_LEARNT:
        learnt = spectrum_ND[np.random.default_rng(seed).choice(n, N_LEARNT, replace=False)]
    mean_D = learnt.mean(axis=0)
    _, size_C, axis_CD = np.linalg.svd(learnt - mean_D, full_matrices=False)
    # Few windows span few directions; the last ones would be noise.
    n_kept = max(1, min(N_COMPONENTS, len(learnt) // 4, int((size_C > 1e-3 * size_C[0]).sum())))
    out_ND = (spectrum_ND - mean_D) @ (axis_CD[:n_kept].T / size_C[:n_kept])
    length_N = np.linalg.norm(out_ND, axis=1, keepdims=True)
    unit_ND: np.ndarray = (out_ND / np.maximum(length_N, 1e-12)).astype(np.float32)
    return unit_ND


def candidates(
    embedding_ND: np.ndarray, query_Q: np.ndarray, among_N: np.ndarray, n_nearest: int = N_NEAREST
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each query with its nearest windows, or with all where they are few.

    Parameters
    ----------
    embedding_ND
        Unit vectors of all windows.
    query_Q, among_N
        Places of the queries and of what is searched.
    n_nearest
        How many are given.
    """
    if len(query_Q) * len(among_N) <= FEW_PAIRS or len(among_N) <= n_nearest:
        for query in query_Q:
            yield int(query), among_N
        return
    searched_DN = np.ascontiguousarray(embedding_ND[among_N].T)
    for start in range(0, len(query_Q), _BLOCK // 4):
        block_Q = query_Q[start : start + _BLOCK // 4]
        cosine_QN = embedding_ND[block_Q] @ searched_DN
        nearest_QK = np.argpartition(-cosine_QN, n_nearest - 1, axis=1)[:, :n_nearest]
        for query, nearest_K in zip(block_Q, nearest_QK, strict=True):
            yield int(query), among_N[nearest_K]


def line_up(
    windows: Windows, query: int, candidate_K: np.ndarray, least: float
) -> Iterator[tuple[int, Alignment]]:
    """Yield the candidates that correlate with a window by `least` or more, lined up."""
    x_LT = windows.x_NLT[query].astype(np.float32)
    for start in range(0, len(candidate_K), _BLOCK // 4):
        block_K = candidate_K[start : start + _BLOCK // 4]
        y_KLT = windows.x_NLT[block_K].astype(np.float32)
        used_K = windows.used_N[block_K]
        rough_K = _rough(x_LT, int(windows.used_N[query]), y_KLT, used_K)
        for k in np.flatnonzero(rough_K >= least - COARSE_LOSS):
            scales = windows.scale_N[query], windows.scale_N[block_K[k]]
            found = align(x_LT, y_KLT[k], int(windows.used_N[query]), int(used_K[k]), scales)
            if found.correlation >= least:
                yield int(block_K[k]), found


def _rough(x_LT: np.ndarray, used: int, y_KLT: np.ndarray, used_K: np.ndarray) -> np.ndarray:
    """Give the largest correlation on the 50 Hz grid with each candidate; (K,)."""
    common_KL = np.asarray(x_LT.any(axis=1) & y_KLT.any(axis=2), dtype=np.float32)
    # What one of them lacks is 0 there, and adds nothing to the product; to the energies it would.
    cross_KF = (fft.rfft(y_KLT, PADDED, axis=-1) * fft.rfft(x_LT, PADDED, axis=-1).conj()).sum(
        axis=1
    )
    most = round(MOST_LAG_S * FS)
    lag_S = np.arange(-most, most + 1)
    cross_KS = fft.irfft(cross_KF, PADDED, axis=-1)[:, lag_S]
    own_KT = _before(np.matmul(common_KL, np.square(x_LT)))
    other_KT = _before((common_KL[:, :, None] * np.square(y_KLT)).sum(axis=1))
    start_KS, stop_KS, enough_KS = _overlap(lag_S, used, used_K[:, None])
    rows = np.arange(len(y_KLT))[:, None]
    own_KS = own_KT[rows, stop_KS] - own_KT[rows, start_KS]
    other_KS = other_KT[rows, stop_KS + lag_S] - other_KT[rows, start_KS + lag_S]
    best = _ratio(cross_KS, own_KS, other_KS, enough_KS)
    largest_K: np.ndarray = best.max(axis=1)
    return largest_K


def align(
    x_LT: np.ndarray,
    y_LT: np.ndarray,
    used_x: int,
    used_y: int,
    scales: tuple[float, float] = (1.0, 1.0),
) -> Alignment:
    """Line two windows up, to a sixteenth of a sample.

    Parameters
    ----------
    x_LT, y_LT
        Signals at 50 Hz, 0 behind their `used` time points and in leads that are absent.
    used_x, used_y
        Time points that are signal.
    scales
        mV of 1 in each.
    """
    common_L = x_LT.any(axis=1) & y_LT.any(axis=1)
    x_LT, y_LT = x_LT[common_L], y_LT[common_L]
    cross_F = (fft.rfft(x_LT, PADDED, axis=-1).conj() * fft.rfft(y_LT, PADDED, axis=-1)).sum(axis=0)
    most = round(MOST_LAG_S * FS) * FINE
    lag_S = np.arange(-most, most + 1)
    cross_S = fft.irfft(cross_F, PADDED * FINE)[lag_S] * FINE
    own_T, other_T = _before(np.square(x_LT).sum(axis=0)), _before(np.square(y_LT).sum(axis=0))
    # Energies change little between two samples: those of the nearest whole lag stand for them.
    whole_S = np.round(lag_S / FINE).astype(int)
    start_S, stop_S, enough_S = _overlap(whole_S, used_x, used_y)
    own_S = own_T[stop_S] - own_T[start_S]
    other_S = other_T[stop_S + whole_S] - other_T[start_S + whole_S]
    ratio_S = _ratio(cross_S, own_S, other_S, enough_S)
    best = int(ratio_S.argmax())
    gain = cross_S[best] / max(own_S[best], 1e-12) * scales[1] / scales[0]
    return Alignment(
        correlation=float(min(ratio_S[best], 1.0)),
        lag_s=float(lag_S[best] / FINE / FS),
        gain=float(gain),
        overlap_s=float((stop_S - start_S)[best] / FS),
        n_leads=int(common_L.sum()),
    )


def _before(energy_T: np.ndarray) -> np.ndarray:
    """Give the energy before each time point; one more than there are."""
    before = np.zeros((*energy_T.shape[:-1], energy_T.shape[-1] + 1))
    np.cumsum(energy_T, axis=-1, out=before[..., 1:], dtype=np.float64)
    return before


def _overlap(
    lag_S: np.ndarray, used_x: int, used_y: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give where the first window's overlap begins and ends at each lag, and whether it is enough."""
    begins = np.maximum(0, -lag_S)
    ends = np.minimum(used_x, used_y - lag_S)
    enough = ends - begins >= N_TIMES // 2
    begins = np.broadcast_to(begins, enough.shape)
    # Where there is no overlap, any stretch will do.
    return begins, np.where(enough, ends, begins), enough


def _ratio(cross: np.ndarray, own: np.ndarray, other: np.ndarray, enough: np.ndarray) -> np.ndarray:
    floor = 1e-6 * N_TIMES
    usable = enough & (own > floor) & (other > floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = np.where(usable, cross / np.sqrt(own * other), -1.0)
    return ratio


@dataclass(frozen=True)
class Likeness:
    """Two records that resemble each other, by the two of their windows that do so most."""

    first: str
    second: str
    starts_s: tuple[float, float]
    alignment: Alignment

    @property
    def is_copy(self) -> bool:
        """Whether they are alike beyond what two recordings of different people are."""
        return self.alignment.correlation >= self.alignment.least

    def as_evidence(self) -> dict[str, Any]:
        """Give it as a finding lists it: the first record is where `gain` and `lag_s` start from."""
        found = self.alignment
        return {
            "records": [self.first, self.second],
            "correlation": round(found.correlation, 4),
            "lag_s": round(self.starts_s[1] - self.starts_s[0] + found.lag_s, 3),
            "gain": round(found.gain, 3),
            "start_s": list(self.starts_s),
            "overlap_s": round(found.overlap_s, 2),
            "n_leads": found.n_leads,
        }


class CopySearch:
    """Looks for near copies among records; their windows are read when first asked for.

    Parameters
    ----------
    shards
        A `make_shards` output.
    record_ids
        All records that will be asked for.
    """

    def __init__(self, shards: Path, record_ids: Iterable[str]) -> None:
        self.shards, self.record_ids = shards, sorted(record_ids)
        self._found: dict[tuple[frozenset[str], frozenset[str]], list[Likeness]] = {}

    @cached_property
    def windows(self) -> Windows:
        """The windows of all records."""
        return read_windows(self.shards, self.record_ids)

    @cached_property
    def embedding(self) -> np.ndarray:
        """What the windows are screened by, (N, D)."""
        return whitened(spectra(self.windows.x_NLT))

    def between(self, queries: frozenset[str], among: frozenset[str]) -> list[Likeness]:
        """Give the pairs of a record of `among` and one of `queries` that correlate by `SHOWN`.

        Each pair stands there once, the most alike first.
        """
        key = queries, among
        if key not in self._found:
            self._found[key] = self._look(queries, among)
        return self._found[key]

    def _look(self, queries: frozenset[str], among: frozenset[str]) -> list[Likeness]:
        windows, ids = self.windows, self.windows.record_ids
        query_R, among_R = (np.array([i in side for i in ids], bool) for side in (queries, among))
        if not query_R.any() or not among_R.any():
            return []
        query_Q, among_N = (
            np.flatnonzero(side_R[windows.record_N]) for side_R in (query_R, among_R)
        )
        best: dict[tuple[str, str], Likeness] = {}
        for query, candidate_K in candidates(self.embedding, query_Q, among_N):
            second = ids[windows.record_N[query]]
            for place, found in line_up(windows, query, candidate_K, SHOWN):
                first = ids[windows.record_N[place]]
                if first == second:
                    continue
                # From the first to the second, which is from the candidate to the query: the slope of a
                # regression turns into the other one by the square of the correlation.
                gain = found.correlation**2 / found.gain
                turned = replace(found, lag_s=-found.lag_s, gain=gain)
                starts = float(windows.start_N[place]), float(windows.start_N[query])
                pair = Likeness(first, second, starts, turned)
                if (first, second) not in best or (
                    best[first, second].alignment.correlation < found.correlation
                ):
                    best[first, second] = pair
        return sorted(best.values(), key=lambda pair: -pair.alignment.correlation)
