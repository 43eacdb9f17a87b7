"""What metrics are in resamples of whole groups of examples, patients as a rule.

Nothing loops over resamples: a resample is a weight for each group, every label's scores are sorted
once, and examples are added up by group where that is less work.

Legend: N example, C label, G group, R resample, K distinct score of the class that steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

#: Metrics of a label, the first two of its scores, the others of its decisions.
BY_SCORE = ("auroc", "auprc")
BY_DECISION = ("f1", "sensitivity", "ppv")

#: Numbers that one block of an array may hold: 16 MB of float32.
_BLOCK = 4_000_000


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each resample holds each group; runs on parts of the same groups can share it.

    Attributes
    ----------
    names_G
        The groups, sorted.
    counts_GR
        Multiplicities, uint8.
    """

    names_G: np.ndarray
    counts_GR: np.ndarray

    @classmethod
    def of(cls, groups_N: Any, n_resamples: int = 2000, seed: int = 0) -> Resamples:
        """Draw from the groups of some examples, whose order does not matter.

        Raises
        ------
        ValueError
            If there is no group, one is missing (NaN or None), or `n_resamples` is below 1.
        """
        if isinstance(n_resamples, bool) or int(n_resamples) != n_resamples or n_resamples < 1:
            raise ValueError(f"n_resamples must be a whole number of at least 1, not {n_resamples}")
        names_G = np.unique(as_groups(groups_N))
        n_groups = len(names_G)
        if not n_groups:
            raise ValueError("there is no example to draw from")
        counts_GR = np.empty((n_groups, n_resamples), dtype=np.uint8)
        rng = np.random.default_rng(seed)
        step = max(_BLOCK // n_groups, 1)
        for start in range(0, n_resamples, step):
            n = min(step, n_resamples - start)
            drawn_RG = rng.integers(n_groups, size=(n, n_groups))
            drawn_RG += np.arange(0, n * n_groups, n_groups)[:, None]
            counts = np.bincount(drawn_RG.ravel(), minlength=n * n_groups)
            # Above 255 groups a count above 255 has a probability below 1e-500.
            counts_GR[:, start : start + n] = counts.reshape(n, n_groups).T
        return cls(names_G, counts_GR)

    @classmethod
    def whole(cls, groups_N: Any) -> Resamples:
        """Give the one that holds every group once: the examples as they are."""
        names_G = np.unique(as_groups(groups_N))
        return cls(names_G, np.ones((len(names_G), 1), dtype=np.uint8))

    @classmethod
    def leaving_one_out(cls, groups_N: Any) -> Iterator[Resamples]:
        """Yield those that lack one group each, in the order of names, in parts that fit into memory."""
        names_G = np.unique(as_groups(groups_N))
        n_groups = len(names_G)
        step = max(_BLOCK // max(n_groups, 1), 1)
        for start in range(0, n_groups, step):
            left_out = np.arange(start, min(start + step, n_groups))
            counts_GR = np.ones((n_groups, len(left_out)), dtype=np.uint8)
            counts_GR[left_out, np.arange(len(left_out))] = 0
            yield cls(names_G, counts_GR)

    @property
    def n_resamples(self) -> int:
        """How many there are."""
        return self.counts_GR.shape[1]

    def index(self, groups_N: Any) -> np.ndarray:
        """Give the places of groups in `names_G`; ValueError if one is not there."""
        groups_N = as_groups(groups_N)
        place_N = np.searchsorted(self.names_G, groups_N)
        place_N = np.minimum(place_N, len(self.names_G) - 1)
        wrong_N = self.names_G[place_N] != groups_N
        if np.any(wrong_N):
            raise ValueError(f"group {str(groups_N[wrong_N][0])!r} is none of those drawn from")
        return place_N


def label_values(
    metric: str,
    targets_NC: np.ndarray,
    scores_NC: np.ndarray,
    groups_N: Any,
    resamples: Resamples,
) -> np.ndarray:
    """Give a label metric of every resample; (R, C), NaN where it is not defined.

    Parameters
    ----------
    metric
        "auroc", "auprc", "f1", "sensitivity" or "ppv".
    targets_NC, scores_NC
        (N, C); targets 0 or 1, and decisions in the place of scores where the metric rests on them.
    groups_N
        All of them among those of `resamples`; some of these may have no example here.

    Raises
    ------
    ValueError
        If shapes do not match, something is missing, or a group is not among those drawn from.
    """
    targets_NC, scores_NC = np.asarray(targets_NC), np.asarray(scores_NC)
    if metric not in (*BY_SCORE, *BY_DECISION):
        known = ", ".join((*BY_SCORE, *BY_DECISION))
        raise ValueError(f"no metric of a label is named {metric!r}; known: {known}")
    check(targets_NC, scores_NC, 2, metric)
    targets_NC = targets_NC.astype(bool)
    place_N, counts_GR = _present(groups_N, resamples, len(targets_NC))
    with np.errstate(divide="ignore", invalid="ignore"):  # what is undefined is NaN
        if metric in BY_SCORE:
            return _by_score(metric, targets_NC, scores_NC, place_N, counts_GR)
        return _by_decision(metric, targets_NC, scores_NC.astype(bool), place_N, counts_GR)


def accuracy_values(
    targets_NC: np.ndarray, decisions_NC: np.ndarray, groups_N: Any, resamples: Resamples
) -> np.ndarray:
    """Give the accuracy of every resample, as `label_values` gives metrics of labels; (R,)."""
    targets_NC, decisions_NC = np.asarray(targets_NC), np.asarray(decisions_NC)
    check(targets_NC, decisions_NC, 2, "accuracy")
    place_N, counts_GR = _present(groups_N, resamples, len(targets_NC))
    right_N = (targets_NC == decisions_NC).all(axis=1)
    both_N2 = np.stack([right_N, np.ones_like(right_N)], axis=1)
    drawn_R2 = _drawn(_by_group(both_N2, place_N, len(counts_GR)), counts_GR)
    with np.errstate(invalid="ignore"):
        share_R: np.ndarray = drawn_R2[:, 0] / drawn_R2[:, 1]
    return share_R


def _present(groups_N: Any, resamples: Resamples, n_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the groups of examples as numbers, and the multiplicities of those there are."""
    if len(groups_N) != n_examples:
        raise ValueError(
            f"expected a group for each of {n_examples} examples, came {len(groups_N)}"
        )
    own_G, place_N = np.unique(resamples.index(groups_N), return_inverse=True)
    return place_N, resamples.counts_GR[own_G]


def check(targets: np.ndarray, scores: np.ndarray, n_axes: int = 0, metric: str = "") -> None:
    """Refuse what no metric can be computed of; any axes and any values if nothing is said of them.

    Raises
    ------
    ValueError
        If shapes differ, there is no example, something is NaN or no number, or targets (or what
        stands for the decisions of `metric`) are not 0 or 1.
    """
    if targets.shape != scores.shape or targets.ndim not in ((n_axes,) if n_axes else (1, 2)):
        axes = {1: "(N,)", 2: "(N, C)"}.get(n_axes, "(N,) or (N, C)")
        raise ValueError(
            f"expected targets and scores {axes}, came {targets.shape}, {scores.shape}"
        )
    if not targets.size:
        raise ValueError(f"there is no example: targets are {targets.shape}")
    what = "scores" if metric in ("", *BY_SCORE) else "decisions"
    for name, values in (("targets", targets), (what, scores)):
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be numbers, not {values.dtype}")
        if np.isnan(values).any():
            raise ValueError(f"{name} hold NaN")
        if metric and name != "scores" and not ((values == 0) | (values == 1)).all():
            raise ValueError(f"{name} must be 0 or 1")


def as_groups(groups_N: Any) -> np.ndarray:
    """Give groups as an array that sorts; ValueError if one is missing."""
    if not hasattr(groups_N, "dtype"):
        groups_N = np.array(groups_N, dtype=object)  # numpy would turn NaN among names into "nan"
    groups_N = np.asarray(groups_N)
    if groups_N.ndim != 1:
        raise ValueError(f"groups must have one axis, came {groups_N.shape}")
    if groups_N.dtype.kind == "O":
        values = groups_N.tolist()
        # What is not there, NaN or pandas' NA, does not equal itself.
        missing = [value is None or str(value == value) != "True" for value in values]
        types = sorted({type(value).__name__ for value in values})
    else:
        missing, types = (groups_N != groups_N).tolist(), []
    if any(missing):
        raise ValueError(f"example {missing.index(True)} has no group")
    if len(types) > 1:
        raise ValueError(f"groups must be of one type, came {' and '.join(types)}")
    return np.asarray(groups_N.tolist()) if types else groups_N


def n_effective(groups_N: Any) -> float:
    """Count the groups of equal size that would vary as much: (sum n_g)^2 / sum n_g^2 (Kish 1965)."""
    return float(_kish(np.unique(as_groups(groups_N), return_counts=True)[1][:, None])[0])


def n_effective_of_labels(targets_NC: np.ndarray, groups_N: Any) -> np.ndarray:
    """Count for each label, as `n_effective` does, the groups that its rarer class comes from; (C,).

    Of the other class, where there is but one. What is known of a label is known from these: a label
    that six patients have is not known from three hundred.
    """
    targets_NC = np.asarray(targets_NC, dtype=bool)
    place_N = np.unique(as_groups(groups_N), return_inverse=True)[1]
    n_groups = int(place_N.max()) + 1
    both = [_kish(_by_group(own_NC, place_N, n_groups)) for own_NC in (targets_NC, ~targets_NC)]
    fewest_C: np.ndarray = np.fmin(*both)
    return fewest_C


def _kish(sizes_GC: np.ndarray) -> np.ndarray:
    sizes_GC = sizes_GC.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of no example at all there is none
        n_C: np.ndarray = sizes_GC.sum(axis=0) ** 2 / (sizes_GC**2).sum(axis=0)
    return n_C


def _by_decision(
    metric: str,
    targets_NC: np.ndarray,
    decisions_NC: np.ndarray,
    place_N: np.ndarray,
    counts_GR: np.ndarray,
) -> np.ndarray:
    flags = np.concatenate([targets_NC & decisions_NC, targets_NC, decisions_NC], axis=1)
    drawn = _drawn(_by_group(flags, place_N, len(counts_GR)), counts_GR)
    hit_RC, positive_RC, chosen_RC = np.split(drawn, 3, axis=1)
    if metric == "f1":
        f1_RC = 2 * hit_RC / (positive_RC + chosen_RC)
        return np.where(positive_RC > 0, f1_RC, np.nan)
    share_RC: np.ndarray = hit_RC / (positive_RC if metric == "sensitivity" else chosen_RC)
    return share_RC


def _by_group(flags_NC: np.ndarray, place_N: np.ndarray, n_groups: int) -> np.ndarray:
    """Count in each group; (G, C)."""
    columns = [np.bincount(place_N[own_N], minlength=n_groups) for own_N in flags_NC.T]
    return np.stack(columns, axis=1).astype(np.float64)


def _drawn(totals_GC: np.ndarray, counts_GR: np.ndarray) -> np.ndarray:
    """Add up the groups' totals in every resample; (R, C)."""
    return np.concatenate([m_GR.T @ totals_GC for _, m_GR in _blocks(counts_GR, 0, np.float64)])


def _blocks(counts_GR: np.ndarray, n_rows: int, dtype: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """Give the resamples in parts that fit into memory beside `n_rows` rows of their own."""
    n_groups, n_resamples = counts_GR.shape
    step = max(_BLOCK // max(n_groups, n_rows, 1), 1)
    for start in range(0, n_resamples, step):
        part = slice(start, start + step)
        yield part, counts_GR[:, part].astype(dtype)


@dataclass(frozen=True)
class _Steps:
    """One label's examples in the order of their scores, added up by group.

    Attributes
    ----------
    weight_KG
        Examples of one class at each distinct score of this class.
    rise_KG
        Examples of the other class from the score before up to this one; its cumulative sum over K is
        how many lie below, ties by their share.
    """

    weight_KG: csr_matrix
    rise_KG: csr_matrix

    @classmethod
    def of(
        cls,
        scores_N: np.ndarray,
        one_N: np.ndarray,
        place_N: np.ndarray,
        n_groups: int,
        tie: float,
        dtype: Any,
    ) -> _Steps:
        """Sort; `one_N` says who is of the class that steps, `tie` what an equal score counts."""
        own_K, row_N = np.unique(scores_N[one_N], return_inverse=True)
        shape = (len(own_K), n_groups)
        other_N, group_N = scores_N[~one_N], place_N[~one_N]
        first_N = np.searchsorted(own_K, other_N, "left")  # the first score at or above it
        after_N = np.searchsorted(own_K, other_N, "right")
        rows = np.concatenate([first_N, after_N])
        shares = np.repeat(np.array([tie, 1 - tie], dtype=dtype), len(other_N))
        keep = (rows < len(own_K)) & (shares > 0)
        groups = np.concatenate([group_N, group_N])
        weights = np.ones(len(row_N), dtype=dtype)
        return cls(
            csr_matrix((weights, (row_N, place_N[one_N])), shape),
            csr_matrix((shares[keep], (rows[keep], groups[keep])), shape),
        )

    @property
    def n_steps(self) -> int:
        """K."""
        return int(self.weight_KG.shape[0])

    def pays_by_group(self, n_resamples: int) -> bool:
        """Whether counting pairs of groups is cheaper than adding up in every resample.

        A product of dense matrices does about ten multiplications in the time of one of the others.
        """
        k, n_groups = self.weight_KG.shape
        stored = self.weight_KG.nnz + self.rise_KG.nnz
        by_group = n_groups * (2 * k + self.weight_KG.nnz + n_resamples * n_groups / 10)
        return k * n_groups <= 4 * _BLOCK and by_group < n_resamples * (stored + 3 * k)

    def pairs(self) -> np.ndarray:
        """Count, for two groups, the pairs of one's step above the other's example; (G, G)."""
        rise_KG = self.rise_KG.toarray().astype(np.float64)
        pairs_GG: np.ndarray = self.weight_KG.T.astype(np.float64) @ rise_KG.cumsum(axis=0)
        return pairs_GG

    def wins(self, m_GR: np.ndarray) -> np.ndarray:
        """Count the pairs in every resample; (R,)."""
        below_KR = _summed(self.rise_KG @ m_GR)
        wins_R: np.ndarray = np.einsum(
            "kr,kr->r", self.weight_KG @ m_GR, below_KR, dtype=np.float64
        )
        return wins_R

    def average_precision(self, m_GR: np.ndarray) -> np.ndarray:
        """Give the AUPRC of every resample, if the positives step by falling score; (R,)."""
        hit_KR = self.weight_KG @ m_GR
        true_KR = _summed(hit_KR.astype(np.float64))
        all_KR = _summed(self.rise_KG @ m_GR) + true_KR
        n_R = true_KR[-1].copy()
        # Where nothing was accepted yet nothing was hit either.
        np.divide(true_KR, all_KR, out=true_KR, where=all_KR > 0)
        area_R: np.ndarray = np.einsum("kr,kr->r", hit_KR, true_KR, dtype=np.float64) / n_R
        return area_R


def _summed(rise_KR: np.ndarray) -> np.ndarray:
    """Add up over K, in place: by rows, as numpy's own walks down one column after another."""
    for before_R, here_R in pairwise(rise_KR):
        here_R += before_R
    return rise_KR


def _by_score(
    metric: str,
    targets_NC: np.ndarray,
    scores_NC: np.ndarray,
    place_N: np.ndarray,
    counts_GR: np.ndarray,
) -> np.ndarray:
    n_groups, n_resamples = counts_GR.shape
    every_NC = np.concatenate([targets_NC, np.ones_like(targets_NC[:, :1])], axis=1)
    drawn = _drawn(_by_group(every_NC, place_N, n_groups), counts_GR)
    n_positive_RC, n_drawn_RC = drawn[:, :-1], drawn[:, -1:]
    # Halves below 2^23 are exact in float32, and sums of them.
    dtype = np.float32 if n_drawn_RC.max() < 2**23 else np.float64
    values_RC = np.full((n_resamples, targets_NC.shape[1]), np.nan)
    forms: list[tuple[int, _Steps, bool]] = []
    for c, (target_N, score_N) in enumerate(zip(targets_NC.T, scores_NC.T, strict=True)):
        n_positive = int(target_N.sum())
        if not n_positive or (metric == "auroc" and n_positive == len(target_N)):
            continue
        if metric == "auprc":
            forms.append((c, _Steps.of(-score_N, target_N, place_N, n_groups, 1.0, dtype), False))
            continue
        # The rarer class steps; if that is the negatives, pairs that they win are lost.
        turned = 2 * n_positive > len(target_N)
        steps = _Steps.of(score_N, target_N != turned, place_N, n_groups, 0.5, dtype)
        if steps.pays_by_group(n_resamples):
            values_RC[:, c] = _pairs_drawn(steps.pairs(), counts_GR)
            values_RC[:, c] /= n_positive_RC[:, c] * (n_drawn_RC[:, 0] - n_positive_RC[:, c])
            values_RC[:, c] = 1 - values_RC[:, c] if turned else values_RC[:, c]
        else:
            forms.append((c, steps, turned))
    n_rows = max((steps.n_steps for _, steps, _ in forms), default=0)
    for part, m_GR in _blocks(counts_GR, n_rows, dtype) if forms else ():
        for c, steps, turned in forms:
            if metric == "auprc":
                values_RC[part, c] = steps.average_precision(m_GR)
                continue
            n_positive_R = n_positive_RC[part, c]
            share_R = steps.wins(m_GR) / (n_positive_R * (n_drawn_RC[part, 0] - n_positive_R))
            values_RC[part, c] = 1 - share_R if turned else share_R
    return values_RC


def _pairs_drawn(pairs_GG: np.ndarray, counts_GR: np.ndarray) -> np.ndarray:
    """Add up the pairs of groups in every resample: the diagonal of m^T K m; (R,)."""
    parts = [
        np.einsum("gr,gr->r", m_GR, pairs_GG @ m_GR) for _, m_GR in _blocks(counts_GR, 0, float)
    ]
    return np.concatenate(parts)
