"""The processes that a job's Ray started, by what they are called."""

from __future__ import annotations

import subprocess


def processes_below(parent: int, called: str) -> list[int]:
    """Give the ids of a process's descendants whose command line has a text in it.

    A Ray worker is called after what it does: `ray::UnitActor.work`.
    """
    listed = subprocess.run(["ps", "-axo", "pid=,ppid=,args="], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    below, n_before = {parent}, 0
    while len(below) > n_before:
        n_before = len(below)
        below |= {int(pid) for pid, above, *_ in rows if int(above) in below}
    return [int(row[0]) for row in rows if int(row[0]) in below and called in " ".join(row[2:])]
