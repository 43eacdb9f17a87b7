"""Folders on disk that go away while they are read, and paths that are no UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from full_disk import small_disk
from s3_store import one_line, write_tree

from rayecg.archives.base import Archive
from rayecg.archives.catalogue import open_archive
from rayecg.core.errors import DataError, RecordError, printable, record_error
from rayecg.core.experiment import ArchiveSettings
from rayecg.core.storage import Folder, shown_path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Give an archive of three records, in a folder of its own."""
    write_tree(tmp_path / "records")
    return tmp_path / "records"


def opened(folder: Path) -> Archive:
    return open_archive(ArchiveSettings("wfdb", str(folder)))


def test_a_file_that_is_gone_is_one_records_trouble(folder):
    archive = opened(folder)
    rows = archive.checked_index().to_pylist()
    (folder / "a" / "r1.dat").unlink()
    found = list(archive.read_each(rows))
    assert [getattr(one, "code", "read") for one in found] == ["missing_file", "read", "read"]
    assert archive.folder.facts(["a/r1.dat"]).tolist() == [[-1, -1]]


def test_a_folder_that_is_gone_stops_the_job_and_may_come_back(folder):
    archive = opened(folder)
    index = archive.checked_index()
    reading = archive.read_each(index.to_pylist())
    next(reading)
    folder.rename(folder.with_name("elsewhere"))
    uses = (
        lambda: next(reading),
        lambda: archive.folder.read("a/r1.hea"),
        lambda: archive.folder.size("a/r1.hea"),
        lambda: list(archive.folder.walk(".hea")),
        lambda: archive.folder.has("*"),
        lambda: archive.deciding_facts(index),
        lambda: archive.folder.local(["a/r1.hea"]).__enter__(),
    )
    for use in uses:
        with pytest.raises(DataError) as caught:
            use()
        assert one_line(caught.value).startswith(str(folder))
    with pytest.raises(DataError, match=r"records: the folder went away \(No such file .* at a/r1"):
        archive.folder.read("a/r1.hea")
    folder.with_name("elsewhere").rename(folder)
    assert archive.folder.read("a/r1.hea")[0]


UNMOUNTED = """
import subprocess, sys
from rayecg.core.errors import DataError
from rayecg.core.storage import Folder
folder = Folder(sys.argv[1])
assert folder.read("a/r1.hea")[0]
subprocess.run(["umount", "--lazy", sys.argv[1]], check=True)
try:
    folder.read("a/r1.hea")
except DataError as error:
    sys.exit(str(error))
"""


def test_a_disk_that_is_unmounted_leaves_an_empty_folder(folder, tmp_path):
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        assert disk.run(["cp", "-r", f"{folder}/.", disk.folder]).returncode == 0
        command = [sys.executable, "-c", UNMOUNTED, disk.folder]
        done = disk.run(command, capture_output=True, text=True)
    assert done.stderr.startswith(f"{disk.folder}: the folder went away (No such file"), done.stderr


NO_HANDLE_LEFT = """
import os, resource, sys
from rayecg.core.errors import DataError
from rayecg.core.storage import Folder
folder = Folder(sys.argv[1])
free = os.open("/", os.O_RDONLY)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
try:
    folder.read("a/r1.hea")
except DataError as error:
    os.write(1, str(error).encode())
"""


def test_trouble_of_the_machine_is_no_records_fault(folder):
    command = [sys.executable, "-c", NO_HANDLE_LEFT, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"{folder}/a/r1.hea: cannot be read (Too many open files)"), done


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("ä1 µV", "ä1 µV"),
        (os.fsdecode(b"caf\xe9 \xc3\xa4"), "caf\\xe9 ä"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_no_table_can_hold_is_shown_by_escapes(text, shown):
    assert printable(text) == shown
    code, said = record_error(RecordError("missing_file", f"{text}: gone"))
    assert (code, said) == ("missing_file", f"{shown}: gone")
    assert record_error(ValueError(text))[1] == f"ValueError: {shown}"
    pa.array([said])


def test_an_archive_may_have_a_name_that_is_not_unicode(folder):
    odd = Path(os.fsdecode(os.fsencode(folder.parent) + b"/caf\xe9"))
    folder.rename(odd)
    archive = opened(odd)
    assert archive.name == shown_path(str(odd)) == "caf\\xe9"
    rows = archive.checked_index().to_pylist()
    (odd / "a" / "r1.dat").unlink()
    refused, *read = archive.read_each(rows)
    assert record_error(refused) == (
        "missing_file",
        f"{folder.parent}/caf\\xe9/a/r1.dat: No such file or directory",
    )
    assert not any(isinstance(one, Exception) for one in read)
    assert Folder(odd).read("a/r2.dat")[0]
