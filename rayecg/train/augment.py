"""Augmentation of training batches, drawn from torch's random state of the epoch.

Legend: B window, L lead, T time, K wave, M side column, C label.

What is random is drawn on the CPU, whatever the device of the windows, so that the seed alone
decides it. No function changes what it is given.
"""

from __future__ import annotations

import math

import torch

from rayecg.core.train_settings import AugmentSettings

#: Recorders remove what is slower (0.05 Hz, Kligfield et al. 2007), and the heart beats faster.
WANDER_HZ = (0.05, 0.5)
WANDER_WAVES = 3


def augment(x_BLT: torch.Tensor, settings: AugmentSettings, fs: float) -> torch.Tensor:
    """Give a changed copy of a batch; a strength of 0 leaves that change out and draws nothing.

    A lead that is 0 throughout is absent, and stays so. First comes what changes the signal (shift,
    scale, noise, wander), then what takes of it away (crop, lead dropout), so that what is taken away
    is 0. Everything is drawn for each window anew. Mixup is apart: see `mix`.

    Parameters
    ----------
    x_BLT
        Windows, in the unit of the network's input.
    settings
        Strengths; see `AugmentSettings`.
    fs
        Rate of the windows in Hz.
    """
    if settings.shift_s > 0:
        x_BLT = _shifted(x_BLT, round(settings.shift_s * fs))
    if settings.scale > 0:
        log_B = (torch.rand(len(x_BLT)) * 2 - 1) * math.log1p(settings.scale)
        x_BLT = x_BLT * log_B.exp()[:, None, None].to(x_BLT)
    adds = settings.noise > 0 or settings.wander > 0
    absent_BL1 = (x_BLT == 0).all(dim=2, keepdim=True) if adds else None
    if settings.noise > 0:
        level_B = torch.rand(len(x_BLT)) * settings.noise
        x_BLT = x_BLT + (torch.randn(x_BLT.shape) * level_B[:, None, None]).to(x_BLT)
    if settings.wander > 0:
        x_BLT = x_BLT + _baseline(x_BLT.shape, settings.wander, fs).to(x_BLT)
    if absent_BL1 is not None:
        x_BLT = x_BLT.masked_fill(absent_BL1, 0.0)
    if settings.crop > 0:
        x_BLT = _cropped(x_BLT, settings.crop)
    if settings.lead_dropout > 0:
        lost_BL = torch.rand(x_BLT.shape[:2]) < settings.lead_dropout
        x_BLT = x_BLT.masked_fill(lost_BL[:, :, None].to(x_BLT.device), 0.0)
    return x_BLT


def _shifted(x_BLT: torch.Tensor, furthest: int) -> torch.Tensor:
    """Move windows by whole samples, all leads alike, with 0 where nothing is known."""
    n, n_leads, n_times = x_BLT.shape
    furthest = min(furthest, n_times - 1)
    shift_B = torch.randint(-furthest, furthest + 1, (n,))
    index_BT = torch.arange(n_times)[None, :] - shift_B[:, None]
    outside_BT = (index_BT < 0) | (index_BT >= n_times)
    index_BLT = index_BT.clamp(0, n_times - 1)[:, None, :].expand(-1, n_leads, -1)
    moved_BLT = torch.gather(x_BLT, 2, index_BLT.to(x_BLT.device))
    return moved_BLT.masked_fill(outside_BT[:, None, :].to(x_BLT.device), 0.0)


def _baseline(shape: torch.Size, strength: float, fs: float) -> torch.Tensor:
    """Give a slow baseline: the mean of sinusoids, which the leads share but for their phases."""
    n, n_leads, n_times = shape
    level_B = torch.rand(n) * strength
    low, high = WANDER_HZ
    hz_BK = low + (high - low) * torch.rand(n, WANDER_WAVES)
    phase_BLK = 2 * math.pi * torch.rand(n, n_leads, WANDER_WAVES)
    angle_BKT = 2 * math.pi * hz_BK[:, :, None] * (torch.arange(n_times) / fs)
    # sin(angle + phase), summed over the waves without a tensor of leads x waves x times.
    sum_BLT = phase_BLK.cos() @ angle_BKT.sin() + phase_BLK.sin() @ angle_BKT.cos()
    return level_B[:, None, None] * sum_BLT / WANDER_WAVES


def _cropped(x_BLT: torch.Tensor, crop: float) -> torch.Tensor:
    """Keep a random stretch, the same of all leads, where it stands."""
    n, _, n_times = x_BLT.shape
    length_B = torch.randint(n_times - int(crop * n_times), n_times + 1, (n,))
    # In float64, where a number below 1 times a whole one stays below it.
    start_B = (torch.rand(n, dtype=torch.float64) * (n_times - length_B + 1)).long()
    time_BT = torch.arange(n_times)[None, :] - start_B[:, None]
    outside_BT = (time_BT < 0) | (time_BT >= length_B[:, None])
    return x_BLT.masked_fill(outside_BT[:, None, :].to(x_BLT.device), 0.0)


def mix(
    x_BLT: torch.Tensor, side_BM: torch.Tensor | None, target_BC: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Mix each example of a batch with another one of it (mixup).

    Example b becomes `share_b * example_b + (1 - share_b) * example_(other b)`, window, side inputs
    and target alike; `other` is a permutation of the batch, in which an example may meet itself.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". Differs from the source by
    one share for each example where its listing draws one for each batch, which makes a step's
    gradient depend less on a single draw.

    Parameters
    ----------
    x_BLT
        Windows.
    side_BM
        Side inputs, or None. What is not known (NaN) of either example is not known of the mixture.
    target_BC
        Targets, as floats: a share of each label.
    alpha
        Shares are Beta(alpha, alpha) distributed: near 0 or 1 for a small `alpha`, even for 1; 0
        gives back what came and draws nothing.
    """
    if alpha <= 0:
        return x_BLT, side_BM, target_BC
    other_B = torch.randperm(len(x_BLT))
    share_B = torch.distributions.Beta(alpha, alpha).sample((len(x_BLT),))

    def mixed(value_B: torch.Tensor) -> torch.Tensor:
        own_B = share_B.reshape(-1, *[1] * (value_B.ndim - 1)).to(value_B)
        return own_B * value_B + (1 - own_B) * value_B[other_B.to(value_B.device)]

    return mixed(x_BLT), None if side_BM is None else mixed(side_BM), mixed(target_BC)
