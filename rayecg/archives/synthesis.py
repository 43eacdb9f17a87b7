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
"""



from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
BLOCK = 256  # records drawn together; a patient's records all lie in one block
EVENTS = ("P1", "P2", "Q", "R", "S1", "S2", "LATE", "ST", "T1", "T2")
P_WAVE, QRS, ST, T_WAVE = slice(0, 2), slice(2, 7), 7, slice(8, 10)
MAINS_HZ = 50.0
# Where the sources lie along S; the mains come last and only at rates that can hold them.
DIPOLE, SINES, COSINES, BUMP, MUSCLE = slice(0, 3), slice(3, 6), slice(6, 9), 9, slice(10, 19)
MAINS_SINE, MAINS_COSINE = 19, 20

# One row an event: centre after the R peak (s), width (s), amplitude on x, y, z (mV), as for RR = 1 s.
BEAT = np.array(
    [
        [-0.162, 0.018, 0.03, 0.09, -0.05],
        [-0.128, 0.018, 0.07, 0.06, 0.03],
        [-0.028, 0.009, -0.14, -0.02, -0.26],
        [0.000, 0.011, 0.95, 0.65, 0.08],
        [0.017, 0.011, 0.22, 0.16, 0.66],
        [0.040, 0.010, -0.16, -0.12, 0.14],
        [0.070, 0.015, 0.00, 0.00, 0.00],
        [0.120, 0.035, 0.01, 0.01, -0.02],
        [0.250, 0.045, 0.20, 0.13, -0.13],
        [0.300, 0.027, 0.13, 0.08, -0.08],
    ]
)

# Dower's matrix: rows I, II, V1..V6 over x, y, z.
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)


def electrode_matrix() -> np.ndarray:
    """Dower's matrix taken back to electrodes, with Wilson's central terminal as zero.

    Returns
    -------
    np.ndarray
        Shape (9, 3): potentials of RA, LA, LL, V1..V6 for a unit dipole on x, y, z.
    """
    lead_one, lead_two = DOWER[0], DOWER[1]
    right_arm = -(lead_one + lead_two) / 3.0
    return np.vstack([right_arm, right_arm + lead_one, right_arm + lead_two, DOWER[2:]])


def lead_matrix() -> np.ndarray:
    """Write the twelve leads as combinations of nine electrodes, by Einthoven, Goldberger and Wilson.

    Returns
    -------
    np.ndarray
        Shape (12, 9): rows in the order of ``LEADS``, columns RA, LA, LL, V1..V6.
    """
    right_arm, left_arm, left_leg = np.eye(9)[:3]
    chest = np.eye(9)[3:]
    limbs = [
        left_arm - right_arm,
        left_leg - right_arm,
        left_leg - left_arm,
        right_arm - (left_arm + left_leg) / 2.0,
        left_arm - (right_arm + left_leg) / 2.0,
        left_leg - (right_arm + left_arm) / 2.0,
    ]
    return np.vstack([limbs, chest - (right_arm + left_arm + left_leg) / 3.0])


class Effect(NamedTuple):
    """What a condition of severity 1 does to one event of the beat; severity scales every part.

    ``scale`` multiplies and ``add`` (mV) then moves the amplitudes on x, y, z; ``shift`` (s) moves
    the centre; ``widen`` multiplies the width.
    """

    code: str
    event: str
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    add: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: float = 0.0
    widen: float = 1.0


# How often a superclass is drawn, and a statement within its superclass.
SUPERCLASS_SHARE = {"MI": 0.30, "STTC": 0.29, "CD": 0.26, "HYP": 0.15}
STATEMENT_SHARE = {
    "MI": {"IMI": 0.45, "ASMI": 0.37, "AMI": 0.18},
    "STTC": {"NDT": 0.40, "NST_": 0.22, "ISC_": 0.38},
    "CD": {"CLBBB": 0.17, "CRBBB": 0.17, "IRBBB": 0.22, "LAFB": 0.27, "1AVB": 0.17},
    "HYP": {"LVH": 0.60, "RVH": 0.17, "LAO/LAE": 0.23},
}
CONDITIONS = tuple(code for share in STATEMENT_SHARE.values() for code in share)

EFFECTS = (
    # Infarction: dead muscle leaves the early vector, ST points to the wound, T flees it.
    Effect("IMI", "Q", add=(0.02, -0.42, 0.02), widen=1.4),
    Effect("IMI", "R", scale=(1.0, 0.70, 1.0)),
    Effect("IMI", "ST", add=(-0.03, 0.07, 0.02)),
    Effect("IMI", "T1", add=(0.0, -0.22, 0.0)),
    Effect("IMI", "T2", add=(0.0, -0.16, 0.0)),
    Effect("ASMI", "Q", add=(0.08, 0.0, 0.42), widen=1.3),
    Effect("ASMI", "R", add=(-0.10, 0.0, 0.22)),
    Effect("ASMI", "ST", add=(0.02, 0.0, -0.08)),
    Effect("ASMI", "T1", add=(-0.04, 0.0, 0.18)),
    Effect("ASMI", "T2", add=(-0.04, 0.0, 0.15)),
    Effect("AMI", "Q", add=(-0.25, 0.02, 0.38), widen=1.3),
    Effect("AMI", "R", scale=(0.60, 1.0, 1.0), add=(0.0, 0.0, 0.30)),
    Effect("AMI", "ST", add=(0.06, 0.0, -0.10)),
    Effect("AMI", "T1", add=(-0.16, 0.0, 0.14)),
    Effect("AMI", "T2", add=(-0.13, 0.0, 0.12)),
    # ST and T changes: T flattens or turns, ST points away from the left ventricle.
    Effect("NDT", "T1", scale=(0.05, 0.05, 0.30), widen=1.15),
    Effect("NDT", "T2", scale=(-0.1, -0.1, 0.20)),
    Effect("NST_", "ST", add=(-0.09, -0.07, 0.03), widen=1.2),
    Effect("NST_", "T1", scale=(0.5, 0.5, 0.8)),
    Effect("NST_", "T2", scale=(0.7, 0.7, 0.8)),
    Effect("ISC_", "ST", add=(-0.08, -0.05, 0.04), widen=1.1),
    Effect("ISC_", "T1", scale=(-0.5, -0.3, 0.1)),
    Effect("ISC_", "T2", scale=(-1.4, -1.0, -0.2)),
    # Conduction: the part of the ventricles reached late makes a vector of its own.
    Effect("CLBBB", "Q", add=(0.24, 0.05, 0.30), widen=1.5),
    Effect("CLBBB", "R", scale=(0.70, 0.6, 1.0), add=(0.0, 0.0, 0.35), widen=1.9),
    Effect("CLBBB", "S1", scale=(1.0, 0.6, 1.1), add=(0.15, 0.0, 0.15), shift=0.016, widen=1.8),
    Effect("CLBBB", "S2", scale=(-0.5, 0.0, 1.0), shift=0.010, widen=1.7),
    Effect("CLBBB", "LATE", add=(0.70, 0.10, 0.40), widen=1.2),
    Effect("CLBBB", "ST", add=(-0.12, -0.04, -0.16)),
    Effect("CLBBB", "T1", add=(-0.42, -0.16, -0.20), shift=0.03),
    Effect("CLBBB", "T2", add=(-0.30, -0.12, -0.12), shift=0.03),
    Effect("CRBBB", "S1", scale=(1.0, 1.0, 0.75)),
    Effect("CRBBB", "S2", add=(-0.20, 0.02, -0.25), shift=0.008, widen=1.4),
    Effect("CRBBB", "LATE", add=(-0.42, -0.02, -0.55), widen=1.4),
    Effect("CRBBB", "T1", add=(0.05, 0.0, 0.12), shift=0.015),
    Effect("CRBBB", "T2", add=(0.04, 0.0, 0.10), shift=0.015),
    Effect("IRBBB", "S2", add=(-0.16, 0.0, -0.34), shift=0.006, widen=1.2),
    Effect("IRBBB", "LATE", add=(-0.10, 0.0, -0.16), shift=-0.008),
    Effect("LAFB", "Q", add=(-0.04, 0.20, 0.04)),
    Effect("LAFB", "R", scale=(0.95, -0.25, 1.0), shift=0.004),
    Effect("LAFB", "S1", add=(0.02, -0.55, -0.10), widen=1.15),
    Effect("LAFB", "S2", add=(0.05, -0.30, 0.0), widen=1.2),
    Effect("1AVB", "P1", shift=-0.085),
    Effect("1AVB", "P2", shift=-0.085),
    # Hypertrophy: more muscle, larger vectors towards it, strained repolarisation.
    Effect("LVH", "R", scale=(1.75, 1.1, 1.0), widen=1.06),
    Effect("LVH", "S1", scale=(1.2, 1.0, 1.85), widen=1.06),
    Effect("LVH", "ST", add=(-0.06, -0.02, -0.05)),
    Effect("LVH", "T1", scale=(0.1, 0.4, 1.1)),
    Effect("LVH", "T2", scale=(-0.4, 0.1, 1.1)),
    Effect("RVH", "R", scale=(0.20, 1.0, 1.0), add=(0.0, 0.05, -0.85)),
    Effect("RVH", "S1", scale=(-0.5, 1.0, 0.10)),
    Effect("RVH", "S2", add=(-0.42, -0.05, 0.05), widen=1.2),
    Effect("RVH", "T1", add=(0.02, -0.06, 0.14)),
    Effect("RVH", "T2", add=(0.02, -0.05, 0.10)),
    Effect("LAO/LAE", "P1", shift=-0.008, widen=1.1),
    Effect("LAO/LAE", "P2", add=(0.06, 0.04, 0.13), shift=0.008, widen=1.35),
)


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
        x_NLT, float32, mV, shape (n_records, 12, n_times), leads in the order of ``LEADS``.
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
