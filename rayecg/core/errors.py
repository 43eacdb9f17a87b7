"""Errors that say what was expected, what came, and for which record or file."""

from __future__ import annotations

import re

#: Why a record has no probability. The codes are written to `quarantine.parquet` and to predictions.
ERROR_CODES = {
    "missing_file": "the header or a signal file is not there or cannot be opened",
    "bad_header": "the header does not follow the WFDB grammar",
    "unsupported_format": "the signal format is not one that can be read",
    "truncated_signal": "the signal file is shorter than its header says",
    "checksum_mismatch": "a lead's samples do not add up to the header's checksum",
    "bad_initial_value": "a lead's first sample is not the one the header states",
    "outside_archive": "the header names a file outside its own folder",
    "too_large": "the header claims more samples than the stated limit",
    "bad_units": "the units are not a voltage, so mV cannot be computed",
    "bad_annotation": "the annotation file cannot be read or does not fit the signal",
    "missing_leads": "none of the leads that the checkpoint reads is in the record",
    "no_beats": "a beat-wise checkpoint was given a record without beat positions",
    "all_invalid": "no lead has a single valid sample",
    "not_finite": "the model gave a value that is not finite",
    "internal_error": "an error of the program itself, with its text",
}


class RayecgError(Exception):
    """Base of every error whose message alone tells the user what to do."""


class SettingsError(RayecgError):
    """A settings file, an override or an argument is wrong (jobs exit with 2)."""


class DataError(RayecgError):
    """An archive, a folder of shards or a checkpoint cannot be used (jobs exit with 1)."""


class RecordError(RayecgError):
    """One record cannot be read or scored; it becomes a row in the quarantine table.

    Parameters
    ----------
    code
        A key of `ERROR_CODES`.
    message
        What was expected and what came, naming the file.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in ERROR_CODES:
            raise KeyError(f"{code!r} is not a documented error code")
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str]]:
        # Exceptions are pickled with `args` alone, and Ray pickles them to return them.
        return type(self), (self.code, self.message)


def record_error(error: Exception) -> tuple[str, str]:
    """Give the `(error_code, text)` under which any exception enters a table."""
    if isinstance(error, RecordError):
        return error.code, printable(error.message)
    return "internal_error", printable(f"{type(error).__name__}: {error}")


def printable(text: str) -> str:
    """Give a text as tables and files can hold it: bytes of a path that are no UTF-8 become escapes."""
    if text.isascii():
        return text
    text = re.sub("[\udc80-\udcff]", lambda one: f"\\x{ord(one[0]) - 0xDC00:02x}", text)
    return text.encode("utf-8", "backslashreplace").decode()
