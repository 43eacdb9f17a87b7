"""Scores of the CinC challenges: by hand, and against loops over examples and labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayecg.core.experiment import TaskSettings
from rayecg.metrics.challenge import NORMAL, beta_measures, challenge_score, challenge_weights
from rayecg.tasks.task import load_task

#: Both sides add up at most a few hundred float64 of at most 1, and divide by what is near 1.
EXACT = {"rel": 1e-10, "abs": 1e-10, "nan_ok": True}
#: Label 0 is the normal one.
WEIGHTS = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.75, 1.0]])


def test_score_by_hand():
    targets_NC = [[0, 1, 0], [1, 0, 0], [0, 1, 1]]
    decisions_NC = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    # Row 1: 0.25 over the two labels that it has or is given. Row 2: 1. Row 3: (1 + 0.75) / 2.
    own = 0.25 / 2 + 1 + 1.75 / 2
    # The perfect one has every pair of labels of an example: (1 + 0.25 + 0.75 + 1) / 2 in row 3.
    perfect = 1 + 1 + 3 / 2
    # Everybody normal: 0.5 over 2, 1 over 1, (0.5 + 0) over 3.
    inactive = 0.5 / 2 + 1 + 0.5 / 3
    expected = (own - inactive) / (perfect - inactive)
    assert challenge_score(targets_NC, decisions_NC, WEIGHTS, 0) == pytest.approx(expected, **EXACT)


def test_perfect_is_one_and_everybody_normal_is_zero():
    rng = np.random.default_rng(0)
    targets_NC = rng.random((50, 3)) < 0.4
    inactive_NC = np.tile([True, False, False], (50, 1))
    assert challenge_score(targets_NC, targets_NC, WEIGHTS, 0) == 1
    assert challenge_score(targets_NC, inactive_NC, WEIGHTS, 0) == 0
    assert challenge_score(targets_NC, 0 * targets_NC, WEIGHTS, 0) < 0


def test_score_is_none_where_both_ends_are_one():
    for targets_NC in (np.zeros((4, 3)), np.tile([1, 0, 0], (4, 1)), np.zeros((0, 3))):
        assert np.isnan(challenge_score(targets_NC, targets_NC, WEIGHTS, 0))


def by_pairs(targets_NC, decisions_NC, weights_CC) -> float:
    """What is earned, one example and one pair of labels after another."""
    earned = 0.0
    for true, decided in zip(targets_NC, decisions_NC, strict=True):
        own = [c for c, is_it in enumerate(true) if is_it]
        given_ = [c for c, is_it in enumerate(decided) if is_it]
        for row in own:
            for column in given_:
                earned += weights_CC[row, column] / len({*own, *given_})
    return earned


tables = st.lists(
    st.tuples(
        st.lists(st.booleans(), min_size=3, max_size=3),
        st.lists(st.booleans(), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=30,
)


@given(tables, st.integers(0, 2))
def test_score_is_that_of_a_loop(rows, normal):
    targets_NC, decisions_NC = (np.array(part) for part in zip(*rows, strict=True))
    inactive_NC = np.zeros_like(targets_NC)
    inactive_NC[:, normal] = True
    perfect = by_pairs(targets_NC, targets_NC, WEIGHTS)
    inactive = by_pairs(targets_NC, inactive_NC, WEIGHTS)
    found = challenge_score(targets_NC, decisions_NC, WEIGHTS, normal)
    if abs(perfect - inactive) < 1e-9:
        assert np.isnan(found)
    else:
        own = by_pairs(targets_NC, decisions_NC, WEIGHTS)
        assert found == pytest.approx((own - inactive) / (perfect - inactive), **EXACT)


def test_wrong_weights_are_refused():
    targets_NC = np.eye(3)
    with pytest.raises(ValueError, match=r"each pair of 3 labels, came \(2, 2\)"):
        challenge_score(targets_NC, targets_NC, WEIGHTS[:2, :2], 0)
    with pytest.raises(ValueError, match="finite"):
        challenge_score(targets_NC, targets_NC, np.full((3, 3), np.nan), 0)
    for normal in (-1, 3):
        with pytest.raises(ValueError, match=f"one of 3 labels, came {normal}"):
            challenge_score(targets_NC, targets_NC, WEIGHTS, normal)
    with pytest.raises(ValueError, match=r"one shape \(N, C\)"):
        challenge_score(targets_NC, targets_NC[:2], WEIGHTS, 0)


def test_published_weights_are_of_the_tasks_labels():
    labels = load_task(TaskSettings("cinc_snomed")).label_names
    weights_CC = challenge_weights(labels)
    assert weights_CC.shape == (26, 26)
    assert NORMAL in labels
    np.testing.assert_array_equal(np.diag(weights_CC), 1)
    np.testing.assert_array_equal(weights_CC, weights_CC.T)
    # Some of the published cells.
    of = {label: i for i, label in enumerate(labels)}
    for pair, weight in (
        (("AF", "AFL"), 0.5),
        (("NSR", "QAb"), 0.15),
        (("CLBBB", "CRBBB"), 0.425),
        (("PAC", "PVC"), 0.4625),
        (("TAb", "TInv"), 0.5),
        (("PRWP", "SB"), 0.375),
    ):
        assert weights_CC[of[pair[0]], of[pair[1]]] == weight
    # A weight is 0.5 less a distance on one line, on which sinus rhythm is the first; two pairs at
    # one place each earn less than that.
    place_C = 0.5 - weights_CC[of["NSR"]]
    place_C[of["NSR"]] = 0
    expected_CC = 0.5 - np.abs(place_C[:, None] - place_C)
    np.fill_diagonal(expected_CC, 1)
    for pair in (("BBB", "CLBBB"), ("LQRSV", "PRWP")):
        row, column = (of[label] for label in pair)
        expected_CC[[row, column], [column, row]] -= 0.025
    np.testing.assert_allclose(weights_CC, expected_CC, rtol=0, atol=1e-12)


def test_weights_come_in_the_order_asked_for(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("# ours\n,a,b,c\na,1,2,3\nb,4,5,6\nc,7,8,9\n")
    np.testing.assert_array_equal(challenge_weights(("c", "a"), file), [[9, 7], [3, 1]])
    with pytest.raises(ValueError, match=r"mine\.csv: no row for d; there are a, b, c"):
        challenge_weights(("a", "d"), file)
    file.write_text(",a,b\na,1,x\nb,1,1\n")
    with pytest.raises(ValueError, match=r"mine\.csv: expected 2 numbers in row a, came 1,x"):
        challenge_weights(("b",), file)
    for names in (",a,b\nb,1,1\na,1,1\n", ",a,a\na,1,1\na,1,1\n", ",a,b\na,1,1\n"):
        file.write_text(names)
        with pytest.raises(ValueError, match="the same names"):
            challenge_weights(("a",), file)


def by_examples(targets_NC, decisions_NC, beta) -> tuple[float, float]:
    """F-beta and G-beta of the challenge, one example after another."""
    f, g = [], []
    for c in range(targets_NC.shape[1]):
        tp = fp = fn = 0.0
        for true, decided in zip(targets_NC, decisions_NC, strict=True):
            weight = 1 / max(sum(true), 1)
            tp += weight * (true[c] and decided[c])
            fp += weight * (decided[c] and not true[c])
            fn += weight * (true[c] and not decided[c])
        if tp + fp + fn:
            f.append((1 + beta**2) * tp / ((1 + beta**2) * tp + fp + beta**2 * fn))
            g.append(tp / (tp + fp + beta * fn))
    return (float(np.mean(f)), float(np.mean(g))) if f else (float("nan"), float("nan"))


@given(tables, st.sampled_from([0.5, 1.0, 2.0]))
def test_beta_measures_are_those_of_a_loop(rows, beta):
    targets_NC, decisions_NC = (np.array(part) for part in zip(*rows, strict=True))
    expected = by_examples(targets_NC, decisions_NC, beta)
    assert beta_measures(targets_NC, decisions_NC, beta) == pytest.approx(expected, **EXACT)


def test_beta_measures_by_hand():
    # Label 0: a hit worth 1/2 and a miss worth 1. Label 1: a hit worth 1/2, a false alarm worth 1.
    # Label 2: nobody has it, and it is given once (worth 1). Label 3 is nowhere.
    targets_NC = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    decisions_NC = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    f2, g2 = beta_measures(targets_NC, decisions_NC)
    assert f2 == pytest.approx((2.5 / (2.5 + 4) + 2.5 / (2.5 + 1) + 0) / 3, **EXACT)
    assert g2 == pytest.approx((0.5 / (0.5 + 2) + 0.5 / (0.5 + 1) + 0) / 3, **EXACT)
