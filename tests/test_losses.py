"""Losses: worked values, published limits, gradients, extreme logits; class weights."""

from __future__ import annotations

import itertools
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch.nn import functional

from rayecg.core.errors import SettingsError
from rayecg.core.train_settings import LossSettings
from rayecg.train.losses import LOSSES, check_loss, class_weights, make_loss

CPU = torch.device("cpu")
#: Values worked by hand are written with six digits: half of the last one is 5e-6 at most.
WORKED = {"rel": 5e-6}
#: Some of each loss; gammas below 1 have an infinite slope where nothing is missed.
SETTINGS = {
    "multilabel": (
        LossSettings("bce"),
        LossSettings("focal"),
        LossSettings("focal", gamma=0.3, alpha=0.25),
        LossSettings("focal", gamma=2.135, alpha=0.434),
        LossSettings("asymmetric"),
        LossSettings("asymmetric", gamma_positive=0.5, gamma_negative=0.3, clip=0.2),
        LossSettings("asymmetric", gamma_positive=1, gamma_negative=2, clip=0),
    ),
    "multiclass": (
        LossSettings("cross_entropy"),
        LossSettings("focal"),
        LossSettings("focal", gamma=0.3),
    ),
}
every_loss = pytest.mark.parametrize(
    ("kind", "settings"),
    [(kind, settings) for kind, several in SETTINGS.items() for settings in several],
    ids=lambda value: value if isinstance(value, str) else f"{value.name}-{value.gamma}",
)


def loss_of(kind, settings, logits, targets, weights=None, dtype=torch.float64):
    weight_C = None if weights is None else np.array(weights)
    loss = make_loss(kind, settings, weight_C, CPU)
    return loss(torch.tensor(logits, dtype=dtype), torch.tensor(targets, dtype=dtype))


def drawn(kind, n=7, n_labels=4, soft=False):
    """Give logits and targets in float64."""
    generator = torch.Generator().manual_seed(3)
    logit_NC = 2 * torch.randn(n, n_labels, generator=generator, dtype=torch.float64)
    if kind == "multilabel":
        target_NC = torch.rand(n, n_labels, generator=generator, dtype=torch.float64)
        return logit_NC, target_NC if soft else target_NC.round()
    first_N, second_N = torch.randint(n_labels, (2, n), generator=generator)
    target_NC = functional.one_hot(first_N, n_labels).double()
    if soft:
        target_NC = 0.7 * target_NC + 0.3 * functional.one_hot(second_N, n_labels)
    return logit_NC, target_NC


def of_probability(p):
    return float(np.log(p / (1 - p)))


# By hand. Logarithms: ln 0.8 = -0.223144, ln 0.2 = -1.609438, ln 0.3 = -1.203973.
@pytest.mark.parametrize(
    ("settings", "probability", "target", "expected"),
    [
        # -ln 0.8; -ln (1 - 0.8)
        (LossSettings("bce"), 0.8, 1, 0.223144),
        (LossSettings("bce"), 0.8, 0, 1.609438),
        # 0.3 of a positive and 0.7 of a negative: 0.3 * 0.223144 + 0.7 * 1.609438
        (LossSettings("bce"), 0.8, 0.3, 1.193550),
        # 0.2^2 * 0.223144; 0.8^2 * 1.609438
        (LossSettings("focal"), 0.8, 1, 0.00892574),
        (LossSettings("focal"), 0.8, 0, 1.030040),
        # 0.3 * 0.00892574 + 0.7 * 1.030040
        (LossSettings("focal"), 0.8, 0.3, 0.723706),
        # alpha 0.25 of the positives, 0.75 of the negatives
        (LossSettings("focal", alpha=0.25), 0.8, 1, 0.00223144),
        (LossSettings("focal", alpha=0.25), 0.8, 0, 0.772530),
        # 0.2^1 * 0.223144
        (LossSettings("asymmetric", gamma_positive=1), 0.8, 1, 0.0446287),
        # shifted to 0.8 - 0.1 = 0.7: 0.7^2 * -ln 0.3 = 0.49 * 1.203973
        (LossSettings("asymmetric", gamma_negative=2, clip=0.1), 0.8, 0, 0.589947),
        # shifted to 0.25 - 0.05 = 0.2: 0.2^4 * -ln 0.8 = 0.0016 * 0.223144
        (LossSettings("asymmetric"), 0.25, 0, 0.000357030),
        # below the shift: nothing
        (LossSettings("asymmetric", clip=0.1), 0.05, 0, 0.0),
        # 0.5 * 0.0446287 + 0.5 * 0.589947
        (
            LossSettings("asymmetric", gamma_positive=1, gamma_negative=2, clip=0.1),
            0.8,
            0.5,
            0.317288,
        ),
    ],
)
def test_multilabel_losses_have_the_values_worked_by_hand(settings, probability, target, expected):
    found = loss_of("multilabel", settings, [[of_probability(probability)]], [[target]])
    assert float(found) == pytest.approx(expected, abs=1e-12, **WORKED)


# Softmax of ln 1, ln 2, ln 5 is 1/8, 2/8, 5/8; -ln 5/8 = 0.470004, -ln 2/8 = 1.386294.
@pytest.mark.parametrize(
    ("settings", "target", "expected"),
    [
        (LossSettings("cross_entropy"), [0, 0, 1], 0.470004),
        # 0.4 * 1.386294 + 0.6 * 0.470004
        (LossSettings("cross_entropy"), [0, 0.4, 0.6], 0.836520),
        # (3/8)^2 * 0.470004 = 0.140625 * 0.470004; (6/8)^2 * 1.386294 = 0.5625 * 1.386294
        (LossSettings("focal"), [0, 0, 1], 0.0660943),
        (LossSettings("focal"), [0, 1, 0], 0.779790),
        # 0.4 * 0.779790 + 0.6 * 0.0660943
        (LossSettings("focal"), [0, 0.4, 0.6], 0.351573),
    ],
)
def test_multiclass_losses_have_the_values_worked_by_hand(settings, target, expected):
    found = loss_of("multiclass", settings, [[0.0, np.log(2), np.log(5)]], [target])
    assert float(found) == pytest.approx(expected, **WORKED)


def test_a_batch_costs_the_mean_over_examples_and_labels():
    # Each: -ln 0.8, -ln 0.2, -ln 0.2, -ln 0.8: their mean is (0.223144 + 1.609438) / 2.
    x = of_probability(0.8)
    found = loss_of("multilabel", LossSettings("bce"), [[x, x], [-x, x]], [[1, 0], [1, 1]])
    assert float(found) == pytest.approx(0.916291, **WORKED)


def test_weights_scale_the_positives_of_multilabel_tasks():
    # Two labels at 0.8, weights 3 and 0.5: a positive of the first costs 3 * 0.223144 = 0.669431,
    # of the second 0.5 * 0.223144 = 0.111572; a negative 1.609438 whatever the weight.
    x, weights = of_probability(0.8), (3, 0.5)
    for targets, expected in (
        ([1, 1], (0.669431 + 0.111572) / 2),
        ([0, 1], (1.609438 + 0.111572) / 2),
        ([1, 0], (0.669431 + 1.609438) / 2),
    ):
        found = loss_of("multilabel", LossSettings("bce"), [[x, x]], [targets], weights)
        assert float(found) == pytest.approx(expected, **WORKED)
    # Focal, alpha 0.25: 3 * 0.25 * 0.2^2 * 0.223144 = 0.00669431; the negative's 0.772530.
    focal = LossSettings("focal", alpha=0.25)
    found = loss_of("multilabel", focal, [[x, x]], [[1, 0]], weights)
    assert float(found) == pytest.approx((0.00669431 + 0.772530) / 2, **WORKED)


def test_weights_weigh_the_examples_of_multiclass_tasks_by_their_class():
    # -ln 5/8 and -ln 2/8 with weights 2 and 0.5: (0.5 * 1.386294 + 2 * 0.470004) / 2.5.
    logits, weights = [[0.0, np.log(2), np.log(5)]] * 2, (7, 0.5, 2)
    targets = [[0, 1, 0], [0, 0, 1]]
    found = loss_of("multiclass", LossSettings("cross_entropy"), logits, targets, weights)
    assert float(found) == pytest.approx(0.653262, **WORKED)
    # Focal: (0.5 * 0.779790 + 2 * 0.0660943) / 2.5.
    found = loss_of("multiclass", LossSettings("focal"), logits, targets, weights)
    assert float(found) == pytest.approx(0.208834, **WORKED)


@pytest.mark.parametrize("weights", [None, (0.5, 1, 4, 0.25)])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_cross_entropy_is_torchs(weights, soft, dtype):
    logit_NC, target_NC = (value.to(dtype) for value in drawn("multilabel", soft=soft))
    weight_C = None if weights is None else torch.tensor(weights, dtype=dtype)
    expected = functional.binary_cross_entropy_with_logits(logit_NC, target_NC, pos_weight=weight_C)
    for name in ("auto", "bce"):
        loss = make_loss("multilabel", LossSettings(name), weights, CPU)
        torch.testing.assert_close(loss(logit_NC, target_NC), expected)


@pytest.mark.parametrize("weights", [None, (0.5, 1, 4, 0.25)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_is_torchs(weights, dtype):
    logit_NC, target_NC = (value.to(dtype) for value in drawn("multiclass"))
    weight_C = None if weights is None else torch.tensor(weights, dtype=dtype)
    expected = functional.cross_entropy(logit_NC, target_NC.argmax(dim=1), weight=weight_C)
    for name in ("auto", "cross_entropy"):
        loss = make_loss("multiclass", LossSettings(name), weights, CPU)
        torch.testing.assert_close(loss(logit_NC, target_NC), expected)


def test_cross_entropy_of_soft_targets_is_torchs():
    logit_NC, target_NC = drawn("multiclass", soft=True)
    loss = make_loss("multiclass", LossSettings("cross_entropy"), None, CPU)
    expected = functional.cross_entropy(logit_NC, target_NC)
    torch.testing.assert_close(loss(logit_NC, target_NC), expected)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("kind", "settings", "limit"),
    [
        ("multilabel", LossSettings("focal", gamma=0), "bce"),
        (
            "multilabel",
            LossSettings("asymmetric", gamma_positive=0, gamma_negative=0, clip=0),
            "bce",
        ),
        ("multiclass", LossSettings("focal", gamma=0), "cross_entropy"),
    ],
)
def test_without_focus_every_loss_is_the_cross_entropy(kind, settings, limit, soft):
    batch = drawn(kind, soft=soft)
    weights = np.array([0.5, 1, 4, 0.25])
    found = make_loss(kind, settings, weights, CPU)(*batch)
    assert torch.equal(found, make_loss(kind, LossSettings(limit), weights, CPU)(*batch))


def test_asymmetric_without_asymmetry_is_focal():
    batch = drawn("multilabel", soft=True)
    asymmetric = LossSettings("asymmetric", gamma_positive=1.5, gamma_negative=1.5, clip=0)
    found = make_loss("multilabel", asymmetric, None, CPU)(*batch)
    expected = make_loss("multilabel", LossSettings("focal", gamma=1.5), None, CPU)(*batch)
    assert torch.equal(found, expected)


def test_focal_with_alpha_one_half_is_half_of_it_without():
    batch = drawn("multilabel")
    halved = make_loss("multilabel", LossSettings("focal", alpha=0.5), None, CPU)(*batch)
    whole = make_loss("multilabel", LossSettings("focal"), None, CPU)(*batch)
    torch.testing.assert_close(2 * halved, whole)


@every_loss
def test_a_soft_target_costs_its_shares_of_the_hard_ones(kind, settings):
    logit_NC, one_NC = drawn(kind)
    other_NC = one_NC.roll(1, dims=0)
    loss = make_loss(kind, settings, None, CPU)
    found = loss(logit_NC, 0.3 * one_NC + 0.7 * other_NC)
    expected = 0.3 * loss(logit_NC, one_NC) + 0.7 * loss(logit_NC, other_NC)
    torch.testing.assert_close(found, expected)


@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_are_those_of_finite_differences(kind, settings, soft):
    logit_NC, target_NC = drawn(kind, soft=soft)
    # At p = clip the slope has a step: no logit within the step of the differences (1e-6).
    assert (logit_NC.sigmoid() - settings.clip).abs().min() > 1e-5
    loss = make_loss(kind, settings, np.array([0.5, 1, 4, 0.25]), CPU)
    assert torch.autograd.gradcheck(
        lambda logit_NC: loss(logit_NC, target_NC), logit_NC.requires_grad_()
    )


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_cost_finite_amounts_with_finite_gradients(kind, settings, dtype):
    values = (-100.0, -88.0, -30.0, -17.0, 0.0, 17.0, 30.0, 88.0, 100.0)
    logit_NC = torch.tensor(list(itertools.product(values, values)), dtype=dtype)
    logit_NC.requires_grad_()
    for target in ([1, 0], [0, 1], [0.4, 0.6]):
        target_NC = torch.tensor(target, dtype=dtype).expand(len(logit_NC), -1)
        loss = make_loss(kind, settings, np.array([0.5, 4]), CPU)(logit_NC, target_NC)
        (slope_NC,) = torch.autograd.grad(loss, logit_NC)
        assert loss.dtype == dtype
        assert torch.isfinite(loss)
        assert torch.isfinite(slope_NC).all()


@every_loss
def test_no_extreme_example_costs_more_than_its_logits_apart(kind, settings):
    for logits in itertools.product((-100.0, 0.0, 100.0), repeat=2):
        found = loss_of(kind, settings, [logits], [[1, 0]], dtype=torch.float32)
        assert 0 <= float(found) <= 200


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("logit", [40.0, 100.0])
def test_a_confident_mistake_costs_its_logit(kind, logit):
    # -log p is logit + log(1 + e^-logit): the logit itself, in float32 as well.
    settings = LossSettings("focal")
    if kind == "multilabel":
        found = loss_of(kind, settings, [[-logit], [logit]], [[1], [0]], dtype=torch.float32)
    else:
        found = loss_of(kind, settings, [[logit, 0.0]], [[0, 1]], dtype=torch.float32)
    assert float(found) == pytest.approx(logit, rel=1e-6)


def test_focal_of_a_hit_keeps_its_digits_in_float32():
    # p = 1 - 6.14417e-6 has three digits left of 1 - p in float32: (1 - p)^2 * (1 - p) to first order.
    found = loss_of("multilabel", LossSettings("focal"), [[12.0]], [[1]], dtype=torch.float32)
    assert float(found) == pytest.approx(6.14417e-6**3, rel=2e-5, abs=0)


def test_float32_agrees_with_float64_where_probabilities_round_to_one():
    logits, targets = [[12.0, -12.0], [20.0, -20.0]], [[1, 0], [0, 1]]
    for kind, several in SETTINGS.items():
        for settings in several:
            single = loss_of(kind, settings, logits, targets, dtype=torch.float32)
            double = loss_of(kind, settings, logits, targets)
            # float32 of terms up to 40, a few roundings each.
            torch.testing.assert_close(single.double(), double, rtol=2e-6, atol=0)


def test_negatives_below_the_shift_teach_nothing_and_positives_do():
    logit_NC = torch.full((1, 2), of_probability(0.04), requires_grad=True)
    loss = make_loss("multilabel", LossSettings("asymmetric", clip=0.05), None, CPU)
    loss(logit_NC, torch.tensor([[1.0, 0.0]])).backward()
    assert logit_NC.grad[0, 0] < 0
    assert logit_NC.grad[0, 1] == 0


def test_the_gradient_goes_through_the_focusing_factor():
    # d/dx of (1 - p)^2 * -ln p at p = 1/2, where dp/dx = 1/4:
    # (2 * (1/2) * ln(1/2) - (1/2)^2 / (1/2)) / 4 = (-0.693147 - 0.5) / 4.
    logit_NC = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    settings = LossSettings("asymmetric", gamma_positive=2)
    make_loss("multilabel", settings, None, CPU)(logit_NC, torch.ones(1, 1)).backward()
    assert float(logit_NC.grad) == pytest.approx(-0.298287, **WORKED)


def test_a_batch_of_classes_without_weight_costs_nothing():
    logit_NC = torch.tensor([[1.0, 2.0]], requires_grad=True)
    loss = make_loss("multiclass", LossSettings("cross_entropy"), np.array([0.0, 1.0]), CPU)
    found = loss(logit_NC, torch.tensor([[1.0, 0.0]]))
    found.backward()
    assert float(found.detach()) == 0
    assert torch.equal(logit_NC.grad, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("multiclass", "bce"), ("multiclass", "asymmetric"), ("multilabel", "cross_entropy")],
)
def test_a_loss_for_the_other_kind_of_task_is_refused(kind, name):
    with pytest.raises(SettingsError, match=f"train.loss.name: expected .*{kind}.*came {name}"):
        check_loss(kind, LossSettings(name))
    with pytest.raises(SettingsError, match=name):
        make_loss(kind, LossSettings(name), None, CPU)


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        (LossSettings("focal", alpha=0.25), r"alpha: .*came 0\.25"),
        (LossSettings("auto", "negatives"), "class_weights: .*came negatives"),
    ],
)
def test_what_divides_positives_from_negatives_is_refused_for_classes(settings, place):
    check_loss("multilabel", settings)
    with pytest.raises(SettingsError, match=f"train.loss.{place}") as caught:
        check_loss("multiclass", settings)
    assert "\n" not in str(caught.value)


def test_every_loss_that_the_settings_know_fits_some_task():
    known = set(get_args(get_type_hints(LossSettings)["name"]))
    assert known == {name for names in LOSSES.values() for name in names}
    for kind, names in LOSSES.items():
        for name in names:
            check_loss(kind, LossSettings(name))


def test_no_class_weights_are_none():
    assert class_weights(np.ones((3, 2), np.int8), "none") is None


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        # 4, 1 and 0 positives among 5: 1/4 and 1 average (4 * 1/4 + 1 * 1) / 5 = 2/5 over positives.
        ("inverse", [0.25 / 0.4, 1 / 0.4, 0]),
        # 1/2 and 1 average (4 * 1/2 + 1 * 1) / 5 = 3/5.
        ("sqrt_inverse", [0.5 / 0.6, 1 / 0.6, 0]),
        # 1 negative for 4 positives, 4 for 1, and a label without a positive.
        ("negatives", [0.25, 4, 1]),
    ],
)
def test_class_weights_have_the_values_worked_by_hand(how, expected):
    target_WC = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=np.int8)
    np.testing.assert_allclose(class_weights(target_WC, how), expected, rtol=1e-12)


@pytest.mark.parametrize("how", ["inverse", "sqrt_inverse"])
def test_class_weights_average_one_over_the_positives(how):
    target_WC = (np.random.default_rng(0).random((200, 5)) < [0.9, 0.5, 0.1, 0.02, 0]).astype(int)
    weight_C = class_weights(target_WC, how)
    count_C = target_WC.sum(axis=0)
    assert np.sum(weight_C * count_C) / count_C.sum() == pytest.approx(1)
    assert (np.diff(weight_C[np.argsort(-count_C)][:4]) > 0).all()


def test_negatives_give_both_sides_of_a_label_the_same_weight():
    target_WC = (np.random.default_rng(1).random((200, 4)) < [0.9, 0.5, 0.1, 0.02]).astype(np.int8)
    weight_C = class_weights(target_WC, "negatives")
    np.testing.assert_allclose(weight_C * target_WC.sum(axis=0), (1 - target_WC).sum(axis=0))


@pytest.mark.parametrize("how", ["inverse", "sqrt_inverse", "negatives"])
@pytest.mark.parametrize("value", [0, 1])
def test_class_weights_are_finite_where_a_side_is_missing_everywhere(how, value):
    weight_C = class_weights(np.full((4, 2), value, np.int8), how)
    expected = 0.0 if value == 0 and how != "negatives" else 1.0
    np.testing.assert_array_equal(weight_C, [expected, expected])
