"""The one inference path: what `rayecg.load(...).predict` and the score stage both run.

Legend: B record, W window, L lead, T time, M side column, C label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayecg.core.batch import Batch, Group
from rayecg.core.errors import DataError, RecordError, record_error
from rayecg.core.outputs import OperatingPoint, probabilities
from rayecg.models.backends import empty_windows, open_backend
from rayecg.models.checkpoint import input_settings, load_checkpoint
from rayecg.signal.beats import detect_beats, detection_lead
from rayecg.signal.prepare import (
    Prepared,
    Windows,
    check_shape,
    fill_windows,
    prepare,
    stand_whole,
)
from rayecg.signal.side import metadata_columns

#: So many records, none of which a network can do, are not to blame for it.
ALL_FAIL = 32


@dataclass(frozen=True)
class Answer:
    """A checkpoint's outputs for some units (records, or windows), NaN where there is none.

    All arrays are units by labels; `decision` holds 0, 1, or -1 for "no decision".
    """

    logit: np.ndarray
    probability: np.ndarray
    calibrated: np.ndarray
    decision: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """The answer for every record of a call, and for the windows they were cut into.

    Attributes
    ----------
    labels
        Names of the `C` axis.
    records
        One row per record: its windows' logits combined. Beat-wise tasks decide per beat, so
        their records carry no decision.
    status
        `ok`, `degraded` (a probability, but a limit of the checkpoint is broken: no decision) or
        `quarantined` (no probability).
    abstain
        True where there is no decision because of the status.
    limits
        The broken limits of each record, empty if none.
    errors
        `(error_code, text)` of quarantined records, None for the others.
    windows
        One row per window, in the records' order.
    window_record, window_offset
        Which record each window belongs to, and where it stands (samples at the record's rate).
    """

    labels: tuple[str, ...]
    records: Answer
    status: tuple[str, ...]
    abstain: np.ndarray
    limits: tuple[tuple[str, ...], ...]
    errors: tuple[tuple[str, str] | None, ...]
    windows: Answer
    window_record: np.ndarray
    window_offset: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """Probabilities, records by labels."""
        return self.records.probability

    @property
    def decision(self) -> np.ndarray:
        """Decisions (0, 1, -1 for none), records by labels."""
        return self.records.decision


def combine_logits(logit_WC: np.ndarray, start_N: np.ndarray, how: str) -> np.ndarray:
    """Make one row of logits of the consecutive windows that begin at each start.

    `how` is `InputSettings.combine`: their mean, or the largest for each label.
    """
    if how == "max":
        return np.maximum.reduceat(logit_WC, start_N, axis=0)
    sums_NC = np.add.reduceat(logit_WC, start_N, axis=0)
    return sums_NC / np.diff(np.append(start_N, len(logit_WC)))[:, None]


class Predictor:
    """A checkpoint, ready to answer.

    Parameters
    ----------
    checkpoint
        Folder of a bundle.
    batch_size
        Windows the network sees at a time; see `rayecg.models.backends.Backend`.
    device
        A torch device.
    backend
        What runs the network, one of `rayecg.models.backends.BACKENDS`.
    threads
        Of ONNX Runtime; torch's number if None.
    fingerprint
        The one that the card must have, or its beginning: whoever read the card before says so, and
        a bundle that was replaced since, or only exported anew, is refused.

    Attributes
    ----------
    card
        All that answers are made by is of this one reading of it.

    Raises
    ------
    DataError
        If the bundle cannot be loaded, is another, or lacks what the back end runs.
    SettingsError
        If there is no such back end.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        backend: str = "eager",
        threads: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.model, self.card = load_checkpoint(checkpoint, fingerprint)
        self.device = torch.device(device)
        self.backend = open_backend(
            backend, checkpoint, self.model, batch_size, self.device, threads, self.card
        )
        self.input = input_settings(self.card)
        self.labels: tuple[str, ...] = tuple(self.card["task"]["labels"])
        self.unit: str = self.card["task"]["unit"]
        self.operating_point = OperatingPoint.from_tree(self.card["operating_point"])

    @property
    def batch_size(self) -> int:
        """Windows the network sees at a time."""
        return self.backend.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.backend.batch_size = size

    def predict(
        self,
        signal_BLT: np.ndarray | Sequence[np.ndarray],
        fs: float,
        leads: Sequence[str],
        metadata: Mapping[str, Sequence[Any]] | None = None,
    ) -> Prediction:
        """Score recordings that are in memory.

        Parameters
        ----------
        signal_BLT
            mV, records by leads by times (or a sequence of leads-by-times arrays); NaN marks
            invalid samples.
        fs
            Their sampling rate in Hz.
        leads
            Lead names, in the order of the second axis.
        metadata
            One value per record under each name; None where it is not known. Checkpoints whose
            input says so read `age` (years) and `sex` (F or M). Beat-wise checkpoints read
            `beat_times`: the R peaks of each record in samples at `fs`; where there are none, a
            checkpoint whose input says `beats: detected` finds them.
        """
        rows = [
            {name: values[i] for name, values in (metadata or {}).items()}
            for i in range(len(signal_BLT))
        ]
        items: list[Prepared | Exception] = []
        for signal_LT, row in zip(signal_BLT, rows, strict=True):
            try:
                times = row.get("beat_times")
                items.append(self.prepare(np.asarray(signal_LT), fs, leads, times, row))
            except Exception as error:  # one record's trouble is that record's row
                items.append(error)
        return self.answer(items)

    def prepare(
        self,
        signal_LT: np.ndarray,
        fs: float,
        leads: Sequence[str],
        beat_times: Sequence[int] | np.ndarray | None = None,
        row: Mapping[str, Any] | None = None,
    ) -> Prepared:
        """Cut one recording into windows; see `rayecg.signal.prepare.prepare`.

        Raises
        ------
        RecordError
            Also `no_beats`, if the task is beat-wise and there is none.
        """
        if self.unit != "beat":
            return prepare(signal_LT, fs, leads, self.input, row=row)
        if beat_times is None or not len(beat_times):
            beat_times = self._find_beats(signal_LT, fs, leads)
        times = np.asarray(beat_times, dtype=np.int64)
        return prepare(signal_LT, fs, leads, self.input, times, row=row)

    def prepare_batch(self, batch: Batch) -> Windows:
        """Cut the records of a batch into windows, as `prepare` does with each of them.

        Never raises for a record: what it cannot cut is among the errors.
        """
        names = self.input.metadata
        rows = batch.index.select(names).to_pylist() if names else [None] * len(batch)
        items: dict[int, Prepared | Exception] = dict(batch.errors)
        whole: list[np.ndarray] = []
        for group in batch.groups:
            whole_N = stand_whole(group, self.input) & (self.unit != "beat")
            whole.append(np.flatnonzero(whole_N))
            for n in np.flatnonzero(~whole_N).tolist():
                i = int(group.position_N[n])
                items[i] = self._prepare_one(group, n, rows[i])
        windows = Windows.of(len(batch), items, self.input, empty_windows)
        edge_B = windows.edges()
        for group, own_N in zip(batch.groups, whole, strict=True):
            place_N = group.position_N[own_N]
            fill_windows(windows.x_WLT, edge_B[place_N], group, own_N, self.input)
            if names:
                for i in place_N.tolist():
                    windows.side_WM[edge_B[i]] = metadata_columns(rows[i], names)
        return windows

    def _prepare_one(
        self, group: Group, n: int, row: Mapping[str, Any] | None
    ) -> Prepared | Exception:
        try:
            found = group.record(n)
            return self.prepare(found.physical, found.fs, found.leads, found.beat_times, row)
        except Exception as error:  # one record's trouble is that record's row
            return error

    def _find_beats(self, signal_LT: np.ndarray, fs: float, leads: Sequence[str]) -> np.ndarray:
        if self.input.beats != "detected":
            raise RecordError("no_beats", "a beat-wise checkpoint needs the R peaks of the record")
        check_shape(signal_LT, leads)
        lead = detection_lead(leads)
        times = detect_beats(signal_LT[lead], fs)
        if not len(times):
            raise RecordError("no_beats", f"no beat was found in lead {leads[lead]}")
        return times

    def answer(self, items: Windows | Sequence[Prepared | Exception]) -> Prediction:
        """Score prepared records; an exception in place of one makes it a quarantined row.

        So does one that the network raises for a record, or a logit that is not finite: its
        neighbours are scored.

        Raises
        ------
        DataError
            If the network raises for every one of `ALL_FAIL` records or more.
        """
        if isinstance(items, Windows):
            windows = items
        else:
            windows = Windows.of(len(items), dict(enumerate(items)), self.input, empty_windows)
        n_B, edge_B = windows.n_windows_B, windows.edges()
        owner_W = np.repeat(np.arange(len(n_B)), n_B)
        logit_WC = np.full((len(owner_W), len(self.labels)), np.nan)
        failed = self._run(windows, edge_B, 0, len(n_B), logit_WC)
        if len(failed) == (n_B > 0).sum() >= ALL_FAIL:
            # No record's fault: a device without memory, a network that does not fit its card.
            error = failed[min(failed)]
            raise DataError(
                f"{self.card['architecture']}: raised for every one of {len(failed)} records "
                f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            )
        lost_W = ~np.isfinite(logit_WC).all(axis=1)
        if lost_W.any():
            for i in np.unique(owner_W[lost_W]).tolist():
                logit_WC[edge_B[i] : edge_B[i + 1]] = np.nan
                failed.setdefault(
                    i, RecordError("not_finite", "the network's output is not finite")
                )
        logit_BC = np.full((len(n_B), len(self.labels)), np.nan)
        if len(owner_W):
            some_B = n_B > 0
            starts = edge_B[:-1][some_B]
            logit_BC[some_B] = combine_logits(logit_WC, starts, self.input.combine)
        status = ["ok"] * len(n_B)
        limits: list[tuple[str, ...]] = [()] * len(n_B)
        errors: list[tuple[str, str] | None] = [None] * len(n_B)
        for i, broken in windows.limits.items():
            status[i], limits[i] = "degraded", broken
        for i, error in (windows.errors | failed).items():
            status[i], limits[i], errors[i] = "quarantined", (), record_error(error)
        abstain = np.array([s != "ok" for s in status], dtype=bool)
        decided_B = ~abstain if self.unit == "record" else np.zeros(len(n_B), dtype=bool)
        return Prediction(
            labels=self.labels,
            records=self._answer(logit_BC, decided_B),
            status=tuple(status),
            abstain=abstain,
            limits=tuple(limits),
            errors=tuple(errors),
            windows=self._answer(logit_WC, ~abstain[owner_W]),
            window_record=owner_W,
            window_offset=windows.offset_W,
        )

    def _run(
        self, windows: Windows, edge_B: np.ndarray, first: int, last: int, logit_WC: np.ndarray
    ) -> dict[int, Exception]:
        """Fill in the logits of consecutive records; gives those for which the network raises.

        Where it does for many, it is asked for each half of them, down to the one that it is for.
        """
        own = slice(edge_B[first], edge_B[last])
        if own.start == own.stop:
            return {}
        try:
            logit_WC[own] = self.backend.logits(windows.x_WLT[own], windows.side_WM[own])
        except Exception as error:
            if last - first == 1:
                return {first: error}
            half = (first + last) // 2
            return {
                **self._run(windows, edge_B, first, half, logit_WC),
                **self._run(windows, edge_B, half, last, logit_WC),
            }
        return {}

    def _answer(self, logit_NC: np.ndarray, decided_N: np.ndarray) -> Answer:
        kind = self.operating_point.kind
        probability_NC = probabilities(logit_NC, kind)
        decision_NC = np.full(logit_NC.shape, -1, dtype=np.int8)
        if decided_N.any():
            decision_NC[decided_N] = self.operating_point.decide(probability_NC[decided_N])
        calibrated_NC = self.operating_point.calibrate(logit_NC)
        return Answer(logit_NC, probability_NC, calibrated_NC, decision_NC)
