"""Scoring of whole archives, and what prepares a checkpoint for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayecg.archives.catalogue import open_archive
from rayecg.archives.provide import ensure_archive
from rayecg.archives.wfdb_reader import Checks
from rayecg.core.experiment import (
    ArchiveSettings,
    ScoreSettings,
)
from rayecg.core.files import (
    only_job_on,
)
from rayecg.core.session import RaySettings, ray_session


def score(
    checkpoint: str | Path,
    archive: ArchiveSettings,
    out: str | Path,
    settings: ScoreSettings | None = None,
    ray: RaySettings | None = None,
    checks: Checks = "error",
) -> dict[str, Any]:
    """Score a raw archive with a checkpoint: one row per input record.

    Returns
    -------
    dict
        The manifest, with `n_input, n_ok, n_degraded, n_quarantined`.
    """
    from rayecg.models.checkpoint import read_card
    from rayecg.score.run import score as run
    from rayecg.score.sources import ArchiveSource

    read_card(checkpoint)
    source = ArchiveSource(open_archive(ensure_archive(archive, None)), checks=checks)
    folder = Path(out).resolve()
    with only_job_on(folder), ray_session(ray):
        found = run(
            {"checkpoint": Path(checkpoint).resolve()},
            source,
            {"checkpoint": folder},
            settings or ScoreSettings(),
        )
    return found["checkpoint"]
