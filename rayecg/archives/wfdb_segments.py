"""Records of several segments: fixed layout (the same signals throughout) and variable layout.

Source: G. Moody, WFDB Applications Guide, header(5). A variable-layout record begins with a segment
of length 0 that names all its signals; a later segment holds some of them, and `~` is a gap. What no
segment holds is invalid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rayecg.archives.wfdb_header import Header, Segment, read_header
from rayecg.archives.wfdb_reader import Checks, Frames, at_rate, read_signals, widened
from rayecg.core.errors import RecordError
from rayecg.core.record import MAX_SAMPLES, Record, invalid_value
from rayecg.core.storage import Folder
from rayecg.signal.leads import standard_name, standard_order, unique_names

#: Gaps may be so many times as long as what is recorded, and so long in any case (samples): a header
#: of a few bytes can claim gaps of any length.
MAX_GAPS, SMALL = 64, 1 << 24
#: Segments are read one after another, and each costs a few files.
MAX_SEGMENTS = 100_000
#: Leads times segments, each of which is copied by itself.
MAX_PIECES = 4_000_000


def read_segments(
    folder: Folder, name: str, header: Header, checks: Checks, frames: Frames
) -> Record:
    """Read a record of several segments as one; see `wfdb_reader.read`.

    A lead whose gain or baseline changes between segments is brought to one scale: the least common
    multiple of the gains, which loses nothing, or else one 1024 times finer than the finest, flagged
    `requantised`.

    Raises
    ------
    RecordError
        Beside those of a record without segments: `bad_header`, where the segments do not fit
        together, and `too_large`.
    """
    where = f"{folder}/{name}.hea"
    segments = header.segments or ()
    if len(segments) > MAX_SEGMENTS:
        raise RecordError("too_large", f"{where}: {len(segments)} segments, over {MAX_SEGMENTS}")
    above = name.rpartition("/")[0]
    prefix = f"{above}/" if above else ""
    layout: list[str] | None = None
    if segments and segments[0].n_times == 0 and segments[0].name != "~":
        layout = _layout(folder, prefix + segments[0].name)
        segments = segments[1:]
    n_frames = sum(segment.n_times for segment in segments)
    if n_frames > MAX_SAMPLES:
        raise RecordError("too_large", f"{where}: claims {n_frames} samples, over {MAX_SAMPLES}")
    if header.n_times is not None and n_frames != header.n_times:
        raise RecordError(
            "bad_header",
            f"{where}: expected segments of {header.n_times} samples together, came {n_frames}",
        )
    read: list[Record | None] = []
    known: dict[Segment, Record | None] = {}
    stored = 0
    for segment in segments:
        # A segment that is named again is not read again.
        if segment not in known:
            known[segment] = _read_segment(folder, prefix, segment, header, checks, frames)
        record = known[segment]
        read.append(record)
        if record is not None:
            stored += record.digital_LT.size
            if stored > MAX_SAMPLES:
                raise RecordError("too_large", f"{where}: over {MAX_SAMPLES} samples")
    found = [record for record in read if record is not None]
    if not found:
        raise RecordError("all_invalid", f"{where}: none of its segments is recorded")
    return _joined(segments, read, found, layout, header, where)


def _layout(folder: Folder, name: str) -> list[str]:
    """Give the signal names of a layout header, standard ones where they are standard."""
    found = read_header(folder, name, layout=True)
    if found.segments is not None:
        raise RecordError("bad_header", f"{folder}/{name}.hea: a segment with segments of its own")
    return [
        standard_name(spec.name) or f"lead{i}"
        for i, spec in enumerate(found.signals.specs)
        if spec.gain is not None
    ]


def _read_segment(
    folder: Folder, prefix: str, segment: Segment, header: Header, checks: Checks, frames: Frames
) -> Record | None:
    if segment.name == "~" or not segment.n_times:
        return None
    name = prefix + segment.name
    own = read_header(folder, name)
    where = f"{folder}/{name}.hea"
    if own.segments is not None:
        raise RecordError("bad_header", f"{where}: a segment with segments of its own")
    if own.fs != header.fs:
        raise RecordError("bad_header", f"{where}: expected {header.fs:g} Hz, came {own.fs:g} Hz")
    if all(spec.gain is None for spec in own.signals.specs):
        return None  # only signals that are no voltage: for the ECG, a gap
    try:
        record = read_signals(folder, name, own, checks, frames)
    except RecordError as error:
        if error.code != "all_invalid":
            raise
        return None
    n_frames = record.digital_LT.shape[1] * header.fs / record.fs
    if round(n_frames) != segment.n_times:
        raise RecordError(
            "bad_header", f"{where}: expected {segment.n_times} samples, came {n_frames:g}"
        )
    return record


def _joined(
    segments: Sequence[Segment],
    read: Sequence[Record | None],
    found: Sequence[Record],
    layout: list[str] | None,
    header: Header,
    where: str,
) -> Record:
    # A segment without the fastest lead is slower, and brought to the rate of the others.
    fs = max(record.fs for record in found)
    per_frame = round(fs / header.fs)
    if layout is None:
        different = [record.leads for record in found if record.leads != found[0].leads]
        if different:
            raise RecordError(
                "bad_header",
                f"{where}: expected the leads {' '.join(found[0].leads)[:200]} in every segment, "
                f"came {' '.join(different[0])[:200]}",
            )
        leads = found[0].leads
    else:
        # Names that segments use beyond those of the layout come last.
        recorded = dict.fromkeys(lead for record in found for lead in record.leads)
        every = dict.fromkeys([*unique_names(layout)[0], *recorded])
        names = [lead for lead in every if lead in recorded]
        leads = tuple(names[i] for i in standard_order(names))
    n_times = sum(segment.n_times for segment in segments) * per_frame
    size = n_times * len(leads)
    stored = sum(record.digital_LT.size for record in found)
    if size > MAX_SAMPLES or size - stored > max(SMALL, MAX_GAPS * stored):
        raise RecordError(
            "too_large", f"{where}: claims {size} samples, of which {stored} are recorded"
        )
    if len(leads) * len(found) > MAX_PIECES:
        raise RecordError("too_large", f"{where}: {len(leads)} leads in {len(found)} segments")
    flags = list(dict.fromkeys(flag for record in found for flag in record.flags))
    own = [dict(zip(record.leads, range(len(record.leads)), strict=True)) for record in found]
    scales = [_scale(lead, found, own, flags) for lead in leads]
    dtype = np.result_type(
        *[record.digital_LT.dtype for record in found], *[scale[2] for scale in scales]
    )
    digital_LT = np.full((len(leads), n_times), invalid_value(dtype), dtype=dtype)
    row_of = {lead: row for row, lead in enumerate(leads)}
    stop = 0
    for segment, record in zip(segments, read, strict=True):
        start, stop = stop, stop + segment.n_times * per_frame
        if record is None:
            continue
        for i, lead in enumerate(record.leads):
            gain, baseline, _ = scales[row_of[lead]]
            row_T = at_rate(record.digital_LT[i], round(record.fs / header.fs), per_frame)
            digital_LT[row_of[lead], start:stop] = _rescaled(
                widened(row_T, dtype),
                float(record.gain_L[i]),
                int(record.baseline_L[i]),
                gain,
                baseline,
            )
    slow = sorted({record.fs for record in found if record.fs != fs})
    flags += [f"up_sampled:{rate:g}" for rate in slow]
    if len(found) < len(read):
        flags.append("gaps")
    return Record(
        digital_LT=digital_LT,
        gain_L=np.array([scale[0] for scale in scales]),
        baseline_L=np.array([scale[1] for scale in scales], dtype=np.int64),
        fs=fs,
        leads=leads,
        flags=tuple(flags),
    )


def _scale(
    lead: str, found: Sequence[Record], row_of: Sequence[dict[str, int]], flags: list[str]
) -> tuple[float, int, np.dtype]:
    """Choose a lead's gain and baseline for all segments, and the type its samples then need."""
    own = [
        (float(record.gain_L[i]), int(record.baseline_L[i]), record.digital_LT[i])
        for record, rows in zip(found, row_of, strict=True)
        if (i := rows.get(lead, -1)) >= 0
    ]
    gain, baseline, _ = own[0]
    if all((gain, baseline) == (other[0], other[1]) for other in own):
        return gain, baseline, np.dtype(np.int16)
    # The largest distance from 0 mV, which must fit whatever the new scale is.
    largest = max(
        (np.abs(row_T[row_T != invalid_value(row_T.dtype)].astype(np.int64) - zero).max(initial=0))
        / abs(scale)
        for scale, zero, row_T in own
    )
    gains = [other[0] for other in own]
    if all(value.is_integer() and value > 0 for value in gains):
        common = math.lcm(*{int(value) for value in gains})
        # Up to there the factors between the gains are exact.
        if common < 2**53 and largest * common < 2**31 - 2:
            return float(common), 0, np.dtype(np.int32)
    flags.append(f"requantised:{lead}")
    finest = max(map(abs, gains)) * 1024
    if largest:
        finest = min(finest, (2**31 - 2) / float(largest))
    return finest, 0, np.dtype(np.int32)


def _rescaled(
    row_T: np.ndarray, gain: float, baseline: int, to_gain: float, to_baseline: int
) -> np.ndarray:
    if (gain, baseline) == (to_gain, to_baseline):
        return row_T
    scaled_T = np.round((row_T.astype(np.float64) - baseline) * (to_gain / gain)) + to_baseline
    # A lead that was resampled can go a little beyond the values that the scale was chosen for.
    invalid = invalid_value(row_T.dtype)
    scaled_T = np.clip(scaled_T, invalid + 1, -(invalid + 1))
    scaled_T[row_T == invalid] = invalid
    return scaled_T.astype(row_T.dtype)
