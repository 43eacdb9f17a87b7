"""Memory and time that the index of a scoring job takes, by the number of records and where they lie.

    python benchmarks/listing.py [--json] [--records 100000,300000]

`flat`: all records in one folder; `folders`: each in its own; `behind_one`: flat, where one record's name
begins all others, whose files may be its own; `cinc`: flat, with the headers read; `store`: flat, in S3, of
which a server on this machine plays the answers to list requests. The files of records are links to a few,
since none but headers are read. Each index is made in a process of its own, which has made a small one
before: `growth_mib` is how far that raised its peak.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from printing import print_rows

from rayecg.archives.catalogue import open_archive
from rayecg.core.experiment import ArchiveSettings
from rayecg.score.sources import ArchiveSource

#: Kind of archive on disk, and what stands before a record's number in its path.
LAYOUTS = {
    "flat": ("wfdb", "r"),
    "folders": ("wfdb", "r/"),
    "behind_one": ("wfdb", "r_"),
    "cinc": ("cinc", "r"),
}
N_BEFORE = 20_000
#: To one file: some file systems allow 65,000.
LINKS = 50_000


def write_archive(folder: Path, kind: str, begins: str, n_records: int) -> None:
    """Write records that are links to the files of a few."""
    samples = ".mat" if kind == "cinc" else ".dat"
    header = f"one 1 100 100\none{samples} 16 1000/mV 16 0 0 0 0 I\n# Age: 60\n"
    for i in range(n_records):
        path = f"{begins}{i:07d}" + "/r" * begins.endswith("/") if i else "r"
        if not i or begins.endswith("/"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".hea", header), (samples, "")):
            first = folder / f"one-{i // LINKS}{suffix}.first"
            if i % LINKS == 0:
                first.write_text(content)
            os.link(first, folder / f"{path}{suffix}")


class ListServer(http.server.BaseHTTPRequestHandler):
    """Answers list requests for a folder that is called after the number of its records."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Say that there is no such object."""
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        """Give a page of names."""
        asked = dict(parse_qsl(urlsplit(self.path).query))
        name = asked["prefix"].rstrip("/")
        n_files = 2 * int(name) if name.isdigit() else 0
        start = int(asked.get("continuation-token", 0))
        stop = min(start + int(asked["max-keys"]), n_files)
        more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < n_files else ""
        names = (
            f"{asked['prefix']}r{i // 2:07d}.{'hea' if i % 2 else 'dat'}"
            for i in range(start, stop)
        )
        rows = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2024-01-02T03:04:05.000Z</LastModified>"
            "<ETag>&quot;70ee1738b6b21e2c8a43f3a5ab0eee71&quot;</ETag><Size>24000</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for name in names
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<KeyCount>{stop - start}</KeyCount><IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
            f"{more}{rows}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served() -> Iterator[str]:
    """Give what stands before and behind a folder's name in its URI."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ListServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.server_port}"
    yield "s3://KEY:SECRET@archive/{}?" + where
    server.shutdown()


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

    def add(name: str, kind: str, before: object, path: object, n_records: int) -> None:
        command = [sys.executable, __file__, "--measure", kind, str(before), str(path)]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows[f"{name}_{n_records}"] = json.loads(ended.stdout)

    sizes = [int(size) for size in given.records.split(",")]
    for name, (kind, begins) in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            before = Path(folder) / "before"
            write_archive(before, kind, begins, N_BEFORE)
            for n_records in sizes:
                path = Path(folder) / str(n_records)
                write_archive(path, kind, begins, n_records)
                add(name, kind, before, path, n_records)
    with served() as uri:
        for n_records in sizes:
            add("store", "wfdb", uri.format(N_BEFORE), uri.format(n_records), n_records)
    print_rows(rows, given.json)


if __name__ == "__main__":
    main()
