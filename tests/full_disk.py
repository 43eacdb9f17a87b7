"""A small disk that is really full when it is full: a tmpfs of some size, in a mount namespace of its own.

It needs no rights where user namespaces are permitted; elsewhere the test that asks for one is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_MOUNT = 'mount -t tmpfs -o size="$1" none "$0" && echo mounted && exec cat'


@dataclass(frozen=True)
class SmallDisk:
    """A disk that commands given to `run` find at `folder`, and this process at `seen`.

    `seen` is the kernel's way in; it must not be resolved.
    """

    folder: Path
    seen: Path
    _enter: tuple[str, ...]

    def run(self, command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess:
        """Run a command that has the disk; options are those of `subprocess.run`."""
        return subprocess.run([*self._enter, *map(str, command)], check=False, **options)

    def fill(self, leave: int = 0) -> Path:
        """Fill the disk but for some bytes (whole pages); gives the file that takes the room."""
        filler = self.seen / "filler"
        status = os.statvfs(self.seen)
        pages = status.f_bavail - -(-leave // status.f_bsize)
        with open(filler, "wb") as file:
            for _ in range(pages):
                file.write(bytes(status.f_bsize))
        return filler


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[SmallDisk]:
    """Give a disk of so many bytes at a folder, or skip the test where that is not permitted."""
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        pytest.skip("a small disk needs unshare and nsenter (util-linux)")
    folder.mkdir(parents=True, exist_ok=True)
    why = ""
    # The first needs no rights, the second root's where user namespaces are not permitted.
    for kinds in (("--user", "--mount"), ("--mount",)):
        options = ("--map-root-user",) if "--user" in kinds else ()
        keeper = subprocess.Popen(
            ["unshare", *kinds, *options, "sh", "-c", _MOUNT, str(folder), str(n_bytes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert keeper.stdin
        assert keeper.stdout
        if keeper.stdout.readline() == "mounted\n":
            break
        why = keeper.communicate()[1].strip()
    else:
        pytest.skip(f"no small disk on this machine: {why}")
    enter = ["nsenter", "--target", str(keeper.pid), *kinds]
    enter += ["--preserve-credentials"] if "--user" in kinds else []
    try:
        yield SmallDisk(folder, Path(f"/proc/{keeper.pid}/root{folder}"), tuple(enter))
    finally:
        keeper.communicate()  # its end of input ends it, and the disk with it
