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
from torch import nn

from rayecg.core.errors import RecordError, record_error
from rayecg.core.outputs import OperatingPoint, probabilities
from rayecg.models.checkpoint import input_settings, load_checkpoint
from rayecg.signal.beats import detect_beats, detection_lead
from rayecg.signal.prepare import Prepared, check_shape, prepare
from rayecg.signal.side import side_names


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


def window_logits(
    model: nn.Module,
    x_WLT: np.ndarray,
    side_WM: np.ndarray,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Give a network's logits for windows, in float64, windows by labels.

    Every batch is filled up to `batch_size`: the same arithmetic is done for a window whatever its
    neighbours and their number. The network must be in evaluation mode; `side_WM` is for those that
    read columns beside the window, and has none for the others.
    """
    batches = [
        torch.zeros((batch_size, *values.shape[1:]), dtype=torch.float32)
        for values in ((x_WLT, side_WM) if side_WM.shape[1] else (x_WLT,))
    ]
    found = []
    with torch.inference_mode():
        for start in range(0, max(len(x_WLT), 1), batch_size):
            n = min(len(x_WLT) - start, batch_size)
            for batch, values in zip(batches, (x_WLT, side_WM), strict=False):
                batch[:n] = torch.from_numpy(np.array(values[start : start + n]))
                batch[n:] = 0.0
            logit_BC = model(*(batch.to(device) for batch in batches))
            found.append(logit_BC[:n].double().cpu().numpy())
    return np.concatenate(found)


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
        Windows the network sees at a time; see `window_logits`.
    device
        A torch device.
    """

    def __init__(
        self, checkpoint: str | Path, batch_size: int = 64, device: str | torch.device = "cpu"
    ) -> None:
        self.model, self.card = load_checkpoint(checkpoint)
        self.device = torch.device(device)
        self.model.to(self.device)
        self.batch_size = batch_size
        self.input = input_settings(self.card)
        self.labels: tuple[str, ...] = tuple(self.card["task"]["labels"])
        self.unit: str = self.card["task"]["unit"]
        self.operating_point = OperatingPoint.from_tree(self.card["operating_point"])

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

    def _find_beats(self, signal_LT: np.ndarray, fs: float, leads: Sequence[str]) -> np.ndarray:
        if self.input.beats != "detected":
            raise RecordError("no_beats", "a beat-wise checkpoint needs the R peaks of the record")
        check_shape(signal_LT, leads)
        lead = detection_lead(leads)
        times = detect_beats(signal_LT[lead], fs)
        if not len(times):
            raise RecordError("no_beats", f"no beat was found in lead {leads[lead]}")
        return times

    def answer(self, items: Sequence[Prepared | Exception]) -> Prediction:
        """Score prepared records; an exception in place of one makes it a quarantined row."""
        good = [item for item in items if isinstance(item, Prepared)]
        n_windows = [len(item.x_WLT) if isinstance(item, Prepared) else 0 for item in items]
        empty = np.empty((0, len(self.input.leads), self.input.n_times), dtype=np.float32)
        x_WLT = np.concatenate([empty, *(item.x_WLT for item in good)])
        no_side = np.empty((0, len(side_names(self.input))), dtype=np.float32)
        side_WM = np.concatenate([no_side, *(item.side_WM for item in good)])
        logit_WC = window_logits(self.model, x_WLT, side_WM, self.batch_size, self.device)
        window_record = np.repeat(np.arange(len(items)), n_windows)
        offsets = [item.offset_W for item in good]
        logit_BC = np.full((len(items), len(self.labels)), np.nan)
        errors: list[tuple[str, str] | None] = []
        status, limits, start = [], [], 0
        for i, (item, n) in enumerate(zip(items, n_windows, strict=True)):
            own_WC = logit_WC[start : start + n]
            start += n
            if isinstance(item, Prepared) and not np.isfinite(own_WC).all():
                item = RecordError("not_finite", "the network's output is not finite")
                logit_WC[start - n : start] = np.nan
            if isinstance(item, Prepared):
                logit_BC[i] = combine_logits(own_WC, np.zeros(1, int), self.input.combine)[0]
                status.append("degraded" if item.limits else "ok")
                limits.append(item.limits)
                errors.append(None)
            else:
                status.append("quarantined")
                limits.append(())
                errors.append(record_error(item))
        abstain = np.array([s != "ok" for s in status], dtype=bool)
        decided_B = ~abstain if self.unit == "record" else np.zeros(len(items), dtype=bool)
        return Prediction(
            labels=self.labels,
            records=self._answer(logit_BC, decided_B),
            status=tuple(status),
            abstain=abstain,
            limits=tuple(limits),
            errors=tuple(errors),
            windows=self._answer(logit_WC, ~abstain[window_record]),
            window_record=window_record,
            window_offset=np.concatenate(offsets) if offsets else np.empty(0, dtype=np.int64),
        )

    def _answer(self, logit_NC: np.ndarray, decided_N: np.ndarray) -> Answer:
        kind = self.operating_point.kind
        probability_NC = probabilities(logit_NC, kind)
        decision_NC = np.full(logit_NC.shape, -1, dtype=np.int8)
        if decided_N.any():
            decision_NC[decided_N] = self.operating_point.decide(probability_NC[decided_N])
        calibrated_NC = self.operating_point.calibrate(logit_NC)
        return Answer(logit_NC, probability_NC, calibrated_NC, decision_NC)
