"""Explicit tables `name -> "module:attribute"`, loaded when asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from rayecg.core.errors import SettingsError


def nearest(name: str, names: Iterable[str], n: int = 3) -> str:
    """Phrase the names closest to `name`, for an error message."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(known)}"


def look_up(table: Mapping[str, str], name: str, what: str) -> Any:
    """Import what `table` lists under `name`.

    Parameters
    ----------
    table
        Name to `"module:attribute"`.
    name
        The entry wanted.
    what
        What the table lists ("architecture", "archive kind"), for the message.

    Raises
    ------
    SettingsError
        If the name is not listed; the message gives the nearest right ones.
    """
    if name not in table:
        raise SettingsError(f"no {what} is named {name!r} ({nearest(name, table)})")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
