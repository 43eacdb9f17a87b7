"""Ids under a key: the same person has the same one, and nobody without the key can tell whom."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rayecg.core.errors import SettingsError

#: Bytes that a key has at least: fewer could be tried out.
SHORTEST = 16
#: Hexadecimal digits of a hashed id: 128 bits, so that no two of a trillion records share one.
DIGITS = 32
#: What a text is. It is hashed with it: under one key a record "5" and a patient "5" are not alike.
Kind = Literal["record", "patient", "facts", "key"]


def read_hash_key(file: str | Path) -> bytes:
    """Read a key from a file, without the white space at its ends.

    Raises
    ------
    SettingsError
        If there is none, or it is too short.
    """
    try:
        key = Path(file).read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{file}: expected a key to hash ids with ({error.strerror})") from None
    if len(key) < SHORTEST:
        raise SettingsError(f"{file}: expected a key of {SHORTEST} bytes or more, came {len(key)}")
    return key


def hashed_ids(values: Sequence[Any], key: bytes | None, kind: Kind) -> list[Any]:
    """Give the HMAC-SHA256 of each text, None for None; without a key the texts themselves."""
    if key is None:
        return list(values)
    return [None if value is None else hashed(str(value), key, kind) for value in values]


def hashed(text: str, key: bytes, kind: Kind) -> str:
    """Give the HMAC-SHA256 of `kind:text`, in `DIGITS` hexadecimal digits."""
    return hmac.new(key, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()[:DIGITS]
