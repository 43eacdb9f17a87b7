"""Damaged and hostile WFDB records: every one gives a record or a documented error, within bounds.

    python benchmarks/fuzz_reader.py [--json] [--cases 100000] [--seed 0] [--only CASE]

Sound records of every format and layout are damaged (bytes, numbers, names, lines, whole files), others
follow the grammar with extreme numbers (`fuzz_cases.py`). Around them lie traps: links that leave the folder, a pipe, a loop of links. What is read is watched: a file
opened outside the folder, any other exception, a record whose parts do not fit together, more memory
than `--memory-mb` beyond what Python itself takes, or more than `--seconds` for one case is a failure
(exit 1). A case depends on the seed and its number alone.

Legend: L lead, T time.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from fuzz_cases import Files, make_case, make_seeds

from rayecg.archives.wfdb_reader import Checks, Frames, read
from rayecg.core.errors import ERROR_CODES, RecordError
from rayecg.core.record import Record, invalid_value
from rayecg.core.storage import Folder
from rayecg.core.versions import versions
from rayecg.signal.leads import with_derived_leads

#: Records of more samples are not derived and turned to mV: only their reading is of interest here.
SMALL = 1 << 20
MAX_MESSAGE = 2000
N_SHOWN = 20


def set_traps(root: Path) -> Path:
    """Make the folder that is read, with what must not be reached around and within it."""
    archive, outside = root / "archive", root / "outside"
    for folder in (archive, outside, archive / "sub"):
        folder.mkdir()
    sound = make_seeds()[3]
    for folder in (root, outside, archive / "sub"):
        (folder / "x.hea").write_bytes(sound["r.hea"].replace(b"r.dat", b"x.dat"))
        (folder / "x.dat").write_bytes(sound["r.dat"])
    (archive / "link.dat").symlink_to("../outside/x.dat")
    (archive / "linked").symlink_to("../outside")
    (archive / "inside.dat").symlink_to("sub/x.dat")
    (archive / "loop.dat").symlink_to("loop.dat")
    os.mkfifo(archive / "pipe.dat")
    return archive


class Hang(BaseException):
    """A case took too long; no handler of `Exception` may swallow it."""


class Watch:
    """Notes what is opened while a case is read: Python tells every hook, and none can be removed."""

    FORBIDDEN = ("subprocess.", "socket.", "os.system", "os.exec", "os.posix_spawn", "os.remove",
                 "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "shutil.", "pickle.")  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.on = False
        self.seen: list[str] = []
        self.n_opened = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            self.n_opened += 1
            if isinstance(path, int) or not self._inside(os.fsdecode(path), flags):
                self.seen.append(f"opened {path!r}")
            elif flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.seen.append(f"opened {path!r} to write")
        elif event.startswith(self.FORBIDDEN):
            self.seen.append(f"{event} {arguments!r}")

    def _inside(self, path: str, flags: int) -> bool:
        try:
            if flags & os.O_NOFOLLOW:  # a link as the last part is refused by the system
                path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            else:
                path = os.path.realpath(path)
        except ValueError:  # a zero byte: nothing can be opened
            return True
        return path.startswith(self.folder + "/")


def trouble_of_record(record: Record) -> str | None:
    """Say what about a record does not fit together."""
    digital_LT, leads = record.digital_LT, record.leads
    n_leads = len(leads)
    limits = np.iinfo(np.int32)
    rules = {
        "type": digital_LT.dtype in (np.dtype(np.int16), np.dtype(np.int32)),
        "axes": digital_LT.ndim == 2 and digital_LT.shape[0] == n_leads and digital_LT.size > 0,
        "names": len(set(leads)) == n_leads and all(leads),
        "gain": record.gain_L.shape == (n_leads,) and bool(np.isfinite(record.gain_L).all()),
        "zero gain": bool((record.gain_L != 0).all()),
        "baseline": record.baseline_L.shape == (n_leads,)
        and bool((np.abs(record.baseline_L) <= limits.max).all()),
        "rate": math.isfinite(record.fs) and record.fs > 0,
    }
    broken = [name for name, holds in rules.items() if not holds]
    if broken:
        return f"a record with wrong {', '.join(broken)}"
    if (digital_LT == invalid_value(digital_LT.dtype)).all():
        return "a record without a valid sample"
    "".join([*leads, *record.flags]).encode()  # tables hold UTF-8
    return None


def trouble_of_millivolts(record: Record) -> str | None:
    """Say what is wrong with a record's samples in mV: a valid one is a number."""
    physical_LT, digital_LT = record.physical, record.digital_LT
    if physical_LT.shape != digital_LT.shape:
        return "other axes in mV"
    valid_LT = digital_LT != invalid_value(digital_LT.dtype)
    if not (np.isfinite(physical_LT) == valid_LT).all():
        return "a valid sample that is no number in mV, or an invalid one that is"
    return None


def trouble_of_error(error: RecordError) -> str | None:
    """Say what about an error is not as a row of the quarantine table must be."""
    if error.code not in ERROR_CODES or error.code == "internal_error":
        return f"code {error.code}: {error.message[:300]}"
    if len(error.message) > MAX_MESSAGE:
        return f"a message of {len(error.message)} characters: {error.message[:100]}"
    if len(error.message.splitlines()) != 1:
        return f"a message of several lines: {error.message!r}"
    error.message.encode()
    return None


def run_case(folder: Folder, checks: Checks, frames: Frames) -> tuple[str, tuple[str, ...]]:
    """Read a case as the pipeline does; gives its outcome and flags."""
    try:
        record = read(folder, "r", checks, frames)
    except RecordError as error:
        return trouble_of_error(error) or error.code, ()
    trouble = trouble_of_record(record)
    if trouble is None and record.digital_LT.size <= SMALL:
        derived = with_derived_leads(record)
        trouble = trouble_of_record(derived) or trouble_of_millivolts(derived)
    return trouble or "record", record.flags


def vm_bytes() -> int:
    """Give the process's address space now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def fuzz(
    root: Path, cases: list[int], seed: int, memory_mb: int, seconds: float, progress: bool
) -> dict[str, Any]:
    """Read the cases under the watch and the limits; gives counts, failures, times and memory."""
    seeds = make_seeds()
    archive = set_traps(root)
    folder, watch = Folder(archive), Watch(archive)
    both: tuple[Frames, ...] = ("expand", "average")
    for number, files in enumerate(seeds):  # all that is imported late is imported now
        for frames in both:
            outcome = _attempt(archive, folder, None, files, "off", frames, 300.0)[0]
            if outcome != "record":
                raise SystemExit(f"the sound record {number} is not read: {outcome}")
    resource.setrlimit(resource.RLIMIT_AS, (vm_bytes() + (memory_mb << 20),) * 2)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch.n_opened = 0
    warnings.simplefilter("error")  # of numpy: something left its range
    outcomes: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    slowest = (0.0, -1)
    start = time.perf_counter()
    for i, case in enumerate(cases):
        if i % 1000 == 0:
            # If not even the signal gets through, the process ends with a trace.
            faulthandler.dump_traceback_later(1000 * seconds, exit=True)
            if progress and i:
                print(f"{i} of {len(cases)} cases", file=sys.stderr)
        files, checks, frames_of_case = make_case(seeds, seed, case)
        begin = time.perf_counter()
        outcome, found = _attempt(archive, folder, watch, files, checks, frames_of_case, seconds)
        slowest = max(slowest, (time.perf_counter() - begin, case))
        if outcome != "record" and outcome not in ERROR_CODES:
            failures.append({"case": case, "what": outcome})
            outcome = "failure"
        outcomes[outcome] += 1
        flags.update({flag.partition(":")[0] for flag in found})
    faulthandler.cancel_dump_traceback_later()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss
    return {
        "cases": len(cases),
        "seed": seed,
        "outcomes": dict(outcomes.most_common()),
        "flags": dict(flags.most_common()),
        "n_failures": len(failures),
        "failures": failures[:N_SHOWN],
        "files_opened": watch.n_opened,
        "memory_limit_mb": memory_mb,
        "memory_peak_mb": round(grown / 1024, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "slowest_ms": round(1000 * slowest[0], 1),
        "slowest_case": slowest[1],
        "versions": versions(),
    }


def _attempt(
    archive: Path,
    folder: Folder,
    watch: Watch | None,
    files: Files,
    checks: Checks,
    frames: Frames,
    seconds: float,
) -> tuple[str, tuple[str, ...]]:
    """Write a case's files, read it under the watch, and remove them."""
    for name, raw in files.items():
        (archive / name).write_bytes(raw)

    def too_long(number: int, frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, too_long)
    flags: tuple[str, ...] = ()
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        if watch is not None:
            watch.on = True
        outcome, flags = run_case(folder, checks, frames)
    except Hang:
        outcome = f"not finished after {seconds:g} s"
    except Exception as error:
        outcome = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if watch is not None:
            watch.on = False
    if watch is not None and watch.seen:
        outcome = "; ".join(watch.seen)[:1000]
        watch.seen.clear()
    for name in files:
        (archive / name).unlink()
    return outcome, flags


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="read this case alone, and say what is in it")
    parser.add_argument("--memory-mb", type=int, default=512, help="beyond what Python takes")
    parser.add_argument("--seconds", type=float, default=10.0, help="for one case")
    arguments = parser.parse_args()
    cases = list(range(arguments.cases)) if arguments.only is None else [arguments.only]
    if arguments.only is not None:
        for name, raw in make_case(make_seeds(), arguments.seed, arguments.only)[0].items():
            print(f"{name}: {raw[:400]!r}", file=sys.stderr)
    root = Path(tempfile.mkdtemp())
    try:
        found = fuzz(
            root,
            cases,
            arguments.seed,
            arguments.memory_mb,
            arguments.seconds,
            progress=not arguments.json,
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for name, n in found["outcomes"].items():
            print(f"{name:20} {n:8}  {100 * n / found['cases']:5.1f} %")
        print(
            f"{found['cases']} cases in {found['seconds']} s (slowest {found['slowest_ms']} ms), "
            f"{found['files_opened']} files opened, memory grew by {found['memory_peak_mb']} MiB "
            f"(limit {found['memory_limit_mb']} MiB), {found['n_failures']} failures"
        )
        for failure in found["failures"]:
            print(f"  case {failure['case']}: {failure['what']}")
    return 1 if found["n_failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
