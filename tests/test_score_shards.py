"""Scores of shards that lie on disk or in an object store: the same, whichever records are chosen."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from s3_store import BUCKET, SECRETS, Store, one_line
from scored_archive import check_whole, contents, rows, write_checkpoint, write_records
from shard_folders import shard_files

from rayecg import pipeline
from rayecg.core import remote
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import ArchiveSettings, ScoreSettings, ShardSettings
from rayecg.core.files import read_table
from rayecg.core.shard_format import RECORDS, SIGNAL
from rayecg.core.storage import open_folder
from rayecg.pipeline.scoring import open_source
from rayecg.score.estimate import estimate
from rayecg.score.sources import QUARANTINE

N, EACH = 30, 7
#: How what is compressed so begins.
ZSTD = bytes.fromhex("28b52ffd")

pytestmark = pytest.mark.usefixtures("ray")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "own")


@pytest.fixture(scope="module")
def shards(ray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    archive = write_records(folder / "records", N)
    own = ArchiveSettings("wfdb", str(archive))
    pipeline.make_shards(own, ShardSettings(records_per_shard=EACH), folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="module")
def far(store: Store, shards: Path) -> str:
    """The same shards in the store."""
    return store.uri(store.put(shards, "scoring/shards"))


def score(checkpoint: Path, shards: Path | str, out: Path | str, **chosen) -> dict:
    return pipeline.score(checkpoint, None, out, ScoreSettings(2), shards=shards, **chosen)


def some_of(shards: Path) -> list[str]:
    """Name records of the first and the last shard, and one that could not be read."""
    ids = [read_table(file)["record_id"].to_pylist() for file in shard_files(shards)]
    lost = read_table(shards / f"{QUARANTINE}.parquet")["record_id"].to_pylist()
    return [ids[0][1], ids[0][-1], ids[-1][-1], lost[0]]


@pytest.mark.parametrize("chosen", ["all", "some", "first"])
def test_scores_of_shards_in_a_store_are_those_of_the_folder(
    checkpoint, shards, far, store, tmp_path, chosen
):
    names = some_of(shards)
    condition = "record_id IN ({})".format(", ".join(f"'{name}'" for name in names))
    options = {"all": {}, "some": {"select": condition}, "first": {"limit": EACH + 2}}[chosen]
    n = {"all": N, "some": len(names), "first": EACH + 2}[chosen]
    out = store.uri(f"scoring/{chosen}")
    score(checkpoint, shards, tmp_path / "near", **options)
    score(checkpoint, far, out, **options)
    for place in (tmp_path / "near", out):
        check_whole(place, n)
    assert contents(out) == contents(tmp_path / "near")
    if chosen == "some":
        assert sorted(rows(out)["record_id"]) == sorted(names)
    # One job's output stands for the other's: they are the same shards.
    assert score(checkpoint, shards, out, **options)["n_scored"] == n


def test_a_dry_run_of_shards_in_a_store_finds_the_same(checkpoint, shards, far):
    near, away = (
        estimate(checkpoint, open_source(None, place), ScoreSettings(2)).splitlines()[:2]
        for place in (shards, far)
    )
    assert near == away
    assert near[0].startswith(f"{N} records, ")


@pytest.fixture
def places(shards, store, tmp_path) -> tuple[Path, str, str]:
    """Copies to damage: on disk, in the store, and the store's as messages call it."""
    shutil.copytree(shards, tmp_path / "shards")
    key = f"damaged/{tmp_path.name}"
    store.put(shards, key)
    return tmp_path / "shards", store.uri(key), f"s3://{BUCKET}/{key}"


@pytest.mark.parametrize("damage", ["gone", "cut off"])
@pytest.mark.parametrize("what", ["shard", RECORDS, "quarantine.parquet", "manifest.json"])
def test_a_file_that_is_damaged_is_named_as_the_user_knows_it(
    checkpoint, store, places, tmp_path, what, damage
):
    near, far, shown = places
    n_shards = len(shard_files(near))
    file = shard_files(near)[1] if what == "shard" else near / what
    name = file.relative_to(near).as_posix()
    object_ = {"Bucket": BUCKET, "Key": f"{shown.removeprefix(f's3://{BUCKET}/')}/{name}"}
    if damage == "gone":
        file.unlink()
        store.client.delete_object(**object_)
    else:
        file.write_bytes(file.read_bytes()[:-9])
        store.client.put_object(**object_, Body=file.read_bytes())
    for place, root in ((near, str(near)), (far, shown)):
        with pytest.raises(DataError) as caught:
            score(checkpoint, place, tmp_path / "out", replace=True)
        said = one_line(caught.value)
        if (what, damage) == ("shard", "gone"):
            assert said.startswith(f"{root}/records/: expected the {n_shards} shards whose records")
            assert f"found {n_shards - 1};" in said
            assert not (tmp_path / "out" / "plan.json").exists()  # nothing was begun
        else:
            assert said.startswith(f"{root}/{name}: ")


def test_samples_that_are_damaged_name_their_shard(checkpoint, store, places, tmp_path):
    near, far, shown = places
    file = shard_files(near)[1]
    name = file.relative_to(near).as_posix()
    column = pq.read_schema(file).get_field_index(SIGNAL)
    start = pq.read_metadata(file).row_group(0).column(column).data_page_offset
    body = bytearray(file.read_bytes())
    body[body.index(ZSTD, start)] ^= 1
    file.write_bytes(body)
    key = f"{shown.removeprefix(f's3://{BUCKET}/')}/{name}"
    store.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))
    for place, root in ((near, str(near)), (far, shown)):
        with pytest.raises(DataError) as caught:
            score(checkpoint, place, tmp_path / "out", replace=True)
        assert one_line(caught.value).startswith(f"{root}/{name}: not a readable Parquet file")


def test_shards_may_be_links_to_another_disk(checkpoint, shards, tmp_path):
    linked = tmp_path / "linked"
    shutil.copytree(shards, tmp_path / "shards")
    shutil.copytree(shards, linked, ignore=shutil.ignore_patterns("records"))
    (linked / "records").symlink_to(tmp_path / "shards" / "records")
    file = shard_files(tmp_path / "shards")[0]
    moved = file.rename(tmp_path / file.name)
    file.symlink_to(moved)
    score(checkpoint, linked, tmp_path / "out")
    check_whole(tmp_path / "out", N)


@pytest.mark.parametrize("manifest", [b'{"stage": "score"}', b'{"stage": "shards"}'])
def test_what_is_no_output_of_shards_is_refused(store, manifest):
    store.client.put_object(Bucket=BUCKET, Key="other/manifest.json", Body=manifest)
    with pytest.raises(DataError, match=r"expected the output of jobs/make_shards\.py") as caught:
        open_source(None, store.uri("other"))
    one_line(caught.value)
    for nowhere in ("nowhere", store.uri("nowhere")):
        with pytest.raises(SettingsError, match="expected a folder, found none") as caught:
            open_source(None, nowhere)
        one_line(caught.value)


@pytest.mark.parametrize("n_bytes", [0, 1, 99, 100, 101, 1000, 1234])
def test_a_copy_is_whole_and_has_no_name(store, tmp_path, monkeypatch, n_bytes):
    monkeypatch.setattr(remote, "COPIED", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    body = bytes(i * i % 251 for i in range(n_bytes))
    store.client.put_object(Bucket=BUCKET, Key="copied/one", Body=body)
    store.client.put_object(Bucket=BUCKET, Key="copied/other", Body=b"other")
    folder = open_folder(store.uri("copied"))
    for _ in range(2):
        assert folder.at_hand("one").read_bytes() == body
        assert folder.at_hand("other").read_bytes() == b"other"
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_replaced_while_it_is_copied_is_no_copy(store, monkeypatch):
    monkeypatch.setattr(remote, "COPIED", 100)
    store.client.put_object(Bucket=BUCKET, Key="replaced/one", Body=b"1" * 1000)

    class Replaced(remote.RemoteFolder):
        """Another writer comes between two requests."""

        def read(self, name, offset=0, need=None, limit=None):
            found = super().read(name, offset, need, limit)
            store.client.put_object(Bucket=BUCKET, Key="replaced/one", Body=b"2" * 1001)
            return found

    folder = Replaced(store.uri("replaced"))
    with pytest.raises(
        DataError, match=r"^s3://archives/replaced/one: was replaced while"
    ) as caught:
        folder.at_hand("one")
    one_line(caught.value)


def test_a_copy_that_fails_asks_for_no_more_pieces(store, monkeypatch):
    monkeypatch.setattr(remote, "COPIED", 100)
    store.client.put_object(Bucket=BUCKET, Key="failing/one", Body=b"1" * 10_000)
    asked = []

    class Away(remote.RemoteFolder):
        """The store goes away behind the first request."""

        def read(self, name, offset=0, need=None, limit=None):
            asked.append(offset)
            if len(asked) > 1:
                raise DataError("away")
            return super().read(name, offset, need, limit)

    with pytest.raises(DataError, match=r"^away$"):
        Away(store.uri("failing")).at_hand("one")
    assert len(asked) < 50


@pytest.mark.slow
def test_the_job_reads_and_writes_in_the_store(checkpoint, far, store, tmp_path):
    from test_score_job import job

    out = store.uri("scoring/job")
    ended = job(checkpoint=checkpoint, shards=far, out=out)
    assert ended.status == 0, ended.err
    assert f"n_input={N} " in ended.out
    check_whole(out, N)
    assert not [secret for secret in SECRETS if secret in ended.out + ended.err]
