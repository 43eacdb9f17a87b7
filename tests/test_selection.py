"""Records chosen by a condition in SQL, and ids under a key."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from rayecg.core.errors import SettingsError
from rayecg.core.hashing import hashed_ids, read_hash_key
from rayecg.core.index_file import IndexFile
from rayecg.core.selection import select_rows
from rayecg.core.shard_format import INDEX_NAMES, index_table


@pytest.fixture
def index() -> IndexFile:
    return IndexFile(
        index_table([row])
        for row in [
            {"record_id": "a", "path": "a", "age": 70.0, "sex": "F", "codes": ["NORM"]},
            {"record_id": "b", "path": "b", "age": 30.0, "sex": "F", "codes": ["AFIB"]},
            {"record_id": "c", "path": "c", "age": None, "sex": "M", "codes": None},
            {"record_id": "d", "path": "d", "age": 80.0, "sex": "F", "codes": ["AFIB", "MI"]},
        ]
    )


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("age >= 65 AND sex = 'F'", "ad"),
        ("age IS NULL OR age < 40", "bc"),
        ("list_contains(codes, 'AFIB')", "bd"),
        ("record_id IN ('d', 'a') -- both", "ad"),
    ],
)
def test_a_condition_keeps_the_order(index: IndexFile, condition: str, expected: str) -> None:
    found = index.take(select_rows(index, condition))
    assert found["record_id"].to_pylist() == list(expected)
    assert found.column_names == INDEX_NAMES


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("agee > 3", "agee"),
        ("age >", "syntax error"),
        ("age > 1000", "true of none of 4 records"),
        ("1 = 1); SELECT (1", "syntax error"),
        ("true; SELECT 1", "expression"),
        # Neither rows twice nor rows that are not there.
        ("1=1) UNION ALL (SELECT 0", "syntax error"),
        ("1=0) UNION (SELECT 99", "syntax error"),
        ("true UNION ALL SELECT 0", "expression"),
        ("age > 3, sex = 'F'", "single expression"),
        ("", "^--select: expected a condition, came none$"),
        (" \n", "^--select: expected a condition, came none$"),
    ],
)
def test_what_is_no_condition_is_one_line(index: IndexFile, condition: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as error:
        select_rows(index, condition)
    assert "\n" not in str(error.value)


def test_a_condition_reaches_nothing_but_the_index(index: IndexFile, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    for place in (f"read_csv('{tmp_path}/x.csv')", f"'{tmp_path}/x.csv'", f"glob('{tmp_path}/*')"):
        with pytest.raises(SettingsError):
            select_rows(index, f"exists(SELECT * FROM {place})")
    # By itself it is a condition like any other.
    assert select_rows(index, "exists(SELECT 1)").tolist() == [0, 1, 2, 3]


def test_hashed_ids_are_an_hmac_and_need_a_key_worth_the_name(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef0123\n")
    key = read_hash_key(tmp_path / "key")
    expected = hmac.new(b"0123456789abcdef0123", b"patient:p7", hashlib.sha256).hexdigest()[:32]
    assert hashed_ids(["p7", None], key, "patient") == [expected, None]
    assert hashed_ids(["p7", None], None, "patient") == ["p7", None]
    # A column of records and one of patients cannot be linked by what they share.
    assert hashed_ids(["5"], key, "record") != hashed_ids(["5"], key, "patient")
    (tmp_path / "short").write_text("secret")
    for name, said in (("short", "16 bytes"), ("none", "No such file")):
        with pytest.raises(SettingsError, match=said):
            read_hash_key(tmp_path / name)
