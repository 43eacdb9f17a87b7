"""S4: its convolution is the recurrence that it stands for, in both directions of time."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from rayecg.core.experiment import STANDARD_LEADS
from rayecg.models.catalogue import ModelInputs, count_parameters
from rayecg.models.s4 import S4, DiagonalStateSpace

INPUTS = ModelInputs(STANDARD_LEADS, 200, 100)


def space(n_features: int = 6, d_state: int = 8) -> DiagonalStateSpace:
    """Give a model in float64 whose parameters are no two alike."""
    torch.manual_seed(0)
    model = DiagonalStateSpace(n_features, d_state, (0.001, 0.1)).double()
    with torch.no_grad():
        model.log_decay_FN += 0.5 * torch.randn_like(model.log_decay_FN)
        model.frequency_FN += 0.5 * torch.randn_like(model.frequency_FN)
    return model


def stepped(model: DiagonalStateSpace, x_BFT: torch.Tensor, direction: int) -> torch.Tensor:
    """Run one direction sample by sample: discretised once, then state = a state + b x."""
    step_F1 = model.log_step_F.exp()[:, None]
    a_FN = torch.complex(-model.log_decay_FN.exp(), model.frequency_FN)
    kept_FN = torch.exp(step_F1 * a_FN)
    taken_FN = (kept_FN - 1) / a_FN
    output_FN = torch.view_as_complex(model.output_SFNR[direction])
    state_BFN = torch.zeros(*x_BFT.shape[:2], a_FN.shape[1], dtype=torch.complex128)
    found = []
    for x_BF in x_BFT.unbind(dim=2):
        state_BFN = kept_FN * state_BFN + taken_FN * x_BF[:, :, None]
        found.append(2 * (output_FN * state_BFN).sum(dim=2).real)
    return torch.stack(found, dim=2)


@pytest.mark.parametrize("n_times", [1, 2, 100, 257])
def test_the_convolution_is_the_recurrence_forward_and_backward(n_times):
    model = space()
    x_BFT = torch.randn(3, 6, n_times, dtype=torch.float64)
    with torch.no_grad():
        found_BFT = model(x_BFT)
        # Backward, the state that is read at a time has not taken that time's own sample yet.
        backward_BFT = stepped(model, x_BFT.flip(2), 1).flip(2)
        later_BFT = torch.cat([backward_BFT[:, :, 1:], torch.zeros(3, 6, 1)], dim=2)
        direct_BFT = model.direct_F[:, None] * x_BFT
        expected_BFT = stepped(model, x_BFT, 0) + later_BFT + direct_BFT
        # Each of n_times steps, and the angle of each of the kernel's exponentials, may err by some
        # roundings of the largest sum that a kernel can make; the FFT by fewer.
        largest = model.kernels(n_times).abs().sum(dim=2).max() * x_BFT.abs().max()
        tolerance = (
            8 * torch.finfo(torch.float64).eps * n_times * (largest + direct_BFT.abs().max())
        )
    assert found_BFT.shape == x_BFT.shape
    torch.testing.assert_close(found_BFT, expected_BFT, rtol=0, atol=float(tolerance))
    assert tolerance < 1e-10 < found_BFT.std(correction=0)


def test_float32_keeps_the_kernel():
    model = space(n_features=64)
    with torch.no_grad():
        exact_SFT = model.kernels(1000)
        step_F1 = model.log_step_F.exp()[:, None]
        a_FN = torch.complex(-model.log_decay_FN.exp(), model.frequency_FN)
        # An angle of so many radians is right to half a unit in the last place of itself; all other
        # operations (some ten) are right to one of the result.
        angle_FNT = (step_F1 * a_FN).abs()[:, :, None] * torch.arange(1000)
        size_FNT = torch.exp(-(step_F1 * model.log_decay_FN.exp())[:, :, None] * torch.arange(1000))
        weight_SFN = torch.view_as_complex(model.output_SFNR) * torch.expm1(step_F1 * a_FN) / a_FN
        bound_FNT = size_FNT * (10 + 3 * angle_FNT)
        bound_SFT = torch.einsum("sfn,fnt->sft", 2 * weight_SFN.abs(), bound_FNT)
        single_SFT = model.float().kernels(1000)
    eps = torch.finfo(torch.float32).eps
    assert ((single_SFT - exact_SFT).abs() <= eps * bound_SFT).all()
    assert (eps * bound_SFT).max() < 1e-3 * exact_SFT.abs().max()


@pytest.mark.parametrize("direction", [0, 1])
def test_each_direction_knows_only_its_own_side_of_time(direction):
    model = space()
    with torch.no_grad():
        model.output_SFNR[1 - direction] = 0
        model.direct_F.zero_()
        x_BFT = torch.randn(2, 6, 120, dtype=torch.float64)
        changed_BFT = x_BFT.clone()
        changed_BFT[:, :, 70] += 1
        difference_BFT = (model(changed_BFT) - model(x_BFT)).abs()
    # Forward sees the present, backward what comes after it.
    blind, seeing = (slice(0, 70), 70) if direction == 0 else (slice(70, 120), 69)
    assert difference_BFT[:, :, blind].max() < 1e-13
    assert difference_BFT[:, :, seeing].min() > 1e-6


def test_features_do_not_mix_in_the_state_space():
    model = space()
    x_BFT = torch.randn(1, 6, 50, dtype=torch.float64)
    changed_BFT = x_BFT.clone()
    changed_BFT[:, 2] += 1
    with torch.no_grad():
        same_F = (model(changed_BFT) == model(x_BFT)).all(dim=2)[0]
    assert same_F.tolist() == [True, True, False, True, True, True]


def test_no_weights_make_the_kernel_grow():
    model = space()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(3 * torch.randn_like(parameter))
        model.log_step_F.clamp_(max=0)
        size_SFT = model.kernels(4000).abs()
        modes = torch.complex(-model.log_decay_FN.exp(), model.frequency_FN)
        taken = torch.expm1(model.log_step_F.exp()[:, None] * modes) / modes
        # Damped oscillations never add up to more than they begin with.
        start_SF1 = 2 * (torch.view_as_complex(model.output_SFNR) * taken).abs().sum(2)[:, :, None]
    assert (size_SFT <= start_SF1 * (1 + 1e-12)).all()


def test_the_state_is_real_and_survives_safetensors():
    torch.manual_seed(0)
    first, second = (S4(INPUTS, 5, d_model=16, n_layers=2).eval() for _ in range(2))
    assert not any(value.is_complex() for value in first.state_dict().values())
    second.load_state_dict(load(save(first.state_dict())))
    x_BLT = torch.randn(2, 12, 200)
    with torch.inference_mode():
        assert torch.equal(first(x_BLT), second(x_BLT))


def test_the_published_size():
    assert count_parameters(S4(INPUTS, 5)) == 2_167_813
    # Of a feature: its step and direct weight, four modes of decay, frequency and two complex outputs;
    # then the gated linear unit and the norm.
    d, modes = 64, 4
    layer = d * (2 + modes * (2 + 2 * 2)) + d * 2 * d + 2 * d + 2 * d
    small = S4(INPUTS, 5, d_model=d, n_layers=3)
    assert count_parameters(small) == (12 * d + d) + 3 * layer + (5 * d + 5)


@pytest.mark.parametrize("prenorm", [False, True])
def test_it_learns_with_the_norm_before_or_after_also_in_mixed_precision(prenorm):
    torch.manual_seed(0)
    model = S4(INPUTS, 1, d_model=16, n_layers=2, dropout=0.0, prenorm=prenorm)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    target_B1 = (torch.arange(16) % 2).float()[:, None]
    # Who has the later step: only memory of where it was tells.
    x_BLT = torch.zeros(16, 12, 200)
    x_BLT[0::2, :, 60:80], x_BLT[1::2, :, 120:160] = 1.0, 0.5
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logit_B1 = model(x_BLT)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit_B1.float(), target_B1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 < losses[0]


@pytest.mark.parametrize("d_state", [0, 1, 7])
def test_a_state_that_is_no_pairs_is_refused(d_state):
    with pytest.raises(ValueError, match=f"d_state: expected an even number, .* came {d_state}"):
        S4(INPUTS, 5, d_model=16, d_state=d_state)
