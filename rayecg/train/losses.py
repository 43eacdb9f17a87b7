"""Losses by task and setting.

Legend: N example of a batch, W window, C label.

All are sums of one term. With p the probability that the network gives to what is so,

    F(p, gamma) = -(1 - p)^gamma log p,

which for gamma = 0 is the cross-entropy, and for gamma > 0 the focal loss, where what is already
known well counts for little. y is the target, w the weight of a label (1 without weights).

Multilabel, p the sigmoid of the logit, averaged over examples and labels:

    a w y F(p, gamma_positive) + b (1 - y) F(1 - max(p - clip, 0), gamma_negative)

============  ==============  ==============  ====  =====  =========
loss          gamma_positive  gamma_negative  clip  a      b
============  ==============  ==============  ====  =====  =========
`bce`         0               0               0     1      1
`focal`       `gamma`         `gamma`         0     alpha  1 - alpha
`asymmetric`  as set          as set          set   1      1
============  ==============  ==============  ====  =====  =========

(`focal` with `alpha` None: a = b = 1.) Multiclass, p the softmax of the logits, with gamma 0 for
`cross_entropy` and `gamma` for `focal`:

    sum over N, C of w y F(p, gamma) / sum over N, C of w y

Every one of them is linear in the target but for that last quotient, so a soft target (mixup) costs
what its share of a positive and its share of a negative cost, or its shares of the classes.

Source: Lin et al. 2017, "Focal Loss for Dense Object Detection" (focal; 2 and 0.25 are its gamma and
alpha); Ben-Baruch, Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification" (asymmetric;
0, 4 and 0.05 are what its authors train with). Differs from the source by the mean instead of the
sum over labels, by the class weights, and for focal by its softmax form, which Lin et al. only
mention. The gradient goes through the focusing factor (1 - p)^gamma, as in both papers' formulas;
the code of the asymmetric loss can also hold that factor constant.

All is computed from log-probabilities, and stays finite, gradients too, where p rounds to 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from rayecg.core.errors import SettingsError
from rayecg.core.outputs import Kind
from rayecg.core.train_settings import LossSettings

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: What fits a task.
LOSSES: dict[Kind, tuple[str, ...]] = {
    "multilabel": ("auto", "bce", "focal", "asymmetric"),
    "multiclass": ("auto", "cross_entropy", "focal"),
}


def class_weights(target_WC: np.ndarray, how: str) -> np.ndarray | None:
    """Weigh each label by how rare it is among the training windows.

    Parameters
    ----------
    target_WC
        0 or 1.
    how
        `LossSettings.class_weights`. "inverse" and "sqrt_inverse" go by the inverse of the number of
        positives, or its square root, scaled to average 1 over all positives; a label without a
        positive gets 0: there is nothing to weigh. "negatives" is the number of negatives a positive,
        which makes both sides of a label weigh the same; a label that lacks a side gets 1.

    Returns
    -------
    np.ndarray or None
        A finite weight for each label, in float64; None for "none".
    """
    if how == "none":
        return None
    positives_C = target_WC.sum(axis=0).astype(np.float64)
    if how == "negatives":
        negatives_C = len(target_WC) - positives_C
        both_C = (positives_C > 0) & (negatives_C > 0)
        return np.where(both_C, negatives_C / np.maximum(positives_C, 1), 1.0)
    power = 0.5 if how == "sqrt_inverse" else 1.0
    weight_C = np.where(positives_C > 0, np.maximum(positives_C, 1) ** -power, 0.0)
    return weight_C * positives_C.sum() / max(np.sum(weight_C * positives_C), 1.0)


def check_loss(kind: Kind, settings: LossSettings) -> None:
    """Refuse what does not fit the task, before anything is trained.

    Raises
    ------
    SettingsError
        If the loss belongs to the other kind of task, or if a multiclass task is given what divides
        positives from negatives: an `alpha` for its focal loss, or "negatives" as weights.
    """
    if settings.name not in LOSSES[kind]:
        fitting = ", ".join(LOSSES[kind])
        raise SettingsError(
            f"train.loss.name: expected one for a {kind} task ({fitting}), came {settings.name}"
        )
    if kind == "multilabel":
        return
    if settings.name == "focal" and settings.alpha is not None:
        raise SettingsError(
            "train.loss.alpha: expected none for a multiclass task, which has classes and no "
            f"negatives (class_weights balances them), came {settings.alpha}"
        )
    if settings.class_weights == "negatives":
        raise SettingsError(
            "train.loss.class_weights: expected none, sqrt_inverse or inverse for a multiclass task, "
            "came negatives"
        )


def make_loss(
    kind: Kind, settings: LossSettings, weight_C: np.ndarray | None, device: torch.device
) -> Loss:
    """Give the mean loss of a batch: `(logit_NC, target_NC) -> scalar`, in the logits' precision.

    Parameters
    ----------
    kind
        The task's.
    settings
        Which loss, and its parameters; see the top of this module for the formulas.
    weight_C
        From `class_weights`. Multilabel losses scale the positives by it, multiclass ones each
        example by its class (the mean is then the weighted one).
    device
        Where the logits will be.

    Raises
    ------
    SettingsError
        See `check_loss`.
    """
    check_loss(kind, settings)
    weights = torch.as_tensor(
        1.0 if weight_C is None else weight_C, dtype=torch.float32, device=device
    )
    gamma = settings.gamma if settings.name == "focal" else 0.0
    if kind == "multiclass":
        return lambda logit_NC, target_NC: _multiclass(logit_NC, target_NC, weights, gamma)
    if settings.name == "asymmetric":
        gammas, clip = (settings.gamma_positive, settings.gamma_negative), settings.clip
    else:
        gammas, clip = (gamma, gamma), 0.0
    negative = 1.0
    if settings.name == "focal" and settings.alpha is not None:
        weights, negative = weights * settings.alpha, 1 - settings.alpha
    return lambda logit_NC, target_NC: _multilabel(
        logit_NC, target_NC, weights, negative, gammas, clip
    )


def _multilabel(
    logit_NC: torch.Tensor,
    target_NC: torch.Tensor,
    positive_C: torch.Tensor,
    negative: float,
    gammas: tuple[float, float],
    clip: float,
) -> torch.Tensor:
    target_NC = target_NC.to(logit_NC.dtype)
    log_yes_NC, log_no_NC = functional.logsigmoid(logit_NC), functional.logsigmoid(-logit_NC)
    if clip > 0:
        # 1 - max(p - clip, 0) = min((1 - p) + clip, 1); a sum's logarithm, for 1 - p may round to 0.
        shift = torch.full_like(log_no_NC, math.log(clip))
        log_no_NC = torch.logaddexp(log_no_NC, shift).clamp_max(0.0)
    yes_NC = positive_C.to(logit_NC.dtype) * target_NC * _term(log_yes_NC, gammas[0])
    no_NC = negative * (1 - target_NC) * _term(log_no_NC, gammas[1])
    return (yes_NC + no_NC).mean()


def _multiclass(
    logit_NC: torch.Tensor, target_NC: torch.Tensor, weight_C: torch.Tensor, gamma: float
) -> torch.Tensor:
    share_NC = weight_C.to(logit_NC.dtype) * target_NC.to(logit_NC.dtype)
    terms_NC = share_NC * _term(functional.log_softmax(logit_NC, dim=1), gamma)
    # A batch whose classes all have weight 0 costs 0.
    return terms_NC.sum() / share_NC.sum().clamp_min(torch.finfo(logit_NC.dtype).tiny)


def _term(log_p: torch.Tensor, gamma: float) -> torch.Tensor:
    """Give F(p, gamma) from log p."""
    # At 1 - p = 0 a power below 1 has no finite slope; the smallest normal number stands for 0.
    missed = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -missed.pow(gamma) * log_p
