"""Archive kinds: `name -> "module:class"`."""

from __future__ import annotations

from rayecg.archives.base import Archive
from rayecg.core.catalogue import look_up
from rayecg.core.experiment import ArchiveSettings

ARCHIVES = {
    "cinc": "rayecg.archives.cinc:Cinc",
    "ludb": "rayecg.archives.ludb:Ludb",
    "mitbih": "rayecg.archives.mitbih:MitBih",
    "ptbxl": "rayecg.archives.ptbxl:PtbXl",
    "synthetic": "rayecg.archives.ptbxl:Synthetic",
    "wfdb": "rayecg.archives.folder:WfdbFolder",
}


def open_archive(settings: ArchiveSettings) -> Archive:
    """Open an archive for indexing and reading.

    Raises
    ------
    SettingsError
        If the kind is unknown or the path is not given.
    DataError
        If nothing of that kind lies at the path.
    """
    kind: type[Archive] = look_up(ARCHIVES, settings.kind, "archive kind")
    return kind(settings)
