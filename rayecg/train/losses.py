"""Losses by task and setting.

Legend: N window, C label.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from rayecg.core.outputs import Kind

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def class_weights(target_WC: np.ndarray) -> np.ndarray:
    """Weigh each label by the square root of its inverse frequency, averaging 1 over examples.

    Labels without an example get weight 0: nothing could be learnt for them.
    """
    count_C = target_WC.sum(axis=0).astype(np.float64)
    weight_C = np.where(count_C > 0, 1 / np.sqrt(np.maximum(count_C, 1)), 0.0)
    return weight_C * count_C.sum() / np.sum(weight_C * count_C)


def make_loss(kind: Kind, weight_C: np.ndarray | None, device: torch.device) -> Loss:
    """Give the mean loss of a batch: `(logit_NC, target_NC) -> scalar`.

    Multilabel tasks use binary cross-entropy with logits, the weights scaling positive examples;
    multiclass tasks use cross-entropy, the weights scaling each example by its class.
    """
    weights = None
    if weight_C is not None:
        weights = torch.as_tensor(weight_C, dtype=torch.float32, device=device)
    if kind == "multilabel":
        return lambda logit_NC, target_NC: functional.binary_cross_entropy_with_logits(
            logit_NC, target_NC, pos_weight=weights
        )
    return lambda logit_NC, target_NC: functional.cross_entropy(
        logit_NC, target_NC.argmax(dim=1), weight=weights
    )
