"""Signals as images: Gramian angular fields, Markov transition fields, recurrence plots.

Batched tensor operations on the device of the input. Every field is a sum of few outer products,
`image_ij = sum_k u_ki v_kj`: the factors are made in float64, which is cheap, and the pixels in
float32, a few images at a time, so that they stay in the processor's cache until they are complete.

Legend: B record, L lead, T time, N image (one a record and lead), S pixel (a row or a column; H and W
of the result), K outer product, Q quantile bin, E edge of bins.

Sources: Wang and Oates 2015 (Gramian angular and Markov transition fields), Eckmann, Oliffson Kamphorst
and Ruelle 1987 (recurrence plots). The reference for all details is `pyts` 0.14.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from rayecg.core.experiment import ImageSettings

#: Images made at once on a CPU have so many pixels together: 8 MiB.
_PIXELS = 2**21
#: Quantiles that lie closer than this are one edge (as in `pyts`).
_SAME_EDGE = 1e-8
#: Signals whose range is below this are constant (as in scikit-learn's scaler, which `pyts` uses).
_CONSTANT = 10 * torch.finfo(torch.float64).eps

Factors = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def signal_images(x_BLT: torch.Tensor, settings: ImageSettings) -> torch.Tensor:
    """Make an image of every lead of every record.

    Parameters
    ----------
    x_BLT
        Signals of any floating type, on any device, in any unit.
    settings
        Kind and size of the images, and which of the two equal implementations makes them: "torch"
        on the signals' device, or "pyts", slowly and on the CPU.

    Returns
    -------
    torch.Tensor
        image_BLHW, float32 on the signals' device, without gradient. But for rounding, angular fields
        lie in -1 to 1 and transition fields in 0 to 1; a recurrence plot holds distances, in the unit
        of the signal.

    Raises
    ------
    ValueError
        If the images would have more pixels a side than the signal has samples.

    Notes
    -----
    Each pixel row and column stands for the mean of (nearly) equal stretches of the signal. An image
    depends on its own signal alone; on a CPU to the bit, as CUDA adds up a transition field's counts
    in any order.

    A constant signal gives a summation field of 1, a difference field of 0, a transition field of 1
    and a recurrence plot of 0, as `pyts` does. Where many samples are equal, quantiles coincide and
    the transition field has fewer bins (`pyts` also warns). A signal with a sample that is not finite
    gives an image of NaN; `pyts` itself refuses it, and all others of the call with it.
    """
    n_records, n_leads, n_times = x_BLT.shape
    if settings.size > n_times:
        raise ValueError(
            f"image.size: expected at most the signal's {n_times} samples, came {settings.size}"
        )
    x_NT = x_BLT.detach().reshape(-1, n_times)
    x_NT = x_NT.to(torch.promote_types(x_NT.dtype, torch.float32))
    make = _by_pyts if settings.backend == "pyts" else _by_torch
    image_NSS = make(x_NT, settings)
    return image_NSS.view(n_records, n_leads, settings.size, settings.size)


def _by_torch(x_NT: torch.Tensor, settings: ImageSettings) -> torch.Tensor:
    # Mixed precision is for networks: counts and angles must keep their digits.
    with torch.autocast(x_NT.device.type, enabled=False):
        u_NKS, v_NKS = _FACTORS[settings.kind](x_NT, settings)
        # Nothing but a sample that is not finite makes this differ from 0: it is NaN then.
        u_NKS = (u_NKS + 0 * x_NT.sum(dim=1, dtype=torch.float64)[:, None, None]).float()
        image_NSS = _outer_products(u_NKS, v_NKS.float())
    return image_NSS.abs_() if settings.kind == "recurrence" else image_NSS


def _outer_products(u_NKS: torch.Tensor, v_NKS: torch.Tensor) -> torch.Tensor:
    """Sum the outer products of each image, in float32.

    Not `bmm`: on a CPU it is slower for so few products, on a GPU it may round to ten bits (TF32).
    """
    n_images, n_products, size = u_NKS.shape
    image_NSS = u_NKS.new_empty(n_images, size, size)
    on_cpu = u_NKS.device.type == "cpu"
    step = max(_PIXELS // size**2 if on_cpu else n_images, 1)
    parts = zip(u_NKS.split(step), v_NKS.split(step), image_NSS.split(step), strict=True)
    for rows_NKS, columns_NKS, part_NSS in parts:
        rows, columns = rows_NKS.unbind(1), columns_NKS.unbind(1)
        torch.mul(rows[0][:, :, None], columns[0][:, None, :], out=part_NSS)
        for k in range(1, n_products):
            part_NSS.addcmul_(rows[k][:, :, None], columns[k][:, None, :])
    return image_NSS


def _segments(n_times: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a signal into `size` stretches: the one of each sample, and their lengths."""
    # The bounds are rounded down from float64, as in `pyts`: its errors of rounding are part of them.
    place_S = torch.arange(1, size, dtype=torch.float64, device=device) * (n_times / size)
    bound_S = nn.functional.pad(nn.functional.pad(place_S.long(), (1, 0)), (0, 1), value=n_times)
    segment_T = torch.bucketize(torch.arange(n_times, device=device), bound_S[1:], right=True)
    return segment_T, bound_S.diff()


def _summed(x_NET: torch.Tensor, segment_T: torch.Tensor, size: int) -> torch.Tensor:
    """Add up each stretch of signals, in their order on a CPU: images must equal those of `pyts`."""
    return x_NET.new_zeros(*x_NET.shape[:-1], size).index_add_(-1, segment_T, x_NET)


def _aggregated(x_NT: torch.Tensor, size: int) -> torch.Tensor:
    """Give the mean of each stretch (piecewise aggregate approximation)."""
    segment_T, length_S = _segments(x_NT.shape[1], size, x_NT.device)
    return _summed(x_NT.double(), segment_T, size) / length_S


def _angles(x_NT: torch.Tensor, settings: ImageSettings) -> Factors:
    """Give cosine and sine of the polar angles: images by these two by pixels.

    The sine of an angle near 0 is the root of a small difference: float32 would lose half its digits.
    """
    x_NS = _aggregated(x_NT, settings.size)
    low_N1, high_N1 = x_NS.aminmax(dim=1, keepdim=True)
    range_N1 = high_N1 - low_N1
    scale_N1 = 2 / range_N1.masked_fill(range_N1 < _CONSTANT, 1.0)
    cos_NS = x_NS * scale_N1 + (-1 - low_N1 * scale_N1)
    return cos_NS, (1 - cos_NS.square()).clamp_(0, 1).sqrt_()


def _summation(x_NT: torch.Tensor, settings: ImageSettings) -> Factors:
    """Give the factors of cos(a + b)."""
    cos_NS, sin_NS = _angles(x_NT, settings)
    return torch.stack([cos_NS, -sin_NS], 1), torch.stack([cos_NS, sin_NS], 1)


def _difference(x_NT: torch.Tensor, settings: ImageSettings) -> Factors:
    """Give the factors of sin(a - b)."""
    cos_NS, sin_NS = _angles(x_NT, settings)
    return torch.stack([sin_NS, -cos_NS], 1), torch.stack([cos_NS, sin_NS], 1)


def _distances(x_NT: torch.Tensor, settings: ImageSettings) -> Factors:
    """Give the factors of a - b."""
    x_NS = _aggregated(x_NT, settings.size)
    # Distances do not see a common offset, but float32 does.
    x_NS = x_NS - x_NS.mean(dim=1, keepdim=True)
    ones_NS = torch.ones_like(x_NS)
    return torch.stack([x_NS, ones_NS], 1), torch.stack([ones_NS, -x_NS], 1)


def _edges(x_NT: torch.Tensor, n_bins: int) -> torch.Tensor:
    """Give the edges of the quantile bins of each signal, with infinite ones before and after.

    Places and interpolation are those of `np.percentile`, to the bit: ties are common in digitised
    signals, and a sample that equals an edge belongs to the bin below it.
    """
    if x_NT.device.type == "cpu":  # numpy sorts many short rows faster than torch
        sorted_NT = torch.from_numpy(np.sort(x_NT.numpy(), axis=1))
    else:
        sorted_NT = x_NT.sort(dim=1).values
    count_E = torch.arange(1, n_bins, dtype=torch.float64, device=x_NT.device)
    place_E = count_E * (100 / n_bins) / 100 * (x_NT.shape[1] - 1)
    below_E = place_E.floor()
    share_E = place_E - below_E
    below_NE = sorted_NT[:, below_E.long()].double()
    above_NE = sorted_NT[:, below_E.long() + 1].double()
    gap_NE = above_NE - below_NE
    edge_NE = torch.where(
        share_E < 0.5, below_NE + gap_NE * share_E, above_NE - gap_NE * (1 - share_E)
    )
    # Of equal edges the last one stays; the others go behind it, where no sample is.
    edge_NE[:, :-1].masked_fill_(edge_NE.diff(dim=1) <= _SAME_EDGE, math.inf)
    edge_NE = nn.functional.pad(edge_NE.sort(dim=1).values, (0, 1), value=math.inf)
    return nn.functional.pad(edge_NE, (1, 0), value=-math.inf)


def _transitions(x_NT: torch.Tensor, settings: ImageSettings) -> Factors:
    """Give the factors of the field of transition probabilities: images by bins by pixels.

    The mean of a field over a rectangle needs no field: what counts is how much of the rows' stretch,
    and of the columns', lies in each bin.
    """
    edge_NE = _edges(x_NT, settings.n_bins)
    # What lies in a bin is the difference of what lies above its two edges, for all that is counted.
    above_NET = (x_NT[:, None] > edge_NE[:, :, None]).float()
    count_NQQ = (above_NET[:, :, :-1] @ above_NET[:, :, 1:].mT).double().diff(dim=1).diff(dim=2)
    probability_NQQ = count_NQQ / count_NQQ.sum(dim=2, keepdim=True).clamp_min(1)
    segment_T, length_S = _segments(x_NT.shape[1], settings.size, x_NT.device)
    above_NES = _summed(above_NET, segment_T, settings.size).double()
    share_NQS = -above_NES.diff(dim=1) / length_S
    return probability_NQQ.mT @ share_NQS, share_NQS


_FACTORS: dict[str, Callable[[torch.Tensor, ImageSettings], Factors]] = {
    "gasf": _summation,
    "gadf": _difference,
    "mtf": _transitions,
    "recurrence": _distances,
}


def _by_pyts(x_NT: torch.Tensor, settings: ImageSettings) -> torch.Tensor:
    from pyts.approximation import PiecewiseAggregateApproximation
    from pyts.image import GramianAngularField, MarkovTransitionField, RecurrencePlot

    x = x_NT.double().cpu().numpy()
    finite_N = np.isfinite(x).all(axis=1)
    image = np.full((len(x), settings.size, settings.size), np.nan, np.float32)
    if finite_N.any():
        x = x[finite_N]
        if settings.kind == "mtf":
            make = MarkovTransitionField(settings.size, settings.n_bins)
        elif settings.kind == "recurrence":
            make = RecurrencePlot()
            x = PiecewiseAggregateApproximation(None, settings.size, overlapping=False).transform(x)
        else:
            method = {"gasf": "summation", "gadf": "difference"}[settings.kind]
            make = GramianAngularField(settings.size, method=method)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some quantiles are equal")
            image[finite_N] = make.transform(x)
    return torch.from_numpy(image).to(x_NT.device)
