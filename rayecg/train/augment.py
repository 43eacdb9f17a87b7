"""Augmentation of training batches, drawn from torch's random state of the epoch.

Legend: B window, L lead, T time.
"""

from __future__ import annotations

import torch

from rayecg.core.experiment import AugmentSettings


def augment(x_BLT: torch.Tensor, settings: AugmentSettings, fs: float) -> torch.Tensor:
    """Give a changed copy of a batch; a strength of 0 leaves that change out.

    Parameters
    ----------
    x_BLT
        Windows, in the unit of the network's input.
    settings
        Strengths; see `AugmentSettings`.
    fs
        Rate of the windows in Hz.
    """
    n, n_leads, n_times = x_BLT.shape
    if settings.shift_s > 0:
        furthest = min(round(settings.shift_s * fs), n_times - 1)
        shift_B = torch.randint(-furthest, furthest + 1, (n,))
        index_BT = torch.arange(n_times)[None, :] - shift_B[:, None]
        inside_BT = (index_BT >= 0) & (index_BT < n_times)
        index_BLT = index_BT.clamp(0, n_times - 1)[:, None, :].expand(-1, n_leads, -1)
        x_BLT = torch.gather(x_BLT, 2, index_BLT.to(x_BLT.device))
        x_BLT = x_BLT * inside_BT[:, None, :].to(x_BLT.device)
    if settings.scale > 0:
        log_B = (torch.rand(n) * 2 - 1) * torch.log1p(torch.tensor(settings.scale))
        x_BLT = x_BLT * log_B.exp()[:, None, None].to(x_BLT.device)
    if settings.noise > 0:
        level_B = torch.rand(n) * settings.noise
        noise_BLT = torch.randn(x_BLT.shape) * level_B[:, None, None]
        x_BLT = x_BLT + noise_BLT.to(x_BLT.device)
    if settings.lead_dropout > 0:
        kept_BL = torch.rand(n, n_leads) >= settings.lead_dropout
        x_BLT = x_BLT * kept_BL[:, :, None].to(x_BLT.device)
    return x_BLT
