"""What stands in a scored output: files the ledger names, of the checkpoint the job began with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from deadly_archive import deadly
from scored_archive import (
    FOLDERS,
    SIZE,
    archive,
    check_whole,
    checkpoint,
    contents,
    n_entered,
    rows,
    score,
    undisturbed,
    write_checkpoint,
)

from rayecg import pipeline
from rayecg.core.batch import Batch
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import ArchiveSettings, ScoreSettings, ShardSettings
from rayecg.core.files import read_json, read_table
from rayecg.core.shard_format import RECORDS
from rayecg.core.units import Units
from rayecg.models import backends
from rayecg.models.checkpoint import read_card
from rayecg.score import unit as unit_module
from rayecg.score.careful import ALL_DIE, score_each
from rayecg.score.run import decides
from rayecg.score.sources import ShardSource
from rayecg.score.unit import UnitScorer

__all__ = ["archive", "checkpoint", "undisturbed"]  # fixtures

N = 40


def scorer(source: Any, checkpoint: Path, out: Path, backend: Any = "eager") -> UnitScorer:
    settings = ScoreSettings(1, backend=backend, records_per_unit=SIZE)
    plan = decides(read_card(checkpoint), source, settings, None)
    units = {"own": Units(out, "0" * 16)}
    return UnitScorer(source, {"own": checkpoint}, units, {"own": plan}, settings)


@pytest.mark.usefixtures("ray")
def test_a_file_that_is_gone_is_made_again(checkpoint, archive, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    min((out / "predictions").iterdir()).unlink()
    assert score(checkpoint, archive, out)["n_scored"] == SIZE
    check_whole(out, N)
    assert contents(out) == contents(undisturbed)


@pytest.mark.usefixtures("ray")
def test_what_a_cut_off_attempt_left_in_other_parts_is_removed(checkpoint, archive, tmp_path):
    settings = ScoreSettings(1, records_per_unit=SIZE, partition="status")
    place, own = tmp_path / "out", ArchiveSettings("wfdb", str(archive))
    pipeline.score(checkpoint, own, place, settings)
    before = contents(place)
    # As if the archive had been away for the first attempt at a unit that was then killed.
    [ledger] = (place / "ledger").iterdir()
    entry = min(ledger.iterdir())
    part = next(name for name in before if entry.stem in name and "status=ok" in name)
    left = place / part.replace("status=ok", "status=quarantined-then")
    left.parent.mkdir()
    left.write_bytes(before[part])
    entry.unlink()
    (place / "manifest.json").unlink()
    manifest = pipeline.score(checkpoint, own, place, settings)
    assert manifest["n_input"] == N
    assert contents(place) == before


@pytest.mark.usefixtures("ray")
def test_rows_whose_plan_is_gone_are_not_wiped_unasked(checkpoint, archive, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    (out / "plan.json").unlink()
    with pytest.raises(SettingsError, match=r"no plan\.json says how.*--replace"):
        score(checkpoint, archive, out)
    assert contents(out) == contents(undisturbed)


def test_a_checkpoint_that_was_replaced_meanwhile_is_refused(checkpoint, archive, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(checkpoint, bundle)
    own = scorer(deadly(archive), bundle, tmp_path / "out")
    own.open()
    shutil.rmtree(bundle)
    write_checkpoint(bundle, seed=1)
    later = scorer(deadly(archive), checkpoint, tmp_path / "out")
    later.checkpoints = {"own": bundle}  # as an actor has it that starts after the first
    with pytest.raises(DataError, match="replaced while the job was under way"):
        later.open()


def test_a_back_end_is_verified_before_its_first_window(checkpoint, archive, tmp_path, monkeypatch):
    lost = tmp_path / "lost"
    shutil.copytree(archive, lost)
    names = sorted(file.stem for file in lost.glob("*.hea"))
    for name in names[:SIZE]:
        (lost / f"{name}.dat").unlink()
    source = deadly(lost)
    plan = source.plan(None, SIZE, 1, None)
    payloads = [source.payload(unit, plan) for unit in plan.rows]
    own = scorer(source, checkpoint, tmp_path / "out", "bf16")
    verified = []

    def verify(backend: Any, reference: Any, x_WLT: Any, *more: Any) -> Any:
        verified.append(len(x_WLT))
        return backends.verify(backend, reference, x_WLT, *more)

    monkeypatch.setattr(unit_module, "verify", verify)
    torch.set_num_threads(1)
    own.open(payloads[0])
    assert own(payloads[0])["n_quarantined"] == SIZE
    assert not verified
    for payload in payloads[1:]:
        own(payload)
    assert len(verified) == 1 <= verified[0]


@pytest.mark.slow
def test_a_record_that_kills_workers_is_the_only_one_that_is_lost(
    checkpoint, archive, undisturbed, tmp_path
):
    names = sorted(rows(undisturbed).query("status == 'ok'")["record_id"])
    poison, out = [names[0], names[-1]], tmp_path / "out"
    tests = Path(__file__).parent
    command = [sys.executable, str(tests / "deadly_archive.py"), checkpoint, archive, out, *poison]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tests)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, expected = (rows(place).set_index("record_id") for place in (out, undisturbed))
    assert len(found) == N
    assert found.loc[poison, "error_code"].tolist() == ["internal_error"] * 2
    others = expected.index.difference(poison)
    pd.testing.assert_frame_equal(found.loc[others], expected.loc[others])


def test_records_that_all_kill_are_not_to_blame(checkpoint, archive, tmp_path, monkeypatch):
    names = sorted(file.stem for file in archive.glob("*.hea"))
    monkeypatch.setattr("rayecg.score.careful.ALL_DIE", 2)
    assert ALL_DIE > 2
    source = deadly(archive, *names)
    plan = source.plan(None, SIZE, 1, None)
    own = scorer(source, checkpoint, tmp_path / "out")
    own.open()
    with pytest.raises(DataError, match="died at 2 records in a row"):
        score_each(own, source.payload(next(iter(plan.rows)), plan))


@pytest.mark.usefixtures("ray")
def test_chosen_records_of_shards_are_those_of_the_archive(checkpoint, archive, tmp_path):
    shards, settings = tmp_path / "shards", ScoreSettings(1)
    own = ArchiveSettings("wfdb", str(archive))
    pipeline.make_shards(own, ShardSettings(records_per_shard=7), shards)
    whole = ShardSource(shards)
    files = (RECORDS, "quarantine.parquet")
    last = [
        one for file in files for one in read_table(shards / file)["record_id"].to_pylist()[-3:]
    ]
    condition = "record_id IN ({})".format(", ".join(f"'{name}'" for name in last))
    source = ShardSource(shards, condition)
    assert len(source.units()) < len(whole.units())
    pipeline.score(checkpoint, None, tmp_path / "a", settings, shards=shards, select=condition)
    pipeline.score(checkpoint, own, tmp_path / "b", settings, select=condition)
    one, other = (rows(tmp_path / name).sort_values("record_id") for name in "ab")
    assert sorted(last) == one["record_id"].tolist()
    columns = [name for name in one if name.startswith(("logit", "status", "error_code"))]
    pd.testing.assert_frame_equal(
        one[columns].reset_index(drop=True), other[columns].reset_index(drop=True)
    )


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("select", [None, "record_id > '00020'"])
def test_records_of_shards_one_by_one_are_those_of_the_unit(archive, tmp_path, select):
    shards = tmp_path / "shards"
    own = ArchiveSettings("wfdb", str(archive))
    pipeline.make_shards(own, ShardSettings(window_s=1.0), shards)
    source = ShardSource(shards, select)
    for unit in source.units():
        whole = [name for b in source.batches(source.payload(unit)) for name in ids(b)]
        alone = list(source.singles(source.payload(unit)))
        assert [row["record_id"] for row, _ in alone] == whole
        assert [name for _, one in alone for b in source.batches(one) for name in ids(b)] == whole


def ids(batch: Batch) -> list[str]:
    found: list[str] = batch.index["record_id"].to_pylist()
    return found


def test_the_ledger_names_every_file(undisturbed):
    entries = Units(undisturbed, read_json(undisturbed / "plan.json")["key"]).finished(FOLDERS)
    assert len(entries) == n_entered(undisturbed)
    assert {name for entry in entries.values() for name in entry["files"]} == set(
        contents(undisturbed)
    )


@pytest.mark.usefixtures("ray")
def test_what_a_removal_that_was_cut_off_left_is_not_counted(
    checkpoint, archive, undisturbed, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    # As a kill leaves it in the midst of replacing these scores by others.
    (out / "manifest.json").unlink()
    (out / "plan.json").write_text('{"key": ""}')
    assert score(checkpoint, archive, out)["n_scored"] == N
    assert contents(out) == contents(undisturbed)
