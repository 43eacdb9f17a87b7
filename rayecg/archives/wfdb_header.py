"""WFDB headers: a parser for the grammar of header(5) that builds no data frames.

Source: G. Moody, WFDB Applications Guide, header(5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rayecg.core.errors import RecordError

#: WFDB's gain where the header states none, or 0 (header(5): DEFGAIN).
DEFAULT_GAIN = 200.0
#: How many of a unit make 1 mV: the factor from ADC units per unit to ADC units per mV.
UNITS = {"mv": 1.0, "uv": 1000.0, "µv": 1000.0, "μv": 1000.0, "v": 0.001, "nv": 1e6}
#: Headers of real archives have a few kB.
MAX_HEADER_BYTES = 1 << 20

_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")
_GAIN = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)?(?:\(([-+]?\d+)\))?(?:/(\S+))?")


@dataclass(frozen=True)
class SignalSpec:
    """One signal line of a header; `gain` is in ADC units per mV, 0 in the file becomes 200."""

    file: str
    format: int
    samples_per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: int
    initial: int | None
    checksum: int | None
    name: str
    gain_stated: bool


@dataclass(frozen=True)
class Header:
    """A record line with its signals; `fs` in Hz, `n_times` None where the header has no length."""

    n_segments: int
    fs: float
    n_times: int | None
    signals: tuple[SignalSpec, ...]
    comments: tuple[str, ...]


def read_header(path: str | Path) -> Header:
    """Read the header of a record.

    Parameters
    ----------
    path
        Path of the record without `.hea`.

    Raises
    ------
    RecordError
        `missing_file`, `bad_header`, `outside_archive`, `bad_units`.
    """
    file = Path(f"{path}.hea")
    try:
        with open(file, "rb") as stream:
            raw = stream.read(MAX_HEADER_BYTES + 1)
    except OSError as error:
        raise RecordError("missing_file", f"{file}: {error.strerror}") from None
    if len(raw) > MAX_HEADER_BYTES:
        raise RecordError("bad_header", f"{file}: larger than {MAX_HEADER_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return parse_header(text, file)


def parse_header(text: str, file: str | Path) -> Header:
    """Parse the text of a header; `file` is named in errors. See `read_header`."""
    lines, comments = [], []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#"):
            comments.append(line[1:].strip())
        elif line:
            lines.append(line)
    if not lines:
        raise RecordError("bad_header", f"{file}: expected a record line, the file has none")
    words = lines[0].split()
    try:
        segments = words[0].partition("/")[2]
        n_segments = int(segments) if segments else 1
        n_signals = int(words[1])
        fs = float(re.split(r"[/(]", words[2])[0]) if len(words) > 2 else 250.0
        n_times = int(words[3]) if len(words) > 3 else None
    except (IndexError, ValueError):
        raise RecordError(
            "bad_header",
            f"{file}: expected 'name signals fs samples' on the first line, came {lines[0][:80]!r}",
        ) from None
    if not 0 < fs < 1e7 or n_signals < 1 or (n_times is not None and n_times < 0):
        raise RecordError(
            "bad_header", f"{file}: impossible record line {lines[0][:80]!r} (signals, fs, samples)"
        )
    if n_segments > 1 or segments:
        return Header(n_segments, fs, n_times, (), tuple(comments))
    if len(lines) - 1 < n_signals:
        raise RecordError(
            "bad_header", f"{file}: expected {n_signals} signal lines, came {len(lines) - 1}"
        )
    signals = tuple(_parse_signal(line, file) for line in lines[1 : 1 + n_signals])
    return Header(1, fs, n_times or None, signals, tuple(comments))


def _parse_signal(line: str, file: str | Path) -> SignalSpec:
    words = line.split(maxsplit=8)
    form = _FORMAT.fullmatch(words[1]) if len(words) > 1 else None
    gain = _GAIN.fullmatch(words[2]) if len(words) > 2 else _GAIN.fullmatch("")
    try:
        if form is None or gain is None:
            raise ValueError
        number = float(gain[1]) if gain[1] else 0.0
        zero = int(words[4]) if len(words) > 4 else 0
        initial = int(words[5]) if len(words) > 5 else None
        checksum = int(words[6]) if len(words) > 6 else None
        baseline = int(gain[2]) if gain[2] else zero
    except ValueError:
        raise RecordError(
            "bad_header", f"{file}: cannot be read as a signal line: {line[:80]!r}"
        ) from None
    if "/" in words[0] or "\\" in words[0] or words[0] in ("..", "~"):
        raise RecordError(
            "outside_archive", f"{file}: names a signal file outside its folder: {words[0]!r}"
        )
    unit = (gain[3] or "mV").lower()
    if unit not in UNITS:
        raise RecordError("bad_units", f"{file}: expected V, mV, uV or nV, came {gain[3]!r}")
    return SignalSpec(
        file=words[0],
        format=int(form[1]),
        samples_per_frame=int(form[2] or 1),
        skew=int(form[3] or 0),
        offset=int(form[4] or 0),
        gain=(number or DEFAULT_GAIN) * UNITS[unit],
        baseline=baseline,
        initial=initial,
        checksum=checksum,
        name=words[8].strip() if len(words) > 8 else "",
        gain_stated=bool(number),
    )
