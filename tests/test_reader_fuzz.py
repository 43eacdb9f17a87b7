"""A few thousand damaged and hostile records; `benchmarks/fuzz_reader.py` makes, reads and watches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayecg.core.errors import ERROR_CODES

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "fuzz_reader.py"
#: What a record's reader itself can find wrong; the other codes are later stages' own.
CODES = {
    "missing_file", "bad_header", "unsupported_format", "truncated_signal", "checksum_mismatch",
    "bad_initial_value", "outside_archive", "too_large", "bad_units", "all_invalid",
}  # fmt: skip


def run(*arguments: str, before: str = "") -> tuple[int, dict]:
    """Run the script in a process of its own, which its limits and its watch are for good."""
    code = f"import runpy, sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    code += f"script = runpy.run_path({str(SCRIPT)!r})\n{before}\n"
    code += f"sys.argv[1:] = {['--json', *arguments]!r}\nsys.exit(script['main']())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout, done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_case_is_a_record_or_a_documented_error(seed):
    status, found = run("--cases", "3000", "--seed", str(seed))
    assert found["failures"] == []
    assert status == 0
    assert sum(found["outcomes"].values()) == 3000
    # The cases reach all there is to reach.
    assert set(found["outcomes"]) == {"record", *CODES}
    assert set(ERROR_CODES) > CODES
    assert found["outcomes"]["record"] > 600
    assert {"requantised", "gaps", "up_sampled", "averaged_frames"} <= set(found["flags"])
    assert found["memory_peak_mb"] < found["memory_limit_mb"]


def test_a_case_depends_on_its_seed_and_number_alone():
    _, first = run("--cases", "200", "--seed", "7")
    _, again = run("--cases", "200", "--seed", "7")
    _, other = run("--cases", "200", "--seed", "8")
    assert first["outcomes"] == again["outcomes"] != other["outcomes"]
    assert first["files_opened"] == again["files_opened"]


#: What is planted in the reader's place, and what must be said of it.
PLANTED = {
    "open('/etc/hostname').close()": "opened '/etc/hostname'",
    "open(str(folder) + '/link.dat').close()": "link.dat",
    "open(str(folder) + '/../x.dat').close()": "x.dat",
    "open(str(folder) + '/new.dat', 'w').close()": "to write",
    "__import__('os').system('true')": "os.system",
    "numpy.ones(100_000_000)": "MemoryError",
    "loop()": "not finished after 0.5 s",
    "1 / 0": "ZeroDivisionError",
    "numpy.array([1e30]).astype(numpy.int16)": "RuntimeWarning",
    "fail('internal_error', 'it')": "code internal_error",
    "fail('bad_header', 'two\\nlines')": "several lines",
    "fail('bad_header', 'x' * 9999)": "9999 characters",
}


def test_what_is_watched_for_is_noticed():
    """The sound records before are read as ever."""
    before = f"""
import numpy
real, space, planted = script['read'], script['main'].__globals__, {list(PLANTED)!r}
n_left = 2 * len(space['make_seeds']())
def fail(code, message):
    raise script['RecordError'](code, message)
def loop():
    while True:
        pass
def read(folder, *more):
    global n_left
    n_left -= 1
    if n_left < 0:
        eval(planted[-n_left - 1])
    return real(folder, *more)
space['read'] = read
"""
    n = len(PLANTED)
    more = ("--seconds", "0.5", "--memory-mb", "256")
    status, found = run("--cases", str(n), *more, before=before)
    assert (status, found["n_failures"], found["outcomes"]) == (1, n, {"failure": n})
    for words, failure in zip(PLANTED.values(), found["failures"], strict=True):
        assert words in failure["what"]
