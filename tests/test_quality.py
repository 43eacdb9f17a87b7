"""Quality: every flag fires on what was planted for it and on nothing else, whatever the batch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

from rayecg.archives.catalogue import open_archive
from rayecg.core.experiment import STANDARD_LEADS, ArchiveSettings
from rayecg.core.record import invalid_value
from rayecg.signal import quality
from rayecg.signal.quality import FLAGS, Quality

AT = {lead: i for i, lead in enumerate(STANDARD_LEADS)}
#: Amplitudes of P, Q, R, S and T, mV.
WAVES = {
    "I": (0.06, -0.05, 0.70, -0.08, 0.18),
    "II": (0.11, -0.08, 1.00, -0.15, 0.26),
    "V1": (0.05, 0.00, 0.25, -0.90, 0.05),
    "V2": (0.06, 0.00, 0.45, -1.30, 0.40),
    "V5": (0.06, -0.08, 1.30, -0.20, 0.33),
    "V6": (0.06, -0.08, 1.00, -0.10, 0.25),
}
CENTRES_S, WIDTHS_S = (-0.17, -0.03, 0.0, 0.03, 0.25), (0.022, 0.009, 0.011, 0.011, 0.045)


def heart(fs: float, seconds: float = 10.0, seed: int = 0) -> np.ndarray:
    """Simulate twelve leads in mV: 75 beats a minute, 3 uV of noise, 30 uV of wander."""
    rng = np.random.default_rng(seed)
    times_T = np.arange(round(fs * seconds)) / fs
    phase_T = (times_T + 0.3 * rng.random()) % 0.8 - 0.4
    own = {}
    for lead, amplitudes in WAVES.items():
        own[lead] = 0.003 * rng.standard_normal(len(times_T))
        own[lead] += 0.03 * np.sin(2 * np.pi * (0.25 * times_T + rng.random()))
        for amplitude, centre, width in zip(amplitudes, CENTRES_S, WIDTHS_S, strict=True):
            own[lead] += amplitude * np.exp(-0.5 * ((phase_T - centre) / width) ** 2)
    between = (own["V2"] + own["V5"]) / 2
    chest = (own["V1"], own["V2"], between, own["V5"] + 0.1 * between, own["V5"], own["V6"])
    return limbs(own["I"], own["II"], np.stack(chest))


def limbs(one_T: np.ndarray, two_T: np.ndarray, chest_LT: np.ndarray) -> np.ndarray:
    """Derive the other limb leads."""
    three_T = two_T - one_T
    augmented = (-(one_T + two_T) / 2, (one_T - three_T) / 2, (two_T + three_T) / 2)
    return np.concatenate([[one_T, two_T, three_T, *augmented], chest_LT])


def digitise(signal_LT: np.ndarray, gain: float = 1000.0, kind: type = np.int16) -> np.ndarray:
    """Round; NaN becomes an invalid sample."""
    digital_LT = np.round(np.nan_to_num(signal_LT) * gain).astype(kind)
    digital_LT[np.isnan(signal_LT)] = invalid_value(digital_LT.dtype)
    return digital_LT


def measured(digital: np.ndarray, fs: float, gain: float = 1000.0, leads=STANDARD_LEADS) -> Quality:
    digital_NLT = digital if digital.ndim == 3 else digital[None]
    gain_NL = np.full(digital_NLT.shape[:2], gain)
    return quality.measure(digital_NLT, gain_NL, fs, leads)


def flagged(digital: np.ndarray, fs: float) -> tuple[str, ...]:
    return quality.flags(measured(digital, fs), STANDARD_LEADS)[0]


def same(a: Quality, b: Quality) -> None:
    for x, y in zip(astuple(a), astuple(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def noise(size: int, level: float) -> np.ndarray:
    return level * np.random.default_rng(5).standard_normal(size)


#: The lead that is changed, how, given it and the times in s, and the flag that must fire.
IN_A_LEAD: dict[str, tuple[str, Callable[..., np.ndarray], str]] = {
    "nothing": ("V1", lambda x, t: x, ""),
    "constant": ("V1", lambda x, t: 0 * x + 0.3, "flat"),
    "held for 1.5 s": ("V2", lambda x, t: np.where(abs(t - 5) < 0.75, 0.1, x), "flat"),
    "held for 0.5 s": ("V2", lambda x, t: np.where(abs(t - 5) < 0.25, 0.1, x), ""),
    "no valid sample": ("V1", lambda x, t: np.nan * x, "invalid"),
    "some invalid": ("V3", lambda x, t: np.where(abs(t - 5) < 0.1, np.nan, x), "some_invalid"),
    "clipped": ("V4", lambda x, t: np.minimum(x, 0.25), "saturated"),
    "white noise": ("V5", lambda x, t: x + noise(len(x), 0.05), "noise"),
    "40 Hz": ("V5", lambda x, t: x + 0.05 * np.sin(80 * np.pi * t), "noise"),
    "short burst": ("V5", lambda x, t: x + (abs(t - 5) < 0.3) * noise(len(x), 0.3), ""),
    "wander": ("V6", lambda x, t: x + 0.5 * np.sin(0.4 * np.pi * t), "wander"),
    "step of the baseline": ("V1", lambda x, t: x + (t > 5), "wander"),
    "III inverted": ("III", lambda x, t: -x, "einthoven"),
    "aVR inverted": ("aVR", lambda x, t: -x, "einthoven"),
}
#: What I and II become, from which the other limb leads follow.
INTERCHANGED: dict[str, tuple[Callable[..., tuple[np.ndarray, np.ndarray]], str]] = {
    "RA and LA": (lambda one, two: (-one, two - one), "limb_reversal"),
    "RA and LL": (lambda one, two: (one - two, -two), "limb_reversal"),
    "moved on": (lambda one, two: (-two, one - two), "limb_reversal"),
    "moved on the other way": (lambda one, two: (two - one, -one), "limb_reversal"),
    "RA and RL": (lambda one, two: (one - 0.99 * two, 0.01 * two), "limb_reversal"),
    "LA and LL": (lambda one, two: (two, one), ""),
}
PLANTED = [*IN_A_LEAD, *INTERCHANGED]


def planted(name: str, fs: float, seed: int = 0) -> tuple[np.ndarray, tuple[str, ...]]:
    """Give a record, and the flags that it must have."""
    signal_LT = heart(fs, seed=seed)
    if name in INTERCHANGED:
        change, flag = INTERCHANGED[name]
        return digitise(limbs(*change(*signal_LT[:2]), signal_LT[6:])), (flag,) if flag else ()
    lead, change_lead, flag = IN_A_LEAD[name]
    times_T = np.arange(signal_LT.shape[1]) / fs
    signal_LT[AT[lead]] = change_lead(signal_LT[AT[lead]], times_T)
    if flag and flag != "einthoven":
        flag = f"{flag}:{lead}"
    return digitise(signal_LT), (flag,) if flag else ()


@pytest.mark.parametrize("fs", [100, 257, 500])
@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_flagged_and_nothing_else(name: str, fs: float) -> None:
    digital_LT, expected = planted(name, fs)
    assert flagged(digital_LT, fs) == expected


def test_every_flag_is_planted() -> None:
    rows = [*IN_A_LEAD.values(), *INTERCHANGED.values()]
    assert {row[-1] for row in rows} == {"", *FLAGS}


def test_flags_are_listed_by_record_then_kind_then_lead() -> None:
    clean_LT = digitise(heart(100.0))
    bad_LT = clean_LT.copy()
    bad_LT[[AT["V3"], AT["V1"]]] = 7
    bad_LT[AT["V2"]] = invalid_value(bad_LT.dtype)
    bad_LT[AT["III"]] *= -1
    found = quality.flags(measured(np.stack([clean_LT, bad_LT, clean_LT]), 100), STANDARD_LEADS)
    assert found == [(), ("invalid:V2", "flat:V1", "flat:V3", "einthoven"), ()]


@pytest.fixture(scope="module")
def mixed() -> np.ndarray:
    """Every planted record."""
    return np.stack([planted(name, 100.0, seed=3)[0] for name in PLANTED])


def widened(digital: np.ndarray) -> np.ndarray:
    return np.where(digital == -(2**15), np.int32(-(2**31)), digital)


@given(st.data())
def test_a_record_is_measured_alike_in_any_batch(mixed: np.ndarray, data: st.DataObject) -> None:
    """Bit for bit: alone, among others, in any order, and in either integer type."""
    order = data.draw(st.lists(st.integers(0, len(mixed) - 1), min_size=1, max_size=2 * len(mixed)))
    whole = measured(mixed, 100)
    same(measured(mixed[order], 100), Quality(*(x[order] for x in astuple(whole))))
    same(measured(widened(mixed[order]), 100), measured(mixed[order], 100))
    one = order[0]
    same(measured(mixed[one], 100), Quality(*(x[one : one + 1] for x in astuple(whole))))


@given(
    nst.arrays(np.int16, st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 20))),
    st.sampled_from([1.0, 50.0, 100.0, 257.0, 1000.0]),
    st.sampled_from([("I", "II", "V6"), ("II", "V5", "I"), ("MLII", "V1", "V1#2")]),
)
@settings(max_examples=150)
def test_short_records_of_any_values(digital_NLT: np.ndarray, fs: float, leads) -> None:
    """Down to one sample and no record; a share is a share, and a level is none below 0."""
    leads = leads[: digital_NLT.shape[1]]
    found = measured(digital_NLT, fs, leads=leads)
    same(measured(widened(digital_NLT), fs, leads=leads), found)
    invalid_NLT = digital_NLT == -32768
    np.testing.assert_array_equal(found.invalid_NL, invalid_NLT.mean(axis=2, dtype=np.float32))
    for share_NL in (found.flat_NL, found.saturated_NL):
        assert np.all((share_NL >= 0) & (share_NL + found.invalid_NL <= 1 + 1e-6))
    for level in (found.noise_NL, found.wander_NL, found.einthoven_N):
        assert not np.any(level < 0)
    assert np.isnan(found.einthoven_N).all()
    for names, record_LT in zip(quality.flags(found, leads), digital_NLT, strict=True):
        for lead, own_T in zip(leads, record_LT, strict=True):
            valid_T = own_T[own_T != -32768]
            assert (f"invalid:{lead}" in names) == (not len(valid_T))
            assert (f"some_invalid:{lead}" in names) == (0 < len(valid_T) < len(own_T))
            if len(valid_T) > len(own_T) // 10 and np.ptp(valid_T) == 0:
                assert f"flat:{lead}" in names


@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_the_extremes_of_a_type_do_not_overflow(kind: type) -> None:
    """Alternating rails: second differences of twice the range, and leads that contradict most."""
    top = np.iinfo(kind).max
    lead_T = np.where(np.arange(1000) % 2, top, -top).astype(kind)
    digital_LT = np.stack([lead_T, -lead_T, lead_T])
    gain = top / 10.0
    found = measured(digital_LT, 100, gain, ("I", "II", "III"))
    # 10 mV either way: differences of 40 mV, against those of white noise; II - I - III is 30 mV.
    level = 40 / (np.sqrt(12 / np.pi) * (1 - quality.QUIET / np.sqrt(8)))
    np.testing.assert_allclose(found.noise_NL, level, rtol=1e-5)
    np.testing.assert_allclose(found.wander_NL, 0, atol=1e-6)
    np.testing.assert_allclose(found.einthoven_N, 30, rtol=1e-3)


def runs_by_hand(lead: list[int], low: int, high: int, least: int, inner: bool) -> int:
    total = at = 0
    for value, group in itertools.groupby(lead):
        length = len(list(group))
        touches = at == 0 or at + length == len(lead)
        if length >= least and (value <= low or value >= high) and not (inner and touches):
            total += length
        at += length
    return total


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(2, 7),
    st.sampled_from([(2, -2), (-2, 2), (-1, 2), (0, 0)]),
    st.booleans(),
)
def test_runs(pieces, least: int, limits: tuple[int, int], inner: bool) -> None:
    lead = [value for value, length in pieces for _ in range(length)]
    lead_T = np.array(lead, dtype=np.int16)
    assert quality._runs(lead_T, *limits, least, inner) == runs_by_hand(lead, *limits, least, inner)


def second_quietest(lead_T: np.ndarray, lag: int, block: int, second: int) -> float:
    """Give the noise as its definition says it, by sorting."""
    bend_T = np.abs(lead_T[2 * lag :] - 2 * lead_T[lag:-lag] + lead_T[: -2 * lag])
    block_B = bend_T[: len(bend_T) // block * block].reshape(-1, block).mean(axis=1)
    parts = [block_B[i : i + second] for i in range(0, len(block_B), second)]
    quiet = [np.sort(part)[1] for part in parts if 2 * len(part) >= second]
    return np.mean(quiet) / (np.sqrt(12 / np.pi) * (1 - quality.QUIET / np.sqrt(block)))


@pytest.mark.parametrize(
    ("fs", "lag", "block", "second"), [(100, 1, 8, 12), (257, 3, 24, 11), (500, 5, 48, 10)]
)
def test_noise_and_wander_are_what_they_are_said_to_be(
    fs: float, lag: int, block: int, second: int
) -> None:
    digital_LT = digitise(heart(fs, seconds=33.4, seed=9), 400.0)
    found = measured(digital_LT, fs, 400.0)
    noise_L = [second_quietest(lead_T.astype(float), lag, block, second) for lead_T in digital_LT]
    np.testing.assert_allclose(found.noise_NL[0], np.array(noise_L) / 400, rtol=1e-6)
    n = digital_LT.shape[1] // (block * second)
    mean_LS = digital_LT[:, : n * block * second].reshape(12, n, -1).mean(axis=2)
    edges = [e * n // 3 for e in range(4)]
    spread = [mean_LS[:, a:b].std(axis=1) for a, b in itertools.pairwise(edges)]
    wander_L = np.mean(spread, axis=0) / 400
    np.testing.assert_allclose(found.wander_NL[0], wander_L, rtol=1e-6)


@pytest.mark.parametrize("fs", [100, 250, 257, 360, 500, 1000])
def test_white_noise_reads_its_standard_deviation(fs: float) -> None:
    """At every rate; QUIET holds within 0.01, and 20 leads of 60 s leave less than 0.01 of chance."""
    lead_LT = noise(20 * 60 * int(fs), 100.0).reshape(20, -1)
    found = measured(lead_LT.round().astype(np.int16), fs, 100.0, [f"x{i}" for i in range(20)])
    assert found.noise_NL.mean() == pytest.approx(1.0, abs=0.02)


def test_gains_of_any_size_and_sign() -> None:
    """Of their own for each record and lead."""
    rng = np.random.default_rng(2)
    signal_NLT = np.stack([heart(500.0, seed=i) for i in range(4)])
    gain_NL = rng.uniform(500, 3000, (4, 12)) * rng.choice([-1, 1], (4, 12))
    baseline_NL = rng.integers(-900, 900, (4, 12))
    signal_NLT[1, AT["III"]] *= -1
    signal_NLT[2] = limbs(-signal_NLT[2, 0], signal_NLT[2, 2], signal_NLT[2, 6:])
    digital_NLT = np.round(signal_NLT * gain_NL[..., None] + baseline_NL[..., None])
    found = quality.measure(digital_NLT.astype(np.int16), gain_NL, 500, STANDARD_LEADS)
    assert quality.flags(found, STANDARD_LEADS) == [(), ("einthoven",), ("limb_reversal",), ()]
    # Rounding aside, which is at most half a unit of 0.002 mV in a sample.
    plain = measured(digitise(signal_NLT), 500)
    np.testing.assert_allclose(found.noise_NL, plain.noise_NL, atol=0.002)
    np.testing.assert_allclose(found.wander_NL, plain.wander_NL, atol=0.002)


def test_rounding_and_offsets_are_no_contradiction() -> None:
    """Every lead rounded for itself, moved by half a unit more, and with a baseline of its own."""
    fs, rng = 500.0, np.random.default_rng(4)
    for gain in (200.0, 1000.0):
        digital_LT = digitise(heart(fs), gain)
        digital_LT += rng.integers(0, 2, digital_LT.shape, dtype=np.int16)
        digital_LT += np.arange(12, dtype=np.int16)[:, None] * 30
        # What exceeds two units of a sum of three, now and then.
        assert measured(digital_LT, fs, gain).einthoven_N[0] < 1.0 / gain
        assert measured(digitise(heart(fs), gain), fs, gain).einthoven_N[0] == 0


@pytest.mark.parametrize(
    ("names", "contradict", "fires"),
    [
        ("I II III", False, False),
        ("II III aVF", True, False),
        ("I II V1 aVF", None, False),
        ("I II V6", None, True),
        ("V5 II I aVR", False, True),
        ("V6 MLII", None, False),
    ],
)
def test_leads_are_compared_where_they_are(
    names: str, contradict: bool | None, fires: bool
) -> None:
    """The arms are interchanged, and aVF is inverted."""
    signal_LT = heart(100.0)
    digital_LT = digitise(limbs(-signal_LT[0], signal_LT[2], signal_LT[6:]))
    digital_LT[AT["aVF"]] *= -1
    own_LT = digital_LT[[AT.get(lead, 1) for lead in names.split()]]
    found = measured(own_LT, 100, leads=names.split())
    assert np.isnan(found.einthoven_N[0]) == (contradict is None)
    assert (found.einthoven_N[0] > quality.EINTHOVEN_MV) == bool(contradict)
    assert found.reversal_N[0] == fires


def test_invalid_samples_are_cut_out() -> None:
    """A lead with gaps measures as the same lead without; leads are compared beside the gaps."""
    fs = 100.0
    digital_LT = digitise(heart(fs))
    gaps_T = np.zeros(1300, dtype=bool)
    gaps_T[np.random.default_rng(8).choice(1300, 300, replace=False)] = True
    holed_LT = np.full((12, 1300), invalid_value(digital_LT.dtype), dtype=np.int16)
    holed_LT[:, ~gaps_T] = digital_LT
    whole, holed = measured(digital_LT, fs), measured(holed_LT, fs)
    np.testing.assert_array_equal(holed.noise_NL, whole.noise_NL)
    np.testing.assert_array_equal(holed.wander_NL, whole.wander_NL)
    np.testing.assert_allclose(holed.invalid_NL, 300 / 1300, rtol=1e-6)
    assert {flag.split(":")[0] for flag in flagged(holed_LT, fs)} == {"some_invalid"}
    digital_LT[AT["II"], 200:400] = invalid_value(digital_LT.dtype)
    assert flagged(digital_LT, fs) == ("some_invalid:II",)
    digital_LT[:] = invalid_value(digital_LT.dtype)
    assert flagged(digital_LT, fs) == tuple(f"invalid:{lead}" for lead in STANDARD_LEADS)


def test_long_records() -> None:
    """Half an hour of two leads: a second of anything is not the whole record's flag."""
    fs, leads = 360.0, ("MLII", "V5")
    digital_LT = np.tile(digitise(heart(fs)[[1, 10]], 200.0), (1, 181))[:, :650_000].copy()
    digital_LT[0, 5000:5720] = 2047
    found = measured(digital_LT, fs, 200.0, leads)
    assert quality.flags(found, leads) == [()]
    assert found.flat_NL[0, 0] == np.float32(720 / 650_000)
    digital_LT[1, ::2] = invalid_value(digital_LT.dtype)
    digital_LT[0, 100_000:200_000] = 0
    found = measured(digital_LT, fs, 200.0, leads)
    assert quality.flags(found, leads)[0][:2] == ("some_invalid:V5", "flat:MLII")


def test_one_valid_sample_among_very_many_is_not_none() -> None:
    digital_LT = np.full((1, 2**25), -32768, dtype=np.int16)
    digital_LT[0, 77] = 5
    assert quality.flags(measured(digital_LT, 500, 1.0, "I"), "I")[0][0] == "some_invalid:I"


def test_any_memory() -> None:
    digital_NLT = np.stack([digitise(heart(100.0, seed=i)) for i in range(3)])
    odd = np.frombuffer(b"x" + digital_NLT.tobytes(), dtype=np.uint8)[1:]
    for own_NLT in (
        np.frombuffer(digital_NLT.tobytes(), dtype=np.int16).reshape(digital_NLT.shape),
        np.frombuffer(odd, dtype=np.int16).reshape(digital_NLT.shape),
        np.repeat(digital_NLT, 2, axis=2)[:, :, ::2],
        np.asfortranarray(digital_NLT),
    ):
        same(measured(own_NLT, 100), measured(digital_NLT, 100))
        np.testing.assert_array_equal(own_NLT, digital_NLT)


@pytest.mark.parametrize(
    ("place", "wrong", "part"),
    [
        (0, np.zeros((2, 3, 9), np.float32), "float32"),
        (0, np.zeros((3, 9), np.int16), r"\(3, 9\)"),
        (0, np.zeros((2, 3, 0), np.int16), r"\(2, 3, 0\)"),
        (1, np.ones((3, 2)), "2 x 3"),
        (2, 0.0, "0.0 Hz"),
        (2, float("nan"), "nan Hz"),
        (3, ("I", "II"), "came 2"),
    ],
)
def test_what_does_not_fit_is_refused(place: int, wrong: object, part: str) -> None:
    given_: list = [np.zeros((2, 3, 9), np.int16), np.ones((2, 3)), 100.0, "abc"]
    given_[place] = wrong
    with pytest.raises(ValueError, match=part):
        quality.measure(*given_)


def test_numba_waits_until_something_is_measured() -> None:
    code = "import sys, rayecg.signal.quality; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_measures_where_nothing_compiled_can_be_kept(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numba refuses at once if it finds no folder to write to, and fails later if the disk is full.

    What it gives here without keeping it is the plain function: the loops as Python runs them.
    """
    digital_LT = digitise(heart(100.0, seconds=2.5), kind=np.int32)
    digital_LT[3, 30:40] = invalid_value(digital_LT.dtype)
    expected = measured(digital_LT, 100)

    class Full:
        def __init__(self, plain: object) -> None:
            self.py_func, self.__name__ = plain, plain.__name__

        def __call__(self, *args: object) -> None:
            raise OSError(28, "No space left on device")

    def njit(cache: bool, **options: object) -> object:
        if cache and error is RuntimeError:
            raise RuntimeError("cannot cache function: no locator available for file")
        return Full if cache else lambda plain: plain

    for name, loop in vars(quality).copy().items():
        if hasattr(loop, "py_func"):
            monkeypatch.setattr(quality, name, loop.py_func)
    monkeypatch.setattr(numba, "njit", njit)
    same(measured(digital_LT, 100), expected)


def test_ptbxl(data_folder: Path) -> None:
    """Real records: hardly any is taken for reversed, nearly all with interchanged arms are."""
    archive = open_archive(ArchiveSettings("ptbxl", str(data_folder / "ptb-xl"), limit=120))
    records = [archive.read(row) for row in archive.index().to_pylist()]
    digital_NLT = np.stack([record.digital_LT for record in records])
    found = measured(digital_NLT, 500)
    assert found.reversal_N.mean() < 0.02
    assert found.einthoven_N.max() < 0.01
    assert 0.001 < np.nanmedian(found.noise_NL) < 0.01
    arms_NLT = digital_NLT[:, [0, 2, 1, 4, 3, *range(5, 12)]]
    arms_NLT[:, 0] *= -1
    reversed_ = measured(arms_NLT, 500)
    assert reversed_.reversal_N.mean() > 0.85
    assert reversed_.einthoven_N.max() < 0.01
