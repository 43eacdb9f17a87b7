"""Reading one WFDB record: every format, any number of files, segments, with the checks.

Legend: L lead, T time (sample), F frame, S sample of a file.

`wfdb.rdrecord` spends nearly all of its time in its header parser and checks neither checksums nor
initial values. Here what the headers of an archive have in common is worked out once (`_Plan`), a
file is one read, and its samples are checked before anything else is made of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rayecg.archives.wfdb_formats import FLAC, FORMATS, MAX_FLAC_BYTES, decode_flac, flac_invalid
from rayecg.archives.wfdb_header import KEPT_SIGNALS, MAX_VALUE, Header, Signals, read_header
from rayecg.core.errors import RecordError
from rayecg.core.record import MAX_SAMPLES, Record, invalid_value
from rayecg.core.storage import Folder
from rayecg.signal.leads import standard_name, standard_order, unique_names

Checks = Literal["error", "flag", "off"]
Frames = Literal["expand", "average"]

#: A file may go on for so many bytes after the last sample before it counts as longer than stated.
_PADDING = 512
#: A header of a few bytes can claim frames of any size: slower leads are brought to the rate of the
#: fastest if that makes up to so many times the recorded samples, or so many in any case, and if the
#: rates are to one another as whole numbers up to the last.
_MAX_EXPANDED, _SMALL, _MAX_STEPS = 64, 1 << 24, 10_000


def read_record(path: str | Path, checks: Checks = "error", frames: Frames = "expand") -> Record:
    """Read one WFDB record by path; see `read`."""
    path = Path(str(path).removesuffix(".hea"))
    if not path.parent.is_dir():
        raise RecordError("missing_file", f"{path}.hea: no such file or directory")
    return read(Folder(path.parent), path.name, checks, frames)


def read(folder: Folder, name: str, checks: Checks = "error", frames: Frames = "expand") -> Record:
    """Read one WFDB record, leads by standard names in standard order.

    Parameters
    ----------
    folder
        The archive, or the folder the record lies in; no file outside it is read.
    name
        The record's path below the folder, without `.hea`.
    checks
        What a wrong checksum or initial value does: `error` refuses the record, `flag` marks it,
        `off` does not look.
    frames
        Of a record whose frames hold several samples of a signal: `expand` gives every sample, at
        the rate of the fastest lead (slower ones are resampled to it and flagged); `average` gives
        one value a frame, as `wfdb.rdrecord` does by default.

    Returns
    -------
    Record
        With `digital` (int16 or int32, leads by times), `physical` (mV), `fs` (Hz), `leads`,
        `flags`. Signals that are no voltage (blood pressure, respiration) are left out and flagged.

    Raises
    ------
    RecordError
        With one of the codes of `rayecg.core.errors.ERROR_CODES`.
    """
    header = read_header(folder, name)
    if header.segments is not None:
        from rayecg.archives.wfdb_segments import read_segments

        return read_segments(folder, name, header, checks, frames)
    return read_signals(folder, name, header, checks, frames)


@dataclass(frozen=True)
class _Group:
    """The signals of one file: `of` are their numbers in the header."""

    file: int
    of: tuple[int, ...]
    code: int
    offset: int
    per_frame: tuple[int, ...]
    max_skew: int
    simple: bool


@dataclass(frozen=True)
class _Plan:
    """What a record's signal lines say, apart from first samples and checksums."""

    groups: tuple[_Group, ...]
    kept: tuple[int, ...]
    leads: tuple[str, ...]
    gain_L: np.ndarray
    baseline_L: np.ndarray
    flags: tuple[str, ...]
    per_frame: int
    n_per_frame: int
    in_order: bool


@functools.lru_cache(1024)
def _plan(signals: Signals) -> _Plan:
    specs = signals.specs
    groups = []
    signals_of: dict[int, list[int]] = {}
    for i, file in enumerate(signals.file_of):
        signals_of.setdefault(file, []).append(i)
    for file, of in signals_of.items():
        if of != list(range(of[0], of[-1] + 1)):
            raise RecordError("bad_header", "the signals of a file do not stand together")
        own = [specs[i] for i in of]
        if len({(spec.format, spec.offset) for spec in own}) > 1:
            raise RecordError("bad_header", "a signal file is given several formats or offsets")
        code = own[0].format
        if code not in FORMATS and code not in FLAC:
            raise RecordError("unsupported_format", f"unknown format {code}")
        per_frame = tuple(spec.samples_per_frame for spec in own)
        if code in FLAC and len(set(per_frame)) > 1:
            raise RecordError("bad_header", "the signals of a FLAC file have different rates")
        skew = max(spec.skew for spec in own)
        simple = set(per_frame) == {1} and not skew and code not in FLAC and code != 8
        groups.append(_Group(file, tuple(of), code, own[0].offset, per_frame, skew, simple))
    voltages = [i for i, spec in enumerate(specs) if spec.gain is not None]
    if not voltages:
        units = ", ".join(sorted({spec.unit[:20] for spec in specs})[:5])
        raise RecordError("bad_units", f"expected signals in V, mV, uV or nV, came {units}")
    names = [standard_name(specs[i].name) or f"lead{i}" for i in voltages]
    order = standard_order(names)
    kept = tuple(voltages[i] for i in order)
    leads, repeated = unique_names([names[i] for i in order])
    flags = [f"repeated_lead:{name}" for name in repeated]
    flags += [
        f"default_gain:{lead}"
        for lead, i in zip(leads, kept, strict=True)
        if not specs[i].gain_stated
    ]
    flags += [
        f"other_signal:{spec.name or f'signal{i}'}"
        for i, spec in enumerate(specs)
        if spec.gain is None
    ]
    plan = _Plan(
        groups=tuple(groups),
        kept=kept,
        leads=leads,
        gain_L=np.array([specs[i].gain for i in kept]),
        baseline_L=np.array([specs[i].baseline for i in kept], dtype=np.int64),
        flags=tuple(flags),
        per_frame=max(specs[i].samples_per_frame for i in kept),
        n_per_frame=sum(spec.samples_per_frame for spec in specs),
        in_order=kept == tuple(range(len(specs))),
    )
    # The plan is that of many records, and so are its arrays.
    plan.gain_L.flags.writeable = plan.baseline_L.flags.writeable = False
    return plan


def read_signals(
    folder: Folder, name: str, header: Header, checks: Checks, frames: Frames
) -> Record:
    """Read the signals of a record without segments; see `read`."""
    try:
        few = len(header.checksum) <= KEPT_SIGNALS
        plan = (_plan if few else _plan.__wrapped__)(header.signals)
    except RecordError as error:
        raise RecordError(error.code, f"{folder}/{name}.hea: {error.message}") from None
    flags = list(plan.flags)
    if not header.standard:
        flags.append("nonstandard_header")
    reader = _FileReader(folder, name, header, checks, flags)
    groups = plan.groups
    if header.n_times is not None:
        reader.count(f"{folder}/{name}.hea", header.n_times * plan.n_per_frame)
    if len(groups) == 1 and groups[0].simple:
        # Nearly every archive: one file, one sample a frame.
        digital_LT, wide = reader.read_simple(groups[0]), None
        if not plan.in_order:
            digital_LT = digital_LT[list(plan.kept)]
    else:
        rows: list[np.ndarray] = []
        for group in groups:
            rows.extend(reader.read_simple(group) if group.simple else reader.read_frames(group))
        n_frames = {
            len(row) // spec.samples_per_frame
            for row, spec in zip(rows, header.signals.specs, strict=True)
        }
        if len(n_frames) > 1:
            raise RecordError(
                "bad_header", f"{folder}/{name}.hea: its signal files have different lengths"
            )
        try:
            digital_LT, wide = _one_rate(rows, header, plan, frames, flags)
        except RecordError as error:
            raise RecordError(error.code, f"{folder}/{name}.hea: {error.message}") from None
    invalid = invalid_value(digital_LT.dtype)
    if (digital_LT[:, 0] == invalid).all() and (digital_LT == invalid).all():
        raise RecordError("all_invalid", f"{folder}/{name}: every sample is marked invalid")
    fs = header.fs if wide is None else header.fs * wide
    return Record(
        digital_LT=digital_LT,
        gain_L=plan.gain_L,
        baseline_L=plan.baseline_L,
        fs=fs,
        leads=plan.leads,
        flags=tuple(flags),
    )


class _FileReader:
    """Reads and checks the signal files of one record."""

    def __init__(
        self, folder: Folder, name: str, header: Header, checks: Checks, flags: list[str]
    ) -> None:
        self.folder, self.name, self.header = folder, name, header
        self.checks, self.flags = checks, flags
        self._n_left = MAX_SAMPLES
        above = name.rpartition("/")[0]
        self._above = f"{above}/" if above else ""

    def _where(self, group: _Group) -> str:
        return f"{self.folder}/{self._above}{self.header.files[group.file]}"

    def count(self, where: str, n_samples: int) -> None:
        """Refuse what makes the record larger than the limit, before it is read."""
        self._n_left -= n_samples
        if self._n_left < 0:
            raise RecordError("too_large", f"{where}: {n_samples} samples, over {MAX_SAMPLES}")

    def _samples(self, group: _Group) -> np.ndarray:
        """Give the samples of a file, in whole frames, one after another."""
        per_frame = sum(group.per_frame)
        n_frames = self.header.n_times
        file = self._above + self.header.files[group.file]
        if group.code in FLAC:
            raw, size = self.folder.read(file, limit=MAX_FLAC_BYTES)
            if size > MAX_FLAC_BYTES:
                raise RecordError("too_large", f"{self._where(group)}: {size} bytes of FLAC")
            width = group.per_frame[0]
            n_times = None if n_frames is None else n_frames * width
            found_TL = decode_flac(
                raw, group.code, len(group.of), group.offset, n_times, self._where(group)
            )
            found_TL = found_TL[: len(found_TL) // width * width]
            if n_frames is None:
                self.count(self._where(group), found_TL.size)
            if not len(found_TL):
                raise RecordError("truncated_signal", f"{self._where(group)}: not one whole frame")
            # From times by signals to the order of other files: frame, signal, sample.
            frames_FSL = found_TL.reshape(-1, width, len(group.of))
            return np.ascontiguousarray(frames_FSL.transpose(0, 2, 1)).reshape(-1)
        form = FORMATS[group.code]
        if n_frames is None:  # the file's size tells
            size = max(self.folder.size(file) - group.offset, 0)
            n_frames = form.n_samples(size) // per_frame
            if n_frames and form.n_bytes(n_frames * per_frame) > size:
                n_frames -= 1
            self.count(self._where(group), n_frames * per_frame)
        n_samples = n_frames * per_frame
        expected = form.n_bytes(n_samples)
        raw, size = self.folder.read(file, group.offset, expected)
        if len(raw) < expected or not n_samples:
            raise RecordError(
                "truncated_signal",
                f"{self._where(group)}: expected {expected} bytes ({len(group.of)} leads x "
                f"{n_frames} samples), came {max(size - group.offset, 0)}",
            )
        if size - group.offset - expected >= max(_PADDING, expected // max(n_frames, 1)):
            self.flags.append("longer_file")
        return form.decode(np.frombuffer(raw, dtype=np.uint8), n_samples)

    def read_simple(self, group: _Group) -> np.ndarray:
        """Read a file with one sample a frame; leads by times."""
        samples_S = self._samples(group)
        raw_LT = np.ascontiguousarray(samples_S.reshape(-1, len(group.of)).T)
        if self.checks != "off":
            # The sum is stated in 16 bits, which is what a sum in 16 bits is.
            self._verify(group, _sums(raw_LT), raw_LT[:, 0])
        invalid = FORMATS[group.code].invalid
        own = invalid_value(raw_LT.dtype)
        if invalid != own:  # the marker of a narrower format becomes that of the type
            raw_LT[raw_LT == invalid] = own
        return raw_LT

    def read_frames(self, group: _Group) -> list[np.ndarray]:
        """Read a file with frames of several samples, with skew, of differences, or FLAC.

        Gives a row for each signal, every sample of it.
        """
        specs = [self.header.signals.specs[i] for i in group.of]
        samples_FS = self._samples(group).reshape(-1, sum(group.per_frame))
        invalid = flac_invalid(group.code) if group.code in FLAC else FORMATS[group.code].invalid
        rows, start = [], 0
        for spec, i in zip(specs, group.of, strict=True):
            stop = start + spec.samples_per_frame
            row_T = np.array(samples_FS[:, start:stop]).reshape(-1)
            start = stop
            if group.code == 8:
                if abs(self.header.initial[i] or 0) > MAX_VALUE:
                    raise RecordError(
                        "bad_header", f"{self._where(group)}: a first sample beyond 32 bits"
                    )
                row_T = _from_differences(row_T, self.header.initial[i] or 0)
            rows.append(row_T)
        if self.checks != "off":
            sums = np.array([_sums(row_T[None])[0] for row_T in rows])
            # A file of differences has no first sample of its own: the header gives it.
            first = None if group.code == 8 else np.array([row_T[0] for row_T in rows])
            self._verify(group, sums, first)
        for row_T, spec in zip(rows, specs, strict=True):
            own = invalid_value(row_T.dtype)
            if invalid is not None and invalid != own:
                row_T[row_T == invalid] = own
            n_moved = min(spec.skew * spec.samples_per_frame, len(row_T))
            if n_moved:
                row_T[: len(row_T) - n_moved] = row_T[n_moved:].copy()
                row_T[len(row_T) - n_moved :] = own
        return rows

    def _verify(self, group: _Group, sum_L: np.ndarray, first_L: np.ndarray | None) -> None:
        header = self.header
        low, high = group.of[0], group.of[-1] + 1
        sums = sum_L.tolist()
        # Nearly always all is well, and two comparisons of lists say so.
        stated = header.checksum[low:high]
        if None in stated or [(s + 32768) % 65536 - 32768 for s in stated] != sums:  # type: ignore[operator]
            self._report("checksum_mismatch", group, stated, sums, 65536)
        if first_L is not None:
            firsts = first_L.tolist()
            if list(header.initial[low:high]) != firsts:
                self._report("bad_initial_value", group, header.initial[low:high], firsts, None)

    def _report(
        self,
        code: str,
        group: _Group,
        stated: Sequence[int | None],
        found: Sequence[int],
        modulus: int | None,
    ) -> None:
        for i, expected, came in zip(group.of, stated, found, strict=True):
            # Of leads that a skew moves, the header's values are not those at the record's start.
            if expected is None or self.header.signals.specs[i].skew:
                continue
            if modulus:
                expected, came = expected % modulus, came % modulus
            if expected == came:
                continue
            name = self.header.signals.specs[i].name
            if self.checks == "error":
                what = "checksum" if modulus else "first sample"
                raise RecordError(
                    code,
                    f"{self._where(group)}: lead {name!r}: expected {what} {str(expected)[:20]}, "
                    f"came {came}",
                )
            self.flags.append(f"{code}:{standard_name(name) or f'lead{i}'}")


def _sums(raw_LT: np.ndarray) -> np.ndarray:
    """Sum leads modulo 2^16, as int16."""
    if raw_LT.dtype == np.int16:
        return np.add.reduce(raw_LT, axis=1, dtype=np.int16)
    return raw_LT.sum(axis=1, dtype=np.int64).astype(np.uint64).astype(np.uint16).view(np.int16)


def _from_differences(row_T: np.ndarray, initial: int) -> np.ndarray:
    """Add up the differences of format 8; the first is taken from the header's initial value."""
    if abs(initial) + 128 * len(row_T) < 2**31:
        return np.cumsum(row_T, dtype=np.int32) + np.int32(initial)
    total_T = np.cumsum(row_T, dtype=np.int64) + initial
    return np.clip(total_T, -(2**31) + 1, 2**31 - 1).astype(np.int32)


def _one_rate(
    rows: list[np.ndarray], header: Header, plan: _Plan, frames: Frames, flags: list[str]
) -> tuple[np.ndarray, int | None]:
    """Bring signals to one type and one rate; gives leads by times, and samples a frame."""
    specs = header.signals.specs
    dtype = np.result_type(*[rows[i].dtype for i in plan.kept])
    per_frame = plan.per_frame if frames == "expand" else 1
    n_times = len(rows[plan.kept[0]]) // specs[plan.kept[0]].samples_per_frame * per_frame
    n_samples, n_own = n_times * len(plan.kept), sum(len(rows[i]) for i in plan.kept)
    if n_samples > MAX_SAMPLES or n_samples > max(_SMALL, _MAX_EXPANDED * n_own):
        raise RecordError(
            "too_large", f"at one rate {n_own} samples would become {n_samples}, over the limit"
        )
    digital_LT = np.empty((len(plan.kept), n_times), dtype=dtype)
    for row, i in enumerate(plan.kept):
        digital_LT[row] = at_rate(widened(rows[i], dtype), specs[i].samples_per_frame, per_frame)
        if frames == "expand" and specs[i].samples_per_frame < per_frame:
            rate = header.fs * specs[i].samples_per_frame
            flags.append(f"up_sampled:{rate:g}:{plan.leads[row]}")
    if frames == "average" and plan.per_frame > 1:
        flags.append("averaged_frames")
    return digital_LT, per_frame


def widened(row: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Give samples another integer type, invalid ones staying invalid."""
    if row.dtype == dtype:
        return row
    wide = row.astype(dtype)
    wide[row == invalid_value(row.dtype)] = invalid_value(dtype)
    return wide


def at_rate(row_T: np.ndarray, own: int, per_frame: int) -> np.ndarray:
    """Bring a lead with `own` samples a frame to `per_frame`: averaged to 1, or resampled to more."""
    if own == per_frame:
        return row_T
    invalid = invalid_value(row_T.dtype)
    if per_frame == 1:
        frames_FS = row_T.reshape(-1, own)
        # Division and the cut towards zero are those of `wfdb`.
        mean_F = (frames_FS.sum(axis=1, dtype=np.int64) / own).astype(row_T.dtype)
        mean_F[(frames_FS == invalid).any(axis=1)] = invalid
        return mean_F
    if max(own, per_frame) // math.gcd(own, per_frame) > _MAX_STEPS:
        raise RecordError(
            "too_large", f"cannot bring {own} samples a frame to {per_frame}: too many steps"
        )
    from scipy.signal import resample_poly

    from rayecg.signal.filters import bridge

    invalid_T = row_T == invalid
    values_T = row_T.astype(np.float64)
    if invalid_T.any():
        values_T = bridge(values_T[None], invalid_T[None])[0]
    # Rates in whole samples a frame: a quotient in Hz is not always the same fraction.
    fast_T = np.round(resample_poly(values_T, per_frame, own, padtype="edge"))
    fast_T = np.clip(fast_T, invalid + 1, -(invalid + 1)).astype(row_T.dtype)
    if invalid_T.any():
        source_T = np.arange(len(fast_T)) * own // per_frame
        fast_T[invalid_T[source_T]] = invalid
    return fast_T
