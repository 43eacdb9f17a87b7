"""Examples as vectors: who is nearest to whom, and who lies between two others.

An example of a recording is its first 10 s as `copies.whitened` describes them, which a shift leaves
alone; an example of a beat is the signal from 0.3 s before to 0.3 s after the R peak. Both have unit
length, so that gains do not count. Large sides are sampled.

Legend: N example, D dimension, C label, Q query, R resample.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rayecg.audit.copies import CopySearch
from rayecg.audit.waveforms import read_beats
from rayecg.metrics.classification import macro_f1
from rayecg.metrics.resamples import Resamples, label_values
from rayecg.tasks.task import SPLITS

#: Examples of a side at most: of training, and of one that is evaluated.
MOST_TRAINING, MOST_EVALUATED = 8000, 4000
#: Half of a beat, s: P wave to the T wave's beginning at usual rates.
HALF_BEAT_S = 0.3
#: Draws of patients for the interval.
N_RESAMPLES = 1000
#: Dimensions of the random projection in which pairs of parents are looked for.
N_PROJECTED = 256
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class Vectors:
    """Examples as vectors.

    Attributes
    ----------
    rows
        `record_id, offset, split` and the targets of each.
    shape_ND
        Unit vectors for resemblance.
    signal_ND
        Unit vectors of the signal itself, in which a mixture of two signals is a mixture.
    n_examples
        Of each side, how many there were to sample from.
    """

    rows: pd.DataFrame
    shape_ND: np.ndarray
    signal_ND: np.ndarray
    n_examples: dict[str, int]

    def of(self, split: str) -> np.ndarray:
        """Give the places of a side's examples."""
        return np.flatnonzero((self.rows["split"] == split).to_numpy())

    def targets(self) -> np.ndarray:
        """Give the targets, (N, C)."""
        names = [name for name in self.rows if str(name).startswith("target_")]
        return self.rows[names].to_numpy(dtype=np.int64)


def read_vectors(
    shards: Path, examples: pd.DataFrame, by_beat: bool, search: CopySearch
) -> Vectors:
    """Read a sample of each side; what cannot be read is left out.

    Parameters
    ----------
    shards
        A `make_shards` output.
    examples
        `record_id, offset, split` and targets.
    by_beat
        Whether an example is a beat.
    search
        Has the windows of the recordings.
    """
    used = examples[examples["split"].isin(SPLITS)]
    n_examples = {split: int((used["split"] == split).sum()) for split in SPLITS}
    parts = []
    for split in SPLITS:
        own = used[used["split"] == split]
        most = MOST_TRAINING if split == "train" else MOST_EVALUATED
        parts.append(own.sample(most, random_state=0) if len(own) > most else own)
    rows = pd.concat(parts).reset_index(drop=True)
    if by_beat:
        ids, offset_N = rows["record_id"].to_numpy(dtype=str), rows["offset"].to_numpy()
        x_NLT, read_N = read_beats(shards, ids, offset_N, HALF_BEAT_S)
        signal_ND = x_NLT.reshape(len(x_NLT), -1)
        read_N &= signal_ND.any(axis=1)
        signal_ND = _unit(signal_ND[read_N])
        return Vectors(rows[read_N].reset_index(drop=True), signal_ND, signal_ND, n_examples)
    windows = search.windows
    first = pd.Series(range(len(windows)), index=np.array(windows.record_ids)[windows.record_N])
    first = first[~first.index.duplicated()]
    rows = rows[rows["record_id"].isin(first.index)].reset_index(drop=True)
    place_N = first.loc[rows["record_id"]].to_numpy()
    signal_ND = _projected(windows.x_NLT, place_N)
    return Vectors(rows, search.embedding[place_N], _unit(signal_ND), n_examples)


def _unit(x_ND: np.ndarray) -> np.ndarray:
    length_N = np.linalg.norm(x_ND, axis=1, keepdims=True)
    unit_ND: np.ndarray = (x_ND / np.maximum(length_N, 1e-12)).astype(np.float32)
    return unit_ND


def _projected(x_NLT: np.ndarray, place_N: np.ndarray) -> np.ndarray:
    """Project windows at random: a mixture stays one, and angles keep to a few percent."""
    n_values = x_NLT.shape[1] * x_NLT.shape[2]
    axes = np.random.default_rng(0).normal(size=(n_values, N_PROJECTED)).astype(np.float32)
    parts = [np.zeros((0, N_PROJECTED), np.float32)]
    for start in range(0, len(place_N), _BLOCK):
        block = np.asarray(x_NLT[place_N[start : start + _BLOCK]], dtype=np.float32)
        parts.append(block.reshape(len(block), -1) @ axes)
    return np.concatenate(parts)


def nearest(
    query_QD: np.ndarray,
    among_ND: np.ndarray,
    query_groups: np.ndarray | None = None,
    among_groups: np.ndarray | None = None,
) -> np.ndarray:
    """Give the place of each query's nearest vector, of another group where groups are given; (Q,)."""
    found = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(query_QD), _BLOCK):
        stop = start + _BLOCK
        cosine_QN = query_QD[start:stop] @ among_ND.T
        if query_groups is not None and among_groups is not None:
            cosine_QN[query_groups[start:stop, None] == among_groups[None]] = -2.0
        found.append(cosine_QN.argmax(axis=1))
    return np.concatenate(found)


@dataclass(frozen=True)
class Probe:
    """How well the nearest neighbour labels a side, and training examples of other patients.

    Attributes
    ----------
    across, within
        Macro F1 of the neighbour's labels: of the side, its neighbours in training; of training
        examples, their neighbours among those of other patients.
    low, high
        95 % interval of `across - within` over patients.
    n_across, n_within
        Examples that were labelled.
    """

    across: float
    within: float
    low: float
    high: float
    n_across: int
    n_within: int


def probe(vectors: Vectors, patients_N: np.ndarray, side: str) -> Probe:
    """Label a side by its nearest training examples, and these by one another between patients.

    Both are drawn again by patient, a patient on both sides with the same draws for both.

    Parameters
    ----------
    vectors
        The examples.
    patients_N
        The patient of each.
    side
        Which is labelled.
    """
    train_N, side_N = vectors.of("train"), vectors.of(side)
    targets_NC, shape_ND = vectors.targets(), vectors.shape_ND
    rng = np.random.default_rng(0)
    own_N = np.sort(rng.permutation(train_N)[:MOST_EVALUATED])
    places = nearest(shape_ND[side_N], shape_ND[train_N])
    others = nearest(shape_ND[own_N], shape_ND[train_N], patients_N[own_N], patients_N[train_N])
    resamples = Resamples.of(patients_N[np.concatenate([own_N, side_N])], N_RESAMPLES)
    points, values = [], []
    for query_N, place_N in ((side_N, places), (own_N, others)):
        targets, decisions = targets_NC[query_N], targets_NC[train_N[place_N]]
        # A label that is not in both would make two different averages.
        shown_C = targets_NC[side_N].any(axis=0) & targets_NC[own_N].any(axis=0)
        targets, decisions = targets[:, shown_C], decisions[:, shown_C]
        points.append(macro_f1(targets, decisions))
        value_RC = label_values("f1", targets, decisions, patients_N[query_N], resamples)
        values.append(np.where(np.isnan(value_RC), 0.0, value_RC).mean(axis=1))
    low, high = np.quantile(values[0] - values[1], [0.025, 0.975])
    return Probe(points[0], points[1], float(low), float(high), len(side_N), len(own_N))


def mixtures(vectors: Vectors, side: str, residual: float) -> list[tuple[int, int, int, float]]:
    """Find examples of a side that are mixtures of two training examples with positive shares.

    The nearest training vector is one parent; the other is the one that explains most of what is left.
    What one parent explains alone is a copy and no mixture.

    Parameters
    ----------
    vectors
        The examples.
    side
        Whose examples are looked at.
    residual
        What may be left of the unit vector.

    Returns
    -------
    list
        Places of the example and of its parents, and what is left.
    """
    side_N, train_N = vectors.of(side), vectors.of("train")
    among_ND = vectors.signal_ND[train_N]
    found = []
    for start in range(0, len(side_N), _BLOCK):
        block_N = side_N[start : start + _BLOCK]
        x_QD = vectors.signal_ND[block_N]
        cosine_QN = x_QD @ among_ND.T
        first_Q = cosine_QN.argmax(axis=1)
        rows = np.arange(len(block_N))
        share_Q = cosine_QN[rows, first_Q]
        left_QD = x_QD - share_Q[:, None] * among_ND[first_Q]
        left_Q = np.linalg.norm(left_QD, axis=1)
        between_QN = among_ND[first_Q] @ among_ND.T
        own_QN = np.sqrt(np.maximum(1 - between_QN**2, 1e-6))
        # Copies of the first parent have no direction of their own.
        explained_QN = np.where(own_QN > 0.05, (left_QD @ among_ND.T) / own_QN, 0.0)
        second_Q = explained_QN.argmax(axis=1)
        got_Q = explained_QN[rows, second_Q]
        rest_Q = np.sqrt(np.maximum(left_Q**2 - got_Q**2, 0))
        # Share of the first parent once the second has its own.
        other_Q = got_Q / own_QN[rows, second_Q]
        first_share_Q = share_Q - other_Q * between_QN[rows, second_Q]
        mixed = (rest_Q < residual) & (left_Q > 3 * residual) & (first_share_Q > 0) & (got_Q > 0)
        found += [
            (int(block_N[q]), int(train_N[first_Q[q]]), int(train_N[second_Q[q]]), float(rest_Q[q]))
            for q in np.flatnonzero(mixed)
        ]
    return found
