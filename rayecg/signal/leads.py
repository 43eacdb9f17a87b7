"""Standard names of the twelve leads, whatever their spelling in a header."""

from __future__ import annotations

import re

from rayecg.core.experiment import STANDARD_LEADS

_BY_KEY = {lead.lower(): lead for lead in STANDARD_LEADS}
_PREFIX = re.compile(r"^(mdc_ecg_lead_|lead[ _-]*|ecg[ _-]+)", re.IGNORECASE)


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
