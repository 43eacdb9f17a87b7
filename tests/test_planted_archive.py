"""Every record of an archive full of defects is accounted for, each with its own code or flag."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from planted_archive import PlantedArchive, write_planted_archive

from rayecg.archives.catalogue import open_archive
from rayecg.core.errors import ERROR_CODES, RecordError
from rayecg.core.experiment import STANDARD_LEADS, ArchiveSettings, ShardSettings
from rayecg.core.record import Record
from rayecg.core.shard_format import (
    RECORDS,
    shard_files,
)
from rayecg.core.shard_reader import read_records
from rayecg.shards.build import make_shards
from rayecg.signal.assessment import assess

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> PlantedArchive:
    return write_planted_archive(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def found(planted) -> dict[str, Record | Exception]:
    """Read the archive as the stages do."""
    archive = open_archive(ArchiveSettings("wfdb", str(planted.path)))
    rows = archive.checked_index().to_pylist()
    return {
        row["record_id"]: result for row, result in zip(rows, archive.read_each(rows), strict=True)
    }


def test_every_record_is_accounted_for(planted, found):
    assert set(found) == set(planted.records)
    kinds = {record.kind for record in planted.records.values()}
    assert len(kinds) > 80
    codes = {record.expect[1] for record in planted.records.values() if record.expect[0] == "error"}
    # The other codes are those of annotations, of checkpoints, and of the program itself.
    assert codes == set(ERROR_CODES) - {
        "bad_annotation", "missing_leads", "no_beats", "not_finite", "internal_error"
    }  # fmt: skip


def test_every_error_is_the_one_that_was_planted(planted, found):
    wrong = {}
    for record_id, record in planted.records.items():
        result = found[record_id]
        expected = record.expect[1] if record.expect[0] == "error" else None
        came = result.code if isinstance(result, RecordError) else None
        if came != expected or (isinstance(result, Exception) and came is None):
            wrong[record_id] = (expected, repr(result)[:200])
    assert wrong == {}


def test_every_flag_of_the_reader_is_the_one_that_was_planted(planted, found):
    wrong = {}
    for record_id, record in planted.records.items():
        result = found[record_id]
        if isinstance(result, Exception):
            continue
        what, flag = record.expect
        planted_here = what == "flag" and record.by == "reader"
        # A defect of several leads is told of each; derived leads are no defect.
        family = flag.partition(":")[0] if planted_here else ""
        others = {
            name for name in result.flags if name.partition(":")[0] not in (family, "derived")
        }
        if others or (planted_here and flag not in result.flags):
            wrong[record_id] = (record.expect, result.flags)
    assert wrong == {}


def test_every_flag_of_quality_is_the_one_that_was_planted(planted, found):
    """The flags of others that follow from the same defect are not asked about."""
    records = {i: result for i, result in found.items() if isinstance(result, Record)}
    flags = dict(zip(records, assess(list(records.values())), strict=True))
    wrong = {}
    for record_id in records:
        record, came = planted.records[record_id], flags[record_id].flags
        if record.by == "quality":
            if record.expect[1] not in came:
                wrong[record_id] = (record.expect, came)
        elif record.expect == ("ok", "") and record.kind != "segment" and came:
            wrong[record_id] = (record.expect, came)
    assert wrong == {}


def test_what_is_as_good_as_any_has_its_values(planted, found):
    n = 0
    for record_id, record in planted.records.items():
        if record.expected_LT is None:
            continue
        n += 1
        result = found[record_id]
        assert result.leads == STANDARD_LEADS, record_id
        expected_LT = record.expected_LT / 1000.0
        error_LT = np.abs(result.physical.astype(np.float64) - expected_LT)
        # Rounded once to float32, and 2^-50 for the factor of the unit.
        limit_LT = record.step_uv / 1000.0 * (1 + 1e-6) + np.abs(expected_LT) * (
            2.0**-24 + 2.0**-50
        )
        assert (error_LT <= limit_LT).all(), (record_id, error_LT.max())
    assert n > 15


def test_no_two_records_are_the_same_but_where_that_is_the_defect(planted, found):
    same = {}
    for record_id, result in found.items():
        if isinstance(result, Record):
            same.setdefault(result.sha256, []).append(record_id)
    pairs = [ids for ids in same.values() if len(ids) > 1]
    assert pairs == [["sound/c", "sound/zz_copy"]]
    assert planted.records["sound/zz_copy"].expect == ("flag", "duplicate:sound/c")


def test_nothing_is_read_from_outside(planted, found):
    secret = (planted.path.parent / "outside" / "secret.dat").read_bytes()
    held = {
        result.digital_LT.T.tobytes() for result in found.values() if isinstance(result, Record)
    }
    assert secret not in held


@pytest.mark.usefixtures("ray")
def test_make_shards_accounts_for_every_record(planted, tmp_path):
    archive = open_archive(ArchiveSettings("wfdb", str(planted.path)))
    manifest = make_shards(archive, ShardSettings(records_per_shard=16), tmp_path / "out")
    errors = {
        row["record_id"]: row["error_code"]
        for row in pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    }
    rows = pq.read_table(tmp_path / "out" / RECORDS).to_pylist()
    flags = {row["record_id"]: row["flags"] for row in rows}
    assert len(rows) == len(flags)
    assert not flags.keys() & errors.keys()
    assert flags.keys() | errors.keys() == planted.records.keys()
    assert (manifest["n_input"], manifest["n_quarantined"]) == (len(planted.records), len(errors))
    wrong = {}
    for record_id, record in planted.records.items():
        what, expected = record.expect
        if what == "error" and errors.get(record_id) != expected:
            wrong[record_id] = (record.expect, errors.get(record_id))
        if what == "flag" and expected not in flags.get(record_id, ()):
            wrong[record_id] = (record.expect, flags.get(record_id))
    assert wrong == {}
    stored = {
        row["record_id"]: record
        for file in shard_files(tmp_path / "out")
        for row, record in read_records(file)
    }
    assert stored.keys() == flags.keys()
    for row, result in zip(
        archive.index().to_pylist(), archive.read_each(archive.index().to_pylist()), strict=True
    ):
        if isinstance(result, Record):
            assert stored[row["record_id"]].sha256 == result.sha256
