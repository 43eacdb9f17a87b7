"""The quality of records of any layouts: each is measured among its like, and stands for itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayecg.core.record import Assessment, Record
from rayecg.signal import quality


def assess(records: Sequence[Record]) -> list[Assessment]:
    """Measure records; those of one layout together, which is fast and changes no figure."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, record in enumerate(records):
        own = record.digital_LT
        groups.setdefault((record.leads, record.fs, own.shape[1], own.dtype), []).append(i)
    found: list[Assessment] = [Assessment()] * len(records)
    for members in groups.values():
        own_records = [records[i] for i in members]
        first = own_records[0]
        measured = quality.measure(
            np.stack([record.digital_LT for record in own_records]),
            np.stack([record.gain_L for record in own_records]),
            first.fs,
            first.leads,
        )
        einthoven_N = measured.einthoven_N.tolist()
        for n, (i, flags) in enumerate(
            zip(members, quality.flags(measured, first.leads), strict=True)
        ):
            found[i] = Assessment(
                flags=tuple(flags),
                invalid_fraction=measured.invalid_NL[n],
                noise_mv=measured.noise_NL[n],
                wander_mv=measured.wander_NL[n],
                einthoven_mv=None if np.isnan(einthoven_N[n]) else einthoven_N[n],
            )
    return found
