"""Recording quality: the speed of `measure`, and what measures and flags say of PTB-XL.

Legend: N record, L lead, T time.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from rayecg.archives.catalogue import open_archive
from rayecg.archives.ptbxl import DATABASE
from rayecg.core.errors import RecordError
from rayecg.core.experiment import STANDARD_LEADS, ArchiveSettings
from rayecg.core.record import Record
from rayecg.metrics.classification import auroc
from rayecg.signal import quality

BATCH = 128
#: A column of PTB-XL's human remarks, and the measure it is held against.
REMARKS = {
    "static_noise": "noise_NL",
    "burst_noise": "noise_NL",
    "baseline_drift": "wander_NL",
}
Limbs = tuple[np.ndarray, np.ndarray]
#: What leads I and II become when limb electrodes change places.
REVERSALS: dict[str, Callable[[np.ndarray, np.ndarray], Limbs]] = {
    "as recorded": lambda i, ii: (i, ii),
    "RA and LA": lambda i, ii: (-i, ii - i),
    "RA and LL": lambda i, ii: (i - ii, -ii),
    "LA and LL": lambda i, ii: (ii, i),
    "RA to LA to LL to RA": lambda i, ii: (-ii, i - ii),
    "RA to LL to LA to RA": lambda i, ii: (ii - i, -i),
}


def named_leads(remark: object) -> np.ndarray:
    """Tell which leads a remark names, such as ` , I-AVF,  `, `v6` or `alles`."""
    text = remark.upper().replace(" ", "") if isinstance(remark, str) else ""
    if "ALLES" in text:
        return np.ones(12, dtype=bool)
    names = [lead.upper() for lead in STANDARD_LEADS]
    text = re.sub(r"(V[1-6])([-.,])(?=[1-6](?!\d))", r"\1\2V", text)
    lead = r"(?<![A-Z])(III|II|I|AVR|AVL|AVF|V[1-6])(?![A-Z0-9])"
    named_L: np.ndarray = np.isin(names, re.findall(lead, text))
    for first, last in re.findall(f"{lead}-{lead}", text):
        named_L[names.index(first) : names.index(last) + 1] = True
    return named_L


def batches(path: str, rate: int | None) -> Iterator[tuple[list[str], list[Record]]]:
    """Yield batches of ids and records; those that cannot be read are left out."""
    archive = open_archive(ArchiveSettings("ptbxl", path, rate=rate))
    ids: list[str] = []
    records: list[Record] = []
    for row in archive.index().to_pylist():
        try:
            records.append(archive.read(row))
        except RecordError:
            continue
        ids.append(row["record_id"])
        if len(ids) == BATCH:
            yield ids, records
            ids, records = [], []
    if ids:
        yield ids, records


def calibrate(path: str, rate: int | None) -> dict[str, object]:
    """Measure PTB-XL, as it is and with limb electrodes interchanged."""
    found: list[quality.Quality] = []
    ids: list[str] = []
    names: list[tuple[str, ...]] = []
    reversed_: dict[str, list[np.ndarray]] = {name: [] for name in REVERSALS}
    for own_ids, records in batches(path, rate):
        ids += own_ids
        leads, fs = records[0].leads, records[0].fs
        digital_NLT = np.stack([record.digital_LT for record in records])
        gain_NL = np.stack([record.gain_L for record in records])
        own = quality.measure(digital_NLT, gain_NL, fs, leads)
        found.append(own)
        names += quality.flags(own, leads)
        wide_NLT = digital_NLT[:, [leads.index(lead) for lead in ("I", "II", "V6")]].astype(
            np.int32
        )
        for name, change in REVERSALS.items():
            limbs = change(wide_NLT[:, 0], wide_NLT[:, 1])
            changed_NLT = np.stack([*limbs, wide_NLT[:, 2]], axis=1)
            three_NL = gain_NL[:, :3]
            of = quality.measure(changed_NLT, three_NL, fs, ("I", "II", "V6"))
            reversed_[name].append(of.reversal_N)
    table = pd.read_csv(Path(path) / DATABASE, dtype={"ecg_id": str}).set_index("ecg_id").loc[ids]
    norm_N = np.array(
        [ast.literal_eval(codes).get("NORM", 0) >= 80 for codes in table["scp_codes"]]
    )
    remarked_N = table[list(REMARKS)].notna().any(axis=1).to_numpy()
    figures: dict[str, object] = {"n_records": len(ids), "n_norm": int(norm_N.sum()), "fs": fs}
    for column, measure in REMARKS.items():
        value_NL = np.concatenate([getattr(own, measure) for own in found])
        own_N = table[column].notna().to_numpy()
        named_NL = np.stack([named_leads(remark) for remark in table[column]])
        # The other leads of a remarked record are no sure negatives.
        told_NL = named_NL | ~own_N[:, None]
        limit = {"noise_NL": quality.NOISE_MV, "wander_NL": quality.WANDER_MV}[measure]
        hit_NL = np.asarray(value_NL > limit)
        hit_N = np.asarray(hit_NL.any(axis=1))
        figures[f"{column} by {measure}"] = {
            "remarked": int(own_N.sum()),
            "auroc_records": auroc(own_N, value_NL.max(axis=1)),
            "auroc_leads": auroc(named_NL[told_NL], value_NL[told_NL]),
            "flagged_remarked": hit_N[own_N].mean(),
            "flagged_without_any_remark": hit_N[~remarked_N].mean(),
            "flagged_named_leads": hit_NL[named_NL].mean(),
            "flagged_leads_without_any_remark": hit_NL[~remarked_N].mean(),
        }
    figures["flag rates of records"] = {
        flag: np.mean([any(name.split(":")[0] == flag for name in own) for own in names])
        for flag in quality.FLAGS
    }
    n_cells = len(ids) * len(STANDARD_LEADS)
    figures["flag rates of leads"] = {
        flag: sum(name.startswith(f"{flag}:") for own in names for name in own) / n_cells
        for flag in list(quality.FLAGS)[:6]
    }
    figures["limb_reversal"] = {
        name: {"norm": fired_N[norm_N].mean(), "others": fired_N[~norm_N].mean()}
        for name, fired_N in ((name, np.concatenate(own)) for name, own in reversed_.items())
    }
    return figures


def speed() -> dict[str, float]:
    """Time `measure` and `flags` on batches of noise with QRS complexes, best of ten, us a record."""
    rng = np.random.default_rng(0)
    times = {}
    for fs in (100, 500):
        n_times = 10 * fs
        phase_T = np.arange(n_times) / fs % 0.8 - 0.4
        beat_T = 1000 * np.exp(-0.5 * (phase_T / 0.01) ** 2)
        noise_NLT = 10 * rng.standard_normal((BATCH, 12, n_times))
        digital_NLT = (beat_T + noise_NLT).astype(np.int16)
        gain_NL = np.full((BATCH, 12), 1000.0)
        seconds = []
        for _ in range(11):
            started = time.perf_counter()
            own = quality.measure(digital_NLT, gain_NL, fs, STANDARD_LEADS)
            quality.flags(own, STANDARD_LEADS)
            seconds.append(time.perf_counter() - started)
        times[f"us_per_record_12x{n_times}"] = min(seconds[1:]) / BATCH * 1e6
    return times


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ptbxl", help="folder of PTB-XL, whole or in part; else only the speed")
    parser.add_argument("--rate", type=int, choices=(100, 500), help="Hz; 500 unless said")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    figures: dict[str, object] = dict(speed())
    if given.ptbxl:
        figures |= calibrate(given.ptbxl, given.rate)
    if given.json:
        print(json.dumps(figures, indent=2, default=float))
        return
    for name, value in figures.items():
        print(f"{name}: {json.dumps(value, default=lambda x: round(float(x), 4))}")


if __name__ == "__main__":
    main()
