"""Checks that several settings share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def positive(settings: Any, *names: str) -> None:
    """Refuse numbers that are not above 0 and finite; None is left alone."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            finite = ", and finite" if value == math.inf else ""
            raise ValueError(f"{name}: expected more than 0{finite}, came {value}")


def default_unless_read(settings: Any, choice: str, reads: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse what would be ignored: `reads` lists the fields that only some values of `choice` read."""
    chosen = getattr(settings, choice)
    for own in fields(settings):
        readers = [name for name, names in reads.items() if own.name in names]
        value = getattr(settings, own.name)
        if readers and chosen not in readers and value != own.default:
            raise ValueError(
                f"{own.name}: expected its default {own.default} with {choice} {chosen!r}, which does "
                f"not read it ({', '.join(readers)} would), came {value}"
            )
