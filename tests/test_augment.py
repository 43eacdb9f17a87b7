"""Augmentation: each change does what it says, nothing else, and the seed decides it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rayecg.core.train_settings import AugmentSettings
from rayecg.train.augment import augment, mix

FS = 100
#: One of each change of `augment`, alone, and all together.
CHANGES = {
    "shift_s": AugmentSettings(shift_s=0.2),
    "scale": AugmentSettings(scale=0.3),
    "noise": AugmentSettings(noise=0.1),
    "wander": AugmentSettings(wander=0.2),
    "crop": AugmentSettings(crop=0.4),
    "lead_dropout": AugmentSettings(lead_dropout=0.3),
    "all": AugmentSettings(0.2, 0.4, 0.3, 0.1, 0.2, 0.3),
}
every_change = pytest.mark.parametrize("settings", CHANGES.values(), ids=CHANGES)


def noise(n=64, n_leads=3, n_times=200):
    """Give windows without a zero and without two alike samples."""
    return torch.randn(n, n_leads, n_times, generator=torch.Generator().manual_seed(5))


def seeded(x_BLT, settings, seed=0, fs=FS):
    torch.manual_seed(seed)
    return augment(x_BLT, settings, fs)


def test_strengths_of_zero_give_the_batch_back_and_draw_nothing():
    x_BLT, before = noise(), torch.get_rng_state()
    assert torch.equal(augment(x_BLT, AugmentSettings(), FS), x_BLT)
    assert torch.equal(torch.get_rng_state(), before)


@every_change
def test_a_change_keeps_shape_and_precision_and_leaves_its_input_alone(settings):
    for dtype in (torch.float32, torch.float64):
        x_BLT = noise().to(dtype)
        before = x_BLT.clone()
        changed_BLT = seeded(x_BLT, settings)
        assert changed_BLT.shape == x_BLT.shape
        assert changed_BLT.dtype == dtype
        assert torch.isfinite(changed_BLT).all()
        assert not torch.equal(changed_BLT, x_BLT)
        assert torch.equal(x_BLT, before)


@every_change
def test_the_seed_alone_decides_a_change(settings):
    x_BLT = noise()
    once_BLT = seeded(x_BLT, settings)
    assert torch.equal(once_BLT, seeded(x_BLT, settings))
    assert not torch.equal(once_BLT, seeded(x_BLT, settings, seed=1))


@every_change
def test_windows_are_changed_apart_from_one_another(settings):
    x_BLT = noise(n=1).expand(8, -1, -1)
    changed_BLT = seeded(x_BLT, settings)
    assert len({window_LT.numpy().tobytes() for window_LT in changed_BLT}) > 1


@every_change
def test_what_is_random_is_drawn_on_the_cpu_and_follows_the_windows(settings):
    seeded(noise(), settings)
    drawn = torch.get_rng_state()
    there_BLT = seeded(noise().to("meta"), settings)
    assert there_BLT.device.type == "meta"
    assert torch.equal(torch.get_rng_state(), drawn)


@every_change
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 2), (1, 12, 7)])
def test_the_smallest_windows_can_be_changed(settings, shape):
    assert seeded(torch.ones(shape), settings).shape == shape


def test_changes_come_in_their_order_and_draw_apart():
    """Write out what each change draws, so that a run's random stream stays what it was."""
    x_BLT, settings = noise(4, 2, 50), CHANGES["all"]
    found_BLT = seeded(x_BLT, settings)
    torch.manual_seed(0)
    shift_B = torch.randint(-20, 21, (4,)).tolist()
    log_B = (torch.rand(4) * 2 - 1) * math.log(1.3)
    level_B = torch.rand(4) * 0.1
    noise_BLT = torch.randn(4, 2, 50) * level_B[:, None, None]
    wander_B, hz_BK, phase_BLK = torch.rand(4) * 0.2, torch.rand(4, 3), torch.rand(4, 2, 3)
    length_B = torch.randint(30, 51, (4,)).tolist()
    start_B = torch.rand(4, dtype=torch.float64).tolist()
    lost_BL = torch.rand(4, 2) < 0.3
    time_T = torch.arange(50) / FS
    for b in range(4):
        expected_LT = torch.zeros(2, 50)
        for t in range(50):
            if 0 <= t - shift_B[b] < 50:
                expected_LT[:, t] = x_BLT[b, :, t - shift_B[b]]
        expected_LT = expected_LT * log_B[b].exp() + noise_BLT[b]
        for k in range(3):
            angle_T = 2 * math.pi * (0.05 + 0.45 * hz_BK[b, k]) * time_T
            phase_L = 2 * math.pi * phase_BLK[b, :, k]
            expected_LT += wander_B[b] / 3 * torch.sin(angle_T[None, :] + phase_L[:, None])
        start = int(start_B[b] * (50 - length_B[b] + 1))
        expected_LT[:, :start] = 0
        expected_LT[:, start + length_B[b] :] = 0
        expected_LT[lost_BL[b]] = 0
        torch.testing.assert_close(found_BLT[b], expected_LT)


def test_a_shift_moves_all_leads_by_the_same_whole_samples():
    x_BLT = noise()
    moved_BLT = seeded(x_BLT, AugmentSettings(shift_s=0.2)).numpy()
    shifts = []
    for own_LT, moved_LT in zip(x_BLT.numpy(), moved_BLT, strict=True):
        fitting = []
        for shift in range(-20, 21):
            expected_LT = np.zeros_like(own_LT)
            here, there = slice(max(shift, 0), 200 + min(shift, 0)), max(-shift, 0)
            expected_LT[:, here] = own_LT[:, there : 200 - max(shift, 0)]
            if np.array_equal(expected_LT, moved_LT):
                fitting.append(shift)
        assert len(fitting) == 1
        shifts += fitting
    # 64 of 41 equally likely: both directions, and more than a few different ones.
    assert min(shifts) < -10
    assert max(shifts) > 10


def test_the_furthest_shift_is_reached_and_is_in_seconds():
    x_BLT = torch.arange(1.0, 51.0).expand(500, 1, 50)
    for fs, furthest in ((100, 3), (200, 6)):
        moved_BT = seeded(x_BLT, AugmentSettings(shift_s=0.03), fs=fs)[:, 0]
        assert int((moved_BT == 0).sum(dim=1).max()) == furthest
        # Moved back, a window begins with a later sample; moved on, with 0.
        assert set(moved_BT[:, 0].int().tolist()) == set(range(furthest + 2))


def test_a_shift_beyond_the_window_leaves_some_of_it():
    moved_BLT = seeded(torch.ones(500, 1, 10), AugmentSettings(shift_s=5.0))
    assert set(moved_BLT.sum(dim=2).flatten().int().tolist()) == set(range(1, 11))


def test_a_scale_multiplies_a_window_by_one_factor_within_its_bounds():
    x_BLT = noise(n=2000, n_times=8)
    ratio_BN = (seeded(x_BLT, AugmentSettings(scale=0.5)) / x_BLT).flatten(1)
    factor_B = ratio_BN.mean(dim=1)
    torch.testing.assert_close(ratio_BN, factor_B[:, None].expand_as(ratio_BN))
    log_B = factor_B.log() / math.log(1.5)
    assert float(log_B.abs().max()) <= 1 + 1e-5
    # Uniform from -1 to 1: deviation 0.577; of the mean of 2,000 it is 0.0129, four of them 0.052.
    assert abs(float(log_B.mean())) < 0.052
    assert float(log_B.std()) == pytest.approx(3**-0.5, rel=0.05)


def test_noise_is_white_and_of_a_deviation_up_to_its_strength():
    x_BLT = noise(n=400, n_times=500)
    added_BN = (seeded(x_BLT, AugmentSettings(noise=0.2)) - x_BLT).flatten(1).double()
    level_B = added_BN.std(dim=1)
    # Of 1,500 draws a deviation is known to 1.8 %: five of them.
    assert float(level_B.max()) < 0.2 * 1.09
    # Levels are uniform up to the strength: mean 0.1, known to 0.0029.
    assert float(level_B.mean()) == pytest.approx(0.1, abs=0.012)
    white_BN = added_BN / level_B[:, None]
    # Means and neighbours' products of 600,000 draws: five deviations are 0.0065.
    assert abs(float(white_BN.mean())) < 0.0065
    assert abs(float((white_BN[:, 1:] * white_BN[:, :-1]).mean())) < 0.0065


def wander(strength=0.3, n=64, n_times=10_000, fs=FS):
    x_BLT = noise(n, 3, n_times).double()
    return (seeded(x_BLT, AugmentSettings(wander=strength), fs=fs) - x_BLT).numpy()


@pytest.mark.parametrize("fs", [100, 250])
def test_a_wander_has_its_power_below_half_a_hertz(fs):
    added_BLT = wander(fs=fs, n_times=100 * fs)
    # A Hann window's side lobes: 0.05 Hz beyond a line, five bins of 0.01 Hz, less than 1e-6 is left.
    window_T = np.hanning(added_BLT.shape[2])
    power_BLF = np.abs(np.fft.rfft(added_BLT * window_T, axis=2)) ** 2
    hz_F = np.fft.rfftfreq(added_BLT.shape[2], 1 / fs)
    slow = (hz_F > 0.02) & (hz_F < 0.53)
    share_BL = power_BLF[:, :, slow].sum(axis=2) / power_BLF.sum(axis=2)
    assert share_BL.min() > 1 - 1e-3
    beyond_BL = power_BLF[:, :, hz_F > 0.55].sum(axis=2) / power_BLF.sum(axis=2)
    assert beyond_BL.max() < 1e-5


def test_a_wander_stays_within_its_strength_about_zero():
    added_BLT = wander(strength=0.3, n=300, n_times=2000)
    assert np.abs(added_BLT).max() <= 0.3 * (1 + 1e-6)
    # The strongest of 900 comes near enough to say that the bound is not an idle one.
    assert np.abs(added_BLT).max() > 0.2
    assert abs(added_BLT.mean()) < 0.01


def test_a_wander_differs_between_leads_and_does_not_depend_on_the_signal():
    added_BLT = wander(n=8, n_times=1000)
    assert not np.allclose(added_BLT[:, 0], added_BLT[:, 1], atol=1e-3)
    x_BLT = torch.ones(8, 3, 1000, dtype=torch.float64)
    alone_BLT = (seeded(x_BLT, AugmentSettings(wander=0.3)) - x_BLT).numpy()
    # The noise of `wander` was drawn by a generator of its own.
    np.testing.assert_allclose(alone_BLT, added_BLT, atol=1e-12)


def test_a_wander_starts_anew_in_every_window():
    added_BLT = wander(n=400, n_times=10)
    # The first sample is sin(phase) of three waves at a level: as often above 0 as below, of 400.
    assert 150 < (added_BLT[:, 0, 0] > 0).sum() < 250


def test_a_crop_keeps_one_stretch_of_all_leads_where_it_stands():
    x_BLT = noise(n=2000, n_times=50)
    cropped_BLT = seeded(x_BLT, AugmentSettings(crop=0.4))
    kept_BLT = cropped_BLT != 0
    assert torch.equal(cropped_BLT[kept_BLT], x_BLT[kept_BLT])
    kept_BT = kept_BLT[:, 0]
    assert (kept_BLT == kept_BT[:, None, :]).all()
    edges_B = (kept_BT[:, 1:] != kept_BT[:, :-1]).sum(dim=1) + kept_BT[:, 0] + kept_BT[:, -1]
    assert (edges_B == 2).all()
    length_B = kept_BT.sum(dim=1)
    assert set(length_B.tolist()) == set(range(30, 51))
    # No end is preferred: both stay equally often, within five deviations.
    first, last = int(kept_BT[:, 0].sum()), int(kept_BT[:, -1].sum())
    assert 0.1 < first / 2000 < 0.5
    assert abs(first - last) < 5 * math.sqrt(2 * first)
    start_B = kept_BT.int().argmax(dim=1)
    shortest_B = start_B[length_B == 30]
    assert set(shortest_B.tolist()) == set(range(21))


def test_a_crop_of_nearly_all_keeps_at_least_one_sample():
    kept_BLT = seeded(torch.ones(5000, 1, 20), AugmentSettings(crop=0.99))
    assert int(kept_BLT.sum(dim=2).min()) == 1
    kept_BLT = seeded(torch.ones(5000, 1, 100), AugmentSettings(crop=0.29))
    assert int(kept_BLT.sum(dim=2).min()) in (71, 72)


def test_lead_dropout_loses_whole_leads_at_its_probability():
    x_BLT = noise(n=4000, n_times=5)
    changed_BLT = seeded(x_BLT, AugmentSettings(lead_dropout=0.2))
    lost_BL = (changed_BLT == 0).all(dim=2)
    assert torch.equal(changed_BLT[~lost_BL], x_BLT[~lost_BL])
    # Of 12,000 leads: a deviation of the share is 0.0037, four of them 0.015.
    assert float(lost_BL.float().mean()) == pytest.approx(0.2, abs=0.015)
    # Leads are lost apart: pairs at 0.04, of 4,000 windows known to 0.0031.
    both_B = (lost_BL[:, 0] & lost_BL[:, 1]).float()
    assert float(both_B.mean()) == pytest.approx(0.04, abs=0.0125)


@pytest.mark.parametrize("settings", [CHANGES["crop"], CHANGES["lead_dropout"]])
def test_what_is_taken_away_is_zero_whatever_is_added(settings):
    added = AugmentSettings(scale=0.3, noise=0.1, wander=0.2)
    both = AugmentSettings(
        crop=settings.crop, scale=0.3, noise=0.1, wander=0.2, lead_dropout=settings.lead_dropout
    )
    x_BLT = noise()
    before_BLT, after_BLT = seeded(x_BLT, added), seeded(x_BLT, both)
    gone_BLT = after_BLT == 0
    assert gone_BLT.any()
    assert torch.equal(after_BLT[~gone_BLT], before_BLT[~gone_BLT])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shift_s", -0.1),
        ("crop", 1.0),
        ("scale", -1.0),
        ("noise", float("nan")),
        ("wander", float("inf")),
        ("lead_dropout", 1.0),
        ("mixup", -0.2),
    ],
)
def test_strengths_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected .*, came {value}$"):
        AugmentSettings(**{field: value})


def examples(n=32):
    """Give windows, side inputs and one-hot targets that tell examples apart."""
    number_B = torch.arange(n, dtype=torch.float32)
    x_BLT = number_B[:, None, None].expand(n, 2, 5).clone()
    return x_BLT, torch.stack([number_B, -number_B], dim=1), torch.eye(n)


def mixed(batch, alpha, seed=0):
    torch.manual_seed(seed)
    return mix(*batch, alpha)


def test_mixup_of_zero_gives_the_batch_back_and_draws_nothing():
    batch, before = examples(), torch.get_rng_state()
    assert all(a is b for a, b in zip(mix(*batch, 0.0), batch, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_mixup_mixes_window_side_and_target_of_two_examples_by_the_same_share():
    batch = examples()
    before = [value.clone() for value in batch]
    x_BLT, side_BM, target_BC = mixed(batch, 1.0)
    for own, was in zip(batch, before, strict=True):
        assert torch.equal(own, was)
    others = []
    for b in range(32):
        there = target_BC[b].nonzero().flatten().tolist()
        assert b in there
        assert len(there) <= 2
        other = next((c for c in there if c != b), b)
        others.append(other)
        share = float(target_BC[b, b]) if other != b else 1.0
        assert float(target_BC[b].sum()) == pytest.approx(1, abs=1e-6)
        value = share * b + (1 - share) * other
        assert x_BLT[b].flatten().tolist() == pytest.approx([value] * 10, abs=1e-5)
        assert side_BM[b].tolist() == pytest.approx([value, -value], abs=1e-5)
    # Every example is the other one of exactly one.
    assert sorted(others) == list(range(32))


def test_mixup_stays_between_its_examples():
    x_BLT = noise(n=200)
    target_BC = (noise(n=200)[:, :, 0] > 0).float()
    mixed_BLT, _, mixed_BC = mixed((x_BLT, None, target_BC), 0.4)
    assert float(mixed_BLT.max()) <= float(x_BLT.max()) + 1e-6
    assert float(mixed_BLT.min()) >= float(x_BLT.min()) - 1e-6
    assert float(mixed_BC.min()) >= 0
    assert float(mixed_BC.max()) <= 1 + 1e-6
    # Windows and targets over a permutation keep the batch's mean within what is drawn.
    assert float(mixed_BC.mean()) == pytest.approx(float(target_BC.mean()), abs=0.05)


@pytest.mark.parametrize("alpha", [0.02, 0.2, 1.0, 8.0])
def test_shares_have_the_moments_of_their_beta_distribution(alpha):
    n = 20_000
    even_BC = (torch.arange(n)[:, None] % 2 == 0).float()
    target_BC = mixed((torch.zeros(n, 1, 1), None, even_BC), alpha)[2]
    # Where an even number meets an odd one, the mixed target shows the share.
    torch.manual_seed(0)
    other_B = torch.randperm(n)
    apart = even_BC[:, 0] != even_BC[other_B, 0]
    own_B = torch.where(even_BC[:, 0] == 1, target_BC[:, 0], 1 - target_BC[:, 0])[apart].double()
    # Beta(alpha, alpha): mean 1/2, variance 1 / (4 (2 alpha + 1)); about 10,000 draws of at most
    # 0.5 deviation: five deviations of the mean are 0.025, and of the variance less than 0.01.
    assert float(own_B.mean()) == pytest.approx(0.5, abs=0.025)
    assert float(own_B.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)


def test_what_is_not_known_of_either_example_is_not_known_of_the_mixture():
    n = 64
    side_BM = torch.ones(n, 2)
    side_BM[::4, 0] = float("nan")
    target_BC = torch.eye(n)
    for alpha in (0.01, 1.0):
        _, mixed_BM, mixed_BC = mixed((torch.zeros(n, 1, 1), side_BM, target_BC), alpha)
        torch.manual_seed(0)
        other_B = torch.randperm(n)
        expected_B = side_BM[:, 0].isnan() | side_BM[other_B, 0].isnan()
        assert torch.equal(mixed_BM[:, 0].isnan(), expected_B)
        assert expected_B.sum() > n // 4
        assert not mixed_BM[:, 1].isnan().any()
        assert not mixed_BC.isnan().any()


def test_the_seed_alone_decides_a_mixture():
    batch = examples()
    once, again, otherwise = mixed(batch, 0.4), mixed(batch, 0.4), mixed(batch, 0.4, seed=1)
    for i in range(3):
        assert torch.equal(once[i], again[i])
        assert not torch.equal(once[i], otherwise[i])


def test_a_mixture_keeps_precision_device_and_the_absence_of_side_inputs():
    x_BLT, side_BM, target_BC = examples()
    assert mixed((x_BLT, None, target_BC), 0.4)[1] is None
    drawn = torch.get_rng_state()
    for value in mixed((x_BLT, side_BM, target_BC), 0.4):
        assert value.dtype == torch.float32
    away = tuple(value.to("meta") for value in (x_BLT, side_BM, target_BC))
    for value, own in zip(mixed(away, 0.4), away, strict=True):
        assert value.device.type == "meta"
        assert value.shape == own.shape
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_batch_of_one_mixes_with_itself():
    batch = examples(1)
    for value, own in zip(mixed(batch, 0.4), batch, strict=True):
        torch.testing.assert_close(value, own)


def test_absent_leads_stay_absent():
    x_BLT = noise()
    x_BLT[:, 1] = 0.0
    for name, settings in CHANGES.items():
        changed_BLT = seeded(x_BLT, settings)
        assert (changed_BLT[:, 1] == 0).all(), name
