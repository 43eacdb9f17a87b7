"""From a recording in mV to the windows a network reads: one path for training and for scoring.

Legend: W window, L lead, T time, M side column, B record of a batch, N record of a group, R lead of a
record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayecg.core.batch import Group
from rayecg.core.errors import RecordError
from rayecg.core.experiment import InputSettings
from rayecg.core.record import invalid_value, to_millivolts
from rayecg.signal.filters import bandpass, bridge, resample
from rayecg.signal.side import side_columns, side_names

#: Above this share of invalid samples in the leads that are read, a record is degraded.
MAX_INVALID = 0.2
#: A lead of a smaller deviation (mV) is flat, and not spread out: resampling leaves ripple of 1e-5 mV.
FLAT_MV = 1e-4
#: A gain of a smaller size (ADC units per mV) may make mV that are not finite.
SMALLEST_GAIN = 1e-20
#: Records that are turned to mV at a time: few enough for a core's cache.
AT_ONCE = 32


@dataclass(frozen=True)
class Prepared:
    """The windows of one recording.

    Attributes
    ----------
    x_WLT
        float32, at the input's rate.
    offset_W
        Where each window stands, in samples at the recording's own rate: its first sample, or its R
        peak for beats.
    limits
        The limits of the input that the recording breaks; empty if none.
    side_WM
        float32, the columns beside each window (see `rayecg.signal.side`); none for most networks.
    """

    x_WLT: np.ndarray
    offset_W: np.ndarray
    limits: tuple[str, ...]
    side_WM: np.ndarray


def prepare(
    signal_LT: np.ndarray,
    fs: float,
    leads: Sequence[str],
    settings: InputSettings,
    beat_times: np.ndarray | None = None,
    rhythm_times: np.ndarray | None = None,
    row: Mapping[str, Any] | None = None,
) -> Prepared:
    """Cut a recording into the windows that a network reads.

    Leads are chosen by name, the whole record is filtered, resampled once (polyphase, with
    anti-aliasing) and normalised, then cut. Absent leads reach the network as 0 (or refuse the record,
    if the input says so), invalid samples as a straight line between their neighbours; a limit says so.

    Parameters
    ----------
    signal_LT
        mV, leads by times; NaN marks invalid samples.
    fs
        Its sampling rate in Hz.
    leads
        Its lead names.
    settings
        What the network reads.
    beat_times
        R peaks in samples at `fs`: one window for each, centred. None cuts consecutive windows
        instead, the last one ending with the recording.
    rhythm_times
        All R peaks of the recording, rising, `beat_times` among them: what rhythm is taken from. None
        if `beat_times` are all.
    row
        What is known of the patient (`age`, `sex`), for networks that read it.

    Raises
    ------
    RecordError
        `missing_leads` if the record has none of the wanted leads, or not all where they must be,
        `all_invalid` if those it has hold no valid sample, `too_large` if its rate is far below the
        wanted one, `bad_annotation` if a beat lies outside the recording.
    ValueError
        If the array is not leads by times.
    """
    check_shape(signal_LT, leads)
    limits = []
    position = {lead: i for i, lead in enumerate(leads)}
    present = [lead for lead in settings.leads if lead in position]
    least = len(settings.leads) if settings.absent_leads == "refuse" else 1
    if len(present) < least:
        raise RecordError(
            "missing_leads",
            f"expected leads {' '.join(settings.leads)}, the record has {' '.join(leads)}",
        )
    if len(present) < len(settings.leads):
        absent = [lead for lead in settings.leads if lead not in position]
        if settings.absent_leads != "accept":
            limits.append(f"absent_leads:{' '.join(absent)}")
    own_LT = np.asarray(signal_LT[[position[lead] for lead in present]], dtype=np.float32)
    invalid_LT = ~np.isfinite(own_LT)
    if invalid_LT.all():
        raise RecordError("all_invalid", f"no valid sample in {' '.join(present)}")
    if invalid_LT.any():
        if invalid_LT.mean() > MAX_INVALID:
            limits.append(f"invalid_samples:{invalid_LT.mean():.2f}")
        own_LT = bridge(own_LT, invalid_LT)
    if settings.bandpass_hz is not None:
        own_LT = bandpass(own_LT, fs, settings.bandpass_hz)
    if fs < settings.fs:
        limits.append(f"up_sampled:{fs:g}")
    own_LT = resample(own_LT, fs, settings.fs)
    if settings.normalisation == "record":
        own_LT = _normalised(own_LT)
    if len(present) < len(settings.leads):
        x_LT = np.zeros((len(settings.leads), own_LT.shape[1]), dtype=np.float32)
        x_LT[[settings.leads.index(lead) for lead in present]] = own_LT
    else:
        x_LT = own_LT
    n_times, scale = settings.n_times, settings.fs / fs
    if beat_times is not None:
        beat_W = np.asarray(beat_times)
        outside = (beat_W < 0) | (beat_W >= np.shape(signal_LT)[1])
        if outside.any():
            raise RecordError(
                "bad_annotation",
                f"expected beats within {np.shape(signal_LT)[1]} samples, one stands at "
                f"{beat_W[outside][0]}",
            )
        rhythm = np.unique(beat_W if rhythm_times is None else rhythm_times)
        centre_W = np.round(beat_W * scale).astype(np.int64)
        x_WLT = _cut(x_LT, centre_W - n_times // 2, n_times)
        # Not rounded: intervals are known better than in steps of the rate that is read at.
        side_WM = side_columns(settings, x_LT, len(x_WLT), row, beat_W * scale, rhythm * scale)
        return Prepared(x_WLT, beat_W, tuple(limits), side_WM)
    length = x_LT.shape[1]
    if length < n_times:
        limits.append(f"too_short:{length / settings.fs:.2f} s")
    last = max(length - n_times, 0)
    start_W = np.append(np.arange(0, last, n_times), last)
    # A tail of under a tenth of a window adds nothing that its neighbour has not seen.
    if len(start_W) > 1 and start_W[-1] - start_W[-2] < n_times // 10:
        start_W = start_W[:-1]
    offset_W = np.round(start_W / scale).astype(np.int64)
    side_WM = side_columns(settings, x_LT, len(start_W), row, None, None)
    return Prepared(_cut(x_LT, start_W, n_times), offset_W, tuple(limits), side_WM)


@dataclass(frozen=True)
class Windows:
    """The windows of many recordings, one recording after the other.

    Attributes
    ----------
    x_WLT, offset_W, side_WM
        As for `Prepared`.
    n_windows_B
        How many each recording has; 0 where there is an error.
    limits
        Those of the recordings that break any, by their place.
    errors
        Why a recording has no window, by its place.
    """

    x_WLT: np.ndarray
    offset_W: np.ndarray
    side_WM: np.ndarray
    n_windows_B: np.ndarray
    limits: dict[int, tuple[str, ...]]
    errors: dict[int, Exception]

    def edges(self) -> np.ndarray:
        """Give where each recording's windows begin, and at last where they end."""
        return np.append(0, np.cumsum(self.n_windows_B))

    def windows(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Give the windows, or the first of them, and the columns beside them."""
        return self.x_WLT[:limit], self.side_WM[:limit]

    @classmethod
    def of(
        cls,
        n_records: int,
        items: Mapping[int, Prepared | Exception],
        settings: InputSettings,
        empty: Callable[[tuple[int, ...]], np.ndarray],
    ) -> Windows:
        """Lay out windows; a recording that `items` lacks has one at 0, which is the caller's to fill.

        `empty` gives the array of a shape that the windows are laid in.
        """
        n_windows_B = np.ones(n_records, dtype=np.int64)
        for i, item in items.items():
            n_windows_B[i] = len(item.x_WLT) if isinstance(item, Prepared) else 0
        edge_B = np.append(0, np.cumsum(n_windows_B))
        n = int(edge_B[-1])
        found = cls(
            x_WLT=empty((n, len(settings.leads), settings.n_times)),
            offset_W=np.zeros(n, dtype=np.int64),
            side_WM=np.empty((n, len(side_names(settings))), dtype=np.float32),
            n_windows_B=n_windows_B,
            limits={},
            errors={},
        )
        for i, item in items.items():
            if isinstance(item, Exception):
                found.errors[i] = item
                continue
            own = slice(edge_B[i], edge_B[i + 1])
            found.x_WLT[own], found.side_WM[own] = item.x_WLT, item.side_WM
            found.offset_W[own] = item.offset_W
            if item.limits:
                found.limits[i] = item.limits
        return found


def stand_whole(group: Group, settings: InputSettings) -> np.ndarray:
    """Tell which records are one window as they stand: `prepare` would but turn them to mV and normalise.

    Returns
    -------
    np.ndarray
        bool, one for each record of the group.
    """
    whole_N = group.n_times_N == settings.n_times
    if (
        group.leads != settings.leads
        or group.fs != settings.fs
        or settings.bandpass_hz is not None
        or settings.features
    ):
        return np.zeros_like(whole_N)
    whole_N &= (np.abs(group.gain_NL) > SMALLEST_GAIN).all(axis=1)
    samples = group.digital_NLT
    if isinstance(samples, np.ndarray):
        least_N = samples.reshape(len(samples), -1).min(axis=1)
    else:
        least_N = np.array([own_LT.min(initial=0) for own_LT in samples])
    whole_N &= least_N > invalid_value(samples[0].dtype)
    return whole_N


def fill_windows(
    x_WLT: np.ndarray, slot_N: np.ndarray, group: Group, own_N: np.ndarray, settings: InputSettings
) -> None:
    """Prepare records that `stand_whole`, with the bits that `prepare` gives them.

    Parameters
    ----------
    x_WLT
        Takes the windows.
    slot_N
        Where each of them goes.
    group
        Holds the records.
    own_N
        Which of the group they are, rising.
    settings
        What the network reads.
    """
    for start in range(0, len(own_N), AT_ONCE):
        some_N = own_N[start : start + AT_ONCE]
        samples = group.digital_NLT
        if not isinstance(samples, np.ndarray):
            some_NLT = np.stack([samples[n] for n in some_N])
        elif some_N[-1] - some_N[0] + 1 == len(some_N):
            some_NLT = samples[some_N[0] : some_N[-1] + 1]
        else:
            some_NLT = samples[some_N]
        slots = slot_N[start : start + AT_ONCE]
        aligned = slots[-1] - slots[0] + 1 == len(slots) and settings.normalisation == "none"
        # To mV, and to zero mean, every lead goes for itself: many records are one of many leads.
        own_RT = to_millivolts(
            some_NLT.reshape(-1, settings.n_times),
            group.gain_NL[some_N].ravel(),
            group.baseline_NL[some_N].ravel(),
            x_WLT[slots[0] : slots[-1] + 1].reshape(-1, settings.n_times) if aligned else None,
            all_valid=True,
        )
        if settings.normalisation == "record":
            own_RT = _normalised(own_RT)
        if not aligned:
            x_WLT[slots] = own_RT.reshape(some_NLT.shape)


def _normalised(x_RT: np.ndarray) -> np.ndarray:
    """Make each row zero mean and unit variance."""
    mean_R1 = x_RT.mean(axis=1, keepdims=True)
    spread_R1 = x_RT.std(axis=1, keepdims=True)
    return (x_RT - mean_R1) / np.where(spread_R1 > FLAT_MV, spread_R1, 1.0)


def check_shape(signal_LT: np.ndarray, leads: Sequence[str]) -> None:
    """Refuse with `ValueError` an array that is not leads by times."""
    if np.ndim(signal_LT) != 2 or len(signal_LT) != len(leads):
        shape = np.shape(signal_LT)
        raise ValueError(f"expected an array of {len(leads)} leads by times, came shape {shape}")


def _cut(x_LT: np.ndarray, start_W: np.ndarray, n_times: int) -> np.ndarray:
    """Cut windows; what lies before the start or after the end of the recording is 0."""
    before = int(max(0, -start_W.min(initial=0)))
    after = int(max(0, start_W.max(initial=0) + n_times - x_LT.shape[1]))
    if before or after:
        x_LT = np.pad(x_LT, ((0, 0), (before, after)))
    if not len(start_W):
        return np.empty((0, x_LT.shape[0], n_times), dtype=np.float32)
    views_LST = np.lib.stride_tricks.sliding_window_view(x_LT, n_times, axis=1)
    return np.ascontiguousarray(views_LST[:, start_W + before].transpose(1, 0, 2))
