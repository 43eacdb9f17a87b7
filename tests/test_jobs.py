"""The jobs as a user types them: exit statuses, one-line errors, SIGKILL and a second start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from rayecg.core.files import read_json, read_table

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "jobs" / "experiments" / "smoke.yaml"


def command(job: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, arguments)]


def run(job: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(job, *arguments), cwd=cwd, capture_output=True, text=True, timeout=300
    )


def broken_settings(folder: Path, text: str) -> Path:
    file = folder / "broken.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epoch: 3}", ["broken.yaml", "train.epoch", "epochs"]),
        ("train: {epochs: many}", ["broken.yaml", "train.epochs", "whole number", "many"]),
        ("archive: {kind: ptbxl}", ["archive.path"]),
        ("archive: {kind: ptbxl, path: not/here}", ["archive.path", "not/here"]),
        ("task: ptbxl_super", ["ptbxl_superdiagnostic"]),
        ("seeds: [0, 0]", ["broken.yaml", "seeds"]),
        ("train: [", ["broken.yaml", "YAML"]),
    ],
)
def test_wrong_settings_are_one_line_and_exit_2(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    found = run("benchmark", "--experiment", broken_settings(tmp_path, text), cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert all(part in found.stderr for part in expected), found.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.yaml"]


def test_wrong_usage_is_one_line_and_exits_2(tmp_path: Path) -> None:
    for job, arguments in (
        ("benchmark", ["--experimant", "x"]),
        ("score", ["--checkpoint", "x"]),
        ("make_shards", ["--archive", "ptbxll", "--path", tmp_path, "--out", tmp_path / "o"]),
    ):
        found = run(job, *arguments, cwd=tmp_path)
        assert found.returncode == 2, found.stderr
        assert len(found.stderr.strip().splitlines()) == 1, found.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_archive_with_no_readable_record_is_one_line_and_exit_1(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "a.hea").write_text("a 1 100 1000\na.dat 16 200 16 0 0 0 0 I\n")
    (archive / "a.dat").write_bytes(b"\x00" * 100)
    out = tmp_path / "shards"
    found = run("make_shards", "--archive", "wfdb", "--path", archive, "--out", out, cwd=tmp_path)
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert "a.dat" in last
    assert "expected 2000 bytes" in last
    assert "Traceback" not in found.stderr
    assert not (out / "manifest.json").exists()


@pytest.mark.slow
def test_a_truncated_record_is_a_row_of_the_quarantine(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for name, n_bytes in (("good", 2000), ("short", 1998)):
        lines = f"{name} 1 100 1000\n{name}.dat 16 200 16 0 0 0 0 I\n"
        (archive / f"{name}.hea").write_text(lines)
        (archive / f"{name}.dat").write_bytes(b"\x00" * n_bytes)
    out = tmp_path / "shards"
    arguments = ("--archive", "wfdb", "--path", archive, "--out", out)
    found = run("make_shards", *arguments, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "n_input=2 n_ok=1 n_degraded=0 n_quarantined=1" in found.stdout
    row = read_table(out / "quarantine.parquet").to_pylist()[0]
    assert (row["record_id"], row["error_code"]) == ("short", "truncated_signal")
    assert "short.dat" in row["error"]
    manifest = read_json(out / "manifest.json")
    assert manifest["n_ok"] + manifest["n_degraded"] + manifest["n_quarantined"] == 2


KILLED = [
    *("--experiment", SMOKE),
    *("--set", "archive.n_records=200"),
    *("--set", "archive.rate=100"),
    *("--set", "shards.records_per_shard=8"),
    *("--set", "architectures=[simple_cnn1d, xresnet1d18]"),
    *("--set", "train.epochs=3"),
]


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, f"the job ended before {what}"
        assert time.monotonic() < deadline, f"no sign of {what}"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_three_times_it_ends_in_the_same_table(tmp_path: Path) -> None:
    whole = run("benchmark", *KILLED, "--out", tmp_path / "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    work = out / "work"

    def shards_began() -> bool:
        return len(list(work.glob("shards/ledger/*/*.json"))) >= 2

    def epoch_written() -> bool:
        return bool(list(work.glob("train/*/state.pt")))

    def scores_began() -> bool:
        return bool(list(work.glob("score/*/ledger/*/*.json")))

    moments = [("shards", shards_began), ("an epoch", epoch_written), ("scores", scores_began)]
    written: dict[Path, int] = {}
    for what, reached in moments:
        process = subprocess.Popen(
            command("benchmark", *KILLED, "--out", out),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(reached, process, what)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for file, time_ns in written.items():
            assert file.stat().st_mtime_ns == time_ns, f"{file.name} was written again"
        # What was complete when the job was killed must not be done again by the next start.
        written = {file: file.stat().st_mtime_ns for file in work.rglob("ledger/*/*.json")}
        written |= {file: file.stat().st_mtime_ns for file in work.glob("train/*/run.json")}
    last = run("benchmark", *KILLED, "--out", out, cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    tables = [
        pd.read_parquet(folder / "runs.parquet").drop(columns=["seconds", "examples_per_s"])
        for folder in (tmp_path / "whole", out)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["test_macro_auroc"].notna().all()
    again = run("benchmark", *KILLED, "--out", out, cwd=tmp_path)
    assert again.returncode == 0
    assert not list(out.rglob("*.part"))
