"""Gradient boosting as a module: the same trees as scikit-learn's, held in a state dict."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from rayecg.core.experiment import STANDARD_LEADS
from rayecg.models.catalogue import ModelInputs, count_parameters
from rayecg.models.feature_boosting import FeatureBoosting
from rayecg.models.fitting import NEVER

N_COLUMNS = 6
SIDE = tuple(f"column{i}" for i in range(N_COLUMNS))
INPUTS = ModelInputs(STANDARD_LEADS, 250, 100, SIDE)
SMALL = {"max_iter": 12, "max_leaf_nodes": 7, "max_depth": 4, "min_samples_leaf": 5}


def drawn(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw columns with NaN among them, and three classes that they tell apart."""
    rng = np.random.default_rng(seed)
    side_NM = rng.normal(size=(n, N_COLUMNS)).astype(np.float32)
    side_NM[:, 3] = np.round(side_NM[:, 3])  # ties lie on thresholds
    class_N = (side_NM[:, 0] > 0.3).astype(int) + (side_NM[:, 1] * side_NM[:, 3] > 0.5)
    unknown_NM = rng.random(side_NM.shape) < 0.1
    unknown_NM[:, 2] = class_N == 2  # a column whose absence alone tells
    side_NM[unknown_NM] = np.nan
    return side_NM, class_N


def one_hot(class_N: np.ndarray, n_outputs: int) -> np.ndarray:
    return np.eye(n_outputs, dtype=np.float32)[class_N]


def fitted(seed: int = 0, n_outputs: int = 3, **changes) -> FeatureBoosting:
    model = FeatureBoosting(INPUTS, n_outputs, **{**SMALL, **changes}).eval()
    side_NM, class_N = drawn()
    model.fit(side_NM, one_hot(class_N, n_outputs), "multiclass", None, seed)
    return model


def logits(model: FeatureBoosting, side_NM: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        found = model(torch.zeros(len(side_NM), 12, 250), torch.from_numpy(side_NM))
    assert found.dtype == torch.float32
    return found.numpy()


def assert_same_score(found_NC: np.ndarray, expected_NC: np.ndarray, n_trees: int) -> None:
    """Compare with float64 scores that were added in another order, and ours rounded to float32.

    Each of at most `n_trees` additions in float64 errs by half an epsilon of a partial sum, here
    below 100; rounding the result to float32 errs by half an epsilon of it.
    """
    in_float64 = 100 * n_trees * np.finfo(np.float64).eps
    rounding = np.finfo(np.float32).eps / 2
    np.testing.assert_allclose(found_NC, expected_NC, rtol=rounding, atol=2 * in_float64)


def reference(side_NM, class_N, weight_N=None, seed=0) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        **{"learning_rate": 0.1, "l2_regularization": 1.0, "max_features": 0.5, **SMALL},
        early_stopping=False,
        random_state=seed,
    ).fit(side_NM, class_N, sample_weight=weight_N)


@pytest.mark.parametrize("weight_C", [None, np.array([1.0, 3.0, 0.5])])
def test_classes_are_scored_as_scikit_learn_scores_them(weight_C):
    side_NM, class_N = drawn()
    model = FeatureBoosting(INPUTS, 3, **SMALL)
    model.fit(side_NM, one_hot(class_N, 3), "multiclass", weight_C, seed=3)
    weight_N = None if weight_C is None else weight_C[class_N]
    other_NM, other_N = drawn(1000, seed=1)
    other_NM[::100] = np.inf
    expected_NC = reference(side_NM, class_N, weight_N, seed=3).decision_function(other_NM)
    found_NC = logits(model, other_NM)
    assert_same_score(found_NC, expected_NC, SMALL["max_iter"] + 1)
    assert (found_NC.argmax(axis=1) == other_N).mean() > 0.75


def test_labels_are_scored_as_scikit_learn_scores_each():
    side_NM, class_N = drawn()
    target_NC = np.stack([class_N > 0, class_N == 1, class_N < 0, class_N >= 0], axis=1)
    weight_C = np.array([1.0, 4.0, 0.0, 1.0])
    model = FeatureBoosting(INPUTS, 4, **SMALL)
    model.fit(side_NM, target_NC, "multilabel", weight_C, seed=0)
    found_NC = logits(model, side_NM)
    for label in (0, 1):
        own_N = target_NC[:, label]
        trees = reference(side_NM, own_N, np.where(own_N, weight_C[label], 1.0))
        expected_N = trees.decision_function(side_NM)
        assert_same_score(found_NC[:, label], expected_N, SMALL["max_iter"] + 1)
    assert (found_NC[:, 2] == NEVER).all()
    assert (found_NC[:, 3] == -NEVER).all()


def test_absent_classes_are_never_chosen_and_stay_finite():
    side_NM, class_N = drawn()
    two = class_N < 2
    model = FeatureBoosting(INPUTS, 5, **SMALL)
    model.fit(side_NM[two], one_hot(2 * class_N[two] + 1, 5), "multiclass", None, seed=0)
    found_NC = logits(model, side_NM)
    assert (found_NC[:, [0, 2, 4]] == NEVER).all()
    assert (found_NC[:, 1] == 0).all()
    expected_N = reference(side_NM[two], class_N[two]).decision_function(side_NM)
    assert_same_score(found_NC[:, 3], expected_N, SMALL["max_iter"] + 1)
    model.fit(side_NM[:3], one_hot(np.full(3, 4), 5), "multiclass", None, seed=0)
    assert logits(model, side_NM[:2]).tolist() == [[NEVER] * 4 + [0.0]] * 2


def test_trees_may_reach_the_whole_capacity():
    model = fitted(max_leaf_nodes=9, max_depth=8, min_samples_leaf=1, max_features=1.0)
    side_NM, class_N = drawn()
    trees = HistGradientBoostingClassifier(
        max_iter=12,
        max_leaf_nodes=9,
        max_depth=8,
        min_samples_leaf=1,
        l2_regularization=1.0,
        early_stopping=False,
    ).fit(side_NM, class_N)
    sizes = [len(tree.nodes) for series in trees._predictors for tree in series]
    assert max(sizes) == model.value_CIK.shape[2]
    assert model.n_parameters == sum(sizes)
    assert_same_score(logits(model, side_NM), trees.decision_function(side_NM), 13)


def test_a_constant_target_column_or_table_of_unknowns_is_no_trouble():
    side_NM, class_N = drawn()
    side_NM[:, 1] = np.nan
    side_NM[:, 4] = 2.5
    model = FeatureBoosting(INPUTS, 3, **SMALL)
    model.fit(side_NM, one_hot(class_N, 3), "multiclass", None, seed=0)
    assert np.isfinite(logits(model, np.full((2, N_COLUMNS), np.nan, np.float32))).all()
    model.fit(np.full_like(side_NM, np.nan), one_hot(class_N, 3), "multiclass", None, seed=0)
    found_NC = logits(model, side_NM)
    assert (found_NC == found_NC[0]).all()


# What tests/test_models.py asks of networks, of fitted trees.


def test_before_fitting_every_logit_is_zero():
    model = FeatureBoosting(INPUTS, 4)
    assert (logits(model, drawn()[0]) == 0).all()
    assert model.n_parameters == 4 * 200
    assert count_parameters(model) == 4 * 200


def test_fitting_again_forgets_the_first_time():
    model = fitted()
    side_NM, class_N = drawn(60, seed=5)
    target_NC = one_hot(class_N, 3)
    model.fit(side_NM, target_NC, "multiclass", None, seed=0)
    fresh = FeatureBoosting(INPUTS, 3, **SMALL)
    fresh.fit(side_NM, target_NC, "multiclass", None, seed=0)
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_the_state_is_all_that_tells_two_apart(tmp_path):
    first, second = fitted(), FeatureBoosting(INPUTS, 3, **SMALL)
    side_NM, _ = drawn(50, seed=2)
    assert not np.array_equal(logits(first, side_NM), logits(second, side_NM))
    safetensors.torch.save_file(first.state_dict(), tmp_path / "trees.safetensors")
    second.load_state_dict(safetensors.torch.load_file(tmp_path / "trees.safetensors"))
    np.testing.assert_array_equal(logits(first, side_NM), logits(second, side_NM))


def test_the_seed_decides_the_trees():
    first, again, other = (fitted(seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_record_s_output_does_not_depend_on_the_others():
    model = fitted()
    side_NM, _ = drawn(9, seed=4)
    kept_NM = side_NM.copy()
    together_NC = logits(model, side_NM)
    np.testing.assert_array_equal(side_NM, kept_NM)
    np.testing.assert_array_equal(logits(model, side_NM), together_NC)
    np.testing.assert_array_equal(logits(model, side_NM[::-1].copy())[::-1], together_NC)
    spoilt_NM = side_NM.copy()
    spoilt_NM[1] = np.nan
    spoilt_NC = logits(model, spoilt_NM)
    assert np.isfinite(spoilt_NC).all()
    rest = np.arange(9) != 1
    np.testing.assert_array_equal(spoilt_NC[rest], together_NC[rest])


def test_the_window_is_not_read():
    model = fitted()
    side_BM = torch.from_numpy(drawn(4)[0])
    with torch.inference_mode():
        expected_BC = model(torch.zeros(4, 12, 250), side_BM)
        assert torch.equal(model(torch.full((4, 1, 7), torch.nan), side_BM), expected_BC)


def test_it_is_built_without_memory_on_the_meta_device():
    with torch.device("meta"):
        model = FeatureBoosting(INPUTS, 5)
        found = model(torch.zeros(2, 12, 250), torch.zeros(2, N_COLUMNS))
    assert found.shape == (2, 5)
    assert found.is_meta


@pytest.mark.parametrize(
    ("inputs", "changes", "expected"),
    [
        (ModelInputs(STANDARD_LEADS, 250, 100), {}, "expected side inputs .* came none"),
        (INPUTS, {"max_iter": 0}, "max_iter"),
        (INPUTS, {"max_leaf_nodes": 1}, "max_leaf_nodes"),
        (INPUTS, {"max_features": 0.0}, "max_features"),
        (INPUTS, {"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_what_cannot_be_built_is_refused(inputs, changes, expected):
    with pytest.raises(ValueError, match=expected):
        FeatureBoosting(inputs, 3, **changes)


def test_examples_that_do_not_fit_are_refused():
    side_NM, class_N = drawn()
    model = FeatureBoosting(INPUTS, 3, **SMALL)
    with pytest.raises(ValueError, match=r"3 targets .* came shapes \(400, 6\) and \(400, 4\)"):
        model.fit(side_NM, one_hot(class_N, 4), "multiclass", None, seed=0)
    with pytest.raises(ValueError, match=r"came shapes \(0, 6\)"):
        model.fit(side_NM[:0], one_hot(class_N[:0], 3), "multiclass", None, seed=0)
    with pytest.raises(ValueError, match="weights above 0 of labels that occur"):
        model.fit(side_NM, one_hot(class_N, 3), "multilabel", np.array([1.0, 0.0, 1.0]), seed=0)


def test_importing_it_does_not_import_scikit_learn():
    script = "import sys, rayecg.models.feature_boosting; assert 'sklearn' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
