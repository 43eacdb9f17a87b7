"""How often labels change along rows, against orders in which patients were shuffled.

Legend: N row, G patient, L column of labels (all of them together first, then each), P shuffle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

#: Shuffles of an order, at least, and of batches.
N_SHUFFLES, N_BATCH_SHUFFLES = 1999, 999
#: A label that is expected to change less often than this says little of the order.
FEWEST_EXPECTED = 10


@dataclass(frozen=True)
class Grouping:
    """The column of labels whose changes are furthest below what is expected.

    Attributes
    ----------
    column
        Which label; None: all labels together.
    seen, expected
        Changes in the order as it is, and their mean over shuffles.
    p
        How often a shuffle has as few changes, times the number of columns looked at, at most 1.
    """

    column: int | None
    seen: int
    expected: float
    p: float

    @property
    def share(self) -> float:
        """Changes seen for each one expected; 1 where none is expected."""
        return self.seen / self.expected if self.expected else 1.0


def order_by_person(person_N: Any, record_N: Any, offset_N: Any) -> tuple[np.ndarray, np.ndarray]:
    """Put the rows of each person together: records as they come, each in time.

    Returns
    -------
    tuple
        The order of the rows, and where in it each person's begin.
    """
    person_N, record_N = (pd.factorize(np.asarray(codes))[0] for codes in (person_N, record_N))
    order_N = np.lexsort((np.asarray(offset_N), record_N, person_N))
    return order_N, np.flatnonzero(np.diff(person_N[order_N], prepend=-1))


def grouping(
    values_NL: np.ndarray, order_N: np.ndarray, first_G: np.ndarray, seed: int = 0
) -> Grouping:
    """Compare the changes from row to row.

    Parameters
    ----------
    values_NL
        0/1 labels in the order of scoring.
    order_N, first_G
        What `order_by_person` gives: a shuffle moves persons, and leaves the rows of each as they are.
    seed
        Draws the shuffles.
    """
    columns_NL = _columns(values_NL)
    seen_L = (columns_NL[1:] != columns_NL[:-1]).sum(axis=0)
    own_NL = columns_NL[order_N]
    changes_NL = own_NL[1:] != own_NL[:-1]
    last_G = np.append(first_G[1:], len(own_NL)) - 1
    # Changes within a person stay; those from one to the next depend on the shuffle.
    within_L = changes_NL.sum(axis=0) - changes_NL[first_G[1:] - 1].sum(axis=0)
    first_GL, last_GL = own_NL[first_G], own_NL[last_G]
    rng = np.random.default_rng(seed)
    # Enough for a small p to stay small when it is multiplied by the number of columns.
    n_shuffles = max(N_SHUFFLES, 40 * columns_NL.shape[1])
    changes_PL = np.empty((n_shuffles, columns_NL.shape[1]))
    for shuffle in range(n_shuffles):
        order_G = rng.permutation(len(first_G))
        changes_PL[shuffle] = (last_GL[order_G[:-1]] != first_GL[order_G[1:]]).sum(axis=0)
    return _worst(seen_L, changes_PL + within_L)


def grouping_in_batches(
    values_NL: np.ndarray, order_N: np.ndarray, first_G: np.ndarray, batch_N: Any, seed: int = 0
) -> Grouping:
    """Compare the distinct combinations of labels in each batch, beyond its first.

    Shuffles as for `grouping` fill the batches, which keep their sizes.
    """
    together_N = _columns(values_NL)[:, 0]
    batch_N = pd.factorize(np.asarray(batch_N))[0]
    own_N, filled_N = together_N[order_N], np.sort(batch_N)
    size_G = np.diff(np.append(first_G, len(own_N)))
    rng = np.random.default_rng(seed)
    found_P = np.empty(N_BATCH_SHUFFLES)
    for shuffle in range(N_BATCH_SHUFFLES):
        rank_G = rng.permutation(len(first_G))
        drawn_N = np.argsort(np.repeat(rank_G, size_G), kind="stable")
        found_P[shuffle] = _further(own_N[drawn_N], filled_N)
    return _worst(np.array([_further(together_N, batch_N)]), found_P[:, None])


def _columns(values_NL: np.ndarray) -> np.ndarray:
    """Put the labels' combination, as a number, before the labels, of which there may be but one."""
    packed = np.packbits(values_NL.astype(bool), axis=1)
    codes_N = pd.factorize(np.array([row.tobytes() for row in packed], dtype=object))[0]
    together_N1 = codes_N.reshape(-1, 1)
    return together_N1 if values_NL.shape[1] == 1 else np.hstack([together_N1, values_NL])


def _further(code_N: np.ndarray, batch_N: np.ndarray) -> int:
    n_codes = int(code_N.max()) + 1
    each = np.bincount(batch_N * n_codes + code_N)
    return int((each > 0).sum()) - int(batch_N.max()) - 1


def _worst(seen_L: np.ndarray, drawn_PL: np.ndarray) -> Grouping:
    expected_L = drawn_PL.mean(axis=0)
    looked_L = np.flatnonzero(expected_L >= FEWEST_EXPECTED)
    looked_L = looked_L if len(looked_L) else np.array([0])
    rarer_L = (drawn_PL <= seen_L).sum(axis=0)
    share_L = seen_L[looked_L] / np.maximum(expected_L[looked_L], 1e-12)
    worst = int(looked_L[np.argmin(share_L)])
    p = (rarer_L[worst] + 1) / (len(drawn_PL) + 1) * len(looked_L)
    column = None if worst == 0 else worst - 1
    return Grouping(column, int(seen_L[worst]), float(expected_L[worst]), min(float(p), 1.0))
