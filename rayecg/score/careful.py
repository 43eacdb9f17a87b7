"""A unit at which worker after worker died: its records one by one, in a process that may die of them."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rayecg.core.batch import Batch
from rayecg.core.errors import DataError, RecordError
from rayecg.score.unit import Scored, UnitScorer

#: So many records in a row, at all of which a process died, are not to blame for it.
ALL_DIE = 8

_opened: UnitScorer | None = None


def score_each(scorer: UnitScorer, payload: dict[str, Any]) -> Scored:
    """Score a unit's records one by one; one at which the process dies is `internal_error`.

    Raises
    ------
    DataError
        If it dies at `ALL_DIE` records in a row.
    """
    found = Scored.of(scorer.predictors)
    process: ProcessPoolExecutor | None = None
    deaths = 0
    try:
        for row, own in scorer.source.singles(payload):
            if process is None:
                process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            try:
                part, deaths = process.submit(_score_one, scorer, own).result(), 0
            except BrokenProcessPool:
                process, deaths = None, deaths + 1
                if deaths == ALL_DIE:
                    raise DataError(
                        f"unit {payload['unit']}: a process died at {deaths} records in a row, the "
                        f"last of them {row['record_id']}; the same command continues"
                    ) from None
                error = RecordError("internal_error", "every process that worked on it died")
                part = scorer.scored([Batch.of([(row, error)])])
            found.add(part)
    finally:
        if process is not None:
            process.shutdown(cancel_futures=True)
    return found


def _score_one(scorer: UnitScorer, payload: dict[str, Any]) -> Scored:
    """Score a unit of one record, in a process that opens the checkpoints once."""
    global _opened
    if _opened is None:
        _opened = scorer
        _opened.open()
    return _opened.scored(_opened.source.batches(payload))
