"""Reading one WFDB record: the common formats directly, the others through `wfdb`.

Legend: L lead, T time, S sample of a file.

`wfdb.rdrecord` spends nearly all of its time in its header parser and checks neither checksums nor
initial values; the direct path does both, and refuses to leave the record's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from rayecg.archives.wfdb_header import Header, SignalSpec, read_header
from rayecg.core.errors import RecordError
from rayecg.core.record import MAX_SAMPLES, Record, invalid_value
from rayecg.signal.leads import standard_name, standard_order

Checks = Literal["error", "flag", "off"]

#: Bits read directly; `wfdb` reads the rest.
_DIRECT = {16, 212}
_MAX_BASELINE = 2**31 - 1  # header(5) knows no wider samples, and shards hold it in 32 bits
_THROUGH_WFDB = {8, 24, 32, 61, 80, 160, 310, 311, 508, 516, 524}


def read_record(path: str | Path, checks: Checks = "error") -> Record:
    """Read one WFDB record, leads by standard names in standard order.

    Parameters
    ----------
    path
        Path of the record, with or without `.hea`.
    checks
        What a wrong checksum or initial value does: `error` refuses the record, `flag` marks it,
        `off` does not look.

    Returns
    -------
    Record
        With `digital` (int16 or int32, leads by times), `physical` (mV), `fs` (Hz), `leads`,
        `flags`.

    Raises
    ------
    RecordError
        With one of the codes of `rayecg.core.errors.ERROR_CODES`.
    """
    path = Path(str(path).removesuffix(".hea"))
    header = read_header(path)
    if header.n_segments > 1 or not header.signals:
        raise RecordError("unsupported_format", f"{path}.hea: multi-segment records are not read")
    _refuse_too_many((header.n_times or 0) * len(header.signals), f"{path}.hea")
    flags: list[str] = []
    specs = header.signals
    if all(_is_direct(spec) for spec in specs):
        digital_LT = _read_direct(path, header, checks, flags)
    else:
        digital_LT = _read_through_wfdb(path, header, checks, flags)
    names = [standard_name(spec.name) or f"lead{i}" for i, spec in enumerate(specs)]
    order = standard_order(names)
    leads = _unique([names[i] for i in order], flags)
    for spec, name in zip(specs, names, strict=True):
        if not spec.gain_stated:
            flags.append(f"default_gain:{name}")
    if not np.isfinite([spec.gain for spec in specs]).all() or any(s.gain == 0 for s in specs):
        raise RecordError("bad_header", f"{path}.hea: a gain is not a usable number")
    if any(abs(spec.baseline) > _MAX_BASELINE for spec in specs):
        raise RecordError("bad_header", f"{path}.hea: a baseline is over {_MAX_BASELINE}")
    digital_LT = np.ascontiguousarray(digital_LT[order])
    invalid_LT = digital_LT == invalid_value(digital_LT.dtype)
    low_L, high_L = digital_LT.min(axis=1), digital_LT.max(axis=1)
    for i, lead in enumerate(leads):
        if low_L[i] == high_L[i]:
            flags.append(f"{'invalid' if invalid_LT[i].all() else 'flat'}:{lead}")
        elif low_L[i] == invalid_value(digital_LT.dtype):
            flags.append(f"some_invalid:{lead}")
    if invalid_LT.all():
        raise RecordError("all_invalid", f"{path}: every sample is marked invalid")
    return Record(
        digital_LT=digital_LT,
        gain_L=np.array([specs[i].gain for i in order]),
        baseline_L=np.array([specs[i].baseline for i in order], dtype=np.int64),
        fs=header.fs,
        leads=leads,
        flags=tuple(flags),
    )


def _refuse_too_many(n_samples: int, file: str | Path) -> None:
    if n_samples > MAX_SAMPLES:
        raise RecordError("too_large", f"{file}: claims {n_samples} samples, over {MAX_SAMPLES}")


def _is_direct(spec: SignalSpec) -> bool:
    return spec.format in _DIRECT and spec.samples_per_frame == 1 and spec.skew == 0


def _unique(names: list[str], flags: list[str]) -> tuple[str, ...]:
    """Give repeated lead names a number, so that every lead can be asked for."""
    seen: dict[str, int] = {}
    leads = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        leads.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
        if seen[name] == 2:
            flags.append(f"repeated_lead:{name}")
    return tuple(leads)


def _read_direct(path: Path, header: Header, checks: Checks, flags: list[str]) -> np.ndarray:
    """Read formats 16 and 212; the leads of one file stand one after another in the header."""
    parts, start = [], 0
    specs = header.signals
    while start < len(specs):
        stop = start + 1
        while stop < len(specs) and specs[stop].file == specs[start].file:
            stop += 1
        group = specs[start:stop]
        if any(spec.file == group[0].file for spec in specs[stop:]):
            raise RecordError(
                "bad_header", f"{path}.hea: the signals of {group[0].file} do not stand together"
            )
        if len({(spec.format, spec.offset) for spec in group}) > 1:
            raise RecordError(
                "bad_header", f"{path}.hea: {group[0].file} is given several formats or offsets"
            )
        raw_LT = _read_file(path.parent / group[0].file, group, header.n_times)
        if checks != "off":
            _verify(raw_LT, group, path, checks, flags)
        if group[0].format == 212:
            # Format 212 marks invalid samples with its own smallest value.
            raw_LT[raw_LT == -2048] = invalid_value(raw_LT.dtype)
        parts.append(raw_LT)
        start = stop
    if len({part.shape[1] for part in parts}) > 1:
        raise RecordError("bad_header", f"{path}.hea: its signal files have different lengths")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read_file(file: Path, group: Sequence[SignalSpec], n_times: int | None) -> np.ndarray:
    n_leads, offset = len(group), group[0].offset
    _refuse_outside(file)
    try:
        size = max(file.stat().st_size - offset, 0)
    except OSError as error:
        raise RecordError("missing_file", f"{file}: {error.strerror}") from None
    if n_times is None:  # a header without a length: the file's size tells
        n_times = (size // 2 if group[0].format == 16 else size * 2 // 3) // n_leads
    n_samples = n_leads * n_times
    _refuse_too_many(n_samples, file)
    expected = n_samples * 2 if group[0].format == 16 else (n_samples * 3 + 1) // 2
    if size < expected or not n_samples:
        raise RecordError(
            "truncated_signal",
            f"{file}: expected {expected} bytes ({n_leads} leads x {n_times} samples), came {size}",
        )
    try:
        raw = np.fromfile(file, np.uint8, count=expected, offset=offset)
    except OSError as error:
        raise RecordError("missing_file", f"{file}: {error.strerror}") from None
    if len(raw) < expected:
        raise RecordError("truncated_signal", f"{file}: expected {expected} bytes, read {len(raw)}")
    samples_S = raw.view("<i2") if group[0].format == 16 else _decode_212(raw, n_samples)
    return np.ascontiguousarray(samples_S.reshape(n_times, n_leads).T)


def _refuse_outside(file: Path) -> None:
    if file.is_symlink() and file.resolve().parent != file.parent.resolve():
        raise RecordError("outside_archive", f"{file}: a link that leaves its folder")


def _decode_212(raw: np.ndarray, n_samples: int) -> np.ndarray:
    """Unpack pairs of 12-bit two's complement samples from three bytes each."""
    padded = np.zeros((n_samples + 1) // 2 * 3, dtype=np.uint8)
    padded[: len(raw)] = raw
    low, middle, high = padded.reshape(-1, 3).T.astype(np.int16)
    samples = np.empty((len(low), 2), dtype=np.int16)
    # Shifting the sign bit of the 12-bit value into bit 15 and back extends the sign.
    samples[:, 0] = ((middle & 0x0F) << 12 | low << 4) >> 4
    samples[:, 1] = ((middle & 0xF0) << 8 | high << 4) >> 4
    return samples.reshape(-1)[:n_samples]


def _verify(
    raw_LT: np.ndarray, group: Sequence[SignalSpec], path: Path, checks: Checks, flags: list[str]
) -> None:
    # Only the low 16 bits of the sum are stated, so int64 sums of int16 samples cannot overflow.
    sums_L = raw_LT.sum(axis=1, dtype=np.int64)
    for spec, total, first in zip(group, sums_L, raw_LT[:, 0], strict=True):
        problems = []
        if spec.checksum is not None and (int(total) - spec.checksum) % 65536:
            text = f"expected checksum {spec.checksum % 65536}, came {int(total) % 65536}"
            problems.append(("checksum_mismatch", text))
        if spec.initial is not None and int(first) != spec.initial:
            problems.append(
                ("bad_initial_value", f"expected first sample {spec.initial}, came {first}")
            )
        for code, text in problems:
            if checks == "error":
                raise RecordError(code, f"{path.parent / spec.file}: lead {spec.name!r}: {text}")
            flags.append(f"{code}:{standard_name(spec.name)}")


def _read_through_wfdb(path: Path, header: Header, checks: Checks, flags: list[str]) -> np.ndarray:
    """Read a format that is rare in ECG archives with `wfdb`, then check it as the others."""
    import wfdb  # half a second of imports that the common formats do not need

    unknown = {spec.format for spec in header.signals} - _DIRECT - _THROUGH_WFDB
    if unknown:
        raise RecordError("unsupported_format", f"{path}.hea: unknown format {sorted(unknown)}")
    for spec in header.signals:
        _refuse_outside(path.parent / spec.file)
        if not (path.parent / spec.file).is_file():
            raise RecordError("missing_file", f"{path.parent / spec.file}: No such file")
    try:
        found = wfdb.rdrecord(str(path), physical=False, smooth_frames=True)
        digital_LT = np.asarray(found.d_signal).T
    except Exception as error:  # whatever the library raises on damaged bytes, it is this record's
        raise RecordError(
            "truncated_signal", f"{path}: wfdb cannot read it ({type(error).__name__}: {error})"
        ) from None
    widest = (
        np.int32 if {24, 32, 61, 80, 160, 524} & {s.format for s in header.signals} else np.int16
    )
    raw_LT = np.ascontiguousarray(digital_LT.astype(np.int64))
    # Of averaged frames and of leads moved by a skew, the sums are not those of the file.
    as_stored = all(spec.samples_per_frame == 1 and spec.skew == 0 for spec in header.signals)
    if checks != "off" and as_stored:
        _verify(raw_LT, header.signals, path, checks, flags)
    info = np.iinfo(widest)
    stored_LT = np.clip(raw_LT, info.min + 1, info.max).astype(widest)
    physical_LT = np.asarray(found.dac()).T if found.fmt else None
    if physical_LT is not None:
        stored_LT[np.isnan(physical_LT)] = info.min
    return stored_LT
