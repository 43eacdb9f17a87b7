"""Splits: who trains, validates and tests, and the protocols that settings may ask for.

Legend: R record, N example, P person, C count (of a label), G group.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import SplitSettings
from rayecg.core.shard_format import DUPLICATE

if TYPE_CHECKING:
    from rayecg.tasks.task import Task

SPLITS = ("train", "validation", "test")
#: What `sides` calls an example of no split, beside the places in `SPLITS`.
OUTSIDE = len(SPLITS)
_DRAWN = ("patient_group", "example")


@dataclass(frozen=True)
class Split:
    """Which values belong to which split; other examples belong to none.

    `by` is a column of the index, or what draws lots. Under "patient_group" persons do, and under
    "example" each example by itself: `shares` says how large a part each group gets, and `train`,
    `validation` and `test` list groups, numbered from 0.

    `within` is the split whose examples take part in the draw; where `test` is empty, its test
    side stays and the others draw. `exclude` leaves out records by id. `leaky` says that records,
    and so patients, stand on several sides by design. `name` is what tables call the split, `fold`
    its place among several of one protocol.
    """

    name: str
    by: Literal["strat_fold", "record_id", "patient_id", "patient_group", "example"]
    train: tuple[Any, ...]
    validation: tuple[Any, ...]
    test: tuple[Any, ...]
    shares: tuple[float, ...] = ()
    seed: int = 0
    within: Split | None = None
    exclude: tuple[str, ...] = ()
    leaky: bool = False
    fold: int | None = None

    def __post_init__(self) -> None:
        drawn = self.by in _DRAWN
        # A number never equals a record's name.
        kind = int if drawn or self.by == "strat_fold" else str
        seen = set()
        for value in (*self.train, *self.validation, *self.test):
            if type(value) is not kind:
                raise ValueError(f"expected {self.by} as {kind.__name__}, came {value!r}")
            if value in seen:
                raise ValueError(f"{self.by} {value!r} stands there twice")
            seen.add(value)
        if not (self.train and self.validation and (self.test or self.within)):
            raise ValueError("train, validation, test: expected at least one value each")
        if drawn and seen != set(range(len(self.shares))):
            raise ValueError(
                f"shares: expected one for each group that stands under train, validation or test, "
                f"came {len(self.shares)} for the groups {sorted(seen)}"
            )
        if drawn and min(self.shares) <= 0:
            raise ValueError(f"shares: expected more than 0 each, came {self.shares}")
        if not drawn and (self.shares or self.within):
            raise ValueError(f"shares, within: expected with by: {' or '.join(_DRAWN)} alone")
        if self.leaky != (self.by == "example"):
            raise ValueError("leaky: expected true with by: example, and there alone")


@dataclass(frozen=True)
class Examples:
    """The examples of some records, before they are split.

    Attributes
    ----------
    records
        Index columns.
    row_N
        Row of `records` each example belongs to.
    offset_N
        Where it stands in its record, samples; 0 for a whole record.
    target_NC
        0/1 targets, int8.
    belongs_N
        Whether it is one of the task's population.
    aliases
        Patient ids that are known to be one person.
    """

    records: pa.Table
    row_N: np.ndarray
    offset_N: np.ndarray
    target_NC: np.ndarray
    belongs_N: np.ndarray
    aliases: tuple[tuple[str, ...], ...] = ()

    def column(self, name: str) -> pa.Array:
        """Give a column of the index for each example."""
        return self.records[name].combine_chunks().take(pa.array(self.row_N))


def splits_of(task: Task, settings: SplitSettings) -> tuple[Split, ...]:
    """Give the splits of a protocol, one for each fold.

    Drawn ones take the records that the task's own split uses, so that what it leaves out (MIT-BIH's
    paced records) stays outside.

    Raises
    ------
    SettingsError
        If the task is leaky by design, and the protocol not its own.
    """
    own, k = task.split, settings.k
    if settings.protocol == "task":
        splits = [own]
    elif own.leaky:
        raise SettingsError(
            f"split.protocol: {task.name} is leaky by design, expected 'task' (its own split), "
            f"came {settings.protocol!r}"
        )
    elif settings.protocol == "holdout":
        name = "/".join(f"{100 * share:g}" for share in settings.fractions) + " by patient"
        splits = [_drawn(own, settings, name, settings.fractions, 1, (2,))]
    elif settings.protocol == "kfold":
        name, equal = f"{k} patient folds", (1 / k,) * k
        splits = [
            _drawn(own, settings, name, equal, (fold + 1) % k, (fold,), fold) for fold in range(k)
        ]
    else:
        name, equal = f"{own.name}, {k} rotating validation folds", (1 / k,) * k
        splits = [_drawn(own, settings, name, equal, fold, (), fold) for fold in range(k)]
    return tuple(_without(split, settings.exclude) for split in splits)


def _drawn(
    own: Split,
    settings: SplitSettings,
    name: str,
    shares: tuple[float, ...],
    validation: int,
    test: tuple[int, ...],
    fold: int | None = None,
) -> Split:
    """Draw by patient among what `own` uses; the groups not named train."""
    if settings.seed:  # two draws are two splits, and must not look the same in a table
        name = f"{name}, seed {settings.seed}"
    return Split(
        name,
        "patient_group",
        train=tuple(g for g in range(len(shares)) if g not in (validation, *test)),
        validation=(validation,),
        test=test,
        shares=shares,
        seed=settings.seed,
        within=own,
        fold=fold,
    )


def _without(split: Split, record_ids: tuple[str, ...]) -> Split:
    if not record_ids:
        return split
    few = len(record_ids) <= 3
    what = ", ".join(record_ids) if few else f"{len(record_ids)} records"
    return dataclasses.replace(
        split, name=f"{split.name} without {what}", exclude=(*split.exclude, *record_ids)
    )


def sides(split: Split, examples: Examples) -> np.ndarray:
    """Give each example its place in `SPLITS`, or `OUTSIDE`.

    Raises
    ------
    DataError
        If there are fewer persons than groups to draw.
    """
    record_id = pc.cast(examples.records["record_id"], pa.string())
    excluded_R = pc.is_in(record_id, value_set=pa.array(split.exclude, pa.string())).to_numpy()
    excluded_N = excluded_R[examples.row_N]
    values = [value for side in SPLITS for value in getattr(split, side)]
    # One place more than there are values, for what is none of them.
    side_V = np.array([*np.repeat(range(3), [len(getattr(split, s)) for s in SPLITS]), OUTSIDE])
    if split.by not in _DRAWN:
        type_ = pa.int64() if split.by == "strat_fold" else pa.string()
        found = pc.index_in(
            pc.cast(examples.records[split.by], type_), value_set=pa.array(values, type_)
        )
        side_N = side_V[pc.fill_null(found, len(values)).to_numpy()][examples.row_N]
    else:
        before_N = np.full(len(examples.row_N), SPLITS.index("train"))
        if split.within:
            before_N = sides(split.within, examples)
        draws_N = (before_N != OUTSIDE) & ~excluded_N
        if not split.test:
            draws_N &= before_N != SPLITS.index("test")
        draw = _patient_groups if split.by == "patient_group" else _example_groups
        side_G = side_V[np.argsort(values)]
        side_N = np.where(draws_N, side_G[draw(split, examples, draws_N)], before_N)
    return np.where(excluded_N, OUTSIDE, side_N).astype(np.int8)


def _example_groups(split: Split, examples: Examples, draws_N: np.ndarray) -> np.ndarray:
    """Draw by a hash of record and offset, so that no example's group depends on another."""
    pairs = zip(examples.column("record_id").to_pylist(), examples.offset_N.tolist(), strict=True)
    keys = (f"{split.seed}/{record_id}/{offset}".encode() for record_id, offset in pairs)
    digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    drawn_N = np.frombuffer(digests, dtype="<u8") / 2.0**64
    upper_G = np.cumsum(split.shares) / np.sum(split.shares)
    return np.searchsorted(upper_G[:-1], drawn_N, side="right")


def _patient_groups(split: Split, examples: Examples, draws_N: np.ndarray) -> np.ndarray:
    person_N = persons(examples)[examples.row_N]
    counted_N = draws_N & examples.belongs_N
    n_persons = person_N.max(initial=-1) + 1
    drawn_N, target_NC = person_N[counted_N], examples.target_NC[counted_N]
    count_PC = np.stack(
        [
            *(np.bincount(drawn_N, column_N, n_persons) for column_N in target_NC.T),
            np.bincount(drawn_N, minlength=n_persons),  # those without a label included
        ],
        axis=1,
    )
    there_P = count_PC.any(axis=1)
    group_P = np.zeros(n_persons, dtype=np.int64)
    group_P[there_P] = balanced_groups(count_PC[there_P], split.shares, split.seed)
    if len(np.unique(group_P[there_P])) < len(split.shares):
        raise DataError(
            f"split {split.name}: {there_P.sum()} patients with examples of the task are too few "
            f"for {len(split.shares)} groups of them"
        )
    return group_P[person_N]


def persons(examples: Examples) -> np.ndarray:
    """Give the number of each record's person.

    A record without patient id is its own patient. Those who share a recording, by its flag
    `duplicate:ID`, count as one person: one of them is filed under a wrong id.
    """
    known = {alias: group[0] for group in examples.aliases for alias in group}
    ids = zip(*(examples.records[n].to_pylist() for n in ("patient_id", "record_id")), strict=True)
    # A patient and a record of the same name are two.
    names = [
        f"record {record}" if patient is None else f"patient {known.get(patient, patient)}"
        for patient, record in ids
    ]
    person_R = np.unique(names, return_inverse=True)[1]
    copied, first = _duplicates(examples.records)
    n_persons = person_R.max(initial=-1) + 1
    same = csr_array(
        (np.ones(len(copied)), (person_R[copied], person_R[first])), (n_persons, n_persons)
    )
    return connected_components(same, directed=False)[1][person_R]


def _duplicates(records: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Give the rows of records that are exact copies, and of those that they are copies of."""
    flags = records["flags"].to_pylist() if "flags" in records.column_names else []
    of_row = {
        row: flag.removeprefix(DUPLICATE)
        for row, own in enumerate(flags)
        for flag in own or ()
        if flag.startswith(DUPLICATE)
    }
    row_of = {record_id: row for row, record_id in enumerate(records["record_id"].to_pylist())}
    pairs = [(row, row_of[of]) for row, of in of_row.items() if of in row_of]
    copied, first = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return copied, first


def balanced_groups(count_PC: np.ndarray, shares: Iterable[float], seed: int) -> np.ndarray:
    """Deal persons into groups so that every count is spread as the shares say.

    Who holds much of a rare label comes first, and each goes to the group that stays most balanced:
    the one where the sum over counts of (part dealt)^2 / share, which is least when every group has
    its share of everything, grows least.

    Parameters
    ----------
    count_PC
        What each person holds, such as examples of each label; columns weigh the same.
    shares
        How large a part each group gets.
    seed
        Of the order of persons who are about alike, and of equal groups.

    Returns
    -------
    np.ndarray
        Group of each person.
    """
    rng = np.random.default_rng(seed)
    part_PC = count_PC / np.maximum(count_PC.sum(axis=0), 1.0)
    share_G = np.array(list(shares)) / np.sum(list(shares))
    place_G = rng.permutation(len(share_G))
    share_G = share_G[place_G]
    # With a spread of factor 2, so that few and unequal persons, too, come in several orders.
    order_P = np.argsort(-np.square(part_PC).sum(axis=1) * rng.uniform(1.0, 2.0, len(part_PC)))
    dealt_GC = np.zeros((len(share_G), part_PC.shape[1]))
    group_P = np.empty(len(part_PC), dtype=np.int64)
    for person in order_P:
        part_C = part_PC[person]
        growth_G = (2.0 * dealt_GC @ part_C + part_C @ part_C) / share_G
        group = growth_G.argmin()
        dealt_GC[group] += part_C
        group_P[person] = place_G[group]
    return group_P
