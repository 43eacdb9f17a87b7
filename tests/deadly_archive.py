"""An archive with records at which the process that reads them is killed; as a script, scores it.

python deadly_archive.py CHECKPOINT ARCHIVE OUT RECORD…
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from rayecg.archives.catalogue import open_archive
from rayecg.core.experiment import ArchiveSettings, ScoreSettings
from rayecg.core.session import RaySettings, ray_session
from rayecg.score.run import score
from rayecg.score.sources import ArchiveSource


class Deadly(ArchiveSource):
    """See above."""

    deadly: tuple[str, ...] = ()

    def batches(self, payload: dict[str, Any]) -> Any:
        if set(self.deadly) & set(payload["rows"]["record_id"].to_pylist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batches(payload)


def deadly(archive: Path, *records: str) -> Deadly:
    source = Deadly(open_archive(ArchiveSettings("wfdb", str(archive))))
    source.deadly = records
    return source


if __name__ == "__main__":
    import deadly_archive  # where workers find the class

    checkpoint, archive, out, *records = sys.argv[1:]
    source = deadly_archive.deadly(Path(archive), *records)
    with ray_session(RaySettings(num_cpus=1)):
        settings = ScoreSettings(1, records_per_unit=16)
        score({"own": Path(checkpoint)}, source, {"own": Path(out)}, settings)
