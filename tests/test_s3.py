"""Archives in an object store: the same records as on disk, and a store that fails is no record's fault.

The store is moto's server on this machine. Between it and what is tested may stand a front, which
misbehaves where a test asks it to.
"""

from __future__ import annotations

import pickle
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from s3_store import BUCKET, SECRETS, Front, one_line, write_beats, write_tree

from rayecg.archives.base import Archive
from rayecg.archives.catalogue import open_archive
from rayecg.archives.synthetic import DEFECTS
from rayecg.core import remote
from rayecg.core.errors import DataError, RecordError, SettingsError
from rayecg.core.experiment import ArchiveSettings, ShardSettings
from rayecg.core.record import Record
from rayecg.core.remote import RemoteFolder
from rayecg.core.shard_format import (
    shard_files,
)
from rayecg.core.shard_reader import read_records
from rayecg.core.storage import open_folder, shown_path
from rayecg.shards.build import make_shards


@pytest.fixture(scope="module")
def archives(store, synthetic_archive, tmp_path_factory) -> dict[str, Path]:
    """Archives of three kinds, on disk and in the store under the kind's name."""
    folder = tmp_path_factory.mktemp("archives")
    write_tree(folder / "wfdb")
    write_beats(folder / "mitbih")
    shutil.copytree(synthetic_archive, folder / "ptbxl")
    found = {kind: folder / kind for kind in ("wfdb", "mitbih", "ptbxl")}
    for kind, place in found.items():
        store.put(place, kind)
    return found


def opened(kind: str, path: object) -> Archive:
    return open_archive(ArchiveSettings(kind, str(path), rate=100 if kind == "ptbxl" else None))


def facts_of(one: Record | Exception) -> tuple:
    """Give all that a record holds, or the code of what is wrong with it."""
    if isinstance(one, RecordError):
        return (one.code,)
    assert isinstance(one, Record), one
    beats = None if one.beat_times is None else one.beat_times.tolist()
    scales = one.gain_L.tolist(), one.baseline_L.tolist(), one.digital.dtype
    return one.digital.tobytes(), *scales, one.fs, one.leads, one.flags, beats, one.beat_symbols


def assert_same(far: Archive, near: Archive) -> list[tuple]:
    index = near.checked_index()
    assert far.checked_index().equals(index)
    rows = index.to_pylist()
    found = [facts_of(one) for one in far.read_each(rows)]
    assert found == [facts_of(one) for one in near.read_each(rows)]
    return found


@pytest.mark.parametrize("kind", ["wfdb", "mitbih", "ptbxl"])
def test_records_are_the_same_as_on_disk(store, archives, kind):
    far, near = opened(kind, store.uri(kind)), opened(kind, archives[kind])
    assert far.folder.remote
    assert (far.name, far.synthetic) == (near.name, near.synthetic) == (kind, kind == "ptbxl")
    found = assert_same(far, near)
    codes = {one[0] for one in found if len(one) == 1}
    assert (
        codes
        == {
            "wfdb": set(),
            "mitbih": {"bad_annotation"},
            "ptbxl": set(DEFECTS.values()),
        }[kind]
    )
    if kind == "mitbih":
        assert found[0][-2:] == ([20, 400], ("N", "V"))


def test_the_fingerprint_follows_the_objects(store, archives):
    def fingerprint() -> str:
        far = opened("wfdb", store.uri("changing"))
        return far.fingerprint(far.index())

    store.put(archives["wfdb"], "changing")
    before = fingerprint()
    assert fingerprint() == before
    store.client.put_object(Bucket=BUCKET, Key="changing/a/r1.dat", Body=b"other")
    assert fingerprint() != before


def test_an_object_that_is_gone_is_a_missing_file(store, archives):
    store.put(archives["wfdb"], "holes")
    far = opened("wfdb", store.uri("holes"))
    rows = far.checked_index().to_pylist()
    for name in ("a/r1.hea", "a/r2.dat"):
        store.client.delete_object(Bucket=BUCKET, Key=f"holes/{name}")
    found = list(far.read_each(rows))
    assert [getattr(one, "code", "read") for one in found] == ["missing_file"] * 2 + ["read"]
    assert str(found[0]) == "s3://archives/holes/a/r1.hea: no such object"
    assert far.folder.facts(["b c/ä1.dat", "nobody"])[:, 0].tolist() == [1200, -1]


def test_pieces_of_files(store):
    store.client.put_object(Bucket=BUCKET, Key="pieces/x", Body=b"0123456789")
    store.client.put_object(Bucket=BUCKET, Key="pieces/none", Body=b"")
    folder = open_folder(store.uri("pieces/"))
    assert folder.read("x") == (b"0123456789", 10)
    assert folder.read("x", 4) == (b"456789", 10)
    assert folder.read("x", 4, 3) == (b"456", 10)
    assert folder.read("x", 4, 7) == (b"", 10)
    assert folder.read("x", limit=9) == (b"", 10)
    assert folder.read("x", limit=10)[0] == b"0123456789"
    assert folder.read("none") == (b"", 0)
    assert folder.size("x") == 10
    with folder.local(["x", "none"]) as place:
        assert sorted(file.name for file in place.iterdir()) == ["none", "x"]
        assert (place / "x").read_bytes() == b"0123456789"
    assert not place.exists()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *((name, "outside_archive") for name in ("../a/r1.hea", "a/../../x", "/etc/passwd", "~/x", "")),
        *((name, "missing_file") for name in ("a", "a/", "a//r1.hea", "a/r1.hea/x", "x" * 2000)),
        *((name, "missing_file") for name in ("a\0b", "a\nb", "\udcff", "a?b")),
    ],
)  # fmt: skip
def test_names_that_reach_nothing(store, archives, name, code):
    folder = open_folder(store.uri("wfdb"))
    with pytest.raises(RecordError) as caught:
        folder.read(name)
    assert caught.value.code == code
    with pytest.raises(RecordError), folder.local([name]):
        pass
    size = (archives["wfdb"] / "a" / "r1.hea").stat().st_size
    assert folder.facts([name, f"{name}/b", "a/r1.hea"])[:, 0].tolist() == [-1, -1, size]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("/wfdb", "/nowhere"), r"expected a folder, found none at s3://archives/nowhere$"),
        (("@archives", "@nobucket"), r"found none at s3://nobucket/wfdb$"),
        (("/wfdb", "/wfdb/a/r1.hea"), r"found none at s3://archives/wfdb/a/r1\.hea$"),
        (("region=", "sig=hidden&region="), r"s3://archives/wfdb: .*Unexpected query parameter"),
        (("s3:", "s9:"), r"s9://archives/wfdb: cannot be opened \(Protocol not known: s9"),
        (("%2F", "/"), r"s3://archives/wfdb: cannot be opened \(Cannot parse URI: 's3://archives"),
        (("%2F", "?"), r"s3://archives/wfdb: "),
        (("%2F", "#"), r"s3://archives/wfdb: "),
        (("%2F", "@"), r"s3://archives/wfdb: "),
        (("@archives", "@"), r"s3:///wfdb: cannot be opened \(Missing bucket"),
    ],
)
def test_folders_that_cannot_be_opened(store, archives, change, message):
    with pytest.raises(SettingsError, match=message) as caught:
        opened("wfdb", store.uri("wfdb").replace(*change))
    text = one_line(caught.value)
    assert text.startswith("archive.path: expected the folder of a wfdb archive; ")


def test_a_folder_of_another_kind(store, archives):
    with pytest.raises(DataError, match=r"^s3://archives/wfdb: not a mitbih archive") as caught:
        opened("mitbih", store.uri("wfdb"))
    one_line(caught.value)
    store.client.put_object(Bucket=BUCKET, Key="other/x.txt", Body=b"0")
    empty = opened("cinc", store.uri("other"))
    with pytest.raises(DataError, match="found none"):
        empty.index()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:secret@Bucket/a/b/?region=x", "s3://Bucket/a/b"),
        ("s3://key:se/cr@et@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a@b/c#d", "s3://bucket/a@b/c"),
        ("hdfs://user@host:8020/a", "hdfs://host:8020/a"),
        ("memory://Some/Where", "memory://Some/Where"),
    ],
)
def test_what_is_shown_of_a_uri(uri, shown):
    assert shown_path(uri) == shown


READ_ELSEWHERE = """
import pickle, sys
archive, rows = pickle.load(sys.stdin.buffer)
assert archive.folder.remote
print(*[one.sha256 for one in archive.read_each(rows)])
"""


def run_elsewhere(archive: Archive) -> list[str]:
    """Read an archive's records in another process; returns their hashes."""
    rows = archive.checked_index().to_pylist()
    command = [sys.executable, "-c", READ_ELSEWHERE]
    given = pickle.dumps((archive, rows))
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.decode().split()


def test_another_process_reads_it(store, archives):
    near = opened("wfdb", archives["wfdb"])
    expected = [one.sha256 for one in near.read_each(near.index().to_pylist())]
    assert run_elsewhere(opened("wfdb", store.uri("wfdb"))) == expected


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environment_configures_the_store(store, archives, monkeypatch, name):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[1])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv(name, f"http://127.0.0.1:{store.port}")
    far = opened("wfdb", f"s3://{BUCKET}/wfdb")
    found = assert_same(far, opened("wfdb", archives["wfdb"]))
    assert len(found) == len(run_elsewhere(far)) == 3


def test_any_store_of_fsspec(archives):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(archives["wfdb"]), "/Somewhere/wfdb", recursive=True)
    far = opened("wfdb", "memory://Somewhere/wfdb")
    assert_same(far, opened("wfdb", archives["wfdb"]))
    assert far.fingerprint(far.index()) == far.fingerprint(far.index())
    with pytest.raises(RecordError, match="no such object"):
        far.folder.read("nobody")
    with pytest.raises(SettingsError, match="found none at memory://Elsewhere"):
        open_folder("memory://Elsewhere")


def test_a_file_uri_is_a_folder_on_disk(archives, tmp_path):
    place = tmp_path / "a b"
    shutil.copytree(archives["wfdb"], place)
    folder = open_folder(place.as_uri())
    assert (folder.root, folder.remote) == (str(place), False)


@pytest.mark.usefixtures("impatient")
@pytest.mark.slow
def test_a_store_that_stops_is_waited_for(store, archives, monkeypatch):
    far = opened("wfdb", store.uri("wfdb"))
    rows = far.checked_index().to_pylist()
    expected = [facts_of(one) for one in far.read_each(rows)]
    store.stop()
    try:
        with pytest.raises(DataError, match="the same command continues") as caught:
            list(far.read_each(rows))
        text = one_line(caught.value)
        assert text.startswith("s3://archives/wfdb/")
        with pytest.raises(DataError, match="s3://archives/wfdb: the store does not") as caught:
            opened("wfdb", store.uri("wfdb"))
        one_line(caught.value)
        monkeypatch.setattr(remote, "PATIENCE_S", (0.2,) * 100)
        again = threading.Timer(1, store.start)
        again.start()
        assert [facts_of(one) for one in far.read_each(rows)] == expected
        again.join()
    finally:
        if not store.runs:  # the test failed before that
            store.start()


@pytest.mark.usefixtures("impatient")
@pytest.mark.slow
def test_a_store_that_accepts_and_is_silent_is_given_up(store, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", (0.02,))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = store.uri("wfdb", silent.getsockname()[1])
        with pytest.raises(DataError, match="the store does not"):
            RemoteFolder(uri)


@pytest.mark.usefixtures("impatient")
def test_a_google_store_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", ())
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(DataError, match="gs://archives/wfdb: the store does not"):
        RemoteFolder(f"gs://anonymous@archives/wfdb?scheme=http&endpoint_override=127.0.0.1:{port}")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answer", [500, 503, 429, "short", "silent"])
def test_an_answer_that_fails_is_asked_for_again(store, archives, front, answer):
    far = opened("wfdb", store.uri("wfdb", front))
    rows = far.checked_index().to_pylist()
    Front.faults.append(["GET /archives/wfdb/a/r1.dat", answer, 3])
    near = opened("wfdb", archives["wfdb"])
    assert [facts_of(one) for one in far.read_each(rows)] == [
        facts_of(one) for one in near.read_each(rows)
    ]
    assert Front.faults[0][2] == 0


@pytest.mark.usefixtures("impatient")
def test_an_object_that_is_refused_is_one_records_trouble(store, archives, front):
    far = opened("wfdb", store.uri("wfdb", front))
    rows = far.checked_index().to_pylist()
    Front.faults.append(["/archives/wfdb/a/r1.dat", 403, 9])
    found = list(far.read_each(rows))
    assert [getattr(one, "code", "read") for one in found] == ["missing_file", "read", "read"]
    assert "ACCESS_DENIED" in one_line(found[0])
    assert Front.faults[0][2] == 8  # it is not asked for again


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [403, 400, 401])
def test_keys_that_expire_stop_the_job(store, archives, front, status):
    far = opened("wfdb", store.uri("wfdb", front))
    rows = far.checked_index().to_pylist()
    Front.faults.append(["", status, 999])
    with pytest.raises(DataError, match=r"^s3://archives/wfdb: cannot be read") as stopped:
        list(far.read_each(rows))
    with pytest.raises(SettingsError, match=r"s3://archives/wfdb: cannot be opened") as refused:
        opened("wfdb", store.uri("wfdb", front))
    for caught in (stopped, refused):
        one_line(caught.value)


def rows_of(out: Path) -> list[tuple]:
    return [
        (row, facts_of(record)) for file in shard_files(out) for row, record in read_records(file)
    ]


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("kind", ["ptbxl", "mitbih"])
def test_shards_are_the_same_as_from_disk(store, archives, tmp_path, kind):
    settings = ShardSettings(records_per_shard=16)
    manifests = {
        name: make_shards(opened(kind, path), settings, tmp_path / name)
        for name, path in (("far", store.uri(kind)), ("near", archives[kind]))
    }
    assert rows_of(tmp_path / "far") == rows_of(tmp_path / "near")
    assert len(rows_of(tmp_path / "far")) == manifests["far"]["n_ok"] > 1
    for name in ("n_input", "n_ok", "n_quarantined", "archive", "synthetic", "settings"):
        assert manifests["far"][name] == manifests["near"][name]
    quarantines = [
        pq.read_table(tmp_path / name / "quarantine.parquet").drop_columns("error")
        for name in manifests
    ]
    assert quarantines[0].equals(quarantines[1])
    for file in (tmp_path / "far").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(text.encode() in content for text in (*SECRETS, str(store.port)))
    # The objects are as they were: nothing is read again.
    again = make_shards(opened(kind, store.uri(kind)), settings, tmp_path / "far")
    assert again == manifests["far"]


@pytest.mark.usefixtures("ray")
def test_keys_that_expire_in_a_worker_stop_the_job(store, archives, front, tmp_path):
    far = opened("wfdb", store.uri("wfdb", front))
    Front.faults.append(["/archives/wfdb/a/r1.hea", "expired", 1])
    with pytest.raises(DataError, match=r"^s3://archives/wfdb: cannot be read"):
        make_shards(far, ShardSettings(), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet"))
    # With new keys the same command makes them.
    Front.faults.clear()
    assert make_shards(far, ShardSettings(), tmp_path / "out")["n_ok"] == 3
