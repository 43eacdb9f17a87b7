"""HMT-ECGNet: one encoder for every lead, and the leads brought together in two steps.

Legend: B record, L lead, T time, F feature, G group of leads.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from rayecg.core.experiment import STANDARD_LEADS
from rayecg.models.catalogue import ModelInputs, reads
from rayecg.models.pooling import gate

#: Samples that the stem moves by.
STRIDE = 8
#: Modified leads that look at the heart as a standard one does.
_LIKE = {"MLI": "I", "MLII": "II", "MLIII": "III"}


def lead_number(name: str) -> int:
    """Give a lead's row of the embedding: the standard ones in order, then one for all others."""
    name = _LIKE.get(name, name)
    return STANDARD_LEADS.index(name) if name in STANDARD_LEADS else len(STANDARD_LEADS)


def is_precordial(name: str) -> bool:
    """Whether a lead is one of the chest's (V1 to V6, but also V7 or V4R); any other is a limb lead."""
    return name.startswith("V")


class _Conv(nn.Module):
    """A convolution along time, the same for every lead, and batch norm."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        if kernel % 2 == 0:  # what it gives would not fit the shortcut
            raise ValueError(f"kernels: expected odd ones, came {kernel}")
        self.conv = nn.Conv2d(
            n_in, n_out, (1, kernel), stride=(1, stride), padding=(0, kernel // 2), bias=False
        )
        self.norm = nn.BatchNorm2d(n_out)

    def forward(self, x_BFLT: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x_BFLT))


class _Block(nn.Module):
    """Two convolutions around a shortcut; the first one halves the rate."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.first = _Conv(n_in, n_out, kernel, stride=2)
        self.second = _Conv(n_out, n_out, kernel)
        # A residual branch that starts at zero makes a deep network start as a shallow one.
        nn.init.zeros_(self.second.norm.weight)
        self.halve = nn.AvgPool2d((1, 2), ceil_mode=True)
        self.match = _Conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x_BFLT: torch.Tensor) -> torch.Tensor:
        inner_BFLT = self.second(torch.relu(self.first(x_BFLT)))
        return torch.relu(inner_BFLT + self.match(self.halve(x_BFLT)))


class LeadEncoder(nn.Module):
    """What one lead shows, as one vector: a strided stem, residual blocks, mean and maximum over time.

    Leads stand side by side as rows of an image that no kernel crosses, so all share the weights.
    """

    def __init__(
        self, stem: int, stem_kernel: int, widths: tuple[int, ...], kernels: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(
            STRIDE, stem, (1, stem_kernel), padding=(0, stem_kernel // 2), bias=False
        )
        self.norm = nn.BatchNorm2d(stem)
        widths_in = (stem, *widths[:-1])
        self.blocks = nn.Sequential(
            *(
                _Block(n_in, n_out, kernel)
                for n_in, n_out, kernel in zip(widths_in, widths, kernels, strict=True)
            )
        )

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give records by features by leads; the features are the last width, twice."""
        # A convolution with a stride, as one without: each run of samples is one time of so many
        # features. They lie last in memory then, the order in which all that follows is fastest.
        x_BLT = functional.pad(x_BLT, (0, -x_BLT.shape[2] % STRIDE))
        x_BFLT = x_BLT.unflatten(2, (-1, STRIDE)).permute(0, 3, 1, 2)
        # Pooled before the norm and not after the ReLU, for half the cost.
        x_BFLT = functional.max_pool2d(self.stem(x_BFLT), (1, 2), ceil_mode=True)
        x_BFLT = self.blocks(torch.relu(self.norm(x_BFLT)))
        return torch.cat([x_BFLT.mean(dim=3), x_BFLT.amax(dim=3)], dim=1)


class GatedPool(nn.Module):
    """Make one vector of several: their gated mean beside their maximum, mixed by one layer.

    Every vector says by itself, feature by feature, how much it counts; none looks at another.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.gate = nn.Conv1d(n_features, n_features, 1)
        self.mix = nn.Linear(2 * n_features, n_features, bias=False)
        self.norm = nn.BatchNorm1d(n_features)

    def forward(self, token_BFL: torch.Tensor, member_BL: torch.Tensor) -> torch.Tensor:
        """Pool the members (1, others 0) of tokens that are 0 or more; without any it pools 0."""
        member_B1L = member_BL[:, None]
        gate_BFL = gate(self.gate(token_BFL)) * member_B1L
        mean_BF = (gate_BFL * token_BFL).sum(dim=2) / gate_BFL.sum(dim=2).clamp_min(1e-6)
        pooled_BF = torch.cat([mean_BF, (token_BFL * member_B1L).amax(dim=2)], dim=1)
        return torch.relu(self.norm(self.mix(pooled_BF)))


@reads(fs=250, duration_s=8.8)
class HmtEcgNet(nn.Module):
    """A lightweight hierarchical multi-lead network.

    One encoder reads every lead alike and gives a token each. What a lead's name means is learned:
    its token is scaled and shifted, feature by feature, by the embedding of that name. Then the limb
    leads and the precordial leads are pooled apart, and the two groups together. 5 outputs make
    334,021 parameters, whatever the leads: any of them, in any order, can be read by the same weights.
    A name that is unknown takes the one embedding that all such share, and counts as a limb lead; MLII
    is II. A lead that is 0 throughout, as absent ones are, counts for nothing.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    stem, stem_kernel
        Filters of the first convolution, which moves by eight samples, and its length in such steps.
    widths, kernels
        Filters of the residual blocks, each of which halves the rate, and their lengths, odd.
    n_features
        Width of a token, of a group, and of the whole record.
    dropout
        Of what the encoder gives, and before the last layer.

    Raises
    ------
    ValueError
        If a kernel of the blocks is even.

    Notes
    -----
    Source: one of the project's five reference systems (a hierarchical multi-lead network for PTB-XL):
    338 thousand parameters, a temporal encoder shared by the leads, lead-wise tokens, limb and
    precordial groups and then all, no self-attention, 12 leads by 2,200 samples at 250 Hz. Differs
    from the source by all that is not stated there: widths, kernels, how leads are named to the
    network and how they are pooled are this project's choice.
    """

    member_GL: torch.Tensor
    number_L: torch.Tensor

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        stem: int = 32,
        stem_kernel: int = 5,
        widths: tuple[int, ...] = (32, 64, 128),
        kernels: tuple[int, ...] = (9, 7, 3),
        n_features: int = 128,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.encoder = LeadEncoder(stem, stem_kernel, tuple(widths), tuple(kernels))
        self.norm = nn.BatchNorm1d(2 * widths[-1])
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Conv1d(2 * widths[-1], n_features, 1)
        self.scale = nn.Embedding(len(STANDARD_LEADS) + 1, n_features)
        self.shift = nn.Embedding(len(STANDARD_LEADS) + 1, n_features)
        for embedding in (self.scale, self.shift):
            nn.init.normal_(embedding.weight, std=0.1)
        self.groups = nn.ModuleList([GatedPool(n_features), GatedPool(n_features)])
        self.whole = GatedPool(n_features)
        self.head = nn.Linear(n_features, n_outputs)
        precordial_L = torch.tensor([is_precordial(lead) for lead in inputs.leads])
        member_GL = torch.stack([~precordial_L, precordial_L]).float()
        number_L = torch.tensor([lead_number(lead) for lead in inputs.leads])
        # What follows from the names of the leads is no weight.
        self.register_buffer("member_GL", member_GL, persistent=False)
        self.register_buffer("number_L", number_L, persistent=False)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        seen_BFL = self.dropout(self.norm(self.encoder(x_BLT)))
        scale_FL, shift_FL = self.scale(self.number_L).t(), self.shift(self.number_L).t()
        token_BFL = torch.relu(self.project(seen_BFL) * (1 + scale_FL) + shift_FL)
        present_BL = (x_BLT != 0).any(dim=2)
        member_BGL = self.member_GL * present_BL[:, None]
        members = zip(self.groups, member_BGL.unbind(dim=1), strict=True)
        group_BFG = torch.stack([pool(token_BFL, member_BL) for pool, member_BL in members], dim=2)
        whole_BF = self.whole(group_BFG, member_BGL.amax(dim=2))
        return self.head(self.dropout(whole_BF))
