"""The heart of the synthetic archive: one beat, its way to the leads, and what conditions do to it.

Axes are Frank's: x to the patient's left, y to the feet, z to the back. Potentials are in mV,
times in s. Sources, and how this differs from them: see `rayecg.archives.synthesis`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
EVENTS = ("P1", "P2", "Q", "R", "S1", "S2", "LATE", "ST", "T1", "T2")
P_WAVE, QRS, ST, T_WAVE = slice(0, 2), slice(2, 7), 7, slice(8, 10)

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
