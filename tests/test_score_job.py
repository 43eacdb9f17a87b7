"""`jobs/score.py` as a user types it: what it says, what it writes, and how it ends.

Most starts are in this process, where Ray runs already; those of which it matters are processes.
"""

from __future__ import annotations

import io
import json
import os
import pty
import runpy
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd
import pytest
import torch
from scored_archive import (
    check_whole,
    checkpoint,
    contents,
    n_entered,
    rows,
    wait_for,
    write_checkpoint,
)
from test_jobs import ROOT, command

from rayecg.archives.synthetic import SyntheticSettings, write_archive
from rayecg.core.files import read_json

__all__ = ["checkpoint"]  # a fixture

#: Of which three are damaged.
N = 36


@dataclass(frozen=True)
class Ended:
    """How a start of the job ended, and what it said."""

    status: int
    out: str
    err: str


def job(**options: object) -> Ended:
    """Start the job in this process; options are given as `archive="wfdb", dry_run=True`."""
    file = str(ROOT / "jobs" / "score.py")
    arguments = [file]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    threads = torch.get_num_threads()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "argv", arguments)
        try:
            runpy.run_path(file, run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        finally:
            torch.set_num_threads(threads)
    assert isinstance(status, int)
    return Ended(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> dict[str, object]:
    """Options of an archive whose index says age, sex and site."""
    made = SyntheticSettings(n_records=N, fs=100, duration_s=3.0, seed=5, n_defective=3)
    folder = write_archive(tmp_path_factory.mktemp("archive") / "records", made)
    return {"archive": "ptbxl", "path": folder, "rate": 100}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Give when each file below a folder was written, and its size."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in found
    }


@pytest.fixture(scope="module")
def scored(ray, checkpoint, archive, tmp_path_factory) -> tuple[Path, Ended]:
    """Have the archive scored; tests leave the rows as they are."""
    out = tmp_path_factory.mktemp("scored") / "out"
    return out, job(checkpoint=checkpoint, **archive, out=out)


def test_what_it_writes_is_read_by_others_and_a_second_start_writes_nothing(
    checkpoint, archive, scored
):
    out, first = scored
    assert first.status == 0, first.err
    manifest = check_whole(out, N)
    counts = [manifest[f"n_{name}"] for name in ("input", "ok", "degraded", "quarantined")]
    said = "n_input={} n_ok={} n_degraded={} n_quarantined={}\n\n".format(*counts)
    assert first.out == said + (out / "summary.md").read_text()
    assert counts[3] > 0
    assert first.err.startswith(f"score: {N} rows\n")
    assert first.err.splitlines()[-1].startswith(f"score: {N} rows in ")
    assert read_json(out / "summary.json")["statuses"]["quarantined"] == counts[3]
    assert (out / "summary.md").read_text().startswith(f"# {N} records scored by simple_cnn1d\n")
    by_duckdb = duckdb.sql(f"select * from '{out}/predictions/*.parquet'").df()
    by_pandas = pd.read_parquet(out / "predictions")
    assert len(by_duckdb) == len(by_pandas) == N
    scored = by_pandas.set_index("record_id")["logit_A"].sort_index()
    assert by_duckdb.set_index("record_id")["logit_A"].sort_index().equals(scored)
    assert scored.notna().sum() == N - counts[3]

    before = files(out)
    second = job(checkpoint=checkpoint, **archive, out=out)
    assert (second.status, second.out) == (0, first.out)
    after = files(out)
    changed = {name for name in before if after.get(name) != before[name]}
    assert set(after) == set(before)
    assert changed <= {"summary.json", "summary.md", ".lock"}

    # What decides the rows is not changed under those that stand.
    other = job(checkpoint=checkpoint, **archive, out=out, batch_size=32)
    assert other.status == 2
    assert other.err.splitlines()[-1].endswith(
        "(batch_size 64 there and 32 here); use another output folder, or --replace"
    )
    assert files(out).keys() == before.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_condition_and_a_limit_choose_records(checkpoint, archive, tmp_path):
    index = pd.read_csv(Path(str(archive["path"])) / "ptbxl_database.csv")
    expected = index.loc[index["age"] >= 50, "ecg_id"].astype(str).tolist()[:7]
    assert len(expected) == 7
    options = {"select": "age >= 50", "limit": 7}
    ended = job(checkpoint=checkpoint, **archive, out=tmp_path / "out", **options)
    assert ended.status == 0, ended.err
    assert ended.out.startswith("n_input=7 ")
    assert rows(tmp_path / "out")["record_id"].tolist() == expected


@pytest.mark.parametrize("column", ["status", pytest.param("site", marks=pytest.mark.slow)])
def test_parted_rows_are_the_rows_of_one_part(checkpoint, archive, scored, tmp_path, column):
    plain, parted = scored[0], tmp_path / "parted"
    ended = job(checkpoint=checkpoint, **archive, out=parted, partition=column)
    assert ended.status == 0, ended.err
    folders = {path.name for path in (parted / "predictions").iterdir()}
    assert len(folders) > 1
    assert all(name.startswith(f"{column}=") for name in folders)
    expected = rows(plain).set_index("record_id").sort_index()
    shown = f"'{parted}/predictions/*/*.parquet', hive_partitioning = true"
    by_duckdb = duckdb.sql(f"select * from read_parquet({shown})").df()
    for found in (pd.read_parquet(parted / "predictions"), by_duckdb):
        own = found.set_index("record_id").sort_index()
        assert own["logit_A"].equals(expected["logit_A"])
        assert own["error_code"].fillna("").equals(expected["error_code"].fillna(""))
        if column == "status":
            assert own["status"].astype(str).tolist() == expected["status"].tolist()
    texts = [read_json(out / "summary.json") for out in (plain, parted)]
    for text in texts:
        del text["run"]
    assert texts[0] == texts[1]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(checkpoint, archive, tmp_path):
    before = files(Path(str(archive["path"])))
    ended = job(checkpoint=checkpoint, **archive, out=tmp_path / "out", dry_run=True, limit=20)
    assert ended.status == 0, ended.err
    assert ended.out.startswith("20 records, ")
    assert "20 of them were read and scored: " in ended.out
    assert ended.out.endswith("nothing was written\n")
    assert not list(tmp_path.iterdir())
    assert files(Path(str(archive["path"]))) == before


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"archive": None}, "expected --archive KIND with --path, or --shards DIR"),
        ({"path": None}, "expected --archive KIND with --path, or --shards DIR"),
        ({"shards": "here"}, "expected --archive KIND with --path, or --shards DIR"),
        ({"archive": "ptbxll"}, "ptbxl"),
        ({"path": "nowhere"}, "expected a folder, found none at nowhere"),
        ({"checkpoint": "nowhere"}, "expected a folder, found none at nowhere"),
        ({"backend": "onxx"}, "--backend: expected one of eager, bf16, "),
        ({"select": "agee > 3"}, "agee"),
        ({"select": "age > 1000"}, f"true of none of {N} records"),
        ({"limit": 0}, "--limit: expected 1 or more, came 0"),
        ({"select": "1=1) UNION ALL (SELECT 0"}, "--select"),
        ({"batch_size": 0}, "score.py: --batch-size: expected more than 0, came 0"),
        ({"threads": -1}, "score.py: --threads: expected more than 0, came -1"),
        ({"actors": 0}, "score.py: --actors: expected more than 0, came 0"),
        ({"gpus": "nan"}, "score.py: --gpus: expected 0 or more, whole from 1 on, came nan"),
        ({"gpus": 1.5}, "score.py: --gpus: expected 0 or more, whole from 1 on, came 1.5"),
        ({"rate": 0}, "score.py: --rate: expected more than 0, came 0"),
        ({"partition": "age"}, "score.py: --partition: expected one of status, "),
        ({"checks": "some"}, "--checks"),
    ],
)
def test_wrong_usage_is_one_line_and_ends_with_2(checkpoint, archive, tmp_path, options, said, dry):
    given = {"checkpoint": checkpoint, **archive, "out": tmp_path / "out", **options}
    given |= {"dry_run": True} if dry else {}
    ended = job(**{name: value for name, value in given.items() if value is not None})
    assert ended.status == 2, ended.err
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1, ended.err
    assert said in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 4096}, "--threads (score.num_cpus): expected at most "),
        ({"gpus": 512}, "--gpus (score.num_gpus): expected at most "),
        ({"gpus": 512, "probe": True}, "--gpus (score.num_gpus): expected at most "),
    ],
)
def test_an_actor_without_room_is_not_waited_for(
    ray, checkpoint, archive, tmp_path, options, said, dry
):
    more = {"dry_run": True} if dry else {}
    ended = job(checkpoint=checkpoint, **archive, out=tmp_path / "out", **options, **more)
    assert ended.status == 2, ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert said in ended.err
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_short_key_is_wrong_usage(checkpoint, archive, tmp_path):
    key = tmp_path / "key"
    key.write_text("too short\n")
    ended = job(checkpoint=checkpoint, **archive, out=tmp_path / "out", hash_ids=key)
    assert ended.status == 2
    assert ended.err == f"score.py: {key}: expected a key of 16 bytes or more, came 9\n"
    assert not (tmp_path / "out").exists()


def without_card(folder: Path) -> None:
    (folder / "card.json").unlink()


def newer(folder: Path) -> None:
    card = read_json(folder / "card.json")
    (folder / "card.json").write_text(json.dumps(card | {"format_version": 99}))


def other_thresholds(folder: Path) -> None:
    card = read_json(folder / "card.json")
    card["operating_point"]["thresholds_C"] = [0.1, 0.1]
    (folder / "card.json").write_text(json.dumps(card))


def other_weights(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("dry", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (newer, "made by a newer rayecg (format 99"),
        (other_thresholds, "fingerprint"),
        (other_weights, "SHA-256"),
        (without_card, "card.json"),
    ],
)
def test_a_checkpoint_that_is_not_what_it_says_ends_the_job(
    checkpoint, archive, tmp_path, change, said, dry, request
):
    if change is other_weights and not dry:
        request.getfixturevalue("ray")
    own = tmp_path / "own"
    shutil.copytree(checkpoint, own)
    change(own)
    more = {"dry_run": True} if dry else {}
    ended = job(checkpoint=own, **archive, out=tmp_path / "out", **more)
    assert ended.status == 1, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("score.py: ")
    assert said in last
    assert str(own) in last
    assert "Traceback" not in ended.err
    assert not list((tmp_path / "out").glob("predictions/*"))


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"shards": "nowhere"}, 2, "expected a folder, found none at nowhere"),
        (
            {},
            1,
            "/manifest.json: No such file or directory; every output of jobs/make_shards.py holds it",
        ),
        # They were read with what was asked for then.
        ({"rate": 100}, 2, "--rate, --checks: expected with an archive"),
        ({"checks": "off"}, 2, "--rate, --checks: expected with an archive"),
    ],
)
def test_what_are_no_shards_ends_the_job(checkpoint, tmp_path, options, status, said, dry):
    (tmp_path / "empty").mkdir()
    own = {"checkpoint": checkpoint, "shards": tmp_path / "empty", "out": tmp_path / "out"}
    own |= {"dry_run": True} if dry else {}
    ended = job(**{**own, **options})
    assert (ended.status, ended.out) == (status, "")
    assert len(ended.err.splitlines()) == 1
    assert said in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("dry", [False, True])
def test_a_fingerprint_that_does_not_fit_ends_the_job(checkpoint, archive, tmp_path, dry):
    own = {"checkpoint": checkpoint, **archive, "out": tmp_path / "out"}
    own |= {"dry_run": True} if dry else {}
    ended = job(**own, fingerprint="0123456789ab")
    assert ended.status == 1
    assert "expected fingerprint '0123456789ab', came " in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_one_line(checkpoint, archive, tmp_path):
    # A folder without the right to write would not stop root; what is below a file stops everybody.
    (tmp_path / "file").write_text("mine")
    ended = job(checkpoint=checkpoint, **archive, out=tmp_path / "file" / "out")
    assert ended.status in (1, 2)
    assert str(tmp_path / "file") in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_relative_paths_are_those_of_the_user_s_folder(checkpoint, archive, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "own")
    shutil.copytree(str(archive["path"]), tmp_path / "records")
    options = ["--checkpoint", "own", "--archive", "ptbxl", "--path", "records", "--rate", "100"]
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        command("score", *options, "--out", "made/here", "--limit", "12"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=other_end,
    )
    os.close(other_end)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # so Linux ends what a terminal says
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    said, _ = process.communicate()
    assert process.returncode == 0, shown.decode()[-2000:]
    manifest = check_whole(tmp_path / "made" / "here", 12)
    assert manifest["n_ok"] > 0
    assert said.decode().startswith("n_input=12 ")
    lines = shown.decode().split("\r\x1b[K")
    n = manifest["n_quarantined"]
    assert n > 0
    assert any(f"score: 12/12 rows, {n} quarantined" in line for line in lines), lines


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_same_command_continues(tmp_path):
    slow = write_checkpoint(tmp_path / "slow", n_filters=192)
    made = SyntheticSettings(n_records=960, fs=100, duration_s=3.0, seed=5, n_defective=3)
    folder = write_archive(tmp_path / "records", made)
    options = ["--checkpoint", slow, "--archive", "ptbxl", "--path", folder, "--rate", "100"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    done = subprocess.run(command("score", *options, "--out", whole), capture_output=True)
    assert done.returncode == 0, done.stderr
    own = command("score", *options, "--out", out)
    process = subprocess.Popen(
        own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: n_entered(out) >= 2, lambda: process.poll() is not None, "two entries")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == ("score.py: interrupted; the same command continues from here")
    assert "Traceback" not in said
    n_then = n_entered(out)
    assert n_then < n_entered(whole)
    assert not (out / "manifest.json").exists()
    again = subprocess.run(own, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert check_whole(out, 960)["n_scored"] < 960
    assert contents(out) == contents(whole)
