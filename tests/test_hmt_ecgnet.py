"""HMT-ECGNet: one encoder for all leads, names that mean something, two groups and no attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rayecg.core.experiment import STANDARD_LEADS
from rayecg.models.catalogue import ModelInputs, count_parameters
from rayecg.models.ecg_transnet import EcgTransnet
from rayecg.models.hmt_ecgnet import GatedPool, HmtEcgNet, is_precordial

#: In float64 only the order of sums differs between the ways that are compared here.
CLOSE = {"rtol": 0.0, "atol": 1e-12}


def inputs_of(leads: tuple[str, ...], n_times: int = 400) -> ModelInputs:
    return ModelInputs(leads, n_times, 250)


def network(leads: tuple[str, ...] = STANDARD_LEADS) -> HmtEcgNet:
    """Give a network in float64 whose running statistics and weights are those of no birth."""
    torch.manual_seed(0)
    model = HmtEcgNet(inputs_of(leads), 5).double().train()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    model(torch.randn(8, len(leads), 400, dtype=torch.float64))
    return model.eval()


def like(model: HmtEcgNet, leads: tuple[str, ...]) -> HmtEcgNet:
    """Give a network of the same weights for other leads."""
    other = HmtEcgNet(inputs_of(leads), 5).double().eval()
    other.load_state_dict(model.state_dict())
    return other


def signal(n_leads: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, n_leads, 400, dtype=torch.float64, generator=generator)


def named_alike(model: HmtEcgNet) -> HmtEcgNet:
    """Take away what the names of leads say."""
    for embedding in (model.scale, model.shift):
        nn.init.zeros_(embedding.weight)
    return model


def swapped(x_BLT: torch.Tensor, first: str, second: str) -> torch.Tensor:
    order = list(range(12))
    i, k = STANDARD_LEADS.index(first), STANDARD_LEADS.index(second)
    order[i], order[k] = order[k], order[i]
    return x_BLT[:, order]


def test_it_has_the_reference_system_s_size_and_input():
    declared = HmtEcgNet.reads.input
    assert (declared.fs, declared.n_times, declared.leads) == (250, 2200, STANDARD_LEADS)
    n_parameters = count_parameters(HmtEcgNet(ModelInputs.of(declared), 5))
    assert n_parameters == 334_021
    assert abs(n_parameters - 338_000) <= 0.02 * 338_000


@pytest.mark.parametrize("leads", [("II",), ("MLII", "V5"), STANDARD_LEADS[:7], ("ECG1", "ECG2")])
def test_leads_share_all_weights_so_their_number_costs_none(leads):
    assert count_parameters(HmtEcgNet(inputs_of(leads), 5)) == 334_021


def test_every_lead_is_encoded_alike_and_alone():
    model, x_BLT = network(), signal()
    with torch.inference_mode():
        together_BFL = model.encoder(x_BLT)
        for lead in (0, 4, 11):
            alone_BF1 = model.encoder(x_BLT[:, lead : lead + 1])
            torch.testing.assert_close(alone_BF1[:, :, 0], together_BFL[:, :, lead], **CLOSE)


@torch.inference_mode()
def test_within_a_group_only_the_names_tell_leads_apart():
    model, x_BLT = network(), signal()
    for pair in (("I", "aVF"), ("V1", "V6")):
        assert (model(swapped(x_BLT, *pair)) - model(x_BLT)).abs().max() > 1e-4
    named_alike(model)
    for pair in (("I", "aVF"), ("V1", "V6")):
        torch.testing.assert_close(model(swapped(x_BLT, *pair)), model(x_BLT), **CLOSE)
    # The groups are pooled by different weights.
    assert (model(swapped(x_BLT, "I", "V1")) - model(x_BLT)).abs().max() > 1e-4


@torch.inference_mode()
def test_the_order_in_which_leads_come_means_nothing():
    model, x_BLT = network(), signal()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2)).tolist()
    other = like(model, tuple(STANDARD_LEADS[i] for i in order))
    torch.testing.assert_close(other(x_BLT[:, order]), model(x_BLT), **CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("leads", [("I", "II", "V2"), ("II",), ("V1", "V5")])
def test_absent_leads_count_as_if_they_were_not_read(leads):
    model, x_BLT = network(), signal()
    rows = [STANDARD_LEADS.index(lead) for lead in leads]
    zeroed_BLT = torch.zeros_like(x_BLT)
    zeroed_BLT[:, rows] = x_BLT[:, rows]
    torch.testing.assert_close(like(model, leads)(x_BLT[:, rows]), model(zeroed_BLT), **CLOSE)
    assert (model(zeroed_BLT) - model(x_BLT)).abs().max() > 1e-4


@torch.inference_mode()
def test_names_that_are_not_standard():
    model, x_BLT = network(("II", "V5")), signal(2)
    assert torch.equal(like(model, ("MLII", "V5"))(x_BLT), model(x_BLT))
    assert not torch.equal(like(model, ("I", "V5"))(x_BLT), model(x_BLT))
    one, another = like(model, ("ECG1", "V5")), like(model, ("X", "V5"))
    assert torch.equal(one(x_BLT), another(x_BLT))
    assert not torch.equal(one(x_BLT), model(x_BLT))
    assert not torch.equal(like(model, ("V7", "V5"))(x_BLT), one(x_BLT))
    assert [is_precordial(lead) for lead in ("V1", "V4R", "aVL", "MLII", "ECG1")] == (
        [True, True, False, False, False]
    )


@pytest.mark.parametrize("leads", [("MLII",), ("V1", "V2", "V3"), ("ECG1", "ECG2")])
def test_one_group_is_enough(leads):
    model = HmtEcgNet(inputs_of(leads), 5)
    model(signal(len(leads)).float()).square().sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path


@torch.inference_mode()
def test_what_is_no_member_is_not_pooled():
    torch.manual_seed(0)
    pool = GatedPool(8).eval()
    token_BFL = torch.rand(2, 8, 5)
    member_BL = torch.tensor([[1.0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    changed_BFL = token_BFL.clone()
    changed_BFL[0, :, [2, 4]] += 1
    assert torch.equal(pool(changed_BFL, member_BL), pool(token_BFL, member_BL))
    none_BF = pool(torch.zeros(2, 8, 5), member_BL)
    assert torch.equal(pool(token_BFL, member_BL)[1], none_BF[1])
    assert not torch.equal(pool(token_BFL, member_BL)[0], none_BF[0])


class Operators(TorchDispatchMode):
    """Notes the name of every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def attends(model: nn.Module) -> bool:
    """Whether anything is weighted by a softmax, or tokens are multiplied with tokens."""
    with Operators() as operators, torch.no_grad():
        model.eval()(torch.randn(2, 12, 400))
    return any(
        word in name for name in operators.names for word in ("softmax", "bmm", "dot_product")
    )


def test_there_is_no_self_attention():
    assert not attends(HmtEcgNet(inputs_of(STANDARD_LEADS), 5))
    assert attends(EcgTransnet(inputs_of(STANDARD_LEADS), 5))


@pytest.mark.parametrize("n_times", [1, 8, 9, 100, 257, 2200])
def test_any_length_is_read(n_times):
    model = HmtEcgNet(inputs_of(("I", "V1"), n_times), 3).eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 2, n_times)).shape == (2, 3)
