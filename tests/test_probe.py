"""What is fastest, by hand and by trial; and what a dry run says of a job that it does not do."""

from __future__ import annotations

import os
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
from rayecg.score.actors import check_room, n_actors, say_unused_gpus
from rayecg.score.estimate import estimate
from rayecg.score.probe import Trial

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


@pytest.fixture
def _short(monkeypatch):
    """Short trials, and all the patience that a busy machine needs for them."""
    monkeypatch.setattr(probe, "SECONDS", 0.01)
    monkeypatch.setattr(probe, "BATCH_SIZES", (16, 256))
    for limit in ("WAY_S", "ALL_S", "LATE_S"):
        monkeypatch.setattr(probe, limit, 600.0)


def way(n_actors: int, threads: float = 1, size: int = 64, gpus: float = 0) -> ScoreSettings:
    return ScoreSettings(n_actors, float(threads), float(gpus), size)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        # What is usual stays unless another gains a tenth: the batch size,
        ({way(4): 100, way(4, size=256): 109}, way(4)),
        ({way(4): 100, way(4, size=256): 111}, way(4, size=256)),
        ({way(4): 100, way(4, size=16): 250, way(4, size=256): 240}, way(4, size=16)),
        # the threads, the actors,
        ({way(4): 100, way(2, 2): 109}, way(4)),
        ({way(4): 100, way(2, 2): 111, way(1, 4): 115}, way(1, 4)),
        ({way(4): 100, way(2): 109}, way(4)),
        ({way(4): 100, way(2): 111}, way(2)),
        # and each of them apart: of two that gain, the one that changes less.
        ({way(4): 100, way(2, 2): 105, way(2, 2, 256): 111}, way(2, 2)),
        ({way(4): 100, way(4, size=256): 120, way(2, 2, 256): 130}, way(4, size=256)),
        # The usual one may have killed its workers.
        ({way(2, 2, 16): 3, way(1, 4, 16): 4}, way(1, 4, 16)),
    ],
)
def test_the_best_way_by_hand(rates, expected):
    assert probe.best(rates, way(4)) == expected


@pytest.mark.parametrize(
    ("usual", "nodes", "options", "expected"),
    [
        (way(2), [(2, 0)], {}, [way(1, 2)]),
        (way(1), [(1, 0)], {}, []),
        (way(6), [(6, 0)], {}, [way(3, 2), way(1, 4), way(1, 6)]),
        # No actor has the threads of several nodes, and a cluster's head may have none.
        (way(12), [(0, 0), (8, 0), (4, 0)], {}, [way(6, 2), way(3, 4), way(1, 8)]),
        (way(1), [(0, 0)], {}, []),
        # Threads that were given are the usual ones.
        (way(1, 3), [(4, 0)], {}, [way(4), way(2, 2), way(1, 4)]),
        # As many actors as were asked for, where there is room for them.
        (way(2), [(8, 0)], {"asked": 2}, [way(2, 2), way(2, 4)]),
        (way(9), [(8, 0)], {"asked": 9}, []),
        # Rows were made with these threads.
        (way(8), [(8, 0)], {"threads": False}, []),
        # Several share a GPU, as far as there are CPUs, and have as many threads as ever.
        (way(2, gpus=1), [(8, 1), (8, 1)], {}, [way(4, gpus=0.5), way(8, gpus=0.25)]),
        (way(1, 2, gpus=1), [(4, 1)], {}, [way(2, 2, gpus=0.5)]),
        (way(4, gpus=1), [(4, 1)], {"asked": 4}, [way(4, gpus=0.25)]),
        (way(1, gpus=1), [(4, 1)], {"asked": 1}, []),
        (way(1, gpus=2), [(8, 2)], {}, []),
        (way(2, gpus=0.5), [(8, 1)], {}, []),
    ],
)
def test_other_ways_fill_the_nodes(usual, nodes, options, expected):
    assert probe.ways(usual, nodes, **options) == expected


def searched(rates, usual, others, fewer=True):
    """Search where each way has one rate, or several, one after another; gives what was tried, too."""
    tried = []

    def measure(own):
        found = rates.get(own, ())
        n = tried.count(own)
        tried.append(own)
        return ({own: found[min(n, len(found) - 1)]}, []) if found else ({}, [f"{own} died"])

    return probe.search(measure, usual, others, fewer), tried


def test_more_threads_are_tried_until_they_are_clearly_slower():
    others = [way(4, 2), way(2, 4), way(1, 8)]
    rates = {way(8): [100], way(4, 2): [95], way(2, 4): [80], way(4): [60]}
    assert searched(rates, way(8), others) == (way(8), [way(8), *others[:2], way(4)])


def test_fewer_threads_than_were_given_are_all_tried():
    others = [way(8), way(4, 2), way(1, 8)]
    rates = {way(2, 4): [100], way(8): [50], way(4, 2): [70], way(1, 8): [120]}
    assert searched(rates, way(2, 4), others) == (way(1, 8), [way(2, 4), *others, way(2, 4)])


def test_more_actors_share_a_gpu_until_they_are_clearly_slower():
    others = [way(2, gpus=0.5), way(4, gpus=0.25)]
    rates = {way(1, gpus=1): [100], others[0]: [80]}
    found = searched(rates, way(1, gpus=1), others, fewer=False)
    assert found == (way(1, gpus=1), [way(1, gpus=1), others[0]])


def test_actors_are_halved_as_long_as_that_gains():
    rates = {way(8): [100], way(4): [120], way(2): [140], way(1): [90]}
    tried = [way(8), way(4), way(2), way(1), way(8)]
    assert searched(rates, way(8), []) == (way(2), tried)
    assert searched(rates, way(8), [], fewer=False) == (way(8), [way(8)])


def test_what_was_disturbed_is_tried_again_before_it_is_left():
    rates = {way(2): [50, 100], way(1, 2): [70], way(1): [60]}
    assert searched(rates, way(2), [way(1, 2)])[0] == way(2)


def test_what_kills_its_workers_is_not_chosen():
    rates = {way(4, 2): [10]}
    assert searched(rates, way(8), [way(4, 2)]) == (way(4, 2), [way(8), way(4, 2), way(2, 2)])
    with pytest.raises(DataError, match=r"nothing that was tried can be run .* died"):
        searched({}, way(8), [way(4, 2)])


def test_fewer_actors_are_tried_where_no_way_has_a_rate():
    tried = [way(8), way(4), way(2), way(1)]
    assert searched({way(2): [10]}, way(8), []) == (way(2), tried)


def test_nothing_else_is_tried_when_time_is_up(monkeypatch):
    monkeypatch.setattr(probe, "ALL_S", 0.0)
    rates = {way(2): [50], way(1, 2): [100]}
    assert searched(rates, way(2), [way(1, 2)]) == (way(2), [way(2)])


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


def trial(checkpoint: Path, source, settings: ScoreSettings | None = None) -> Trial:
    return Trial((checkpoint, source, source.sample(probe.N_SAMPLE)), settings or ScoreSettings())


def test_any_batch_size_is_measured_however_few_the_records(checkpoint, archive):
    own = trial(checkpoint, open_source(archive, None, limit=3))
    assert own.ready() == {"failure": ""}
    for found in (own.read(0.0), own.run(2, 0.0), own.run(100, 0.01)):
        assert found["failure"] == ""
        assert 0 < found["seconds"] < np.inf


def test_a_batch_that_the_network_cannot_do_says_why(checkpoint, archive):
    own = trial(checkpoint, open_source(archive, None, limit=3))
    own.ready()
    own.x_WLT = own.x_WLT[:, :5]  # leads
    said = own.run(16, 0.0)["failure"]
    assert re.fullmatch(r"batches of 16: RuntimeError: .+", said)


def test_records_that_were_chosen_are_tried_wherever_they_stand(ray, checkpoint, archive, tmp_path):
    out = tmp_path / "shards"
    pipeline.make_shards(archive, ShardSettings(records_per_shard=5), out)
    last = rows_of(out)[-1][0]["record_id"]
    own = trial(checkpoint, open_source(None, out, select=f"record_id = '{last}'"))
    own.ready()
    assert len(own.x_WLT) == 2  # windows of two seconds, of one record of three


@pytest.mark.usefixtures("ray")
def test_records_that_cannot_be_read_measure_nothing(checkpoint, archive, tmp_path):
    for file in Path(archive.path).glob("*1_lr.hea"):
        (tmp_path / file.name).write_bytes(file.read_bytes())  # and no samples
    source = open_source(ArchiveSettings("wfdb", str(tmp_path)), None)
    with pytest.raises(DataError, match=r"^--probe: none of the records that were tried") as caught:
        probe.chosen_execution(checkpoint, source, ScoreSettings(), None)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("ray", "_short")
def test_actors_are_tried_side_by_side(checkpoint, archive, tmp_path, monkeypatch, capsys):
    class Watched(Trial):
        """Measures nothing while another of its way is not ready."""

        def ready(self):
            found = super().ready()
            (
                tmp_path / f"{self.settings.concurrency}-{self.settings.threads}-{os.getpid()}"
            ).touch()
            return found

        def read(self, at_least):
            n_actors = self.settings.concurrency
            assert len(list(tmp_path.glob(f"{n_actors}-{self.settings.threads}-*"))) >= n_actors
            return super().read(at_least)

    monkeypatch.setattr(probe, "Trial", Watched)
    source = open_source(archive, None)
    found = probe.chosen_execution(checkpoint, source, ScoreSettings(backend="bf16"), None)
    assert (found.concurrency, found.num_cpus) in {(2, 1.0), (1, 2.0), (1, 1.0)}
    assert found == ScoreSettings(
        found.concurrency, found.num_cpus, batch_size=found.batch_size, backend="bf16"
    )
    assert found.batch_size in {16, 64, 256}
    said = capsys.readouterr()
    assert said.out == ""
    _, first, second, *_, last = said.err.splitlines()
    rates = r"[\d,]+ [\d,]+ [\d,]+ windows/s in batches of 16 64 256"
    assert re.fullmatch(rf"probe: 2 actors of 1 thread: {rates}", first)
    assert re.fullmatch(rf"probe: 1 actor of 2 threads: {rates}", second)
    assert last.startswith("probe: chosen: ")


@pytest.mark.slow
@pytest.mark.usefixtures("ray", "_short")
def test_so_many_actors_as_were_asked_for(checkpoint, archive, capsys):
    found = probe.chosen_execution(checkpoint, open_source(archive, None), ScoreSettings(1), None)
    assert found.concurrency == 1
    said = capsys.readouterr().err
    assert "probe: 1 actor of 1 thread: " in said
    assert "probe: 1 actor of 2 threads: " in said
    assert "2 actors" not in said


@pytest.mark.slow
@pytest.mark.usefixtures("ray", "_short")
def test_workers_that_die_end_their_way_alone(checkpoint, archive, monkeypatch, capsys):
    class Dying(Trial):
        def ready(self):
            if self.settings.concurrency == 2:
                os._exit(1)
            return super().ready()

    monkeypatch.setattr(probe, "Trial", Dying)
    found = probe.chosen_execution(checkpoint, open_source(archive, None), ScoreSettings(), None)
    assert (found.concurrency, found.num_cpus) == (1, 2.0)
    said = capsys.readouterr().err
    assert re.search("^probe: 2 actors of 1 thread: a worker died .*Error.$", said, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.usefixtures("ray", "_short")
def test_room_that_another_job_has_is_not_waited_for(checkpoint, archive, monkeypatch, capsys):
    import ray

    monkeypatch.setattr(probe, "LATE_S", 5.0)
    other = ray.remote(Trial).options(num_cpus=1).remote((None, None, None), None)
    try:
        ray.wait([other.ready.remote()])  # it is there, and has nothing to open
        source = open_source(archive, None)
        found = probe.chosen_execution(checkpoint, source, ScoreSettings(), None)
    finally:
        ray.kill(other)
    assert found.num_cpus == 1.0
    said = capsys.readouterr().err
    assert re.search("^probe: 1 actor of 1 thread: .* windows/s", said, re.MULTILINE)
    assert "probe: 1 actor of 2 threads: no worker was ready in 5 s\n" in said


STANDING = {"batch_size": 128, "threads": 2, "backend": "bf16"}


def test_an_earlier_start_s_choice_stands(checkpoint, archive):
    source = open_source(archive, None)
    found = probe.chosen_execution(checkpoint, source, ScoreSettings(2, backend="onnx"), STANDING)
    assert found == ScoreSettings(2, backend="onnx", batch_size=128, num_cpus=2.0)
    # Nothing is left to be scored, but records that came since.
    found = probe.chosen_execution(checkpoint, source, ScoreSettings(), STANDING, unfinished=False)
    assert found == ScoreSettings(batch_size=128, num_cpus=2.0)


@pytest.mark.usefixtures("ray")
def test_the_choice_of_a_larger_machine_is_not_waited_for(checkpoint, archive):
    source, larger = open_source(archive, None), STANDING | {"threads": 3}
    with pytest.raises(SettingsError, match=r"expected at most 2 for an actor, .* came 3$"):
        probe.chosen_execution(checkpoint, source, ScoreSettings(), larger)


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


@pytest.mark.slow
@pytest.mark.usefixtures("ray", "_short")
def test_a_killed_start_that_replaces_goes_on_with_what_it_chose(
    checkpoint, archive, tmp_path, capsys
):
    out, settings = tmp_path / "out", ScoreSettings(1, batch_size=32, records_per_unit=5)
    pipeline.score(checkpoint, archive, out, settings)
    before = contents(out)
    # As a kill leaves it.
    (out / "manifest.json").unlink()
    next(out.glob("ledger/*/*.json")).unlink()
    capsys.readouterr()
    again = pipeline.score(
        checkpoint, archive, out, ScoreSettings(records_per_unit=5), probe=True, replace=True
    )
    assert again["n_scored"] == 5
    assert read_json(out / "plan.json")["batch_size"] == 32
    assert contents(out) == before
    # The number of actors decides no bits; it is measured with the batches and threads that stand.
    said = re.findall("^probe: (.* windows/s in batches of .*)$", capsys.readouterr().err, re.M)
    assert {own.partition(":")[0] for own in said} == {
        "2 actors of 1 thread",
        "1 actor of 1 thread",
    }
    assert all(own.endswith("in batches of 32") for own in said)


@pytest.mark.slow
@pytest.mark.usefixtures("ray", "_short")
def test_what_the_first_start_measured_is_what_the_second_uses(
    checkpoint, archive, tmp_path, capsys
):
    out = tmp_path / "out"
    first = pipeline.score(checkpoint, archive, out, probe=True)
    plan = read_json(out / "plan.json")
    chosen = re.search(
        r"^probe: chosen: (\d) actors? of (\d) threads?, batches of (\d+)$",
        capsys.readouterr().err,
        re.MULTILINE,
    )
    assert chosen is not None
    assert [first["actors"], plan["threads"], plan["batch_size"]] == list(map(int, chosen.groups()))
    before = contents(out)
    second = pipeline.score(checkpoint, archive, out, probe=True)
    assert "probe: " not in capsys.readouterr().err
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


def test_gpus_that_nobody_uses_are_mentioned(monkeypatch, capsys):
    monkeypatch.setattr("rayecg.score.actors.cluster_gpus", lambda: 2.0)
    say_unused_gpus(ScoreSettings(num_gpus=0.5))
    assert capsys.readouterr().err == ""
    say_unused_gpus(ScoreSettings())
    assert capsys.readouterr().err == "score: there are 2 GPUs; with --gpus 1 actors use them\n"
    monkeypatch.setattr("rayecg.score.actors.cluster_gpus", lambda: 0.0)
    say_unused_gpus(ScoreSettings())
    assert capsys.readouterr().err == ""
