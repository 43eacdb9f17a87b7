"""Where outputs go: the same on disk and in a store, whole or absent, one job at a time.

The store is moto's server on this machine; a line to it may break.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pytest
from full_disk import small_disk
from s3_store import BUCKET, SECRETS, Store, one_line

from rayecg.core import destination, remote
from rayecg.core.destination import Destination, open_destination
from rayecg.core.errors import DataError, RecordError, SettingsError


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE_S", (0.02,))
    monkeypatch.setattr(remote, "ANSWER_S", 2)
    monkeypatch.setattr(destination, "BEAT_S", 0.2)


@pytest.fixture(params=["disk", "file", "s3", "memory"])
def uri(request, tmp_path) -> str:
    """Give a fresh place of each kind."""
    if request.param == "s3":
        return request.getfixturevalue("store").uri(tmp_path.name)
    if request.param == "memory":
        return f"memory://{tmp_path.name}/out"
    place = tmp_path / "out of it"
    return place.as_uri() if request.param == "file" else str(place)


def test_what_is_written_is_read(uri):
    place = open_destination(uri)
    assert (place.folder is None) == (not uri.startswith(("/", "file:")))
    assert place.names() == place.names("parts") == []
    assert not place.exists("a.json")
    place.write("parts/b/2.bin", pa.py_buffer(b"two"))
    place.write("parts/1.bin", b"")
    place.write("a.json", b"one")
    place.write("a.json", b"other")
    assert place.names() == ["a.json", "parts/1.bin", "parts/b/2.bin"]
    assert place.names("parts") == place.names("parts/") == ["parts/1.bin", "parts/b/2.bin"]
    assert place.names("par") == []
    assert place.read("a.json") == b"other"
    assert place.read("parts/b/2.bin") == b"two"
    assert place.read("parts/1.bin") == b""
    assert place.exists("parts/1.bin")
    assert not place.exists("parts")
    place.remove("parts/1.bin")
    place.remove("parts/1.bin")
    place.remove("nowhere/1.bin")
    assert place.names() == ["a.json", "parts/b/2.bin"]
    with pytest.raises(DataError, match=r"parts/1\.bin: cannot be read"):
        place.read("parts/1.bin")
    for name in ("../x", "/x", ""):
        with pytest.raises(RecordError, match="no plain path below"):
            place.write(name, b"x")


def test_unfinished_files_and_claims_are_no_names(uri):
    place = open_destination(uri)
    with place.hold():
        place.write("a/b.parquet", b"whole")
        place.write(f"a/.b.parquet.{'0' * 32}.part", b"half")
        place.write(f".folder.{'0' * 32}.part/c.txt", b"half")
        assert place.names() == place.names("a") == ["a/b.parquet"]


def test_nothing_is_written_of_what_is_no_data(uri):
    place = open_destination(uri)
    place.write("a", b"before")
    for wrong in ("text", None):
        with pytest.raises(TypeError):
            place.write("a", wrong)
        with pytest.raises(TypeError):
            place.write("b", wrong)
    assert place.names() == ["a"]
    assert place.read("a") == b"before"


def test_it_travels(uri):
    place = open_destination(uri)
    with place.hold():
        there = pickle.loads(pickle.dumps(place))
        there.write("from/there", b"x")
    assert str(there) == str(place)
    assert place.read("from/there") == b"x"
    for text in (str(place), repr(place)):
        assert not any(secret in text for secret in SECRETS)


def test_a_path_that_was_a_uri(store):
    assert open_destination(Path("memory://some/where")).folder is None
    assert str(open_destination(Path("memory://some/where"))) == "memory://some/where"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("region=", "sig=hidden&region="), SettingsError, "Unexpected query parameter"),
        (("s3:", "s9:"), SettingsError, "Protocol not known: s9"),
        (("/out?", "/taken?"), SettingsError, "expected a folder, found none at s3://archives/taken"),
        (("@archives", "@nobucket"), DataError, r"s3://nobucket/out/x: cannot be written \(.*NO_SUCH"),
    ],
)  # fmt: skip
def test_places_that_cannot_be_written(store, change, error, message):
    store.client.put_object(Bucket=BUCKET, Key="taken", Body=b"x")
    with pytest.raises(error, match=message) as caught:
        open_destination(store.uri("out").replace(*change)).write("x", b"x")
    one_line(caught.value)


def test_a_file_in_the_way_on_disk(tmp_path):
    (tmp_path / "out").write_text("x")
    place = open_destination(tmp_path / "out")
    with pytest.raises(DataError, match=r"out/a/b: cannot be written \("):
        place.write("a/b", b"x")
    assert place.names() == []
    with pytest.raises(DataError, match="cannot be written"), place.hold():
        pass


WRITE = """
import sys
from rayecg.core.destination import open_destination
from rayecg.core.errors import DataError
place = open_destination(sys.argv[1])
try:
    for name in sys.argv[3:]:
        place.write(name, bytes(int(sys.argv[2])))
except DataError as error:
    sys.exit(str(error))
"""


def start(script: str, *given: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, given)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("end", ["killed", "cleared away"])
def test_a_writer_that_is_cut_off_leaves_nothing_of_that_name(tmp_path, end):
    writer = start(WRITE, tmp_path, 1 << 30, "big")
    place = open_destination(tmp_path)
    try:
        while not any(file.stat().st_size > 1 << 20 for file in tmp_path.iterdir()):
            assert writer.poll() is None
            time.sleep(0.001)
        os.kill(writer.pid, signal.SIGSTOP)  # where the end strikes can then be stated
        assert place.names() == []
        if end == "killed":
            writer.kill()
        with place.hold():
            assert not list(tmp_path.glob(".*.part"))
            place.write("big", b"of the next job")
        if end == "cleared away":  # the writer outlived its job, and goes on
            os.kill(writer.pid, signal.SIGCONT)
            said = writer.communicate()[1]
            assert said == f"{tmp_path}/big: cannot be written (No such file or directory)\n"
    finally:
        writer.kill()
        writer.communicate()
    assert place.read("big") == b"of the next job"
    assert not list(tmp_path.glob(".*.part"))


def test_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        filler = disk.fill(leave=64 << 10)
        command = [sys.executable, "-c", WRITE, disk.folder, 48 << 10, "1", "2"]
        done = disk.run(command, capture_output=True, text=True)
        assert done.stderr == (
            f"{disk.folder}/2: cannot be written "
            "(no space left; free some, the same command continues)\n"
        )
        place = Destination(disk.seen)
        assert place.names() == ["1", "filler"]
        assert not list(disk.seen.glob(".*.part"))
        filler.unlink()
        assert disk.run(command).returncode == 0
        assert place.names() == ["1", "2"]
        remount = ["mount", "-o", "remount,ro", disk.folder]
        assert disk.run(remount).returncode == 0
        done = disk.run(command, capture_output=True, text=True)
        assert "(read-only; make it writable" in done.stderr


@contextmanager
def breaking_line(port: int, after: int) -> Iterator[int]:
    """Give the port of a line to another port; after so many bytes on the way there it is dead."""
    listening = socket.create_server(("127.0.0.1", 0))
    left = [after]

    def carry(source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                left[0] -= len(data) if counts else 0
                if left[0] < 0:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near = listening.accept()[0]
                far = socket.create_connection(("127.0.0.1", port))
                for ends in ((near, far, True), (far, near, False)):
                    threading.Thread(target=carry, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def keys(store: Store, path: str) -> dict[str, int]:
    found = store.client.list_objects_v2(Bucket=BUCKET, Prefix=path).get("Contents", [])
    return {one["Key"]: one["Size"] for one in found}


@pytest.mark.parametrize("after", [1 << 20, 13 << 20, 24 << 20])
def test_a_large_object_is_whole_or_absent(store, after):
    """Parts are 10 MiB or so each: the line breaks in the first, in the second, in the third."""
    with breaking_line(store.port, after) as port:
        place = open_destination(store.uri(f"broken{after}", port))
        with pytest.raises(DataError, match="the same command continues") as caught:
            place.write("big", bytes(25 << 20))
        one_line(caught.value)
        del place
    assert keys(store, f"broken{after}") == {}
    whole = open_destination(store.uri(f"broken{after}"))
    whole.write("big", bytes(25 << 20))
    assert keys(store, f"broken{after}/big") == {f"broken{after}/big": 25 << 20}


@pytest.mark.slow
def test_a_store_that_stops_is_waited_for(store, monkeypatch):
    place = open_destination(store.uri("stopped"))
    place.write("a", b"x")
    store.stop()
    try:
        uses = (
            lambda: place.write("b", b"x"), lambda: place.read("a"), lambda: place.exists("a"),
            lambda: place.names(), lambda: place.remove("a"), lambda: place.hold().__enter__(),
            lambda: open_destination(store.uri("stopped")),
        )  # fmt: skip
        for use in uses:
            with pytest.raises(DataError, match="the same command continues") as caught:
                use()
            assert one_line(caught.value).startswith("s3://archives/stopped")
        monkeypatch.setattr(remote, "PATIENCE_S", (0.2,) * 100)
        again = threading.Timer(1, store.start)
        again.start()
        place.write("b", b"y")
        again.join()
        assert place.read("b") == b"y"
        assert place.names() == ["a", "b"]
    finally:
        if not store.runs:  # the test failed before that
            store.start()


HOLD = """
import sys
from rayecg.core import destination
destination.BEAT_S = 0.2
with destination.open_destination(sys.argv[1]).hold():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_one_live_job_at_a_time(store, tmp_path, kind):
    uri = str(tmp_path) if kind == "disk" else store.uri("held")
    place = open_destination(uri)
    first = start(HOLD, uri)
    assert first.stdout.readline() == "held\n"
    for _ in range(2):
        with pytest.raises(DataError, match="another job is writing here") as caught, place.hold():
            pass
        one_line(caught.value)
    first.kill()
    first.communicate()
    with place.hold():
        place.write("a", b"x")
    second = start(HOLD, uri)
    assert second.stdout.readline() == "held\n"
    second.communicate()
    assert second.returncode == 0
    with place.hold():
        pass
    if kind == "s3":
        assert [key for key in keys(store, "held/") if key.endswith(".json")] == []


def test_a_job_that_was_taken_for_dead_stops(store):
    uri = store.uri("overtaken")
    first, second = open_destination(uri), open_destination(uri)
    with first.hold():
        first.write("a", b"x")
        (claim,) = [key for key in keys(store, "overtaken/.claims/") if key.endswith(".json")]
        store.client.delete_object(Bucket=BUCKET, Key=claim)
        while not first._lost:
            time.sleep(0.05)
        uses = (lambda: first.write("a", b"x"), lambda: first.remove("a"), first.check_held)
        for use in uses:
            with pytest.raises(DataError, match="another job has taken this place over") as caught:
                use()
            one_line(caught.value)
        assert second.exists("a")
        with second.hold():
            second.write("b", b"x")


@pytest.mark.slow
def test_a_job_that_was_cut_off_soon_learns_that_it_was_taken_for_dead(store, monkeypatch):
    place = open_destination(store.uri("cut-off"))
    with place.hold():
        (claim,) = keys(store, "cut-off/.claims/")
        monkeypatch.setattr(remote, "PATIENCE_S", (60,))  # which a beat must not have
        store.stop()
        try:
            time.sleep(5 * destination.BEAT_S)
        finally:
            store.start()
        store.client.delete_object(Bucket=BUCKET, Key=claim)
        until = time.monotonic() + 20
        while not place._lost and time.monotonic() < until:
            time.sleep(0.05)
        assert place._lost


HELD_UP = """
import os, signal, sys
from rayecg.core import destination
from rayecg.core.errors import DataError
destination.BEAT_S = 0.2
place = destination.open_destination(sys.argv[1])
with place.hold():
    place.write("a", b"x")
    place.check_held()
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        place.remove("a")
    except DataError as error:
        sys.exit(str(error))
"""


def test_a_job_that_was_stopped_looks_before_it_removes(store):
    """Its main thread goes on as soon as the one that shows its life."""
    uri = store.uri("held-up")
    first = start(HELD_UP, uri)
    try:
        assert first.stdout.readline() == "held\n"
        with open_destination(uri).hold():
            os.kill(first.pid, signal.SIGCONT)
            said = first.communicate()[1]
    finally:
        first.kill()
        first.communicate()
    assert "another job has taken this place over" in said
    assert open_destination(uri).exists("a")


def test_claims_that_go_while_they_are_read_are_skipped(tmp_path):
    uri = f"memory://{tmp_path.name}/claims"
    claims = [f".claims/{name}.json" for name in "abc"]

    class Busy(destination.RemoteDestination):
        """A place from which a claim goes as soon as anything is known of it."""

        def _all(self, below):
            found = list(super()._all(below))
            super().remove(claims[0])
            return iter(found)

        def exists(self, name):
            found = super().exists(name)
            if name == claims[1]:
                super().remove(name)
            return found

    place = Busy(uri)
    for claim in claims:
        place.write(claim, claim.encode())
    found = place._claims(claims[2])
    assert claims[0] not in found
    assert claims[2] not in found


def test_a_relative_folder_is_the_same_in_another_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = open_destination("out")
    sent = pickle.dumps(place)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pickle.loads(sent).write("a", b"x")
    assert (tmp_path / "out" / "a").read_bytes() == b"x"
    assert str(place) == "out"


def test_of_simultaneous_starts_at_most_one_goes_on(store):
    uri = store.uri("together")
    ready = threading.Barrier(4)
    inside: list[int] = []
    most: list[int] = []

    def job(number: int) -> None:
        place = open_destination(uri)
        ready.wait()
        with suppress(DataError), place.hold():
            inside.append(number)
            most.append(len(inside))
            time.sleep(1)
            inside.remove(number)

    jobs = [threading.Thread(target=job, args=(number,)) for number in range(4)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert set(most) <= {1}
    with open_destination(uri).hold():
        pass
