"""The archive that settings ask for: the synthetic one is written where it is not there yet."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rayecg.archives.base import SYNTHETIC_MARKER
from rayecg.archives.catalogue import ARCHIVES
from rayecg.core.catalogue import look_up
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import ArchiveSettings
from rayecg.core.progress import Progress

if TYPE_CHECKING:
    from rayecg.archives.synthetic import SyntheticSettings


def ensure_archive(settings: ArchiveSettings, default: Path | None) -> ArchiveSettings:
    """Write the synthetic archive if that is what is asked for and it is not there yet."""
    look_up(ARCHIVES, settings.kind, "archive kind")
    if settings.kind != "synthetic":
        return settings
    if settings.path is None and default is None:
        return settings
    if settings.path is not None and ("://" in settings.path or Path(settings.path).exists()):
        return settings
    from rayecg.archives.synthetic import GENERATOR_VERSION, write_archive

    made = synthetic_settings(settings)
    # Archives of other settings may stand beside it, so its name tells them apart.
    own = f"synthetic{GENERATOR_VERSION}-{made.n_records}-{made.fs}hz-seed{made.seed}"
    path = settings.path or str(default / own if default else own)
    if (Path(path) / SYNTHETIC_MARKER).exists():
        return dataclasses.replace(settings, path=path)
    progress = Progress("archive", settings.n_records, "synthetic records")
    write_archive(path, made, lambda done, total: progress.update(done))
    progress.done()
    return dataclasses.replace(settings, path=path)


def synthetic_settings(settings: ArchiveSettings) -> SyntheticSettings:
    """Give what decides the synthetic archive.

    Raises
    ------
    SettingsError
        If it cannot be written so.
    """
    from rayecg.archives.synthetic import SyntheticSettings

    try:
        return SyntheticSettings(
            n_records=settings.n_records, seed=settings.seed, fs=settings.rate or 500
        )
    except ValueError as error:
        raise SettingsError(f"archive: {error} (fs is archive.rate)") from None
