"""The twelve standard leads: their names whatever their spelling, and those that follow from others.

Legend: L lead, T time.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass

import numpy as np

from rayecg.core.experiment import STANDARD_LEADS
from rayecg.core.record import Record, invalid_value

_BY_KEY = {lead.lower(): lead for lead in STANDARD_LEADS}
#: In Spanish and Portuguese, leads are *derivaciones*.
_BY_KEY |= {"di": "I", "dii": "II", "diii": "III"}
_PREFIX = re.compile(r"^(?:mdc_ecg_lead_|lead[ _-]*|ecg[ _-]+)+", re.IGNORECASE)

#: The six limb leads are two numbers seen from six sides: each as multiples of I and II (Einthoven
#: 1913; Goldberger 1942).
LIMB_LEADS = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}


@functools.lru_cache(4096)
def standard_name(name: str) -> str:
    """Give a lead's standard name, or the name as it stands if it is none of the twelve.

    `AVR`, `avr`, `Lead aVR` and `MDC_ECG_LEAD_AVR` are all `aVR`; `MLII` stays `MLII`.
    """
    bare = _PREFIX.sub("", name.strip())
    return _BY_KEY.get(bare.lower(), name.strip())


def standard_order(names: list[str]) -> list[int]:
    """Give the positions that put the standard leads first, in their order, others after them."""
    rank = {lead: i for i, lead in enumerate(STANDARD_LEADS)}
    return sorted(range(len(names)), key=lambda i: (rank.get(names[i], len(rank)), i))


def unique_names(names: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Give repeated names a number (`V1`, `V1#2`), so that every lead can be asked for.

    Returns
    -------
    tuple
        The names, and those that were repeated.
    """
    taken, unique, repeated = set(names), [], []
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        if seen[name] == 1:
            unique.append(name)
            continue
        if seen[name] == 2:
            repeated.append(name)
        number = seen[name]
        while f"{name}#{number}" in taken:
            number += 1
        unique.append(f"{name}#{number}")
        taken.add(unique[-1])
    return tuple(unique), repeated


@dataclass(frozen=True)
class _Derivation:
    """How missing limb leads follow from two that are there; `weight_M2` for each missing one."""

    source: tuple[int, int]
    missing: tuple[str, ...]
    weight_M2: np.ndarray
    order: tuple[int, ...]
    leads: tuple[str, ...]


@functools.lru_cache(1024)
def _derivation(leads: tuple[str, ...]) -> _Derivation | None:
    present = [lead for lead in LIMB_LEADS if lead in leads]
    if not 2 <= len(present) < len(LIMB_LEADS):
        return None
    # The first two in the standard order: with I, II or III among them the weights are halves.
    first, second = present[:2]
    missing = tuple(lead for lead in LIMB_LEADS if lead not in present)
    basis_22 = np.array([LIMB_LEADS[first], LIMB_LEADS[second]])
    weight_M2 = np.array([LIMB_LEADS[lead] for lead in missing]) @ np.linalg.inv(basis_22)
    names = [*leads, *missing]
    order = tuple(standard_order(names))
    return _Derivation(
        (leads.index(first), leads.index(second)),
        missing,
        weight_M2,
        order,
        tuple(names[i] for i in order),
    )


def with_derived_leads(record: Record) -> Record:
    """Add the limb leads that a record lacks, if two others give them; each is flagged `derived`.

    A derived lead has twice the finer gain of its two sources and baseline 0. From two of I, II and
    III with one gain it is exact; otherwise it is rounded once, by at most a quarter of the finer
    source's ADC unit. Where a source is invalid it is invalid; what leaves the type is held at its
    end and flagged `out_of_range`.
    """
    plan = _derivation(record.leads)
    if plan is None:
        return record
    first, second = plan.source
    digital_LT, dtype = record.digital_LT, record.digital_LT.dtype
    own_2T = digital_LT[[first, second]]
    invalid = invalid_value(dtype)
    invalid_T = (own_2T == invalid).any(axis=0)
    gain = 2 * max(abs(float(record.gain_L[first])), abs(float(record.gain_L[second])))
    scale_2 = gain / record.gain_L[[first, second]]
    steps_2T = (own_2T - record.baseline_L[[first, second], None]) * scale_2[:, None]
    derived_MT = np.round(plan.weight_M2 @ steps_2T)
    flags = [*record.flags, *(f"derived:{lead}" for lead in plan.missing)]
    limit = np.iinfo(dtype).max
    outside_MT = np.abs(derived_MT) > limit
    outside_MT[:, invalid_T] = False
    if outside_MT.any():
        flags += [
            f"out_of_range:{lead}"
            for lead, outside in zip(plan.missing, outside_MT.any(axis=1), strict=True)
            if outside
        ]
    derived_MT = np.clip(derived_MT, -limit, limit).astype(dtype)
    derived_MT[:, invalid_T] = invalid
    order = list(plan.order)
    n_missing = len(plan.missing)
    return dataclasses.replace(
        record,
        digital_LT=np.concatenate([digital_LT, derived_MT])[order],
        gain_L=np.concatenate([record.gain_L, np.full(n_missing, gain)])[order],
        baseline_L=np.concatenate([record.baseline_L, np.zeros(n_missing, np.int64)])[order],
        leads=plan.leads,
        flags=tuple(flags),
    )
