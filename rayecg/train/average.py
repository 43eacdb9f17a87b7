"""The moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, decay: float, n_steps: int) -> None:
    """Move an average towards the weights as they are after a step.

    Source: Polyak and Juditsky 1992, with exponential weights. The decay is lower at first, (1 + n) /
    (10 + n) after n steps, so that the weights that a run began with are soon forgotten.

    Parameters
    ----------
    average
        A copy of the network. Its floating-point parameters and buffers (batch norms' statistics)
        are averaged, others (counts) are taken over.
    model
        The network that is trained, itself and not what wraps it.
    decay
        Share of the average that a step leaves.
    n_steps
        How many steps came before this one.
    """
    decay = min(decay, (1 + n_steps) / (10 + n_steps))
    trained = model.state_dict()
    for name, held in average.state_dict().items():
        if held.is_floating_point() or held.is_complex():
            held.lerp_(trained[name], 1 - decay)
        else:
            held.copy_(trained[name])
