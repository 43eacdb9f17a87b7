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
from rayecg.core.errors import DataError
from rayecg.core.experiment import ArchiveSettings, ScoreSettings, ShardSettings
from rayecg.core.files import read_json
from rayecg.pipeline.scoring import open_source
from rayecg.score import probe
from rayecg.score.estimate import estimate
from rayecg.score.sources import Source

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


def first_unit(source: Source, size: int | None = None) -> dict:
    plan = source.plan(None, size, None)
    return source.payload(source.units(plan)[0], plan)


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


def test_every_batch_size_is_measured_however_few_the_records(checkpoint, archive, monkeypatch):
    monkeypatch.setattr(probe, "BATCH_SIZES", (2, 100))
    monkeypatch.setattr(probe, "SECONDS", 0.01)
    source = open_source(archive, None, limit=3)
    rates = probe.measure(checkpoint, source, first_unit(source), ScoreSettings(batch_size=5))
    assert list(rates) == [2, 5, 100]
    assert all(np.isfinite(rate) and rate > 0 for rate in rates.values())


def test_records_that_cannot_be_read_measure_nothing(checkpoint, archive, tmp_path):
    for file in Path(archive.path).glob("*1_lr.hea"):
        (tmp_path / file.name).write_bytes(file.read_bytes())  # and no samples
    source = open_source(ArchiveSettings("wfdb", str(tmp_path)), None)
    with pytest.raises(DataError, match="none of the first records") as caught:
        probe.measure(checkpoint, source, first_unit(source), ScoreSettings())
    assert "\n" not in str(caught.value)


def test_an_earlier_start_s_choice_stands(checkpoint, archive):
    source = open_source(archive, None)
    standing = {"batch_size": 128, "threads": 3, "backend": "bf16"}
    found = probe.chosen_execution(checkpoint, source, ScoreSettings(2, backend="onnx"), standing)
    assert found == ScoreSettings(2, backend="onnx", batch_size=128, num_cpus=3.0)
    assert found.threads == 3


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
    assert said.startswith("1 records")
    assert "\n1 of them were read and scored: 1 " in said
