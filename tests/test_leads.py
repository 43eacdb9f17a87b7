"""Names and order of leads, and the limb leads that follow from two others."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayecg.core.experiment import STANDARD_LEADS
from rayecg.core.record import Record, invalid_value
from rayecg.signal.leads import (
    LIMB_LEADS,
    standard_name,
    standard_order,
    unique_names,
    with_derived_leads,
)

#: Each limb lead as multiples of I and II, from the potentials of the three electrodes.
EINTHOVEN = {
    "I": (Fraction(1), Fraction(0)),
    "II": (Fraction(0), Fraction(1)),
    "III": (Fraction(-1), Fraction(1)),
    "aVR": (Fraction(-1, 2), Fraction(-1, 2)),
    "aVL": (Fraction(1), Fraction(-1, 2)),
    "aVF": (Fraction(-1, 2), Fraction(1)),
}


@pytest.mark.parametrize("lead", STANDARD_LEADS)
def test_every_spelling_of_a_standard_lead(lead):
    for name in (lead, lead.lower(), lead.upper(), f" {lead} ", f"lead {lead}", f"Lead_{lead}"):
        assert standard_name(name) == lead
    for name in (f"MDC_ECG_LEAD_{lead}", f"mdc_ecg_lead_{lead}", f"ECG {lead}", f"LEAD-{lead}"):
        assert standard_name(name.upper()) == lead
    assert standard_name(f"ML{lead}") == f"ML{lead}"


@pytest.mark.parametrize(
    "name", ["MLII", "V7", "V4R", "X", "ECG", "", "lead", "IV", "I2", "Leads I"]
)
def test_other_names_stay(name):
    assert standard_name(name) == name
    assert standard_name(f" {name} ") == name


def test_order():
    names = ["V6", "X", "aVF", "I", "MLII", "III", "V1"]
    ordered = [names[i] for i in standard_order(names)]
    assert ordered == ["I", "III", "aVF", "V1", "V6", "X", "MLII"]
    assert [STANDARD_LEADS[i] for i in standard_order(list(STANDARD_LEADS))] == list(STANDARD_LEADS)
    assert standard_order([]) == []


@given(st.lists(st.sampled_from(["V1", "V1#2", "I", "x", "", "V1#3"]), max_size=8))
def test_unique_names(names):
    unique, repeated = unique_names(names)
    assert len(set(unique)) == len(unique) == len(names)
    assert all(
        new == old or new.startswith(f"{old}#") for new, old in zip(unique, names, strict=True)
    )
    assert repeated == sorted(
        {n for n in names if names.count(n) > 1}, key=lambda n: second(names, n)
    )


def second(names: list[str], name: str) -> int:
    """Give where a name stands for the second time."""
    return [i for i, other in enumerate(names) if other == name][1]


def make_record(
    rows: dict[str, np.ndarray], gains: list[float], baselines: list[int], dtype: type = np.int16
) -> Record:
    return Record(
        digital_LT=np.array(list(rows.values()), dtype=dtype),
        gain_L=np.array(gains),
        baseline_L=np.array(baselines),
        fs=500.0,
        leads=tuple(rows),
        flags=("before",),
    )


@pytest.mark.parametrize("pair", [("I", "II"), ("II", "III"), ("I", "III")])
def test_from_two_of_einthovens_leads_with_one_gain_nothing_is_rounded(pair):
    rng = np.random.default_rng(0)
    digital_2T = rng.integers(-5000, 5000, (2, 1000))
    record = make_record(dict(zip(pair, digital_2T, strict=True)), [204.8] * 2, [7, -20])
    found = with_derived_leads(record)
    assert found.leads == tuple(lead for lead in STANDARD_LEADS if lead in EINTHOVEN)
    assert set(found.flags) == {"before", *(f"derived:{x}" for x in EINTHOVEN if x not in pair)}
    steps = dict(zip(pair, digital_2T - np.array([[7], [-20]]), strict=True))
    if pair == ("II", "III"):
        steps["I"] = steps["II"] - steps["III"]
    if pair == ("I", "III"):
        steps["II"] = steps["I"] + steps["III"]
    for row, lead in enumerate(found.leads):
        if lead in pair:
            np.testing.assert_array_equal(found.digital[row], digital_2T[pair.index(lead)])
            assert found.gain_L[row] == 204.8
            continue
        a, b = EINTHOVEN[lead]
        np.testing.assert_array_equal(
            found.digital[row], int(2 * a) * steps["I"] + int(2 * b) * steps["II"]
        )
        assert (found.gain_L[row], found.baseline_L[row]) == (409.6, 0)


@given(
    pair=st.sampled_from(list(combinations(EINTHOVEN, 2))),
    gains=st.tuples(*[st.sampled_from([1000.0, 200.0, 204.8, 1e-3, -500.0])] * 2),
    baselines=st.tuples(*[st.integers(-(2**20), 2**20)] * 2),
    dtype=st.sampled_from([np.int16, np.int32]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150)
def test_any_two_limb_leads_give_the_others(pair, gains, baselines, dtype, seed):
    """To a quarter of the finer ADC unit; 2^-45 of the larger source is for roundings of float64."""
    digital_2T = np.random.default_rng(seed).integers(-2000, 2000, (2, 5))
    record = make_record(
        dict(zip(pair, digital_2T, strict=True)), list(gains), list(baselines), dtype
    )
    found = with_derived_leads(record)
    finer = Fraction(max(map(abs, gains)))
    (a, b), (c, d) = (EINTHOVEN[lead] for lead in pair)
    outside = {flag.partition(":")[2] for flag in found.flags if flag.startswith("out_of_range")}
    for row, lead in enumerate(found.leads):
        if lead in pair:
            continue
        for time in range(5):
            own = [
                (Fraction(int(digital_2T[i, time])) - baselines[i]) / Fraction(gains[i])
                for i in range(2)
            ]
            first = (own[0] * d - own[1] * b) / (a * d - b * c)
            second = (own[1] * a - own[0] * c) / (a * d - b * c)
            exact = (EINTHOVEN[lead][0] * first + EINTHOVEN[lead][1] * second) * finer
            largest = Fraction(np.iinfo(dtype).max) / 2
            if abs(exact) > largest:
                assert lead in outside or abs(exact) < largest + 1
                exact = min(max(exact, -largest), largest)
            value = Fraction(int(found.digital[row, time])) / 2
            scale = max(abs(own[0]), abs(own[1])) * finer
            assert abs(value - exact) <= Fraction(1, 4) + scale * Fraction(2) ** -45


def test_what_is_missing_alone_is_derived():
    rows = {lead: np.arange(5) * 2 for lead in LIMB_LEADS if lead != "aVL"}
    found = with_derived_leads(make_record(rows, [200.0] * 5, [0] * 5))
    assert found.flags == ("before", "derived:aVL")
    assert found.leads[4] == "aVL"
    full = make_record(dict.fromkeys(LIMB_LEADS, np.arange(5)), [200.0] * 6, [0] * 6)
    assert with_derived_leads(full) is full


def test_eight_leads_become_twelve():
    names = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
    rows = {name: np.arange(4) + 10 * i for i, name in enumerate(names)}
    found = with_derived_leads(make_record(rows, [200.0] * 8, [0] * 8))
    assert found.leads == STANDARD_LEADS
    assert [flag for flag in found.flags if flag != "before"] == [
        "derived:III", "derived:aVR", "derived:aVL", "derived:aVF"
    ]  # fmt: skip
    for name, row_T in rows.items():
        np.testing.assert_array_equal(found.digital[found.leads.index(name)], row_T)
    assert len(found.gain_L) == len(found.baseline_L) == 12
    physical = dict(zip(found.leads, found.physical, strict=True))
    np.testing.assert_allclose(physical["III"], physical["II"] - physical["I"], atol=1e-7)


@pytest.mark.parametrize(
    "leads", [("MLII", "V1"), ("II", "V1"), ("V1", "V2"), ("I",), ("I#2", "II")]
)
def test_leads_that_give_no_others(leads):
    record = make_record(dict.fromkeys(leads, np.arange(5)), [200.0] * len(leads), [0] * len(leads))
    assert with_derived_leads(record) is record


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_where_a_source_is_invalid_so_is_what_follows(dtype):
    mark = invalid_value(np.dtype(dtype))
    rows = {
        "I": np.array([1, mark, 3, mark]),
        "II": np.array([5, 6, mark, mark]),
        "V1": np.zeros(4),
    }
    found = with_derived_leads(make_record(rows, [200.0] * 3, [0, 0, 0], dtype))
    for row, lead in enumerate(found.leads):
        expected = {"I": [0, 1, 0, 1], "II": [0, 0, 1, 1], "V1": [0] * 4}.get(lead, [0, 1, 1, 1])
        assert (found.digital[row] == mark).astype(int).tolist() == expected
    assert not any(flag.startswith("out_of_range") for flag in found.flags)


def test_what_leaves_the_type_is_held_at_its_end_and_flagged():
    rows = {"I": np.array([-32767, 0, 32767]), "II": np.array([32767, 0, 32767])}
    found = with_derived_leads(make_record(rows, [200.0] * 2, [0, 0]))
    values = {lead: row.tolist() for lead, row in zip(found.leads, found.digital, strict=True)}
    assert values["III"] == [32767, 0, 0]
    assert values["aVR"] == [0, 0, -32767]
    outside = {flag for flag in found.flags if flag.startswith("out_of_range")}
    assert outside == {f"out_of_range:{lead}" for lead in ("III", "aVR", "aVL", "aVF")}
