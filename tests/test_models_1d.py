"""Recurrent and one-dimensional convolutional architectures: what their sources say of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rayecg.core.errors import SettingsError
from rayecg.core.experiment import STANDARD_LEADS
from rayecg.models.catalogue import (
    ModelInputs,
    build_model,
    count_parameters,
    declared_reads,
    example_batch,
)
from rayecg.models.pooling import AttentionPool, ConcatPoolHead, NormHead, mean_and_max
from rayecg.models.recurrent import RecurrentEncoder, RecurrentLayers
from rayecg.models.resnet1d import ResidualBlock1d

#: Trainable parameters for the declared input and 5 outputs.
PARAMETERS = {
    "gru": 150_789,
    "bigru": 399_877,
    "lstm": 200_837,
    "bilstm": 532_741,
    "bigru_attention": 432_901,
    "bilstm_attention": 565_765,
    "cnn1d_rnn": 185_317,
    "lstm_wang": 808_197,
    "bilstm_wang": 2_140_677,
    "fcn_wang": 277_253,
    "inception1d": 475_141,
    "resnet1d": 8_739_973,
    "resnet1d_wang": 440_837,
    "xresnet1d18": 348_165,
    "xresnet1d50": 889_989,
    "xresnet1d101": 1_808_261,
    "random_encoder": 5_125,
    "resconv_bilstm_attention": 986_677,
}
REFERENCE_RNNS = tuple(PARAMETERS)[:7]


def built(name: str, n_leads: int = 12, n_times: int = 200, **hyperparameters: object) -> nn.Module:
    torch.manual_seed(0)
    inputs = ModelInputs(STANDARD_LEADS[:n_leads], n_times, 100)
    return build_model(name, inputs, 5, hyperparameters)


def of_kind(model: nn.Module, kind: type[nn.Module]) -> list:
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_parameters_for_the_declared_input_and_five_outputs(name, expected):
    inputs = ModelInputs.of(declared_reads(name).input)
    with torch.device("meta"):
        assert count_parameters(build_model(name, inputs, 5, {})) == expected


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize(("n_leads", "n_times"), [(1, 100), (3, 333), (8, 128)])
def test_any_leads_and_any_length_from_a_second_on(name, n_leads, n_times):
    model = built(name, n_leads, n_times).eval()
    with torch.inference_mode():
        logits_BC = model(torch.randn(2, n_leads, n_times))
    assert logits_BC.shape == (2, 5)
    assert torch.isfinite(logits_BC).all()


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("cnn1d_rnn", {"filters": [8, 16], "kernels": [7, 5]}),
        ("fcn_wang", {"filters": [8, 16], "kernels": [8, 3]}),
        ("inception1d", {"kernels": [9, 5], "depth": 3}),
        ("resnet1d", {"blocks": [1, 1], "widths": [8, 16]}),
        ("random_encoder", {"widths": [8, 16]}),
        ("resconv_bilstm_attention", {"filters": [8, 16], "kernels": [3, 7]}),
    ],
)
def test_lists_of_a_settings_file_are_as_good_as_tuples(name, lists):
    tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in lists.items()}
    first, second = (built(name, **values).state_dict() for values in (lists, tuples))
    assert all(torch.equal(first[key], second[key]) for key in second)
    assert count_parameters(built(name, **lists)) != count_parameters(built(name))


@pytest.mark.parametrize(
    ("name", "hyperparameters", "expected"),
    [
        ("cnn1d_rnn", {"cell": "elman"}, "cnn1d_rnn: cell: expected gru or lstm, came elman"),
        ("cnn1d_rnn", {"filters": [32]}, "cnn1d_rnn: zip"),
        ("gru", {"hidden": 0}, "gru: hidden_size must be greater than zero"),
        ("inception1d", {"depth": 4}, "inception1d: depth: expected a multiple of 3, came 4"),
        ("inception1d", {"depth": 0}, "inception1d: depth: expected a multiple of 3, came 0"),
        ("inception1d", {"kernels": [40, 20, 10]}, "inception1d: kernels: expected odd ones"),
        ("resnet1d", {"kernel": 8}, "resnet1d: kernels: expected odd ones, came 8 and 8"),
        ("resconv_bilstm_attention", {"kernels": [4, 7]}, "expected odd ones, came 4 and 4"),
    ],
)
def test_hyperparameters_that_do_not_fit_are_refused(name, hyperparameters, expected):
    with pytest.raises(SettingsError, match=expected):
        built(name, **hyperparameters)


# Pooling


def test_attention_weights_of_a_record_add_up_to_one():
    torch.manual_seed(0)
    pool, x_BTF = AttentionPool(6, 4), 5 * torch.randn(3, 50, 6)
    weights_BT = pool.weights(x_BTF)
    assert weights_BT.shape == (3, 50)
    assert (weights_BT > 0).all()
    torch.testing.assert_close(weights_BT.sum(dim=1), torch.ones(3))
    assert weights_BT.std(dim=1).min() > 1e-4
    expected_BF = (weights_BT.unsqueeze(2) * x_BTF).sum(dim=1)
    torch.testing.assert_close(pool(x_BTF), expected_BF)


def test_attention_without_a_preference_is_the_mean_and_with_a_strong_one_a_choice():
    pool, x_BTF = AttentionPool(2, 2), torch.randn(3, 20, 2)
    nn.init.zeros_(pool.score.weight)
    torch.testing.assert_close(pool(x_BTF), x_BTF.mean(dim=1))
    # A score of 100 tanh(feature 0): all weight to the one time where that is not below zero.
    x_BTF[..., 0], x_BTF[:, 7, 0] = -3.0, 3.0
    with torch.no_grad():
        pool.project.weight.copy_(torch.eye(2))
        pool.project.bias.zero_()
        pool.score.weight.copy_(torch.tensor([[100.0, 0.0]]))
    torch.testing.assert_close(pool(x_BTF), x_BTF[:, 7])


def test_concat_pooling_is_the_mean_and_the_maximum_under_a_norm():
    x_BFT = torch.tensor([[[1.0, 2.0, 6.0], [-4.0, -2.0, 0.0]]])
    assert mean_and_max(x_BFT).tolist() == [[3.0, -2.0, 6.0, 0.0]]
    head = ConcatPoolHead(2, 5, 0.25).eval()
    plain = NormHead(4, 5, 0.25).eval()
    plain.load_state_dict(head.state_dict())
    assert torch.equal(head(x_BFT), plain(mean_and_max(x_BFT)))


# Recurrent networks


@pytest.mark.parametrize("name", REFERENCE_RNNS)
def test_reference_recurrent_networks_are_as_their_project_says(name):
    model = built(name)
    (rnn,) = of_kind(model, nn.LSTM if "lstm" in name else nn.GRU)
    assert (rnn.hidden_size, rnn.num_layers, rnn.dropout) == (128, 2, 0.3)
    assert rnn.bidirectional == name.startswith("bi")
    assert [dropout.p for dropout in of_kind(model, nn.Dropout)] == [0.3]
    assert len(of_kind(model, AttentionPool)) == ("attention" in name)
    assert len(of_kind(model, nn.Conv1d)) == (2 if name == "cnn1d_rnn" else 0)
    declared = declared_reads(name).input
    assert (declared.leads, declared.n_times, declared.fs) == (("I", "II", "V2"), 1000, 100)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_last_states_are_those_that_have_read_the_whole_window(cell, bidirectional):
    torch.manual_seed(0)
    layers = RecurrentLayers(3, cell, bidirectional, hidden=4, n_layers=2)
    x_BLT = torch.randn(2, 3, 9)
    states_BTF, last = layers.rnn(x_BLT.transpose(1, 2))
    hidden_KBF = last[0] if cell == "lstm" else last
    top_KBF = hidden_KBF.unflatten(0, (2, -1))[1]
    assert torch.equal(layers.last(states_BTF), torch.cat(list(top_KBF), dim=1))
    assert layers(x_BLT).shape == (2, 9, layers.n_features)
    assert layers.n_features == (8 if bidirectional else 4)


def test_plain_recurrent_features_are_the_last_states_and_attended_ones_are_not():
    torch.manual_seed(0)
    x_BLT = torch.randn(2, 3, 50)
    plain = RecurrentEncoder(3, "gru", bidirectional=True, hidden=8).eval()
    states_BTF = plain.layers(x_BLT)
    assert torch.equal(plain(x_BLT), plain.layers.last(states_BTF))
    attended = RecurrentEncoder(3, "gru", bidirectional=True, attention=True, hidden=8).eval()
    attended.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(attended(x_BLT), attended.attention(states_BTF))
    assert attended.n_features == plain.n_features == 16


def test_one_way_networks_read_forwards():
    """The state before a change cannot know of it; that of a backward direction does."""
    x_BLT, changed_BLT = torch.zeros(2, 1, 3, 30)
    changed_BLT[..., 20:] = 1.0
    for bidirectional in (False, True):
        layers = RecurrentLayers(3, "gru", bidirectional, hidden=4)
        same = torch.equal(layers(x_BLT)[:, :20], layers(changed_BLT)[:, :20])
        assert same != bidirectional


def test_the_front_end_of_cnn1d_rnn_halves_the_rate_twice():
    encoder = built("cnn1d_rnn", n_leads=3).encoder
    assert encoder.front(torch.randn(2, 3, 200)).shape == (2, 64, 50)
    assert isinstance(built("cnn1d_rnn", cell="lstm").encoder.layers.rnn, nn.LSTM)


@pytest.mark.parametrize("name", ["lstm_wang", "bilstm_wang"])
def test_wang_lstms_pool_last_maximum_and_mean(name):
    model = built(name).eval()
    (rnn,) = of_kind(model, nn.LSTM)
    n_features = 512 if name == "bilstm_wang" else 256
    assert (rnn.hidden_size, rnn.num_layers, rnn.dropout) == (256, 2, 0.0)
    assert rnn.bidirectional == (name == "bilstm_wang")
    x_BLT = torch.randn(2, 12, 60)
    states_BTF = model.layers(x_BLT)
    model.head = nn.Identity()
    last_BF, max_BF, mean_BF = model(x_BLT).split(n_features, dim=1)
    assert torch.equal(last_BF, model.layers.last(states_BTF))
    assert torch.equal(max_BF, states_BTF.max(dim=1).values)
    torch.testing.assert_close(mean_BF, states_BTF.mean(dim=1))


# Convolutional networks


def test_fcn_wang_keeps_the_rate_and_its_even_kernel_costs_one_sample():
    model = built("fcn_wang")
    convs = of_kind(model, nn.Conv1d)
    assert [conv.out_channels for conv in convs] == [128, 256, 128]
    assert [conv.kernel_size for conv in convs] == [(8,), (5,), (3,)]
    assert model.features(torch.randn(2, 12, 200)).shape == (2, 128, 199)


def test_inception_modules_look_at_three_scales_and_the_pooled_input():
    model = built("inception1d")
    modules = [module for group in model.features for module in group.inner]
    assert len(modules) == 6
    for i, module in enumerate(modules):
        assert [conv.kernel_size for conv in module.convs] == [(39,), (19,), (9,)]
        assert {conv.in_channels for conv in module.convs} == {32}
        assert module.bottleneck.in_channels == (12 if i == 0 else 128)
        assert module.norm.num_features == 4 * 32
    assert model.features(torch.randn(2, 12, 201)).shape == (2, 128, 201)


def test_inception_has_a_shortcut_around_every_third_module():
    model = built("inception1d").eval()
    first, second = model.features
    for group in (first, second):
        # What the inner modules give is now zero: only the shortcut is left.
        nn.init.zeros_(group.inner[-1].norm.weight)
    x_BLT = torch.randn(2, 12, 100)
    expected_BFT = torch.relu(second.shortcut(torch.relu(first.shortcut(x_BLT))))
    assert torch.equal(model.features(x_BLT), expected_BFT)


def test_resnet1d_is_the_baseline_of_8_7_million_parameters():
    declared = declared_reads("resnet1d").input
    assert (declared.fs, declared.n_times, len(declared.leads)) == (250, 2200, 12)
    assert abs(PARAMETERS["resnet1d"] / 8.7e6 - 1) < 0.02
    model = built("resnet1d")
    blocks = of_kind(model, ResidualBlock1d)
    assert [block.convs[0].out_channels for block in blocks] == [
        *(64, 64, 128, 128, 256, 256, 512, 512)
    ]
    pointwise = [conv for conv in of_kind(model, nn.Conv1d) if conv.kernel_size == (1,)]
    # Eighteen layers, the last of them linear; names of ResNets do not count the shortcuts.
    assert len(of_kind(model, nn.Conv1d)) - len(pointwise) + 1 == 18
    assert len(pointwise) == 3
    assert model.blocks(model.stem(torch.randn(1, 12, 320))).shape == (1, 512, 10)


def test_resnet1d_wang_halves_the_rate_in_its_later_blocks():
    model = built("resnet1d_wang")
    convs = [block.convs for block in of_kind(model, ResidualBlock1d)]
    assert [(first.kernel_size, first.stride) for first, *_ in convs] == [
        ((5,), (1,)),
        ((5,), (2,)),
        ((5,), (2,)),
    ]
    assert {second.kernel_size for _, _, _, second, _ in convs} == {(3,)}
    assert (model.stem[0].kernel_size, model.stem[0].stride) == ((7,), (1,))


@pytest.mark.parametrize("name", ["xresnet1d18", "xresnet1d50", "xresnet1d101"])
def test_xresnets_start_shallow_and_move_by_32_samples(name):
    model = built(name)
    blocks = [part for part in model.features if hasattr(part, "shortcut")]
    # What a residual branch gives is zero at first.
    assert all((block.convs[-1][1].weight == 0).all() for block in blocks)
    convs = of_kind(model.features, nn.Conv1d)
    assert {conv.kernel_size for conv in convs} - {(1,)} == {(5,)}
    assert [conv.stride for conv in convs if conv.stride != (1,)] == 4 * [(2,)]
    assert [conv.out_channels for conv in convs[:3]] == [32, 32, 64]
    assert model.features(torch.randn(2, 12, 320)).shape[2] == 10


@pytest.mark.parametrize(("n_in", "stride"), [(6, 1), (6, 2), (4, 1), (4, 2)])
def test_a_residual_block_adds_what_it_reads(n_in, stride):
    block = ResidualBlock1d(n_in, 6, (5, 3), stride).eval()
    nn.init.zeros_(block.convs[-1].weight)
    x_BFT = torch.randn(2, n_in, 11)
    assert torch.equal(block(x_BFT), torch.relu(block.shortcut(x_BFT)))
    assert block(x_BFT).shape == (2, 6, 11 if stride == 1 else 6)
    assert isinstance(block.shortcut, nn.Identity) == (n_in == 6 and stride == 1)


# Residual convolutions, BiLSTM, attention and metadata


def with_metadata() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    inputs = ModelInputs(STANDARD_LEADS, 200, 100, side=("age", "sex"))
    model = build_model("resconv_bilstm_attention", inputs, 5, {})
    return model, *example_batch(inputs, 4)


def test_resconv_bilstm_attention_is_as_its_project_says():
    assert declared_reads("resconv_bilstm_attention").input.metadata == ("age", "sex")
    model, x_BLT, _ = with_metadata()
    blocks = of_kind(model, ResidualBlock1d)
    assert [block.convs[0].out_channels for block in blocks] == [256, 128]
    assert [block.convs[0].kernel_size for block in blocks] == [(3,), (7,)]
    (lstm,) = of_kind(model, nn.LSTM)
    assert (lstm.hidden_size, lstm.num_layers, lstm.bidirectional) == (128, 1, True)
    assert {dropout.p for dropout in of_kind(model, nn.Dropout)} == {0.25}
    denses = [
        (dense.in_features, dense.out_features)
        for part in (model.signal, model.side, model.head)
        for dense in of_kind(part, nn.Linear)
    ]
    assert denses == [(256, 256), (2, 16), (256 + 16, 128), (128, 5)]
    assert model.convs(x_BLT).shape == (4, 128, 50)
    weights_BT = model.attention.weights(model.lstm(model.convs(x_BLT)))
    torch.testing.assert_close(weights_BT.sum(dim=1), torch.ones(4))


def test_metadata_changes_the_output_of_its_own_record():
    model, x_BLT, side_BM = with_metadata()
    model.eval()
    before_BC = model(x_BLT, side_BM)
    for column in range(2):
        changed_BM = side_BM.clone()
        changed_BM[1, column] += 1.0
        after_BC = model(x_BLT, changed_BM)
        assert not torch.equal(after_BC[1], before_BC[1])
        rest = [0, 2, 3]
        assert torch.equal(after_BC[rest], before_BC[rest])


def test_metadata_that_is_not_known_counts_as_zero():
    model, x_BLT, side_BM = with_metadata()
    side_BM[0], side_BM[2, 1] = torch.nan, torch.nan
    zeroed_BM = side_BM.nan_to_num(nan=0.0)
    assert torch.equal(model.eval()(x_BLT, side_BM), model(x_BLT, zeroed_BM))
    model.train()(x_BLT, side_BM).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert model.side[0].weight.grad.abs().max() > 0
    assert torch.isnan(side_BM[0]).all()


def test_side_inputs_come_exactly_where_there_is_a_branch_for_them():
    model, x_BLT, side_BM = with_metadata()
    without = built("resconv_bilstm_attention")
    assert without.side is None
    assert without(x_BLT).shape == (4, 5)
    with pytest.raises(ValueError, match="side inputs: expected some, came none"):
        model(x_BLT)
    with pytest.raises(ValueError, match="side inputs: expected none, came some"):
        without(x_BLT, side_BM)


# Random encoder


def test_the_random_encoder_stays_as_it_was_drawn_while_its_probe_learns():
    model = built("random_encoder").train()
    assert count_parameters(model) == sum(p.numel() for p in model.probe.parameters())
    assert not any(p.requires_grad for p in model.encoder.parameters())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    # Two amplitudes: nothing to learn for one that does not let amplitudes through.
    target_BC = torch.tensor([0.0, 1.0]).repeat(8)[:, None].expand(16, 5)
    x_BLT = torch.randn(16, 12, 200) * (1 + target_BC[:, :1, None])
    losses = []
    for _ in range(20):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x_BLT), target_BC)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = model.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key for key in after if key.startswith("encoder.")} == {
        f"encoder.{i}.weight" for i in (0, 2, 4, 6)
    }
    assert not any(key.startswith("encoder.") for key in changed)
    assert {"probe.weight", "probe.bias", "standardise.running_mean"} <= changed
    assert losses[-1] < losses[0] / 4


def test_the_seed_draws_the_random_encoder():
    first, again = built("random_encoder"), built("random_encoder")
    other = build_model("random_encoder", ModelInputs(STANDARD_LEADS, 200, 100), 5, {})
    x_BLT = torch.randn(2, 12, 200)
    assert torch.equal(first.encoder(x_BLT), again.encoder(x_BLT))
    assert not torch.equal(first.encoder(x_BLT), other.encoder(x_BLT))


def test_the_random_encoder_keeps_the_size_of_a_signal_and_knows_no_neighbours():
    encoder = built("random_encoder", n_times=1000).train().encoder
    x_BLT = torch.randn(4, 12, 1000)
    features_BFT = encoder(x_BLT)
    # Mean squares stay 1 through layers drawn after He; padding and chance cost some.
    assert 0.5 < features_BFT.square().mean() < 2.0
    torch.testing.assert_close(encoder(2 * x_BLT), 2 * features_BFT)
    torch.testing.assert_close(encoder(x_BLT[1:2])[0], features_BFT[1])
