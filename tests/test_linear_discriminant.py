"""Linear discriminant analysis as a module: scikit-learn's, held in a state dict."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from rayecg.core.experiment import STANDARD_LEADS
from rayecg.models.catalogue import ModelInputs, count_parameters
from rayecg.models.fitting import NEVER
from rayecg.models.linear_discriminant import LinearDiscriminant

N_COLUMNS = 5
SIDE = tuple(f"column{i}" for i in range(N_COLUMNS))
INPUTS = ModelInputs(STANDARD_LEADS, 250, 100, SIDE)


def drawn(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw three classes of unequal size, columns of unequal scale, and one that never changes."""
    rng = np.random.default_rng(seed)
    class_N = rng.choice(3, size=n, p=(0.7, 0.2, 0.1))
    centre_CM = np.array([[0, 0, 0, 0, 7], [1, -1, 0.5, 0, 7], [-1, 2, 0, 1, 7]])
    side_NM = centre_CM[class_N] + rng.normal(size=(n, N_COLUMNS)) * (1, 1, 2, 1, 0)
    return (side_NM * (1, 10, 1, 0.1, 1)).astype(np.float32), class_N


def one_hot(class_N: np.ndarray, n_outputs: int = 3) -> np.ndarray:
    return np.eye(n_outputs, dtype=np.float32)[class_N]


def fitted(weight_C=None, n_outputs: int = 3, kind="multiclass", **changes) -> LinearDiscriminant:
    side_NM, class_N = drawn()
    model = LinearDiscriminant(INPUTS, n_outputs, **changes).eval()
    model.fit(side_NM, one_hot(class_N, n_outputs), kind, weight_C, 0)
    return model


def logits(model: LinearDiscriminant, side_NM: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.zeros(len(side_NM), 12, 250), torch.from_numpy(side_NM)).numpy()


@pytest.mark.parametrize("weighted", [False, True])
def test_classes_are_told_as_scikit_learn_tells_them(weighted: bool) -> None:
    side_NM, class_N = drawn()
    counts_C = np.bincount(class_N)
    weight_C = 1 / counts_C if weighted else None
    found_NC = logits(fitted(weight_C, shrinkage=0.0), drawn(seed=1)[0])
    priors_C = np.full(3, 1 / 3) if weighted else counts_C / len(class_N)
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=priors_C)
    reference.fit(side_NM[:, :4].astype(np.float64), class_N)
    expected_NC = reference.decision_function(drawn(seed=1)[0][:, :4])
    # Ours has a ridge of 1e-6 for columns that never change; what all classes share says nothing.
    centred = [values - values[:, :1] for values in (found_NC, expected_NC)]
    np.testing.assert_allclose(*centred, rtol=1e-4, atol=1e-3)


def test_labels_that_exclude_nothing_are_each_set_against_their_absence() -> None:
    side_NM, class_N = drawn()
    found_NC = logits(fitted(kind="multilabel", shrinkage=0.0), side_NM)
    for label in range(3):
        own_N = (class_N == label).astype(int)
        reference = LinearDiscriminantAnalysis(solver="lsqr").fit(side_NM[:, :4], own_N)
        expected_N = reference.decision_function(side_NM[:, :4])
        np.testing.assert_allclose(found_NC[:, label], expected_N, rtol=1e-4, atol=1e-3)


def test_what_is_not_known_is_the_mean() -> None:
    side_NM, class_N = drawn()
    side_NM[::7, 1] = np.nan
    model = LinearDiscriminant(INPUTS, 3)
    model.fit(side_NM, one_hot(class_N), "multiclass", None, 0)
    beside_NM = side_NM.copy()
    beside_NM[::7, 1] = np.nanmean(side_NM[:, 1].astype(np.float64))
    np.testing.assert_allclose(logits(model, side_NM), logits(model, beside_NM), atol=1e-4)
    assert np.isfinite(logits(model, np.full((2, N_COLUMNS), np.nan, dtype=np.float32))).all()


def test_a_class_without_examples_never_wins() -> None:
    side_NM, _ = drawn()
    far_NM = np.concatenate([side_NM, 1e4 * side_NM])
    found_NC = logits(fitted(n_outputs=4), far_NM)
    assert (found_NC[:, 3] <= found_NC[:, :3].min(axis=1) + NEVER + 1e-3).all()
    many = logits(fitted(n_outputs=4, kind="multilabel"), far_NM)
    assert (many[:, 3] == NEVER).all()
    everyone = LinearDiscriminant(INPUTS, 1)
    everyone.fit(side_NM, np.ones((len(side_NM), 1)), "multilabel", None, 0)
    assert (logits(everyone, far_NM) == -NEVER).all()
    alone = LinearDiscriminant(INPUTS, 2)
    alone.fit(side_NM, one_hot(np.zeros(len(side_NM), dtype=int), 2), "multiclass", None, 0)
    assert (logits(alone, side_NM).argmax(axis=1) == 0).all()


def test_it_extrapolates() -> None:
    """A value beyond all training examples speaks more strongly than the furthest of them."""
    model = fitted()
    line_NM = np.tile(drawn()[0].mean(axis=0), (3, 1)).astype(np.float32)
    line_NM[:, 0] = (0, 10, 20)
    found_NC = logits(model, line_NM)
    steps = np.diff(found_NC[:, 1] - found_NC[:, 0])
    assert steps[0] > 0
    assert steps[1] == pytest.approx(steps[0], rel=1e-4)


def test_the_state_is_the_model(tmp_path) -> None:
    side_NM, _ = drawn()
    model = fitted(np.array([1.0, 2.0, 3.0]))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other = LinearDiscriminant(INPUTS, 3).eval()
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    np.testing.assert_array_equal(logits(other, side_NM), logits(model, side_NM))
    # A record's logits do not depend on the others of its batch.
    np.testing.assert_allclose(logits(model, side_NM[:1]), logits(model, side_NM)[:1], rtol=1e-6)
    assert count_parameters(model) == 3 * (N_COLUMNS + 1)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="side inputs"):
        LinearDiscriminant(ModelInputs(STANDARD_LEADS, 250, 100), 3)
    with pytest.raises(ValueError, match="shrinkage: expected 0 to 1, came 2"):
        LinearDiscriminant(INPUTS, 3, shrinkage=2)
    with pytest.raises(ValueError, match="3 targets of at least one example"):
        LinearDiscriminant(INPUTS, 3).fit(np.zeros((0, 5)), np.zeros((0, 3)), "multiclass", None, 0)
