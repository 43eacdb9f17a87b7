"""Tables of ectopic beats against published ones, and counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayecg.metrics.ec57 import AAMI, DONT_CARE, BeatCounts, beat_matrices

#: de Chazal et al. 2004: DS2 by the system that they settled on. Rows are what is true; they add up to
#: DS2's 44,259 N, 1,837 S, 3,221 V and 388 F. (7 beats of Q are left out here: they would change none
#: of the figures below, which have one decimal in the paper.)
DE_CHAZAL = np.array(
    [
        [38444, 1904, 303, 3509, 99],
        [173, 1395, 252, 16, 1],
        [117, 321, 2504, 176, 103],
        [33, 1, 7, 347, 0],
        [0, 0, 0, 0, 0],
    ]
)


@pytest.mark.parametrize(
    ("ectopic", "percent"),
    [
        ("S", {"sensitivity": 75.9, "positive_predictivity": 38.5, "false_positive_rate": 4.7}),
        ("V", {"sensitivity": 77.7, "positive_predictivity": 81.9, "false_positive_rate": 1.2}),
    ],
)
def test_figures_are_those_of_de_chazal(ectopic, percent):
    assert DE_CHAZAL.sum(axis=1).tolist() == [44259, 1837, 3221, 388, 0]
    found = BeatCounts.of(DE_CHAZAL, AAMI, ectopic).figures()
    for name, value in percent.items():
        assert round(100 * float(found[name][0]), 1) == value


#: Every cell a number of its own, so that none can be taken for another.
MATRIX = np.array(
    [
        [1000, 20, 30, 4, 5],
        [60, 300, 7, 8, 9],
        [11, 12, 400, 13, 14],
        [15, 16, 17, 80, 18],
        [21, 22, 23, 24, 25],
    ]
)


def test_ventricular_beats_by_hand():
    found = BeatCounts.of(MATRIX, AAMI, "V")
    fn = 11 + 12 + 13 + 14
    fp = 30 + 7
    others = MATRIX.sum() - MATRIX[2].sum()
    assert found.tp_R == [400]
    assert found.fn_R == [fn]
    assert found.fp_R == [fp]
    assert found.uncounted_R == [17 + 23]
    assert found.tn_R == [others - fp - 17 - 23]
    figures = found.figures()
    assert figures["sensitivity"] == [400 / (400 + fn)]
    assert figures["positive_predictivity"] == [400 / 437]
    assert figures["false_positive_rate"] == [fp / (others - 40)]
    assert figures["accuracy"] == [(400 + others - 77) / (MATRIX.sum() - 40)]
    strict = BeatCounts.of(MATRIX, AAMI, "V", strict=True)
    assert strict.fp_R == [30 + 7 + 17 + 23]
    assert strict.uncounted_R == [0]
    assert strict.tn_R == found.tn_R
    assert strict.figures()["sensitivity"] == figures["sensitivity"]


def test_supraventricular_beats_by_hand():
    found = BeatCounts.of(MATRIX, AAMI, "S")
    assert (found.tp_R, found.fn_R) == ([300], [60 + 7 + 8 + 9])
    assert (found.fp_R, found.uncounted_R) == ([20 + 12 + 16], [22])
    assert found.tn_R == [MATRIX.sum() - MATRIX[1].sum() - 20 - 12 - 16 - 22]
    strict = BeatCounts.of(MATRIX, AAMI, "S", strict=True)
    assert (strict.fp_R, strict.uncounted_R) == ([20 + 12 + 16 + 22], [0])


@pytest.mark.parametrize("classes", [("N", "S", "V", "F"), ("N", "S", "V"), ("V", "N", "S")])
def test_classes_may_be_absent_and_in_any_order(classes):
    own = [AAMI.index(name) for name in classes]
    for ectopic in DONT_CARE:
        part = MATRIX[np.ix_(own, own)]
        found = BeatCounts.of(part, classes, ectopic)
        place = AAMI.index(ectopic)
        free = sum(MATRIX[AAMI.index(n), place] for n in DONT_CARE[ectopic] if n in classes)
        others = sum(MATRIX[AAMI.index(n), place] for n in classes if n != ectopic)
        assert (found.tp_R, found.uncounted_R) == ([MATRIX[place, place]], [free])
        assert found.fp_R == [others - free]


matrices = st.lists(
    st.lists(st.lists(st.integers(0, 50), min_size=5, max_size=5), min_size=5, max_size=5),
    min_size=1,
    max_size=4,
)


@given(matrices, st.sampled_from(["S", "V"]), st.booleans())
def test_every_beat_is_counted_once(given_, ectopic, strict):
    matrix_RCC = np.array(given_)
    found = BeatCounts.of(matrix_RCC, AAMI, ectopic, strict)
    parts = (found.tp_R, found.fn_R, found.fp_R, found.tn_R, found.uncounted_R)
    np.testing.assert_array_equal(sum(parts), matrix_RCC.sum(axis=(1, 2)))
    assert all((part_R >= 0).all() for part_R in parts)
    gross = found.gross()
    whole = BeatCounts.of(matrix_RCC.sum(axis=0), AAMI, ectopic, strict)
    for name, value in gross.figures().items():
        np.testing.assert_array_equal(value, whole.figures()[name])


def test_averages_weigh_records_the_same_and_leave_out_what_has_no_figure():
    few, many, none = np.zeros((3, 5, 5), dtype=int)
    few[2, 2], few[0, 0] = 1, 9
    many[2, 2], many[2, 0], many[0, 0] = 100, 300, 9
    none[0, 0] = 50
    found = BeatCounts.of(np.stack([few, many, none]), AAMI, "V")
    assert found.average()["sensitivity"] == (1.0 + 0.25) / 2
    assert found.gross().figures()["sensitivity"] == [101 / 401]
    assert found.average()["false_positive_rate"] == 0.0
    assert np.isnan(BeatCounts.of(none, AAMI, "V").average()["sensitivity"])
    assert np.isnan(BeatCounts.of(none, AAMI, "V").average()["positive_predictivity"])


def test_beats_are_counted_by_record():
    eye = np.eye(5, dtype=np.int8)
    truth, decided = np.array([0, 2, 2, 3, 0]), np.array([0, 2, 0, 2, 1])
    records = np.array(["b", "a", "b", "a", "b"])
    names, matrix_RCC = beat_matrices(eye[truth], eye[decided], records)
    assert names.tolist() == ["a", "b"]
    assert matrix_RCC.sum() == 5
    assert matrix_RCC[0, 2, 2] == matrix_RCC[0, 3, 2] == 1
    assert matrix_RCC[1, 0, 0] == matrix_RCC[1, 2, 0] == matrix_RCC[1, 0, 1] == 1
    names, matrix_RCC = beat_matrices(eye[:0], eye[:0], records[:0])
    assert (len(names), matrix_RCC.shape) == (0, (0, 5, 5))


def test_what_cannot_be_counted_is_refused():
    eye = np.eye(3, dtype=np.int8)
    with pytest.raises(ValueError, match="one true class for each beat, came 2 for beat 1"):
        beat_matrices([[1, 0, 0], [1, 1, 0], [0, 0, 1]], eye, ["a"] * 3)
    with pytest.raises(ValueError, match="one decided class for each beat, came 0 for beat 0"):
        beat_matrices(eye, 0 * eye, ["a"] * 3)
    with pytest.raises(ValueError, match="a record for each of 3 beats, came 2"):
        beat_matrices(eye, eye, ["a"] * 2)
    with pytest.raises(ValueError, match=r"one shape \(N, C\), came \(3, 3\) and \(2, 3\)"):
        beat_matrices(eye, eye[:2], ["a"] * 3)
    with pytest.raises(ValueError, match="expected V or S, came 'F'"):
        BeatCounts.of(MATRIX, AAMI, "F")
    with pytest.raises(ValueError, match="S among them, came N, V, X"):
        BeatCounts.of(eye, ("N", "V", "X"), "S")
    with pytest.raises(ValueError, match=r"matrices of 3 by 3 classes, came \(1, 5, 5\)"):
        BeatCounts.of(MATRIX, ("N", "S", "V"), "V")
