"""Who is in which group, and metrics of some examples against the others in every resample."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from sklearn.metrics import log_loss as sklearn_log_loss

from rayecg.metrics.classification import accuracy, auroc, f1, macro_auroc
from rayecg.metrics.resamples import Resamples
from rayecg.metrics.subgroups import (
    DECISION_METRICS,
    NEAREST,
    SCORE_METRICS,
    difference_values,
    log_loss,
    values_of,
    with_point,
)
from rayecg.report.groups import (
    FEWEST_RECORDS,
    MOST,
    NOT_STATED,
    RECORD_COLUMNS,
    age_bands,
    groups_of,
    thirds,
)
from rayecg.signal.quality import FLAGS

#: What is compared is computed in float64, in another order.
CLOSE = 1e-12


def names_of(records: pd.DataFrame, by: str) -> dict[str, list[int]]:
    found, _ = groups_of(records)
    return {group.name: np.flatnonzero(group.own_N).tolist() for group in found if group.by == by}


def test_age_bands_begin_where_they_say():
    ages = np.array([0.0, 17.9, 18.0, 39.5, 40.0, 59.0, 60.0, 79.99, 80.0, 90.0, np.nan])
    bands = age_bands(ages)
    assert np.flatnonzero(bands.pop(NOT_STATED)).tolist() == [10]
    assert {name: ages[own_N].tolist() for name, own_N in bands.items()} == {
        "under 18": [0.0, 17.9],
        "18-39": [18.0, 39.5],
        "40-59": [40.0, 59.0],
        "60-79": [60.0, 79.99],
        "80 and over": [80.0, 90.0],
    }


def test_thirds_keep_equal_values_together():
    values = np.array([1.0, 1.0, 2.0, 3.0, 3.0, 4.0, np.nan])
    *inside, unknown = thirds(values, "mV").values()
    # The cuts lie at 5/3 and at 3.
    assert [values[own_N].tolist() for own_N in inside] == [[1.0, 1.0], [2.0, 3.0, 3.0], [4.0]]
    assert np.flatnonzero(unknown).tolist() == [6]
    assert thirds(np.array([np.nan]), "mV") == {}
    alike = thirds(np.full(4, 0.5), "mV")
    assert [own_N.sum() for own_N in alike.values()] == [4, 0, 0, 0]


def test_thirds_name_their_ends():
    names = list(thirds(np.arange(1.0, 301.0) / 1e4, "mV"))
    assert names[0] == "lowest third, ≤0.0101 mV"
    assert names[2] == "highest third, >0.02 mV"
    assert names[3] == NOT_STATED


def test_rare_sites_are_put_together_and_counted():
    n_of = {"A": 9, "B": 30, **{f"s{i}": FEWEST_RECORDS + i for i in range(MOST)}, "z": 1}
    sites = [name for name, n in n_of.items() for _ in range(n)] + [None, NOT_STATED]
    found = names_of(pd.DataFrame({"site": sites}), "site")
    assert next(iter(found)) == "B"
    sizes = [len(own) for name, own in found.items() if name in n_of]
    assert len(sizes) == MOST
    assert sizes == sorted(sizes, reverse=True)
    assert f"other sites ({len(n_of) - MOST})" in found
    assert len(found[NOT_STATED]) == 2
    assert sum(map(len, found.values())) == len(sites)


def test_a_single_rare_site_keeps_its_name():
    found = names_of(pd.DataFrame({"site": ["A"] * 6 + ["B"]}), "site")
    assert found == {"A": [0, 1, 2, 3, 4, 5], "B": [6]}


def test_devices_that_differ_in_blanks_are_one():
    found = names_of(pd.DataFrame({"device": ["CS-12   E"] * 3 + ["CS-12 E"] * 3}), "device")
    assert found == {"CS-12 E": list(range(6))}


def test_flags_group_by_kind_and_by_whether_the_signal_is_bad():
    flags = [[], ["noise:V1", "noise:II"], ["noise:I", "wander:II"], ["duplicate:r1"], None]
    records = pd.DataFrame({"flags": flags})
    assert names_of(records, "quality") == {
        "flagged": [1, 2],
        "not flagged": [0, 3],
        NOT_STATED: [4],
    }
    assert names_of(records, "flag") == {"noise": [1, 2], "duplicate": [3], "wander": [2]}


def test_noise_is_the_mean_of_the_leads_that_have_it():
    lists = [[0.01, np.nan], [0.03, 0.03], [0.08, 0.10], None]
    found = names_of(pd.DataFrame({"noise_mv": lists}), "noise")
    assert list(found.values()) == [[0], [1], [2], [3]]


def test_what_nobody_states_is_named():
    records = pd.DataFrame({"age": [50.0, 60.0], "sex": [None, None], "flags": [[], []]})
    found, absent = groups_of(records)
    assert absent == ["sex", "site", "device", "flag", "noise", "wander"]
    assert [(group.by, group.name) for group in found] == [
        ("age", "40-59"),
        ("age", "60-79"),
        ("quality", "not flagged"),
    ]


text = st.none() | st.sampled_from(["A", "B", " B", "c d", "c  d", NOT_STATED])
kinds = st.none() | st.lists(st.sampled_from(["noise:I", "wander:V2", "einthoven", "gaps"]))
measure = st.none() | st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=3)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "age": st.none() | st.floats(0, 120),
            "sex": st.none() | st.sampled_from("MFX"),
            "site": text,
            "device": text,
            "flags": kinds,
            "noise_mv": measure,
            "wander_mv": measure,
        }
    ),
    min_size=1,
    max_size=30,
)


@given(rows)
def test_every_record_is_in_one_group_of_each_kind(given_rows):
    records = pd.DataFrame(given_rows, columns=list(RECORD_COLUMNS))
    found, absent = groups_of(records)
    assert all(group.own_N.any() for group in found)
    for by in ("age", "sex", "site", "device", "quality", "noise", "wander"):
        own = [group.own_N for group in found if group.by == by]
        assert bool(own) != (by in absent)
        if own:
            assert (np.sum(own, axis=0) == 1).all(), by
    for group in found:
        if group.by == "flag":
            carried = [
                any(flag.startswith(group.name) for flag in row["flags"] or ())
                for row in given_rows
            ]
            assert group.own_N.tolist() == carried
        if (group.by, group.name) == ("quality", "flagged"):
            bad = [
                any(flag.partition(":")[0] in FLAGS for flag in row["flags"] or ())
                for row in given_rows
            ]
            assert group.own_N.tolist() == bad


def study(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Forty examples of nine patients, three labels, the last never in the first half."""
    rng = np.random.default_rng(seed)
    targets_NC = rng.random((40, 3)) < 0.4
    own_N = np.arange(40) < 20
    targets_NC[own_N, 2] = False
    return targets_NC, rng.random((40, 3)).round(1), rng.integers(0, 9, 40), own_N


def expanded(resamples: Resamples, groups_N: np.ndarray, r: int) -> np.ndarray:
    return np.repeat(np.arange(len(groups_N)), resamples.counts_GR[resamples.index(groups_N), r])


@pytest.mark.parametrize("metric", ["specificity", "npv"])
def test_metrics_of_a_labels_absence(metric):
    targets_NC, scores_NC, groups_N, _ = study()
    decisions_NC = scores_NC > 0.5
    resamples = Resamples.of(groups_N, 30)
    found = values_of(metric, targets_NC, decisions_NC.astype(float), groups_N, resamples)
    for r in range(30):
        rows_N = expanded(resamples, groups_N, r)
        for c in range(3):
            (tn, fp), (fn, _) = confusion_matrix(
                targets_NC[rows_N, c], decisions_NC[rows_N, c], labels=[False, True]
            )
            below = tn + (fp if metric == "specificity" else fn)
            assert found[r, c] == pytest.approx(tn / below, abs=CLOSE)


def test_without_examples_every_metric_is_undefined():
    nothing = np.zeros((0, 3))
    resamples = Resamples.of(np.arange(5), 4)
    for metric in (*SCORE_METRICS, *DECISION_METRICS):
        values = values_of(metric, nothing, nothing, np.zeros(0, int), resamples)
        assert values.shape == (4, 3)
        assert np.isnan(values).all()
    values = values_of("accuracy", nothing, nothing, np.zeros(0, int), resamples)
    assert values.shape == (4, 1)
    assert np.isnan(values).all()


@pytest.mark.parametrize("metric", ["auroc", "f1", "accuracy"])
def test_difference_is_own_less_rest_in_the_same_resample(metric):
    targets_NC, scores_NC, groups_N, own_N = study()
    by_label = {"auroc": auroc, "f1": f1}
    values_NC = scores_NC if metric == "auroc" else (scores_NC > 0.5).astype(float)
    resamples = with_point(Resamples.of(groups_N, 20))
    assert (resamples.counts_GR[:, 0] == 1).all()
    assert resamples.n_resamples == 21
    found = difference_values(metric, targets_NC, values_NC, groups_N, own_N, resamples)
    for r in range(21):
        rows_N = expanded(resamples, groups_N, r)
        sides = [rows_N[own_N[rows_N] == side] for side in (True, False)]
        if metric == "accuracy":
            own, rest = (accuracy(targets_NC[s], values_NC[s]) for s in sides)
            assert found[r, 0] == pytest.approx(own - rest, abs=CLOSE, nan_ok=True)
            continue
        for c in range(3):
            own, rest = (by_label[metric](targets_NC[s, c], values_NC[s, c]) for s in sides)
            assert found[r, c] == pytest.approx(own - rest, abs=CLOSE, nan_ok=True)
    if metric != "accuracy":
        assert np.isnan(found[:, 2]).all()
        assert not np.isnan(found[0, :2]).any()
        whole = macro_auroc(targets_NC[own_N, :2], scores_NC[own_N, :2])
        rest = macro_auroc(targets_NC[~own_N, :2], scores_NC[~own_N, :2])
        if metric == "auroc":
            assert found[0, :2].mean() == pytest.approx(whole - rest, abs=CLOSE)


def test_log_loss_is_that_of_scikit_learn():
    rng = np.random.default_rng(3)
    probability_NC = rng.dirichlet(np.ones(4), size=25)
    truth_N = rng.integers(0, 4, 25)
    targets_NC = np.eye(4, dtype=bool)[truth_N]
    found_N = log_loss(targets_NC, probability_NC, exclusive=True)
    expected = sklearn_log_loss(truth_N, probability_NC, labels=range(4))
    assert found_N.mean() == pytest.approx(expected, abs=CLOSE)
    many_NC = rng.random((25, 4)) < 0.3
    found_N = log_loss(many_NC, probability_NC, exclusive=False)
    expected = np.mean(
        [sklearn_log_loss(many_NC[:, c], probability_NC[:, c], labels=[0, 1]) for c in range(4)]
    )
    assert found_N.mean() == pytest.approx(expected, abs=CLOSE)


def test_a_certain_error_costs_what_is_stated():
    found_N = log_loss(np.array([[True, False]]), np.array([[0.0, 0.0]]), exclusive=False)
    expected = (-np.log(NEAREST) - np.log(1 - NEAREST)) / 2
    assert found_N == pytest.approx([expected], abs=CLOSE)
