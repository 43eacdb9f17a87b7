"""Scores beside what changes: stores that go away, archives that grow, records that give no number."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from s3_store import Store
from scored_archive import (
    SIZE,
    archive,
    check_whole,
    checkpoint,
    contents,
    meanwhile,
    n_entered,
    rows,
    score,
    undisturbed,
    wait_for,
    write_checkpoint,
    write_records,
)

from rayecg import pipeline
from rayecg.core.destination import open_destination
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import ArchiveSettings, ScoreSettings, ShardSettings
from rayecg.core.files import read_json

__all__ = ["archive", "checkpoint", "undisturbed"]  # fixtures

N = 60
#: How long (s) a store is away.
AWAY_S = 10

pytestmark = pytest.mark.usefixtures("ray")


@pytest.fixture
def own(archive: Path, undisturbed: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the archive and its scores, for tests to change, with the times of all files."""
    copies = tmp_path / "records", tmp_path / "out"
    shutil.copytree(archive, copies[0])
    shutil.copytree(undisturbed, copies[1])
    return copies


def times(out: Path) -> dict[Path, int]:
    """Give when each file of rows and of the ledger was written."""
    folders = ("predictions", "windows", "ledger")
    files = [path for folder in folders for path in (out / folder).rglob("*")]
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


def units_of(out: Path) -> pd.Series:
    """Give each record's unit."""
    return pd.read_parquet(out / "plan.parquet").set_index("record_id")["unit"]


def copy_record(folder: Path, record_id: str, name: str) -> None:
    header = (folder / f"{record_id}.hea").read_text()
    (folder / f"{name}.hea").write_text(header.replace(record_id, name))
    shutil.copy2(folder / f"{record_id}.dat", folder / f"{name}.dat")


def healthy(out: Path) -> str:
    frame = rows(out)
    return frame.loc[frame["status"] == "ok", "record_id"].iloc[N // 2]


def test_a_second_start_does_nothing(checkpoint: Path, own: tuple[Path, Path]) -> None:
    archive, out = own
    everything = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    manifest = (out / "manifest.json").read_bytes()
    before = times(out)
    score(checkpoint, archive, out)
    assert times(out) == before
    assert (out / "manifest.json").read_bytes() == manifest
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == everything


def test_new_records_are_scored_and_no_others(checkpoint: Path, own: tuple[Path, Path]) -> None:
    archive, out = own
    before, earlier = times(out), rows(out)
    # One stands before all others in the index, the other behind them.
    for name in ("00000_new", "zzz_new"):
        copy_record(archive, healthy(out), name)
    score(checkpoint, archive, out)
    manifest = check_whole(out, N + 2)
    assert manifest["n_scored"] == 2
    assert read_json(out / "summary.json")["n_input"] == N + 2
    after = times(out)
    assert {path: after.get(path) for path in before} == before
    found = rows(out).set_index("record_id")
    assert set(found.index) - set(earlier["record_id"]) == {"00000_new", "zzz_new"}
    pd.testing.assert_frame_equal(
        found.loc[earlier["record_id"]], earlier.set_index("record_id"), check_exact=True
    )


def test_a_record_that_changed_is_scored_again_with_its_unit(
    checkpoint: Path, own: tuple[Path, Path]
) -> None:
    archive, out = own
    before, units, one = times(out), units_of(out), healthy(out)
    file = archive / f"{one}.dat"
    file.write_bytes(file.read_bytes()[:-2])  # it has one sample less than it says
    score(checkpoint, archive, out)
    manifest = check_whole(out, N)
    unit = units[one]
    mates = units.index[units == unit]
    assert manifest["n_scored"] == len(mates)
    others = {path: time_ns for path, time_ns in before.items() if unit not in path.name}
    after = times(out)
    assert {path: after.get(path) for path in others} == others
    assert not [path for path in after if unit in path.name]
    assert set(units_of(out)[mates]).isdisjoint(units)
    found = rows(out).set_index("record_id")
    assert found.loc[one, "error_code"] == "truncated_signal"


def test_records_that_are_gone_are_refused_unless_the_scores_are_replaced(
    checkpoint: Path, own: tuple[Path, Path]
) -> None:
    archive, out = own
    before, one = times(out), healthy(out)
    for suffix in (".hea", ".dat"):
        (archive / f"{one}{suffix}").unlink()
    with pytest.raises(
        SettingsError, match=rf"1 records that .*first: {one}\).*--replace"
    ) as caught:
        score(checkpoint, archive, out)
    assert "\n" not in str(caught.value)
    assert times(out) == before
    score(checkpoint, archive, out, replace=True)
    check_whole(out, N - 1)
    assert one not in set(rows(out)["record_id"])


def test_another_checkpoint_is_refused_unless_the_scores_are_replaced(
    own: tuple[Path, Path], tmp_path: Path
) -> None:
    archive, out = own
    other = write_checkpoint(tmp_path / "other", seed=1)
    before, logits = contents(out), rows(out)["logit_A"]
    with pytest.raises(SettingsError, match=r"made otherwise \(checkpoint .*--replace") as caught:
        score(other, archive, out)
    assert "\n" not in str(caught.value)
    assert contents(out) == before
    score(other, archive, out, replace=True)
    check_whole(out, N)
    assert not set(contents(out)) & set(before)
    assert (rows(out)["logit_A"].dropna() != logits.dropna()).all()


def test_what_a_late_worker_of_another_plan_left_is_removed(
    checkpoint: Path, own: tuple[Path, Path]
) -> None:
    archive, out = own
    before = contents(out)
    one = next((out / "predictions").iterdir())
    unit = one.name.partition(".")[0]
    shutil.copy(one, one.with_name(one.name.replace(unit, "000099-0123abcd")))
    score(checkpoint, archive, out)
    check_whole(out, N)
    assert contents(out) == before


@pytest.mark.slow
def test_a_record_without_a_number_is_quarantined_alone(
    archive: Path, own: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    loud, one = own[0], healthy(undisturbed)
    checkpoint = write_checkpoint(tmp_path / "large", scale=1e3)
    score(checkpoint, archive, tmp_path / "plain")
    header = loud / f"{one}.hea"
    # About the smallest gain that a header may state. A hundred units are 5e29 mV, which three layers
    # multiply by about 1e3 each; above 3.4e38 there is no 32-bit number.
    text, n = re.subn(r"1000\.0\(0\)/mV", "2e-28(0)/mV", header.read_text())
    assert n == 12
    header.write_text(text)
    score(checkpoint, loud, tmp_path / "loud")
    check_whole(tmp_path / "loud", N)
    found = rows(tmp_path / "loud").set_index("record_id")
    plain = rows(tmp_path / "plain").set_index("record_id")
    assert plain.loc[one, "status"] == "ok"
    assert np.isfinite(plain.loc[one, "logit_A"])
    assert (found.loc[one, "status"], found.loc[one, "error_code"]) == ("quarantined", "not_finite")
    # Errors name files, which stand elsewhere.
    found, plain = (frame.drop(index=one, columns="error") for frame in (found, plain))
    pd.testing.assert_frame_equal(found, plain, check_exact=True)


def test_hashed_ids_leave_no_clear_one(
    checkpoint: Path, archive: Path, undisturbed: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("sixteen bytes or more of a key")
    out = tmp_path / "out"
    score(checkpoint, archive, out, hash_ids=key)
    check_whole(out, N)
    clear = set(rows(undisturbed)["record_id"]) | {str(archive), key.read_text()}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        text = str(file.relative_to(out))
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            text += f"{table.to_pylist()} {table.schema}"
        else:
            text += file.read_text()
        assert not [one for one in clear if one in text], file
    plain, hashed = rows(undisturbed), rows(out)
    assert plain["logit_A"].equals(hashed["logit_A"])
    assert hashed["record_id"].str.fullmatch("[0-9a-f]{32}").all()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["archive", "shards", "output"])
def test_a_store_that_is_away_for_ten_seconds_is_waited_for(
    store: Store, tmp_path: Path, what: str
) -> None:
    n = 8 * N
    # Slow enough that the store goes away in the middle.
    checkpoint = write_checkpoint(tmp_path / "checkpoint", n_filters=192)
    source: Path | str = write_records(tmp_path / "records", n)
    near, out = tmp_path / "near", tmp_path / "out"
    if what == "shards":
        cut = ShardSettings(records_per_shard=SIZE)
        pipeline.make_shards(ArchiveSettings("wfdb", str(source)), cut, tmp_path / "shards")
        source = tmp_path / "shards"

    def score_all(source: Path | str, place: Path | str) -> None:
        if what == "shards":
            pipeline.score(checkpoint, None, place, ScoreSettings(1), shards=source)
        else:
            score(checkpoint, source, place)

    score_all(source, near)
    place: Path | str = out
    if what == "output":
        place = store.uri("away/out")
    else:
        source = store.uri(store.put(Path(source), f"away/{what}"))

    def objects() -> int:
        """Count the entries of the ledger, past the client whose store is away."""
        if what != "output":
            return n_entered(out)
        listed = store.client.list_objects_v2(Bucket="archives", Prefix="away/out/ledger/")
        return listed["KeyCount"]

    def go_away(over: threading.Event) -> None:
        wait_for(lambda: objects() >= 2, over.is_set, "two entries")
        assert objects() < n // SIZE // 2
        store.stop()
        over.wait(AWAY_S)
        assert not over.is_set(), "the work ended without the store"
        store.start()

    try:
        with meanwhile(go_away):
            score_all(source, place)
    finally:
        if not store.runs:
            store.start()
    check_whole(place, n)
    if what != "archive":
        assert contents(place) == contents(near)
    # Objects have times of their own, which are part of the units' names, and errors name the place.
    found, expected = (rows(one).drop(columns="error") for one in (place, near))
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.slow
def test_a_store_refuses_a_second_job(
    store: Store, checkpoint: Path, archive: Path, undisturbed: Path
) -> None:
    uri = store.uri("held/out")
    score(checkpoint, archive, uri)
    before = contents(uri)
    assert before == contents(undisturbed)
    with open_destination(uri).hold(), pytest.raises(DataError) as caught:
        score(checkpoint, archive, uri)
    assert str(caught.value) == (
        "s3://archives/held/out: another job is writing here; wait for it or use another"
    )
    assert contents(uri) == before
