"""WFDB headers: a parser for the grammar of header(5) that builds no data frames.

Source: G. Moody, WFDB Applications Guide, header(5).

The records of an archive differ in their first samples and checksums and are alike in all else, so
what follows from the rest of the signal lines (`Signals`) is worked out once and kept.

Published archives break the grammar. What leaves the signal unambiguous (a file name with a dot on
the record line, dates in any spelling, lengths written as `5000.0`, lines after the last signal) is
read, and the header says that it is not standard.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from rayecg.core.errors import RecordError
from rayecg.core.record import MAX_SAMPLES
from rayecg.core.storage import Folder, check_name

#: WFDB's gain where the header states none, or 0 (header(5): DEFGAIN).
DEFAULT_GAIN = 200.0
#: How many of a unit make 1 mV: the factor from ADC units per unit to ADC units per mV.
UNITS = {"mv": 1.0, "uv": 1000.0, "µv": 1000.0, "μv": 1000.0, "v": 0.001, "nv": 1e6}
#: Headers of real archives have a few kB, those of week-long records a few hundred.
MAX_HEADER_BYTES = 1 << 22
#: Baselines and samples are at most this: no format is wider, and shards hold them in 32 bits.
MAX_VALUE = 2**31 - 1
#: ADC units per mV are at least this, and at most one by this: samples in mV fit float32.
MIN_GAIN = 1e-28
MAX_SIGNALS = 4096
#: Of the name of a signal or file, and of the numbers and the unit of a signal: WFDB's own library
#: holds 100 and 50 characters.
MAX_NAME, MAX_WORD = 200, 60
#: Signals of records with more are worked out anew each time: what is kept must stay small.
KEPT_SIGNALS = 64

_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")
_GAIN = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)?(?:\(([-+]?\d+)\))?(?:/(\S+))?")
_NAME = re.compile(r"[-\w]+(?:/\d+)?")
_TIME = re.compile(r"\d{1,2}(:\d{1,2}){0,2}(\.\d*)?")
_DATE = re.compile(r"\d{1,2}/\d{1,2}/\d{4}")


class SignalSpec(NamedTuple):
    """One signal line of a header, without its file, first sample and checksum.

    `gain` is in ADC units per mV (0 in the file becomes 200); it is None, with the unit in `unit`,
    where the signal is no voltage.
    """

    format: int
    samples_per_frame: int
    skew: int
    offset: int
    gain: float | None
    baseline: int
    gain_stated: bool
    unit: str
    name: str


@dataclass(frozen=True, eq=False)
class Signals:
    """The signals of a record: their specifications, and which of its files each stands in."""

    specs: tuple[SignalSpec, ...]
    file_of: tuple[int, ...]


class Segment(NamedTuple):
    """A segment line: the record that holds it (`~` is a gap), and its length."""

    name: str
    n_times: int


@dataclass(frozen=True, slots=True)
class Header:
    """A record line with its signals or segments.

    `fs` in Hz, frames a second; `n_times` in frames, None where the header has no length. `initial`
    and `checksum` have a value or None for each signal.
    """

    fs: float
    n_times: int | None
    files: tuple[str, ...]
    signals: Signals
    initial: tuple[int | None, ...]
    checksum: tuple[int | None, ...]
    segments: tuple[Segment, ...] | None
    standard: bool
    text: str

    @property
    def comments(self) -> tuple[str, ...]:
        """The comment lines, without their `#`."""
        return tuple(line[1:].strip() for line in _lines(self.text) if line.startswith("#"))


_NO_SIGNALS = Signals((), ())


def read_header(folder: Folder, name: str, layout: bool = False) -> Header:
    """Read the header of a record.

    Parameters
    ----------
    folder
        Where the record lies.
    name
        Its path below that, without `.hea`.
    layout
        Whether it is the layout of a record of several segments, whose signals have no file (`~`).

    Raises
    ------
    RecordError
        `missing_file`, `bad_header`, `outside_archive`, `too_large`.
    """
    raw, size = folder.read(f"{name}.hea", limit=MAX_HEADER_BYTES)
    if size > MAX_HEADER_BYTES:
        raise _bad(folder, name, f"expected up to {MAX_HEADER_BYTES} bytes, came {size}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    try:
        return parse_header(text, layout)
    except RecordError as error:
        raise RecordError(error.code, f"{folder}/{name}.hea: {error.message}") from None


def _bad(folder: Folder, name: str, message: str) -> RecordError:
    return RecordError("bad_header", f"{folder}/{name}.hea: {message}")


def _lines(text: str) -> list[str]:
    # `str.splitlines` would also split at characters that stand within comments of other encodings.
    if "\r" in text:
        text = text.replace("\r", "\n")
    return [line.strip() for line in text.split("\n")]


def parse_header(text: str, layout: bool = False) -> Header:
    """Parse the text of a header; see `read_header`, whose errors add the file's name."""
    lines = [line for line in _lines(text) if line and line[0] != "#"]
    if not lines:
        raise RecordError("bad_header", "expected a record line, the file has none")
    words = lines[0].split()
    standard = True
    try:
        segments = words[0].partition("/")[2]
        n_segments = int(segments) if segments.isdecimal() else 0
        n_signals = int(words[1])
        fs = float(re.split(r"[/(]", words[2], maxsplit=1)[0]) if len(words) > 2 else 250.0
        n_times = _whole(words[3]) if len(words) > 3 else None
    except (IndexError, ValueError):
        raise RecordError(
            "bad_header",
            f"expected 'name signals fs samples' on the first line, came {lines[0][:80]!r}",
        ) from None
    if not 0 < fs < 1e7 or n_signals < 1 or (n_times is not None and n_times < 0):
        raise RecordError(
            "bad_header", f"impossible record line {lines[0][:80]!r} (signals, fs, samples)"
        )
    if n_signals > MAX_SIGNALS:
        raise RecordError("too_large", f"claims more than {MAX_SIGNALS} signals")
    if n_times is not None and n_times > MAX_SAMPLES:
        raise RecordError("too_large", f"claims more than {MAX_SAMPLES} samples")
    if not _NAME.fullmatch(words[0]) or (len(words) > 3 and not words[3].isdecimal()):
        standard = False
    if len(words) > 4 and not _is_time_and_date(words[4:]):
        standard = False
    if n_segments:
        return _with_segments(lines, n_segments, fs, n_times, standard, text)
    if len(lines) - 1 < n_signals:
        raise RecordError("bad_header", f"expected {n_signals} signal lines, came {len(lines) - 1}")
    if len(lines) - 1 > n_signals:
        standard = False
    rows = [line.split(None, 8) for line in lines[1 : 1 + n_signals]]
    if min(map(len, rows)) < 9:
        rows = [[*row, *[""] * (9 - len(row))] for row in rows]
    names, forms, gains, _, zeros, firsts, sums, _, titles = zip(*rows, strict=True)
    # The first sample and the checksum are the record's own; all else is shared with others.
    files = dict.fromkeys(names)
    if len(files) == 1:
        file_of: tuple[int, ...] = (0,) * n_signals
    else:
        place = {name: i for i, name in enumerate(files)}
        file_of = tuple([place[name] for name in names])
    key = (file_of, forms, gains, zeros, titles)
    signals = (_signals if n_signals <= KEPT_SIGNALS else _parse_signals)(*key)
    for file in files:
        if layout and file == "~":
            continue
        _check_own(file, "signal file")
    return Header(
        fs=fs,
        n_times=n_times or None,
        files=tuple(files),
        signals=signals,
        initial=_numbers(firsts, lines),
        checksum=_numbers(sums, lines),
        segments=None,
        standard=standard,
        text=text,
    )


def _with_segments(
    lines: list[str],
    n_segments: int,
    fs: float,
    n_times: int | None,
    standard: bool,
    text: str,
) -> Header:
    if len(lines) - 1 < n_segments:
        raise RecordError(
            "bad_header",
            f"expected {str(n_segments)[:20]} segment lines, came {len(lines) - 1}",
        )
    segments = []
    for line in lines[1 : 1 + n_segments]:
        words = line.split()
        try:
            segment = Segment(words[0], int(words[1]))
        except (IndexError, ValueError):
            raise RecordError(
                "bad_header", f"cannot be read as a segment line: {line[:80]!r}"
            ) from None
        if segment.n_times < 0:
            raise RecordError("bad_header", f"a segment of negative length: {line[:80]!r}")
        if segment.n_times > MAX_SAMPLES:
            raise RecordError("too_large", f"a segment of more than {MAX_SAMPLES} samples")
        if segment.name != "~":
            _check_own(segment.name, "segment")
        segments.append(segment)
    return Header(fs, n_times or None, (), _NO_SIGNALS, (), (), tuple(segments), standard, text)


def _check_own(name: str, what: str) -> None:
    """Refuse a name that is not that of a file beside the header."""
    if "/" in name:
        raise RecordError("outside_archive", f"names a {what} outside: {name[:200]!r}")
    check_name(name, "its folder")
    if len(name) > MAX_NAME:
        raise RecordError("missing_file", f"names a {what} by {len(name)} characters")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(text) from None
        return int(number)


def _is_time_and_date(words: list[str]) -> bool:
    return (
        len(words) <= 2
        and bool(_TIME.fullmatch(words[0]))
        and (len(words) == 1 or bool(_DATE.fullmatch(words[1])))
    )


def _numbers(texts: tuple[str, ...], lines: list[str]) -> tuple[int | None, ...]:
    """Give a column of whole numbers, None where a line has none."""
    try:
        return tuple(map(int, texts))
    except ValueError:
        pass
    numbers = []
    for text, line in zip(texts, lines[1:], strict=False):
        try:
            numbers.append(_whole(text) if text else None)
        except ValueError:
            raise _bad_line(line) from None
    return tuple(numbers)


def _parse_signals(file_of: tuple[int, ...], *columns: tuple[str, ...]) -> Signals:
    return Signals(tuple(_parse_signal(*words) for words in zip(*columns, strict=True)), file_of)


# A kept entry is as large as its header's signal lines, which the limits above bound.
_signals = functools.lru_cache(512)(_parse_signals)


def _parse_signal(form_word: str, gain_word: str, zero_word: str, title: str) -> SignalSpec:
    """Parse the words that records share; any but the first can be missing."""
    name = title.strip()
    form, gain = _FORMAT.fullmatch(form_word), _GAIN.fullmatch(gain_word)
    try:
        if form is None or gain is None:
            raise ValueError
        number = float(gain[1]) if gain[1] else 0.0
        zero = _whole(zero_word) if zero_word else 0
        baseline = int(gain[2]) if gain[2] else zero
        if not math.isfinite(number) or abs(baseline) > MAX_VALUE:
            raise ValueError
        if len(name) > MAX_NAME or max(len(form_word), len(gain_word), len(zero_word)) > MAX_WORD:
            raise ValueError
        code, per_frame, skew, offset = (
            int(text) if text else default
            for text, default in zip(form.groups(), (0, 1, 0, 0), strict=True)
        )
        if per_frame < 1:
            raise ValueError
    except ValueError:
        raise _bad_line(f"FILE {form_word} {gain_word} … {zero_word} … {name}") from None
    unit = gain[3] or "mV"
    factor = UNITS.get(unit.lower())
    scaled = None if factor is None else (number or DEFAULT_GAIN) * factor
    if scaled is not None and not MIN_GAIN < abs(scaled) < 1 / MIN_GAIN:
        raise _bad_line(f"FILE {form_word} {gain_word} … {zero_word} … {name}")
    return SignalSpec(
        format=code,
        samples_per_frame=per_frame,
        skew=skew,
        offset=offset,
        gain=scaled,
        baseline=baseline,
        gain_stated=bool(number),
        unit=unit,
        name=name,
    )


def _bad_line(line: str) -> RecordError:
    return RecordError("bad_header", f"cannot be read as a signal line: {line[:80]!r}")
