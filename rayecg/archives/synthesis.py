"""A moving heart dipole, seen by nine electrodes: 12-lead ECGs without any patient.

The heart is one dipole whose three components are sums of Gaussians over the cardiac phase. A
projection matrix turns the dipole into electrode potentials, noise is added there, and the leads
are differences of potentials, so that I + III = II holds for signal and noise alike.

Axes are Frank's: x to the patient's left, y to the feet, z to the back. Potentials are in mV,
times in s, frequencies in Hz.

Legend of tensor names: N record, P patient, C condition, E Gaussian event of a beat, D dipole axis
(x, y, z), K beat, V electrode (RA LA LL V1..V6), S source (dipole, wander, bump, mains, muscle),
L lead, T time.

Sources
-------
- McSharry, Clifford, Tarassenko, Smith 2003, IEEE Trans. Biomed. Eng. 50(3):289: one Gaussian per
  wave over the cardiac phase, RR intervals with respiratory and slow (0.1 Hz) variation.
- Sameni, Clifford, Jutten, Shamsollahi 2007, EURASIP J. Adv. Signal Process. 43407: the same in
  three dimensions, a dipole projected to the body surface.
- Clifford, Nemati, Sameni 2010, Physiol. Meas. 31:595: abnormal beats in that model.
- Dower, Machado, Osborne 1980, Clin. Cardiol. 3:87, and Edenbrandt, Pahlm 1988, J. Electrocardiol.
  21:361: the matrix from Frank's axes to V1..V6, I and II.

Differs from the sources by: the Gaussians are evaluated in closed form instead of integrating the
oscillator; one centre and width serve all three axes of an event; centres and widths are given in
seconds (QRS fixed, ST and T stretched with the square root of RR) and wrap, as the phase does,
opposite to each event; RR variation is two sinusoids and white noise instead of a prescribed
spectrum; every amplitude and every effect of a condition is our own choice, made to look right and
to overlap. No figure got on these records says anything about patients.

The beat, the matrices and the conditions stand in `rayecg.archives.morphology`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayecg.archives.morphology import (
    BEAT,
    CONDITIONS,
    EFFECTS,
    EVENTS,
    P_WAVE,
    QRS,
    ST,
    STATEMENT_SHARE,
    SUPERCLASS_SHARE,
    T_WAVE,
    electrode_matrix,
    lead_matrix,
)

BLOCK = 256  # records drawn together; a patient's records all lie in one block
MAINS_HZ = 50.0
# Where the sources lie along S; the mains come last and only at rates that can hold them.
DIPOLE, SINES, COSINES, BUMP, MUSCLE = slice(0, 3), slice(3, 6), slice(6, 9), 9, slice(10, 19)
MAINS_SINE, MAINS_COSINE = 19, 20


@dataclass(frozen=True)
class Block:
    """Everything drawn for ``BLOCK`` consecutive records except their RR intervals and noise.

    Attributes
    ----------
    seed, index
        The seed of the archive and the number of this block; with these alone it is redrawn.
    patient_N
        Patient within the block.
    healthy_N, unread_N, afib_N
        Patient without a manifest condition; record whose reader wrote no diagnosis; atrial
        fibrillation during this record.
    severity_NC
        Severity of each condition, 0 where absent; columns in the order of ``CONDITIONS``.
    amplitude_NED, centre_NE, width_NE
        The Gaussians of a beat: mV, s, s.
    projection_NVD
        Electrode potentials for a unit dipole, mV.
    heart_rate_N, sinus_arrhythmia_N, respiration_N
        Beats per minute; relative size of the respiratory RR variation; breaths per second.
    wander_N, muscle_NV, mains_N, bump_NV
        Sizes of baseline wander, muscle noise, mains hum and electrode motion, mV.
    flat_N, noisy_N
        Index of a lead without signal, or of one whose electrode hardly holds; -1 for none.
    """

    seed: int
    index: int
    patient_N: np.ndarray
    healthy_N: np.ndarray
    unread_N: np.ndarray
    afib_N: np.ndarray
    severity_NC: np.ndarray
    amplitude_NED: np.ndarray
    centre_NE: np.ndarray
    width_NE: np.ndarray
    projection_NVD: np.ndarray
    heart_rate_N: np.ndarray
    sinus_arrhythmia_N: np.ndarray
    respiration_N: np.ndarray
    wander_N: np.ndarray
    muscle_NV: np.ndarray
    mains_N: np.ndarray
    bump_NV: np.ndarray
    flat_N: np.ndarray
    noisy_N: np.ndarray


def random_stream(seed: int, name: str, index: int) -> np.random.Generator:
    """Give each purpose and block a generator of its own, so that no draw shifts another.

    Parameters
    ----------
    seed
        Seed of the archive.
    name
        Purpose, for example ``"patients"``; its bytes become part of the key.
    index
        Number of the block.
    """
    key = (int.from_bytes(name.encode(), "big"), index)
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key)))


def draw_block(seed: int, index: int, records_per_patient: float = 1.6) -> Block:
    """Draw the patients and records of one block; nothing outside the block matters.

    Parameters
    ----------
    seed
        Seed of the archive.
    index
        Number of the block, from 0: records ``index * BLOCK`` and the following.
    records_per_patient
        Mean number of records of a patient, between 1 and 5; each has one to five.
    """
    rng = random_stream(seed, "patients", index)
    healthy_P, unread_P, severity_PC = _draw_conditions(rng)
    spread = rng.standard_normal
    gain_P = np.exp(0.20 * spread(BLOCK))
    events_PE = np.exp(0.20 * spread((BLOCK, len(EVENTS))))
    events_PE[:, T_WAVE] *= np.exp(0.28 * spread((BLOCK, 1)))
    # Some healthy hearts repolarise early or flat: what makes STTC and MI a matter of degree.
    normal_st_PD = 0.018 * spread((BLOCK, 3))
    normal_t_PD = 0.045 * spread((BLOCK, 3))
    turn_PD = np.radians([9.0, 9.0, 14.0]) * spread((BLOCK, 3))
    pr_P = 0.014 * spread(BLOCK)
    torso_PVD = 0.05 * spread((BLOCK, 9, 3))
    torso_gain_PV = np.exp(0.12 * spread((BLOCK, 9)))
    rate_P = np.clip(71 + 11 * spread(BLOCK) + 4 * ~healthy_P, 46, 125)
    arrhythmia_P = 0.03 * np.exp(0.7 * spread(BLOCK))
    paroxysms_P = rng.random(BLOCK) < np.where(healthy_P, 0.03, 0.11)
    count_P = 1 + rng.binomial(4, (records_per_patient - 1.0) / 4.0, BLOCK)

    rng = random_stream(seed, "records", index)
    spread = rng.standard_normal
    p = rng.permutation(np.repeat(np.arange(BLOCK), count_P)[:BLOCK])
    afib_N = paroxysms_P[p] & (rng.random(BLOCK) < 0.75)
    severity_NC = severity_PC[p] * np.exp(0.13 * spread((BLOCK, len(CONDITIONS))))
    for code in ("1AVB", "LAO/LAE"):  # neither is seen without P waves
        severity_NC[afib_N, CONDITIONS.index(code)] = 0.0
    events_NE = events_PE[p] * np.exp(0.07 * spread((BLOCK, len(EVENTS))))
    amplitude_NED = BEAT[None, :, 2:] * events_NE[:, :, None]
    amplitude_NED[:, ST] += normal_st_PD[p] + 0.006 * spread((BLOCK, 3))
    amplitude_NED[:, T_WAVE] += (normal_t_PD[p] + 0.012 * spread((BLOCK, 3)))[:, None]
    centre_NE = np.repeat(BEAT[None, :, 0], BLOCK, axis=0)
    centre_NE[:, P_WAVE] += pr_P[p, None]
    width_NE = BEAT[None, :, 1] * np.exp(0.06 * spread((BLOCK, len(EVENTS))))
    _apply_conditions(severity_NC, amplitude_NED, centre_NE, width_NE)
    amplitude_NED[afib_N, P_WAVE] = 0.0
    amplitude_NED *= (gain_P[p] * np.exp(0.05 * spread(BLOCK)))[:, None, None]
    turn_NDD = _rotations(turn_PD[p] + np.radians(3.0) * spread((BLOCK, 3)))
    torso_NVD = torso_gain_PV[p, :, None] * electrode_matrix() + torso_PVD[p]
    torso_NVD[:, 3:] *= np.exp(0.05 * spread((BLOCK, 6, 1)))
    torso_NVD[:, :3] -= torso_NVD[:, :3].mean(axis=1, keepdims=True)
    rate_N = np.where(afib_N, rate_P[p] + 14, rate_P[p]) * np.exp(0.08 * spread(BLOCK))

    contact_NV = np.exp(0.35 * spread((BLOCK, 9)))
    muscle_NV = 0.010 * np.exp(0.6 * spread((BLOCK, 1))) * contact_NV
    flat_N, noisy_N = np.full(BLOCK, -1), np.full(BLOCK, -1)
    for first, last in ((0, 32), (32, BLOCK)):  # so that small archives have one of each too
        flat, noisy = rng.choice(np.arange(first, last), 2, replace=False)
        flat_N[flat], noisy_N[noisy] = rng.integers(6, 12, 2)
    noisy = np.flatnonzero(noisy_N >= 0)
    muscle_NV[noisy, noisy_N[noisy] - 3] = rng.uniform(0.3, 0.8, len(noisy))
    bump_NV = rng.normal(0.0, 0.35, (BLOCK, 9)) * (rng.random((BLOCK, 9)) < 0.015)
    return Block(
        seed=seed,
        index=index,
        patient_N=p,
        healthy_N=healthy_P[p],
        unread_N=unread_P[p],
        afib_N=afib_N,
        severity_NC=severity_NC,
        amplitude_NED=amplitude_NED @ turn_NDD,
        centre_NE=centre_NE,
        width_NE=width_NE,
        projection_NVD=torso_NVD,
        heart_rate_N=np.clip(rate_N, 42, 150),
        sinus_arrhythmia_N=np.clip(arrhythmia_P[p] * np.exp(0.2 * spread(BLOCK)), 0.0, 0.3),
        respiration_N=rng.uniform(0.18, 0.36, BLOCK),
        wander_N=0.045 * np.exp(0.7 * spread(BLOCK)),
        muscle_NV=muscle_NV,
        mains_N=0.006 * np.exp(0.9 * spread(BLOCK)),
        bump_NV=bump_NV,
        flat_N=flat_N,
        noisy_N=noisy_N,
    )


def _draw_conditions(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who is healthy (P,), who is never given a diagnosis (P,), and severities (P, C)."""
    kind_P = rng.random(BLOCK)
    healthy_P, unread_P = kind_P < 0.42, kind_P > 0.97
    n_classes_P = 1 + rng.choice(3, BLOCK, p=[0.68, 0.26, 0.06])
    # The largest of log-weight plus Gumbel noise: drawing classes by weight without replacement.
    weights = np.log(list(SUPERCLASS_SHARE.values()))
    rank_PX = np.argsort(np.argsort(-(weights + rng.gumbel(size=(BLOCK, len(weights))))))
    severity_PC = np.zeros((BLOCK, len(CONDITIONS)))
    for x, superclass in enumerate(SUPERCLASS_SHARE):
        share = STATEMENT_SHARE[superclass]
        members = [CONDITIONS.index(code) for code in share]
        statement_P = rng.choice(members, BLOCK, p=list(share.values()))
        manifest_P = 0.30 + 1.1 * rng.beta(2.0, 2.0, BLOCK)
        # A trace of disease below what readers call by name: the ambiguous part of NORM.
        trace_P = np.where(rng.random(BLOCK) < 0.5, rng.uniform(0.0, 0.45, BLOCK), 0.0)
        severity_P = np.where(healthy_P | unread_P, trace_P, manifest_P)
        severity_P = np.where(rank_PX[:, x] < np.where(healthy_P, 1, n_classes_P), severity_P, 0.0)
        severity_PC[np.arange(BLOCK), statement_P] = severity_P
    return healthy_P, unread_P, severity_PC


def _apply_conditions(
    severity_NC: np.ndarray, amplitude_NED: np.ndarray, centre_NE: np.ndarray, width_NE: np.ndarray
) -> None:
    """Change amplitudes, centres and widths in place by the effects of each record's conditions."""
    for code, event, scale, add, shift, widen in EFFECTS:
        c, e = CONDITIONS.index(code), EVENTS.index(event)
        n = np.flatnonzero(severity_NC[:, c])
        s = severity_NC[n, c]
        kept_ND = amplitude_NED[n, e] * (1.0 + s[:, None] * (np.array(scale) - 1.0))
        amplitude_NED[n, e] = kept_ND + s[:, None] * np.array(add)
        centre_NE[n, e] += s * shift
        width_NE[n, e] *= 1.0 + s * (widen - 1.0)


def _rotations(vector_ND: np.ndarray) -> np.ndarray:
    """Rotation matrices (N, 3, 3) of rotation vectors in rad (Rodrigues' formula)."""
    x, y, z = vector_ND.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    angle = np.maximum(np.linalg.norm(vector_ND, axis=1), 1e-9)[:, None, None]
    return (
        np.eye(3)
        + np.sin(angle) / angle * cross
        + (1.0 - np.cos(angle)) / angle**2 * (cross @ cross)
    )


def beat_times(block: Block, duration_s: float) -> np.ndarray:
    """Draw the times of the R peaks, from at least one before the start to at least one after the end.

    Parameters
    ----------
    block
        Rates, rhythms and the key of the random stream.
    duration_s
        Length of the records, s.

    Returns
    -------
    np.ndarray
        Shape (N, K), s, increasing along K.
    """
    rng = random_stream(block.seed, "beats", block.index)
    mean = 60.0 / block.heart_rate_N[:, None]
    shortest, longest = 0.34, 2.5
    n_beats = int(np.ceil((duration_s + longest) / shortest)) + 2
    about = mean * np.arange(n_beats)
    phase = 2 * np.pi * rng.random((2, BLOCK, 1))
    breathing = np.sin(2 * np.pi * block.respiration_N[:, None] * about + phase[0])
    slow = np.sin(2 * np.pi * 0.1 * about + phase[1])
    white = rng.standard_normal((BLOCK, n_beats))
    regular = 1.0 + block.sinus_arrhythmia_N[:, None] * breathing + 0.02 * slow + 0.008 * white
    interval = mean * np.where(block.afib_N[:, None], np.exp(0.20 * white), regular)
    interval = np.clip(interval, shortest, longest)
    start = -rng.random((BLOCK, 1)) * interval[:, :1]
    return start + np.cumsum(interval, axis=1) - interval[:, :1]


def simulate(block: Block, fs: int, duration_s: float = 10.0, n_records: int = BLOCK) -> np.ndarray:
    """Compute the first records of a block as potentials of the twelve leads.

    A record's samples depend on the seed, the block, its place in it, ``fs`` and ``duration_s``;
    asking for fewer records changes nothing in those returned. Conditions, anatomy and beats do
    not depend on ``fs``.

    Parameters
    ----------
    block
        From `draw_block`.
    fs
        Sampling rate, Hz. Mains hum (50 Hz) is left out below 120 Hz, where a recorder's
        anti-alias filter would have removed it; muscle noise keeps its density up to 125 Hz.
    duration_s
        Length, s; ``round(fs * duration_s)`` times.
    n_records
        How many, at most ``BLOCK``.

    Returns
    -------
    np.ndarray
        x_NLT, float32, mV, shape (n_records, 12, n_times), leads in the order of
        ``morphology.LEADS``.
    """
    n_times = round(fs * duration_s)
    peaks_NK = beat_times(block, duration_s)
    mixing_NLS = _mixing(block, fs)
    noise = random_stream(block.seed, f"noise {fs}", block.index)
    phases = random_stream(block.seed, "waves", block.index)
    wander_N3 = np.column_stack(
        [block.respiration_N, phases.uniform(0.05, 0.15, BLOCK), phases.uniform(0.3, 0.6, BLOCK)]
    )
    bump_N2 = phases.uniform((0.0, 0.05), (duration_s, 0.4), (BLOCK, 2))
    fibrillation_N2 = phases.uniform((5.0, 0.02), (8.0, 0.06), (BLOCK, 2))
    t = np.arange(n_times) / fs
    t32 = t.astype(np.float32)
    n_sources = mixing_NLS.shape[2]
    x_NLT = np.empty((n_records, 12, n_times), np.float32)
    step = max(1, min(32, 2**18 // (len(EVENTS) * n_times)))  # the Gaussians stay in cache
    s_NST = np.empty((step, n_sources, n_times), np.float32)
    g_NET = np.empty((step, len(EVENTS), n_times), np.float32)
    for a in range(0, n_records, step):
        b = min(a + step, n_records)
        s, rows = s_NST[: b - a], slice(a, b)
        _gaussians(peaks_NK[rows], block.centre_NE[rows], block.width_NE[rows], t, g_NET[: b - a])
        amplitude_NDE = block.amplitude_NED[rows].transpose(0, 2, 1).astype(np.float32)
        np.matmul(amplitude_NDE, g_NET[: b - a], out=s[:, DIPOLE])
        angle = (2 * np.pi * wander_N3[rows, :, None]).astype(np.float32) * t32
        np.sin(angle, out=s[:, SINES])
        np.cos(angle, out=s[:, COSINES])
        s[:, DIPOLE] *= 1.0 + np.float32(0.04) * s[:, 3:4]  # breathing moves the heart
        for n in np.flatnonzero(block.afib_N[rows]):
            f, size = fibrillation_N2[a + n]
            wave = np.sin(2 * np.pi * f * t + 0.8 * np.sin(2 * np.pi * 0.7 * t))
            wave += 0.35 * np.sin(4 * np.pi * f * t)
            s[n, DIPOLE] += (size * np.outer([0.3, 0.8, -1.0], wave)).astype(np.float32)
        s[:, BUMP] = 0.0
        for n in np.flatnonzero(block.bump_NV[rows].any(axis=1)):
            s[n, BUMP] = np.exp(-(((t - bump_N2[a + n, 0]) / bump_N2[a + n, 1]) ** 2))
        if n_sources > MAINS_SINE:
            s[:, MAINS_SINE] = np.sin(2 * np.pi * MAINS_HZ * t)
            s[:, MAINS_COSINE] = np.cos(2 * np.pi * MAINS_HZ * t)
        for s_ST in s:
            noise.standard_normal(dtype=np.float32, out=s_ST[MUSCLE])
        np.matmul(mixing_NLS[rows], s, out=x_NLT[rows])
    flat = np.flatnonzero(block.flat_N[:n_records] >= 0)
    x_NLT[flat, block.flat_N[flat]] = 0.0
    return x_NLT


def _mixing(block: Block, fs: int) -> np.ndarray:
    """How much of each source each lead sees, mV: float32 (N, 12, S).

    Sources: dipole x, y, z; three sines and three cosines of wander; one bump; muscle noise of the
    nine electrodes; from 120 Hz on, sine and cosine of the mains.
    """
    rng = random_stream(block.seed, "mixing", block.index)
    wander_NV6 = rng.standard_normal((BLOCK, 9, 6)) * np.tile([1.0, 1.0, 0.3], 2) * 0.7
    mains_NV2 = rng.standard_normal((BLOCK, 9, 2))
    density = np.sqrt(min(fs, 250) / 100.0)
    parts = [
        block.projection_NVD,
        wander_NV6 * block.wander_N[:, None, None],
        block.bump_NV[:, :, None],
        np.eye(9) * (density * block.muscle_NV)[:, :, None],
    ]
    if fs >= 120:
        parts.append(mains_NV2 * block.mains_N[:, None, None])
    return (lead_matrix() @ np.concatenate(parts, axis=2)).astype(np.float32)


def _gaussians(
    peaks_NK: np.ndarray,
    centre_NE: np.ndarray,
    width_NE: np.ndarray,
    t: np.ndarray,
    g_NET: np.ndarray,
) -> None:
    """Write the events of every beat into ``g_NET``, float32, peak 1.

    Each event has the clock that wraps where the event is not: P counts to the next R peak, QRS
    from the nearest, ST and T from the last, in units that stretch with the square root of RR.
    """
    n_records, n_times = len(peaks_NK), len(t)
    edges_NK = np.searchsorted(t, peaks_NK.ravel()).reshape(peaks_NK.shape)
    counts = np.diff(edges_NK, axis=1).ravel()

    def spread(per_beat_NK: np.ndarray) -> np.ndarray:
        return np.repeat(per_beat_NK.ravel(), counts).reshape(n_records, n_times)

    since_NT = (t - spread(peaks_NK[:, :-1])).astype(np.float32)
    until_NT = (t - spread(peaks_NK[:, 1:])).astype(np.float32)
    stretch_NK = (1.0 / np.sqrt(np.diff(peaks_NK, axis=1))).astype(np.float32)
    stretched_NT = since_NT * spread(stretch_NK)
    nearest_NT = np.where(since_NT < -until_NT, since_NT, until_NT)
    scale_NE = (np.sqrt(0.5) / width_NE).astype(np.float32)
    offset_NE = (centre_NE * scale_NE).astype(np.float32)
    for e in range(len(EVENTS)):
        clock_NT = until_NT if e < QRS.start else nearest_NT if e < QRS.stop else stretched_NT
        g_NT = g_NET[:, e]
        np.multiply(clock_NT, scale_NE[:, e, None], out=g_NT)
        g_NT -= offset_NE[:, e, None]
        np.square(g_NT, out=g_NT)
        np.minimum(g_NT, np.float32(60.0), out=g_NT)  # beyond, exp would give slow denormals
        np.negative(g_NT, out=g_NT)
        np.exp(g_NT, out=g_NT)
