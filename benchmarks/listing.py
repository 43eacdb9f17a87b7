"""Memory and time that the index of a scoring job takes, by the number of records and where they lie.

    python benchmarks/listing.py [--json] [--records 100000,300000]

`flat`: all records in one folder; `folders`: each in its own; `cinc`: flat, with the headers read. The files
of records are links to a few, since none but headers are read. Each index is made in a process of its own,
which has made a small one before: `growth_mib` is how far that raised its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from printing import print_rows

from rayecg.archives.catalogue import open_archive
from rayecg.core.experiment import ArchiveSettings
from rayecg.score.sources import ArchiveSource

#: Kind of archive, and whether each record has a folder.
LAYOUTS = {"flat": ("wfdb", False), "folders": ("wfdb", True), "cinc": ("cinc", False)}
N_BEFORE = 20_000
#: To one file: some file systems allow 65,000.
LINKS = 50_000


def write_archive(folder: Path, kind: str, apart: bool, n_records: int) -> None:
    """Write records that are links to the files of a few."""
    samples = ".mat" if kind == "cinc" else ".dat"
    header = f"one 1 100 100\none{samples} 16 1000/mV 16 0 0 0 0 I\n# Age: 60\n"
    for i in range(n_records):
        place = folder / f"{i:07d}" if apart else folder
        place.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".hea", header), (samples, "")):
            first, own = folder / f"one-{i // LINKS}{suffix}.first", place / f"r{i:07d}{suffix}"
            if i % LINKS == 0:
                first.write_text(content)
            os.link(first, own)


def measure(kind: str, before: str, path: str) -> dict[str, Any]:
    """Make the index of an archive in this process, after that of another."""
    ArchiveSource(open_archive(ArchiveSettings(kind, before)))
    peak_kib, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    source = ArchiveSource(open_archive(ArchiveSettings(kind, path)))
    seconds = time.perf_counter() - started
    growth_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib
    return {"records": source.n_input, "growth_mib": growth_kib / 1024, "s": seconds}


def main() -> None:
    """Make the archives, and print what their indices take."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--records", default="100000,300000", help="how many, by commas")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    rows = {}
    for name, (kind, apart) in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            before = Path(folder) / "before"
            write_archive(before, kind, apart, N_BEFORE)
            for n_records in map(int, given.records.split(",")):
                path = Path(folder) / str(n_records)
                write_archive(path, kind, apart, n_records)
                command = [sys.executable, __file__, "--measure", kind, str(before), str(path)]
                ended = subprocess.run(command, check=True, capture_output=True, text=True)
                rows[f"{name}_{n_records}"] = json.loads(ended.stdout)
    print_rows(rows, given.json)


if __name__ == "__main__":
    main()
