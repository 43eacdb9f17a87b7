"""ECG-TransNet: tokens that know where they stand, any length, and columns beside the window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rayecg.core.experiment import STANDARD_LEADS
from rayecg.models.backends import window_logits
from rayecg.models.catalogue import ModelInputs, count_parameters
from rayecg.models.ecg_transnet import EcgTransnet, position_embedding

RECORD = ModelInputs(STANDARD_LEADS, 1000, 100)
#: Six seconds around a beat, with what is known of the rhythm.
BEAT = ModelInputs(("MLII", "V1"), 750, 125, side=("rr_before", "rr_after", "rr_ratio"))


def network(inputs: ModelInputs, n_outputs: int = 5, **hyperparameters: object) -> EcgTransnet:
    torch.manual_seed(0)
    return EcgTransnet(inputs, n_outputs, **hyperparameters).eval()  # type: ignore[arg-type]


def test_it_declares_the_common_input_and_that_it_can_read_more():
    assert EcgTransnet.reads.side
    assert EcgTransnet.reads.input.metadata == EcgTransnet.reads.input.features == ()
    assert ModelInputs.of(EcgTransnet.reads.input) == RECORD


def test_its_size():
    assert count_parameters(network(RECORD)) == 610_885
    # Ten leads less in the stem; two weights a column and feature, a bias each, and what the
    # classifier reads of them.
    side = 32 * (2 * 3 + 1) + 32 * 128
    assert count_parameters(network(BEAT)) == 610_885 - 10 * 32 * 11 + side


@torch.inference_mode()
@pytest.mark.parametrize("n_leads", [1, 12])
def test_the_same_weights_read_windows_of_any_length(n_leads):
    model = network(ModelInputs(STANDARD_LEADS[:n_leads], 360, 100))
    for n_times in (100, 257, 360, 1000, 2160):
        logits_BC = model(torch.randn(3, n_leads, n_times))
        assert logits_BC.shape == (3, 5)
        assert torch.isfinite(logits_BC).all()
    other = network(ModelInputs(STANDARD_LEADS[:n_leads], 1000, 100))
    other.load_state_dict(model.state_dict())


@pytest.mark.parametrize("n_times", [360, 361, 1000])
def test_a_token_sees_the_signal_around_the_time_it_is_said_to_stand_at(n_times):
    model = network(ModelInputs(("II",), n_times, 100))
    for number in (12, 20, 30):
        x_BLT = torch.randn(32, 1, n_times, requires_grad=True)
        model.tokeniser(x_BLT)[:, :, number].sum().backward()
        seen = torch.nonzero(x_BLT.grad.abs().sum(dim=(0, 1)))[:, 0]
        assert int(seen.min() + seen.max()) == 2 * number * model.stride
    # So, in samples, the beat of a window stands at a token, or half way between two at worst.
    assert model.stride == 8


def test_positions_count_from_the_centre_and_no_two_are_alike():
    time_N = torch.arange(-1250, 1251) * 0.008  # 20 s at a token's distance for 1000 Hz
    position_NF = position_embedding(time_N, 128)
    assert position_NF.shape == (2501, 128)
    torch.testing.assert_close(position_NF.square().sum(dim=1), torch.full((2501,), 64.0))
    sine_NF, cosine_NF = position_NF.chunk(2, dim=1)
    torch.testing.assert_close(sine_NF, -sine_NF.flip(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine_NF, cosine_NF.flip(0), rtol=0, atol=1e-6)
    distance = torch.cdist(position_NF[::10], position_NF[::10])
    distance.fill_diagonal_(torch.inf)
    assert distance.min() > 0.5


@torch.inference_mode()
def test_one_of_the_two_means_is_of_the_beat_that_is_meant():
    model = network(ModelInputs(("II",), 600, 100), n_layers=0)
    width = 128
    x_BLT = 0.1 * torch.randn(4, 1, 600)
    x_BLT[:, :, 295:305] += 2.0
    far_BLT = x_BLT.clone()
    far_BLT[:, :, 60:70] += 5.0
    late_BLT = torch.roll(x_BLT, 40, dims=2)
    first = model.head[0]
    kept = first.weight.clone()
    # With the mean of all tokens taken away, a beat 2.3 s off is not seen, and 0.4 s late is.
    first.weight[:, :width] = 0
    assert (model(far_BLT) - model(x_BLT)).abs().max() < 1e-6
    assert (model(late_BLT) - model(x_BLT)).abs().max() > 1e-2
    # With that around the centre taken away, it is the other way round.
    first.weight[:, :width] = kept[:, :width]
    first.weight[:, width:] = 0
    assert (model(far_BLT) - model(x_BLT)).abs().max() > 1e-3


@torch.inference_mode()
def test_distant_beats_reach_the_one_that_is_meant():
    model = network(ModelInputs(("II",), 600, 100))
    model.head[0].weight[:, :128] = 0
    x_BLT = 0.1 * torch.randn(4, 1, 600)
    early_BLT, late_BLT = x_BLT.clone(), x_BLT.clone()
    early_BLT[:, :, 100:110] += 2.0
    late_BLT[:, :, 491:501] += 2.0
    # Only attention carries them there, and only positions tell before from after.
    assert (model(early_BLT) - model(x_BLT)).abs().max() > 1e-3
    assert (model(early_BLT) - model(late_BLT)).abs().max() > 1e-4


@torch.inference_mode()
def test_what_is_not_known_is_not_the_same_as_nought():
    model = network(BEAT)
    x_BLT, known_BM = torch.randn(4, 2, 750), torch.rand(4, 3) + 0.5
    partly_BM, nought_BM = known_BM.clone(), known_BM.clone()
    partly_BM[0, 1], nought_BM[0, 1] = torch.nan, 0.0
    logits_BC, partly_BC, nought_BC = (model(x_BLT, m) for m in (known_BM, partly_BM, nought_BM))
    assert torch.isfinite(partly_BC).all()
    assert not torch.equal(partly_BC[0], logits_BC[0])
    assert not torch.equal(partly_BC[0], nought_BC[0])
    assert torch.equal(partly_BC[1:], logits_BC[1:])
    assert torch.isfinite(model(x_BLT, torch.full((4, 3), torch.nan))).all()


def test_columns_of_any_scale_are_read_alike_and_all_is_trained():
    model = network(BEAT).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x_BLT, side_BM = torch.randn(16, 2, 750), torch.rand(16, 3) + 0.5
    scaled_BM = side_BM * torch.tensor([1.0, 1000.0, 1.0])
    scaled_BM[3, 2] = side_BM[3, 2] = torch.nan
    # The norm's own 1e-5 beside a variance of 1/12 is all the difference, 6e-5 of a column.
    torch.testing.assert_close(model(x_BLT, scaled_BM), model(x_BLT, side_BM), rtol=0, atol=1e-4)
    model(x_BLT, side_BM).square().sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
    assert model.side.linear.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_unknown_values_do_not_change_the_scale_of_known_ones():
    model = network(BEAT).train()
    x_BLT, known_BM = torch.randn(32, 2, 750), 1.25 + 0.05 * torch.randn(32, 3)
    side_BM = known_BM.clone()
    side_BM[::2, 1] = torch.nan
    side_BM[1:, 2] = torch.nan
    before = model.side.variance_M[2].clone()
    for _ in range(100):
        model(x_BLT, side_BM)
    for column, rows in ((0, slice(None)), (1, slice(1, None, 2))):
        own_B = known_BM[rows, column]
        torch.testing.assert_close(model.side.mean_M[column], own_B.mean(), rtol=0, atol=1e-3)
        variance = own_B.var(correction=0)
        torch.testing.assert_close(model.side.variance_M[column], variance, rtol=1e-2, atol=1e-4)
    assert model.side.variance_M[2] == before  # one value has no scale


def test_side_inputs_come_where_there_is_a_branch_for_them():
    x_BLT = torch.randn(2, 2, 750)
    with pytest.raises(ValueError, match="side inputs: expected some, came none"):
        network(BEAT)(x_BLT)
    with pytest.raises(ValueError, match="side inputs: expected none, came some"):
        network(ModelInputs(BEAT.leads, 750, 125))(x_BLT, torch.zeros(2, 3))


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="kernels: expected odd ones"):
        EcgTransnet(BEAT, 5, kernel=4)


def test_a_beat_s_output_does_not_depend_on_its_neighbours_nor_on_their_columns():
    model = network(BEAT)
    rng = np.random.default_rng(0)
    x_WLT = rng.normal(size=(9, 2, 750)).astype(np.float32)
    side_WM = rng.normal(size=(9, 3)).astype(np.float32)
    side_WM[2] = np.nan
    cpu = torch.device("cpu")
    together_WC = window_logits(model, x_WLT, side_WM, 4, cpu)
    assert np.isfinite(together_WC).all()
    reversed_WC = window_logits(model, x_WLT[::-1], side_WM[::-1], 4, cpu)
    np.testing.assert_array_equal(reversed_WC[::-1], together_WC)


@pytest.mark.parametrize("hyperparameters", [{"n_heads": 3}, {"widths": (32, 63), "n_heads": 1}])
def test_heads_that_do_not_divide_a_token_are_refused(hyperparameters):
    with pytest.raises(
        ValueError, match="widths: expected the last even and a multiple of n_heads"
    ):
        network(RECORD, **hyperparameters)
