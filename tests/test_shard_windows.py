"""Rows of shards: windows, odd lengths, several layouts, beats."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wfdb
from shard_folders import rows_of, shard_files, write_wfdb, written

from rayecg.archives.catalogue import open_archive
from rayecg.archives.folder import read_one
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.batch import shard_batches
from rayecg.core.experiment import ArchiveSettings, ShardSettings
from rayecg.core.record import invalid_value
from rayecg.core.shard_format import (
    Layout,
    decode_signal,
)
from rayecg.core.shard_reader import read_records, row_groups
from rayecg.core.units import Units
from rayecg.shards import unit as unit_module
from rayecg.shards.build import as_bytes, make_shards, write_records
from rayecg.shards.unit import UnitWriter


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


def test_the_first_window_has_the_beats_that_are_in_it(tmp_path):
    write_wfdb(tmp_path / "mit", "100", ["MLII", "V1"], 1000, "212")
    beats, symbols = np.array([10, 249, 250, 999]), ["N", "V", "N", "V"]
    wfdb.wrann("100", "atr", beats, symbol=symbols, write_dir=str(tmp_path / "mit"))
    opened = open_archive(ArchiveSettings("mitbih", str(tmp_path / "mit")))
    rows = as_bytes(opened.index())
    found = {}
    for windows in ("all", "first"):
        settings = ShardSettings(window_s=1.0, windows=windows)
        UnitWriter(opened, settings, Units(tmp_path / windows, "0" * 16))(
            {"unit": "0", "rows": rows}
        )
        [(row, record)] = rows_of(tmp_path / windows)
        assert row["waveform_sha256"] == record.sha256
        found[windows] = (record.beat_times.tolist(), record.beat_symbols)
    assert found["all"] == (beats.tolist(), tuple(symbols))
    assert found["first"] == ([10, 249], ("N", "V"))


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


@pytest.mark.usefixtures("ray")
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
    assert manifest["n_quarantined"] == 0


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


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_samples_are_those_that_plain_parquet_reads(tmp_path, compression):
    write_wfdb(tmp_path / "archive", "r", ["I", "V1"], 301, "16")
    out = written(tmp_path / "archive", tmp_path / "out", ShardSettings(compression=compression))
    [file] = shard_files(out)
    table = pq.read_table(file)
    expected, _ = decode_signal(table)
    field, place, starts = table.schema.field("site"), table.schema.names.index("site"), set()
    for n in range(4):  # so that the samples begin at odd and at even places of the file
        own = table.set_column(place, field, pa.array(["x" * n]))
        pq.write_table(own, file, compression=compression, use_dictionary=False)
        column = pq.read_metadata(file).row_group(0).column(table.schema.names.index("signal"))
        starts.add((column.data_page_offset + column.total_compressed_size) % 2)
        [(_, found, _)] = row_groups(file, columns=())
        [batch] = shard_batches(file)
        for samples_NLT in (found, batch.groups[0].digital_NLT):
            np.testing.assert_array_equal(samples_NLT, expected)
            assert samples_NLT.flags.aligned
    assert starts == {0, 1} or compression != "none"


def test_samples_of_several_pages_are_read_as_well(tmp_path):
    for i in range(5):
        write_wfdb(tmp_path / "archive", f"r{i}", ["I", "V1"], 300, "16")
    out = written(tmp_path / "archive", tmp_path / "out", ShardSettings(compression="none"))
    [file] = shard_files(out)
    table = pq.read_table(file)
    paged = tmp_path / "paged.parquet"
    pq.write_table(
        table,
        paged,
        compression="none",
        data_page_size=1200,
        write_batch_size=1,
        use_dictionary=False,
    )
    expected, _ = decode_signal(table)
    [(_, found, _)] = row_groups(paged)
    np.testing.assert_array_equal(found, expected)
