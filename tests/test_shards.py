"""Shards: every record is a row somewhere, the samples are the archive's, and a rerun continues."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from shard_folders import rows_of, shard_files, write_wfdb

from rayecg.archives.base import SYNTHETIC_MARKER
from rayecg.archives.catalogue import open_archive
from rayecg.archives.synthetic import DEFECTS
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.errors import DataError
from rayecg.core.experiment import STANDARD_LEADS, ArchiveSettings, ShardSettings
from rayecg.core.files import only_job_on, read_json
from rayecg.core.shard_format import (
    RECORDS,
    SIGNAL,
)
from rayecg.core.shard_reader import read_records
from rayecg.core.units import Units
from rayecg.shards.build import FOLDERS, as_bytes, make_shards
from rayecg.shards.unit import UnitWriter
from rayecg.signal.assessment import assess

pytestmark = pytest.mark.usefixtures("ray")
SETTINGS = ShardSettings(records_per_shard=16)


@pytest.fixture(scope="module")
def archive(synthetic_archive) -> ArchiveSettings:
    return ArchiveSettings("synthetic", str(synthetic_archive), rate=100)


@pytest.fixture(scope="module")
def shards(archive, tmp_path_factory, ray) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    make_shards(open_archive(archive), SETTINGS, out)
    return out


def comparable(out: Path) -> list[dict]:
    return [row | {"sha256": record.sha256} for row, record in rows_of(out)]


def quarantine_of(out: Path) -> list[dict]:
    return pq.read_table(out / "quarantine.parquet").to_pylist()


def state(out: Path) -> dict[str, tuple[int, int]]:
    files = [file for file in out.rglob("*") if file.is_file()]
    return {str(f.relative_to(out)): (f.stat().st_mtime_ns, f.stat().st_ino) for f in files}


def ledger_of(out: Path) -> list[Path]:
    return sorted((out / "ledger").rglob("*.json"))


def test_totals_add_up_and_each_defect_has_its_code(shards, synthetic_archive):
    manifest = read_json(shards / "manifest.json")
    defects = read_json(synthetic_archive / SYNTHETIC_MARKER)["defects"]
    assert set(defects.values()) == set(DEFECTS)
    quarantine = quarantine_of(shards)
    found = {row["path"]: row["error_code"] for row in quarantine}
    assert found == {path: DEFECTS[kind] for path, kind in defects.items()}
    assert all(row["path"] in row["error"] for row in quarantine)
    counts = {name: value for name, value in manifest.items() if name.startswith("n_")}
    expected = {"n_input": 60, "n_ok": 55, "n_degraded": 0, "n_quarantined": 5, "n_duplicates": 0}
    assert counts == expected
    with open(synthetic_archive / "ptbxl_database.csv", newline="") as stream:
        listed = [row["ecg_id"] for row in csv.DictReader(stream)]
    rest = {row["record_id"] for row in quarantine}
    stored = [row["record_id"] for row, _ in rows_of(shards)]
    assert stored == [name for name in listed if name not in rest]
    assert len(shard_files(shards)) == 4


def test_the_manifest_says_from_what_it_was_made(shards, synthetic_archive):
    manifest = read_json(shards / "manifest.json")
    assert manifest["synthetic"] is True
    assert manifest["archive"]["path"] == synthetic_archive.name
    assert manifest["settings"]["records_per_shard"] == 16
    assert manifest["official_split"]["test"] == [10]
    assert manifest["versions"]["pyarrow"]
    assert len(manifest["input_fingerprint"]) == len(manifest["code_fingerprint"]) == 16


def test_samples_and_index_are_the_archives(shards, synthetic_archive, archive):
    index = {row["record_id"]: row for row in open_archive(archive).index().to_pylist()}
    for row, stored in rows_of(shards):
        record = read_record(synthetic_archive / row["path"])
        np.testing.assert_array_equal(stored.digital, record.digital)
        np.testing.assert_array_equal(stored.physical, record.physical)
        [assessment] = assess([record])
        assert (stored.fs, stored.leads) == (record.fs, record.leads)
        assert stored.flags == (*record.flags, *assessment.flags)
        np.testing.assert_array_equal(row["noise_mv"], assessment.noise_mv)
        assert row["einthoven_mv"] == pytest.approx(assessment.einthoven_mv, abs=0)
        assert row["waveform_sha256"] == record.sha256 == stored.sha256
        assert {name: row[name] for name in index[row["record_id"]]} == index[row["record_id"]]
        assert row["status"] == "ok"
        assert stored.beat_times is stored.beat_symbols is None


def test_plain_pyarrow_and_pandas_read_a_shard(shards, synthetic_archive):
    file = shard_files(shards)[0]
    metadata = {
        k.decode(): v.decode() for k, v in pq.read_schema(file).field(SIGNAL).metadata.items()
    }
    assert json.loads(metadata["leads"]) == list(STANDARD_LEADS)
    assert (metadata["fs"], metadata["n_times"]) == ("100.0", "1000")
    assert (metadata["dtype"], metadata["unit"]) == ("int16", "adc")
    frame = pd.read_parquet(file)
    first = frame.iloc[0]
    digital_LT = np.frombuffer(first[SIGNAL], "<i2").reshape(12, 1000)
    np.testing.assert_array_equal(
        digital_LT, read_record(synthetic_archive / first["path"]).digital
    )
    assert first["gain"].tolist() == [1000.0] * 12
    assert first["baseline"].tolist() == [0] * 12
    assert pq.read_table(file)["record_id"].to_pylist() == frame["record_id"].tolist()


def test_named_records_alone_are_read(shards):
    file = shard_files(shards)[1]
    rows = list(read_records(file))
    wanted = {rows[3][0]["record_id"], rows[7][0]["record_id"]}
    found = list(read_records(file, wanted))
    assert {row["record_id"] for row, _ in found} == wanted
    np.testing.assert_array_equal(found[1][1].digital, rows[7][1].digital)
    assert list(read_records(file, {"nobody"})) == []


def test_the_same_settings_again_touch_nothing(shards, archive):
    before, manifest = state(shards), read_json(shards / "manifest.json")
    assert make_shards(open_archive(archive), SETTINGS, shards) == manifest
    assert state(shards) == before


def test_rows_depend_neither_on_shard_size_nor_on_the_order_of_work(shards, archive, tmp_path):
    opened = open_archive(archive)
    rows = opened.index()
    units = Units(tmp_path / "own", "0" * 16)
    writer = UnitWriter(opened, SETTINGS, units)
    starts = range(0, 60, 7)
    for i, start in reversed(list(enumerate(starts))):
        writer({"unit": f"{i:06d}", "rows": as_bytes(rows.slice(start, 7))})
    assert comparable(tmp_path / "own") == comparable(shards)
    assert len(shard_files(tmp_path / "own")) == len(starts)
    totals = units.totals(FOLDERS, [f"{i:06d}" for i in range(len(starts))], 60)
    assert (totals["n_ok"], totals["n_quarantined"]) == (55, 5)


def test_what_a_killed_job_left_is_continued(shards, archive, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    manifest = read_json(out / "manifest.json")
    # Killed with two of four units entered, one written but not entered, and one half written.
    (out / "manifest.json").unlink()
    (out / "quarantine.parquet").unlink()
    for entry in ledger_of(out)[2:]:
        entry.unlink()
    lost = shard_files(out)[3]
    lost.rename(lost.with_name(f".{lost.name}.{'0' * 32}.part"))
    kept = {
        name: seen for name, seen in state(out).items() if "/000000" in name or "/000001" in name
    }
    assert len(kept) > 4
    with only_job_on(out):
        assert make_shards(open_archive(archive), SETTINGS, out) == manifest
    assert comparable(out) == comparable(shards)
    assert quarantine_of(out) == quarantine_of(shards)
    after = state(out)
    assert {name: after.get(name) for name in kept} == kept
    assert set(after) - {".lock"} == set(state(shards))  # no unfinished file is left


def test_another_plan_replaces_what_stands_there(shards, archive, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    manifest = make_shards(open_archive(archive), ShardSettings(fs=50, records_per_shard=60), out)
    assert manifest["n_ok"] == 55
    assert {(record.fs, record.digital.shape) for _, record in rows_of(out)} == {(50.0, (12, 500))}
    assert len(rows_of(out)) == 55
    assert len(quarantine_of(out)) == 5


def test_a_foreign_folder_is_left_alone(archive, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match=r"found 'precious\.txt'"):
        make_shards(open_archive(archive), SETTINGS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_an_archive_that_changed_is_another_plan(synthetic_archive, tmp_path):
    copy = tmp_path / "archive"
    shutil.copytree(synthetic_archive, copy)
    opened = open_archive(ArchiveSettings("synthetic", str(copy), rate=100))
    before = opened.fingerprint(opened.index())
    assert opened.fingerprint(opened.index()) == before
    signal = next((copy / "records100").rglob("*.dat"))
    with open(signal, "ab") as file:
        file.write(b"\x00")
    assert opened.fingerprint(opened.index()) != before


def test_an_archive_that_cannot_be_read_has_no_manifest(tmp_path):
    folder = tmp_path / "archive"
    for name in ("a", "b"):
        write_wfdb(folder, name, ["I"], 100, "16")
        (folder / f"{name}.dat").write_bytes(b"\x00" * 10)
    opened = open_archive(ArchiveSettings("wfdb", str(folder)))
    for _ in range(2):  # the second time from the ledger
        with pytest.raises(DataError, match=r"no record .* \(2 tried\); the first, a: .*a\.dat"):
            make_shards(opened, SETTINGS, tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert {row["error_code"] for row in quarantine_of(tmp_path / "out")} == {"truncated_signal"}


def test_what_an_earlier_attempt_at_a_unit_left_is_not_taken(shards, archive, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    manifest = read_json(out / "manifest.json")
    (out / "manifest.json").unlink()
    ledger_of(out)[1].unlink()
    part = shard_files(out)[1]
    shutil.copy(part, part.with_name(part.name.replace("-0000", "-0007")))
    assert make_shards(open_archive(archive), SETTINGS, out) == manifest
    assert comparable(out) == comparable(shards)
    # Nor what lies beside a unit that is entered; and one whose file is gone is made again.
    (out / "manifest.json").unlink()
    shutil.copy(part, part.with_name(part.name.replace("-0000", "-0007")))
    shard_files(out)[0].unlink()
    assert make_shards(open_archive(archive), SETTINGS, out) == manifest
    assert comparable(out) == comparable(shards)


def test_an_archive_is_never_its_own_output(tmp_path):
    write_wfdb(tmp_path / "records", "r0", ["I", "II"], 100, "16")
    before = state(tmp_path)
    opened = open_archive(ArchiveSettings("wfdb", str(tmp_path)))
    with pytest.raises(DataError, match="expected an empty folder or an earlier output"):
        make_shards(opened, SETTINGS, tmp_path)
    assert state(tmp_path) == before


def test_a_changed_segment_is_another_archive(tmp_path):
    for name in ("r_1", "r_2"):
        write_wfdb(tmp_path, name, ["I", "V1"], 100, "16")
    (tmp_path / "r.hea").write_text("r/2 2 250 200\nr_1 100\nr_2 100\n")
    opened = open_archive(ArchiveSettings("wfdb", str(tmp_path)))
    before = opened.fingerprint(opened.index())
    with open(tmp_path / "r_2.dat", "ab") as file:
        file.write(b"\x00")
    assert opened.index().num_rows == 1
    assert opened.fingerprint(opened.index()) != before


def test_exact_duplicates_are_named(tmp_path):
    for i, seed in enumerate((100, 101, 100, 102, 101, 100)):
        write_wfdb(tmp_path / "archive", f"r{i}", ["I", "II"], seed, "16")
    manifest = make_shards(
        open_archive(ArchiveSettings("wfdb", str(tmp_path / "archive"))),
        ShardSettings(records_per_shard=2),
        tmp_path / "out",
    )
    assert manifest["n_duplicates"] == 3
    found = {
        row["record_id"]: [flag for flag in row["flags"] if flag.startswith("duplicate:")]
        for row in pq.read_table(tmp_path / "out" / RECORDS).to_pylist()
    }
    assert found == {
        "r0": [], "r1": [], "r2": ["duplicate:r0"], "r3": [],
        "r4": ["duplicate:r1"], "r5": ["duplicate:r0"],
    }  # fmt: skip


def test_duckdb_reads_a_shard(shards):
    import duckdb

    [(n_rows, n_bytes)] = duckdb.sql(
        f"select count(*), max(octet_length({SIGNAL})) from '{shards}/records/*.parquet'"
    ).fetchall()
    assert (n_rows, n_bytes) == (55, 24_000)
    [(n_noisy,)] = duckdb.sql(
        f"select count(*) from '{shards}/{RECORDS}' where list_max(noise_mv) >= 0"
    ).fetchall()
    assert n_noisy == 55
