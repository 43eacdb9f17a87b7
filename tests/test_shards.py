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
import wfdb

from rayecg.archives.base import SYNTHETIC_MARKER
from rayecg.archives.catalogue import open_archive
from rayecg.archives.folder import read_one
from rayecg.archives.synthetic import DEFECTS
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.errors import DataError
from rayecg.core.experiment import STANDARD_LEADS, ArchiveSettings, ShardSettings
from rayecg.core.files import read_json
from rayecg.core.record import Record, invalid_value
from rayecg.core.shard_format import RECORDS, SIGNAL, Layout, decode_signal, read_records
from rayecg.core.units import Units
from rayecg.shards import unit as unit_module
from rayecg.shards.build import as_bytes, make_shards, write_records
from rayecg.shards.unit import UnitWriter
from rayecg.signal.assessment import assess

pytestmark = pytest.mark.usefixtures("ray")
SETTINGS = ShardSettings(records_per_shard=16)


def shard_files(out):
    """List what units have written, also before the manifest is there."""
    return sorted((out / "records").glob("*.parquet"))


@pytest.fixture(scope="module")
def archive(synthetic_archive) -> ArchiveSettings:
    return ArchiveSettings("synthetic", str(synthetic_archive), rate=100)


@pytest.fixture(scope="module")
def shards(archive, tmp_path_factory, ray) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    make_shards(open_archive(archive), SETTINGS, out)
    return out


def rows_of(out: Path) -> list[tuple[dict, Record]]:
    return [pair for file in shard_files(out) for pair in read_records(file)]


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
    totals = units.totals([f"{i:06d}" for i in range(len(starts))], 60)
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
    lost.rename(lost.with_name(f".{lost.name}.0123.part"))
    kept = {
        name: seen for name, seen in state(out).items() if "/000000" in name or "/000001" in name
    }
    assert len(kept) > 4
    assert make_shards(open_archive(archive), SETTINGS, out) == manifest
    assert comparable(out) == comparable(shards)
    assert quarantine_of(out) == quarantine_of(shards)
    after = state(out)
    assert {name: after.get(name) for name in kept} == kept
    assert set(after) == set(state(shards))  # no unfinished file is left


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


def write_wfdb(folder: Path, name: str, leads: list[str], n_times: int, fmt: str, **header) -> None:
    rng = np.random.default_rng(n_times)
    folder.mkdir(parents=True, exist_ok=True)
    n_leads = len(leads)
    wanted = {
        "fs": 250,
        "units": ["mV"] * n_leads,
        "sig_name": leads,
        "d_signal": rng.integers(-500, 500, (n_times, n_leads)),
        "fmt": [fmt] * n_leads,
        "adc_gain": [200.0] * n_leads,
        "baseline": [0] * n_leads,
    }
    wfdb.wrsamp(name, write_dir=str(folder), **(wanted | header))


def test_records_of_different_layouts_all_land(tmp_path):
    folder = tmp_path / "archive"
    for i in range(3):
        write_wfdb(folder / "a", f"r{i}", ["I", "II"], 500, "16")
        write_wfdb(folder / "b", f"r{i}", ["V1", "V2", "V3"], 500, "212")
    write_wfdb(folder / "b", "longer", ["I", "II"], 750, "16")
    write_wfdb(folder / "b", "faster", ["I", "II"], 500, "16", fs=500)
    write_wfdb(folder / "b", "wider", ["I", "II"], 500, "24")
    manifest = make_shards(
        open_archive(ArchiveSettings("wfdb", str(folder))), ShardSettings(), tmp_path / "out"
    )
    assert (manifest["n_input"], manifest["n_ok"], manifest["synthetic"]) == (9, 9, False)
    found = {row["record_id"]: record for row, record in rows_of(tmp_path / "out")}
    assert sorted(found) == [
        *(f"a/r{i}" for i in range(3)), "b/faster", "b/longer", *(f"b/r{i}" for i in range(3)),
        "b/wider",
    ]  # fmt: skip
    for name, record in found.items():
        expected = read_one(folder / name)
        assert Layout.of(record) == Layout.of(expected)
        np.testing.assert_array_equal(record.digital, expected.digital)
    assert len(shard_files(tmp_path / "out")) == 5
    assert quarantine_of(tmp_path / "out") == []


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


def test_beats_go_with_their_record(tmp_path):
    write_wfdb(tmp_path / "mit", "100", ["MLII", "V1"], 1000, "212")
    beats, symbols = np.array([10, 300, 999]), ["N", "V", "+"]
    wfdb.wrann("100", "atr", beats, symbol=symbols, write_dir=str(tmp_path / "mit"))
    opened = open_archive(ArchiveSettings("mitbih", str(tmp_path / "mit")))
    rows = as_bytes(opened.index())
    for name, settings in (("own", ShardSettings()), ("slow", ShardSettings(fs=125))):
        UnitWriter(opened, settings, Units(tmp_path / name, "0" * 16))({"unit": "0", "rows": rows})
        [(row, record)] = rows_of(tmp_path / name)
        assert (row["record_id"], row["patient_id"], record.fs) == (
            "100",
            "100",
            settings.fs or 250,
        )
        assert record.beat_symbols == ("N", "V")  # "+" is a rhythm, not a beat
        assert record.beat_times.tolist() == ([10, 300] if name == "own" else [5, 150])


def test_long_records_close_a_shard_early(tmp_path, monkeypatch):
    for i in range(5):
        write_wfdb(tmp_path / "archive", f"r{i}", ["I", "II"], 500, "16")
    monkeypatch.setattr(unit_module, "MAX_FILE_BYTES", 2 * 2000)
    monkeypatch.setattr(unit_module, "ROW_GROUP_BYTES", 2000)
    monkeypatch.setattr(unit_module, "CHUNK", 2)
    opened = open_archive(ArchiveSettings("wfdb", str(tmp_path / "archive")))
    work = UnitWriter(opened, ShardSettings(), Units(tmp_path / "out", "0" * 16))
    assert work({"unit": "000000", "rows": as_bytes(opened.index())})["n_ok"] == 5
    assert [pq.read_metadata(file).num_rows for file in shard_files(tmp_path / "out")] == [2, 2, 1]
    assert [row["record_id"] for row, _ in rows_of(tmp_path / "out")] == [f"r{i}" for i in range(5)]


def written(folder: Path, out: Path, settings: ShardSettings = ShardSettings()) -> Path:  # noqa: B008
    opened = open_archive(ArchiveSettings("wfdb", str(folder)))
    UnitWriter(opened, settings, Units(out, "0" * 16))(
        {"unit": "0", "rows": as_bytes(opened.index())}
    )
    return out


def test_a_record_too_long_for_a_row_is_stored_as_windows(tmp_path, monkeypatch):
    write_wfdb(tmp_path / "archive", "long", ["I", "V1"], 1001, "16")
    write_wfdb(tmp_path / "archive", "short", ["I", "V1"], 300, "16")
    monkeypatch.setattr(unit_module, "MAX_ROW_BYTES", 400 * 4)
    out = written(tmp_path / "archive", tmp_path / "out")
    found = [
        (row["record_id"], row["offset"], row["n_times"])
        for file in shard_files(out)
        for row in pq.read_table(file).to_pylist()
    ]
    assert found == [("long", 0, 400), ("long", 400, 400), ("long", 800, 201), ("short", 0, 300)]
    for row, record in rows_of(out):
        expected = read_record(tmp_path / "archive" / row["record_id"])
        np.testing.assert_array_equal(record.digital, expected.digital)


@pytest.mark.parametrize("windows", ["all", "first"])
def test_windows_know_their_record_and_offset(tmp_path, windows):
    for name, n_times in (("a", 620), ("b", 250), ("c", 100)):
        write_wfdb(tmp_path / "archive", name, ["I", "V1"], n_times, "16")
    out = written(
        tmp_path / "archive", tmp_path / "out", ShardSettings(window_s=1.0, windows=windows)
    )
    [file] = shard_files(out)
    table = pq.read_table(file)
    rows = [(r["record_id"], r["offset"], r["n_times"]) for r in table.to_pylist()]
    expected = [("a", 0, 250), ("a", 250, 250), ("a", 500, 120), ("b", 0, 250), ("c", 0, 100)]
    assert rows == [row for row in expected if windows == "all" or row[1] == 0]
    samples_NLT, layout = decode_signal(table)
    assert (layout.n_times, samples_NLT.shape[1:]) == (250, (2, 250))
    # What a row has no samples for is invalid, not zero.
    assert (samples_NLT[-1, :, 100:] == invalid_value(samples_NLT.dtype)).all()
    kept = {row["record_id"]: record for row, record in rows_of(out)}
    for name, record in kept.items():
        whole = read_record(tmp_path / "archive" / name).digital
        np.testing.assert_array_equal(record.digital, whole if windows == "all" else whole[:, :250])
    assert list(kept) == ["a", "b", "c"]
    write_records([file], tmp_path / "table.parquet")
    lengths = pq.read_table(tmp_path / "table.parquet")["n_times"].to_pylist()
    assert lengths == ([620, 250, 100] if windows == "all" else [250, 250, 100])
    assert [row["record_id"] for row, _ in read_records(file, {"b"})] == ["b"]


def test_records_of_odd_lengths_share_shards(tmp_path):
    lengths = list(range(1501, 1501 + 40 * 7, 7))
    for n_times in lengths:
        write_wfdb(tmp_path / "archive", f"r{n_times}", ["I"], n_times, "16")
    out = written(tmp_path / "archive", tmp_path / "out")
    assert len(shard_files(out)) == 1
    assert [record.digital.shape[1] for _, record in rows_of(out)] == lengths
    for row, record in rows_of(out):
        np.testing.assert_array_equal(
            record.digital, read_record(tmp_path / "archive" / row["record_id"]).digital
        )


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
