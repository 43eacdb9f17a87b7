"""What is fastest, by hand and by trial; and what a dry run says of a job that it does not do."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scored_archive import contents, write_checkpoint, write_records
from shard_folders import rows_of

from rayecg import pipeline
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import ArchiveSettings, ScoreSettings, ShardSettings
from rayecg.core.files import read_json
from rayecg.pipeline.scoring import open_source
from rayecg.score import probe
from rayecg.score.actors import check_room, n_actors
from rayecg.score.estimate import estimate

N = 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "own")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> ArchiveSettings:
    folder = write_records(tmp_path_factory.mktemp("archive") / "records", N)
    return ArchiveSettings("wfdb", str(folder))


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        # The usual batch size stays unless another gains a tenth.
        ({(1, 64): 100, (1, 256): 109}, (1, 64)),
        ({(1, 64): 100, (1, 256): 111}, (1, 256)),
        ({(1, 64): 100, (1, 16): 250, (1, 256): 240}, (1, 16)),
        # Threads are free to choose: with the usual batch size, those that are fastest with it.
        ({(1, 64): 100, (2, 64): 101, (1, 256): 105}, (2, 64)),
        ({(1, 64): 100, (2, 64): 90, (2, 256): 109}, (1, 64)),
        ({(1, 64): 100, (2, 64): 90, (2, 256): 111}, (2, 256)),
        ({(1, 16): 3, (2, 16): 4}, (2, 16)),
    ],
)
def test_the_best_way_by_hand(rates, expected):
    assert probe.best(rates, 64) == expected


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [
        ([2], [(2, 1), (1, 2)]),
        ([1], [(1, 1)]),
        # No node has the threads of several.
        ([0, 8, 8, 4], [(20, 1), (2, 8)]),
        ([0], [(1, 1)]),
    ],
)
def test_an_actor_has_one_thread_or_those_of_a_node(cpus, expected):
    assert probe.ways(cpus) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ScoreSettings(), 16),
        (ScoreSettings(num_cpus=3.0), 5),
        (ScoreSettings(num_gpus=1.0), 1),
        (ScoreSettings(num_gpus=0.25), 4),
        (ScoreSettings(num_cpus=8.0, num_gpus=0.25), 2),
        (ScoreSettings(num_cpus=32.0), 1),  # a cluster may get room
        (ScoreSettings(20), 20),
    ],
)
def test_actors_fill_sixteen_cpus_and_one_gpu(settings, expected):
    assert n_actors(settings, 16, 1) == expected


def test_an_actor_that_fits_nowhere_is_wrong_usage():
    check_room(ScoreSettings(num_cpus=2.0, num_gpus=0.5), 2, 1)
    said = r"--gpus \(score.num_gpus\): expected at most 0 for an actor, .* came 1$"
    with pytest.raises(SettingsError, match=said):
        check_room(ScoreSettings(num_gpus=1.0), 2, 0)
    with pytest.raises(SettingsError, match="expected at most 2 for an actor, the CPUs"):
        check_room(ScoreSettings(num_cpus=3.0), 2, 0)


def test_every_batch_size_is_measured_however_few_the_records(checkpoint, archive, monkeypatch):
    monkeypatch.setattr(probe, "BATCH_SIZES", (2, 100))
    monkeypatch.setattr(probe, "SECONDS", 0.01)
    source = open_source(archive, None, limit=3)
    rates = probe.measure(checkpoint, source, source.sample(9), ScoreSettings(batch_size=5))
    assert list(rates) == [2, 5, 100]
    assert all(np.isfinite(rate) and rate > 0 for rate in rates.values())


def test_records_that_cannot_be_read_measure_nothing(checkpoint, archive, tmp_path):
    for file in Path(archive.path).glob("*1_lr.hea"):
        (tmp_path / file.name).write_bytes(file.read_bytes())  # and no samples
    source = open_source(ArchiveSettings("wfdb", str(tmp_path)), None)
    with pytest.raises(DataError, match="none of the records that were tried") as caught:
        probe.measure(checkpoint, source, source.sample(9), ScoreSettings())
    assert "\n" not in str(caught.value)


def test_an_earlier_start_s_choice_stands(checkpoint, archive):
    source = open_source(archive, None)
    standing = {"batch_size": 128, "threads": 3, "backend": "bf16"}
    found = probe.chosen_execution(checkpoint, source, ScoreSettings(2, backend="onnx"), standing)
    assert found == ScoreSettings(2, backend="onnx", batch_size=128, num_cpus=3.0)
    assert found.threads == 3


@pytest.mark.parametrize(
    ("changes", "stands"),
    [
        ({}, True),
        ({"batch_size": 8, "threads": 2, "key": "of this plan"}, True),
        ({"code": "other"}, False),
        ({"hash_key": "0123"}, False),
    ],
)
def test_a_plan_stands_while_all_but_what_is_probed_is_the_same(changes, stands):
    decided = {"code": "mine", "hash_key": None, "batch_size": 64, "threads": 1}
    assert probe.still_stands(decided | changes, decided) == stands
    assert not probe.still_stands({}, decided)  # what a start that was killed at once leaves


@pytest.mark.usefixtures("ray")
def test_a_killed_start_that_replaces_goes_on_with_what_it_chose(
    checkpoint, archive, tmp_path, monkeypatch
):
    out, settings = tmp_path / "out", ScoreSettings(1, batch_size=32, records_per_unit=5)
    pipeline.score(checkpoint, archive, out, settings)
    before = contents(out)
    # As a kill leaves it.
    (out / "manifest.json").unlink()
    next(out.glob("ledger/*/*.json")).unlink()

    def measured_again(*_):
        raise AssertionError("a choice that stands was not used")

    monkeypatch.setattr(probe, "best", measured_again)
    again = pipeline.score(
        checkpoint, archive, out, ScoreSettings(records_per_unit=5), probe=True, replace=True
    )
    assert again["n_scored"] == 5
    assert read_json(out / "plan.json")["batch_size"] == 32
    assert contents(out) == before


@pytest.mark.usefixtures("ray")
def test_records_that_were_chosen_are_tried_wherever_they_stand(
    checkpoint, archive, tmp_path, monkeypatch
):
    out = tmp_path / "shards"
    pipeline.make_shards(archive, ShardSettings(records_per_shard=5), out)
    last = rows_of(out)[-1][0]["record_id"]
    source = open_source(None, out, select=f"record_id = '{last}'")
    seen = []

    def count(checkpoint, source, sample, settings):
        return {settings.batch_size: sum(len(batch) for batch in source.batches(sample))}

    monkeypatch.setattr(probe, "measure", count)
    monkeypatch.setattr(probe, "ways", lambda cpus: [(1, 1)])
    monkeypatch.setattr(probe, "best", lambda rates, usual: seen.append(rates) or (1, usual))
    probe.chosen_execution(checkpoint, source, ScoreSettings(), None)
    assert seen == [{(1, 64): 1.0}]


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_what_the_first_start_measured_is_what_the_second_uses(
    checkpoint, archive, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    first = pipeline.score(checkpoint, archive, out, probe=True)
    plan = read_json(out / "plan.json")
    assert plan["batch_size"] in {*probe.BATCH_SIZES, ScoreSettings().batch_size}
    assert plan["threads"] in {1, 2}
    before = contents(out)

    def measured_again(*_):
        raise AssertionError("a choice that stands was not used")

    monkeypatch.setattr(probe, "best", measured_again)
    second = pipeline.score(checkpoint, archive, out, probe=True)
    assert read_json(out / "plan.json") == plan
    assert second["seconds"] == first["seconds"]  # the manifest that stood there
    assert contents(out) == before


def test_a_dry_run_counts_all_and_scores_some(checkpoint, archive):
    source = open_source(archive, None)
    said = estimate(checkpoint, source, ScoreSettings(2))
    n_bytes = sum(file.stat().st_size for file in Path(archive.path).iterdir())
    assert said.startswith(f"{N} records, {n_bytes / 1e6:,.0f} MB of files\n{N} of them")
    (ok,), (lost,) = re.findall(r"(\d+) ok", said), re.findall(r"(\d+) quarantined", said)
    assert int(ok) + int(lost) == N
    assert int(lost) > 0
    assert re.search(r"one actor: [\d,]+ records/s; 2 of them: about [\d,]+ s", said)
    assert estimate(checkpoint, open_source(archive, None, limit=1), ScoreSettings())


@pytest.mark.usefixtures("ray")
def test_a_dry_run_finds_the_shard_that_holds_what_was_chosen(checkpoint, archive, tmp_path):
    out = tmp_path / "shards"
    pipeline.make_shards(archive, ShardSettings(records_per_shard=5), out)
    last = rows_of(out)[-1][0]["record_id"]
    source = open_source(None, out, select=f"record_id = '{last}'")
    said = estimate(checkpoint, source, ScoreSettings())
    assert len(source.units()) == 1
    assert said.startswith("1 records, 0 MB of files\n")  # of one shard
    assert "\n1 of them were read and scored: 1 " in said
