"""Groups of recordings that figures are given for, from what the shards state of each.

Legend: N record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from rayecg.signal.quality import FLAGS

#: What the groups need of the shards' table of records, where it is there.
RECORD_COLUMNS = ("age", "sex", "site", "device", "flags", "noise_mv", "wander_mv")
#: Years at which an age band begins, after the first.
AGES = (18, 40, 60, 80)
#: Sites, devices and kinds of flag with a group of their own, and the records that one site or device
#: has at least; the rest are put together: each comparison costs the others some of their power.
MOST, FEWEST_RECORDS = 6, 5
NOT_STATED = "not stated"
_SEXES = {"F": "female", "M": "male"}
_THIRDS = ("lowest", "middle", "highest")


@dataclass(frozen=True)
class Group:
    """Some of the records.

    Attributes
    ----------
    by
        What they are grouped by: `age`, `sex`, `site`, `device`, `quality`, `flag` (a record with
        several flags is in several groups), `noise` or `wander`.
    name
        Within `by`.
    own_N
        Which records are in it.
    """

    by: str
    name: str
    own_N: np.ndarray


def groups_of(records: pd.DataFrame) -> tuple[list[Group], list[str]]:
    """Group records by what is stated of them.

    Parameters
    ----------
    records
        A row for each, with those of `RECORD_COLUMNS` that there are.

    Returns
    -------
    tuple
        The groups, none of them empty, in the order of tables; and what no record states.
    """
    found: list[Group] = []
    absent = []
    for by, named in _columns(records):
        own = [Group(by, name, own_N) for name, own_N in named.items() if own_N.any()]
        if not own or [group.name for group in own] == [NOT_STATED]:
            absent.append(by)
        else:
            found += own
    return found, absent


def _columns(records: pd.DataFrame) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    frame = records.reindex(columns=list(RECORD_COLUMNS))
    yield "age", age_bands(frame["age"].to_numpy(dtype=np.float64, na_value=np.nan))
    sexes = frame["sex"].map(lambda sex: _SEXES.get(sex, sex))
    yield "sex", _by_value(sexes, "other sexes", 0)
    for by in ("site", "device"):
        yield by, _by_value(frame[by], f"other {by}s", FEWEST_RECORDS)
    yield from _flags(frame["flags"])
    for by in ("noise", "wander"):
        lists = frame[f"{by}_mv"]
        yield by, thirds(np.array([_mean(values) for values in lists], dtype=np.float64), "mV")


def age_bands(age_N: np.ndarray) -> dict[str, np.ndarray]:
    """Group by age in years: under 18, 18-39, 40-59, 60-79, 80 and over, not stated (NaN)."""
    place_N = np.searchsorted(AGES, age_N, side="right")
    names = [
        f"under {AGES[0]}",
        *(f"{low}-{high - 1}" for low, high in pairwise(AGES)),
        f"{AGES[-1]} and over",
    ]
    unknown_N = np.isnan(age_N)
    bands = {name: (place_N == i) & ~unknown_N for i, name in enumerate(names)}
    return {**bands, NOT_STATED: unknown_N}


def thirds(value_N: np.ndarray, unit: str) -> dict[str, np.ndarray]:
    """Group by size into thirds of those that have the value; equal values stay together."""
    known_N = ~np.isnan(value_N)
    if not known_N.any():
        return {}
    first, second = np.quantile(value_N[known_N], [1 / 3, 2 / 3])
    inside = (value_N <= first, (value_N > first) & (value_N <= second), value_N > second)
    where = (f"≤{first:.3g} {unit}", f"≤{second:.3g} {unit}", f">{second:.3g} {unit}")
    named = {
        f"{third} third, {place}": own_N
        for third, place, own_N in zip(_THIRDS, where, inside, strict=True)
    }
    return {**named, NOT_STATED: ~known_N}


def _by_value(values: pd.Series, others: str, fewest: int) -> dict[str, np.ndarray]:
    """Group by a name, the most frequent first; the rest together."""
    unknown_N = (values.isna() | (values == NOT_STATED)).to_numpy(dtype=bool)
    tidied = [" ".join(str(value).split()) for value in values]
    name_N = np.where(unknown_N, "", np.array(tidied, dtype=object))
    names, counts = np.unique(name_N[~unknown_N].astype(str), return_counts=True)
    own = {str(names[i]): name_N == names[i] for i in np.argsort(-counts, kind="stable")}
    return {**_most(own, others, fewest), NOT_STATED: unknown_N}


def _most(own: Mapping[str, np.ndarray], others: str, fewest: int) -> dict[str, np.ndarray]:
    """Keep the first groups that are large, and put the rest into one that says how many they are."""
    large = [name for name, own_N in own.items() if own_N.sum() >= fewest][:MOST]
    rest = [name for name in own if name not in large]
    if len(rest) == 1:
        large += rest
        rest = []
    kept = {name: own[name] for name in large}
    together_N = np.any([own[name] for name in rest], axis=0)
    return {**kept, f"{others} ({len(rest)})": together_N} if rest else kept


def _flags(flags: pd.Series) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """Group by whether the signal is flagged, and by the kind of each flag, its lead left out."""
    unknown_N = np.array([not isinstance(own, (list, np.ndarray)) for own in flags], dtype=bool)
    kinds_N = [
        frozenset() if unknown else frozenset(flag.partition(":")[0] for flag in own)
        for own, unknown in zip(flags, unknown_N, strict=True)
    ]
    bad_N = np.array([bool(kinds & FLAGS.keys()) for kinds in kinds_N], dtype=bool)
    yield (
        "quality",
        {"flagged": bad_N, "not flagged": ~bad_N & ~unknown_N, NOT_STATED: unknown_N},
    )
    every = sorted({kind for kinds in kinds_N for kind in kinds})
    own = {kind: np.array([kind in kinds for kinds in kinds_N], dtype=bool) for kind in every}
    ordered = dict(sorted(own.items(), key=lambda item: -int(item[1].sum())))
    yield "flag", _most(ordered, "other kinds", 0)


def _mean(values: object) -> float:
    """Average the leads that have the measure."""
    if not isinstance(values, (list, np.ndarray)):
        return float("nan")
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
