"""Labels that say nothing of their signals: what a run is trained on to see whether it is fooled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayecg.tasks.split import SPLITS

#: Draws the permutation.
SEED = 0


def permuted_examples(examples: pa.Table, seed: int = SEED) -> pa.Table:
    """Deal the labels of training and validation examples out anew.

    The rows of labels stay whole, so that classes keep their sizes and what goes together; they are
    dealt within each split of each fold, to any of its records and patients. Nothing of an example
    then tells its label but chance. Examples of the test split, and those that take no part, are left
    out: no label of theirs can be read here.

    Parameters
    ----------
    examples
        As `rayecg.tasks.task.example_table` gives them.
    seed
        Draws the permutation.

    Returns
    -------
    pa.Table
        The other rows, in their order, with the same columns.
    """
    used = [split for split in SPLITS if split != "test"]
    split_N = np.array(examples["split"].to_pylist(), dtype=np.str_)
    kept = np.isin(split_N, used)
    table, split_N = examples.filter(pa.array(kept)), split_N[kept]
    fold_N = np.full(len(split_N), -1)
    if "fold" in table.column_names:
        fold_N = np.array([-1 if fold is None else fold for fold in table["fold"].to_pylist()], int)
    rng = np.random.default_rng(seed)
    taken = np.arange(len(split_N))
    for fold in np.unique(fold_N):
        for split in used:
            here = np.flatnonzero((fold_N == fold) & (split_N == split))
            taken[here] = rng.permutation(here)
    for i, name in enumerate(table.column_names):
        if name.startswith("target_"):
            table = table.set_column(i, table.schema.field(i), table[name].take(pa.array(taken)))
    return table
