"""The archive `synthetic`: simulated 12-lead records on disk in PTB-XL's own layout.

For people with no data at hand, for load tests, and for this project's own tests; never evidence of
clinical worth. The waveforms come from `rayecg.archives.synthesis`, whose docstring names the
sources. The layout is that of PTB-XL (Wagner et al. 2020, Sci. Data 7:154): `ptbxl_database.csv`,
`scp_statements.csv` and `records<fs>/<thousand>/<ecg_id>_{lr,hr}.{hea,dat}`. Differs from PTB-XL by:
one sampling rate an archive (`filename_lr` is filled at 100 Hz, else `filename_hr`), a small
vocabulary of statements, reports that say "simulated", and the extra files `README.txt` and
`synthetic.json`.

A record's waveform and statements depend on the seed and `records_per_patient`, on its `ecg_id` and
the patient that they give, and (its noise) on `fs` and `duration_s`; not on `n_records`. Records are
drawn in blocks of 256, and a patient's records lie in one block. Folds, dates and the choice of
defective records depend on `n_records`. The same settings give the same bytes on the same machine
with the same numpy; another processor may round a sample the other way (1 uV).

Legend of tensor names: see `rayecg.archives.synthesis`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rayecg.archives.synthesis import (
    BLOCK,
    CONDITIONS,
    DOWER,
    LEADS,
    QRS,
    STATEMENT_SHARE,
    Block,
    draw_block,
    random_stream,
    simulate,
)
from rayecg.core.errors import DataError
from rayecg.core.files import read_json, replacing_folder, write_json, write_text

MARKER = "synthetic.json"
GENERATOR_VERSION = 1  # one higher whenever the same settings give other bytes
UNITS_PER_MV = 1000
N_FOLDS = 10

#: Kinds of defects, and the error code (`rayecg.core.errors`) that a reader should give for each.
DEFECTS = {
    "truncated_signal": "truncated_signal",
    "missing_signal": "missing_file",
    "flipped_bytes": "checksum_mismatch",
    "garbage_header": "bad_header",
    "wrong_checksum": "checksum_mismatch",
}

# code, description, kind (d, f, r as in diagnostic, form, rhythm), superclass, subclass: the
# publisher's words (scp_statements.csv of PTB-XL, CC BY 4.0), for the statements used here.
_STATEMENTS = (
    ("NORM", "normal ECG", "d", "NORM", "NORM"),
    ("IMI", "inferior myocardial infarction", "d", "MI", "IMI"),
    ("ASMI", "anteroseptal myocardial infarction", "d", "MI", "AMI"),
    ("AMI", "anterior myocardial infarction", "d", "MI", "AMI"),
    ("NDT", "non-diagnostic T abnormalities", "df", "STTC", "STTC"),
    ("NST_", "non-specific ST changes", "df", "STTC", "NST_"),
    ("ISC_", "non-specific ischemic", "d", "STTC", "ISC_"),
    ("CLBBB", "complete left bundle branch block", "d", "CD", "CLBBB"),
    ("CRBBB", "complete right bundle branch block", "d", "CD", "CRBBB"),
    ("IRBBB", "incomplete right bundle branch block", "d", "CD", "IRBBB"),
    ("LAFB", "left anterior fascicular block", "d", "CD", "LAFB/LPFB"),
    ("1AVB", "first degree AV block", "d", "CD", "_AVB"),
    ("LVH", "left ventricular hypertrophy", "d", "HYP", "LVH"),
    ("RVH", "right ventricular hypertrophy", "d", "HYP", "RVH"),
    ("LAO/LAE", "left atrial overload/enlargement", "d", "HYP", "LAO/LAE"),
    ("ABQRS", "abnormal QRS", "f", "", ""),
    ("QWAVE", "Q waves present", "f", "", ""),
    ("LOWT", "low amplitude T-waves", "f", "", ""),
    ("VCLVH", "voltage criteria (QRS) for left ventricular hypertrophy", "f", "", ""),
    ("SR", "sinus rhythm", "r", "", ""),
    ("AFIB", "atrial fibrillation", "r", "", ""),
    ("STACH", "sinus tachycardia", "r", "", ""),
    ("SBRAD", "sinus bradycardia", "r", "", ""),
    ("SARRH", "sinus arrhythmia", "r", "", ""),
)
# Form statements that a reader may add to a diagnosis, and how often.
_FORMS = {
    **dict.fromkeys(STATEMENT_SHARE["MI"], (("QWAVE", 0.25), ("ABQRS", 0.3))),
    **dict.fromkeys(STATEMENT_SHARE["CD"], (("ABQRS", 0.3),)),
    "NDT": (("LOWT", 0.25),),
    "LVH": (("VCLVH", 0.5),),
}


@dataclass(frozen=True)
class SyntheticSettings:
    """What an archive is made of.

    Attributes
    ----------
    n_records
        How many records.
    fs
        Sampling rate, Hz.
    duration_s
        Length of a record, s.
    seed
        Not negative.
    n_defective
        How many records are damaged on disk; None means 0.5 %, at least 4, at most a quarter.
    records_per_patient
        Mean number of records of a patient, 1 to 5.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    n_records: int = 1200
    fs: int = 500
    duration_s: float = 10.0
    seed: int = 0
    n_defective: int | None = None
    records_per_patient: float = 1.6

    def __post_init__(self) -> None:
        expected = {
            "n_records": (self.n_records >= 1, "at least 1"),
            "fs": (isinstance(self.fs, int) and self.fs >= 50, "a whole number of at least 50 Hz"),
            "duration_s": (
                self.duration_s >= 2.0 and self.fs * self.duration_s <= 60_000,
                "at least 2 s, and no more than 60000 samples",
            ),
            "seed": (self.seed >= 0, "0 or more"),
            "n_defective": (0 <= (self.n_defective or 0) <= self.n_records, "0 to n_records"),
            "records_per_patient": (1.0 <= self.records_per_patient <= 5.0, "1 to 5"),
        }
        for name, (holds, wanted) in expected.items():
            if not holds:
                raise ValueError(f"{name}: expected {wanted}, came {getattr(self, name)!r}")

    def resolved(self) -> SyntheticSettings:
        """Give the same settings with `n_defective` as a number."""
        if self.n_defective is not None:
            return self
        n = min(max(4, round(0.005 * self.n_records)), self.n_records // 4)
        return replace(self, n_defective=n)


def write_archive(
    folder: str | os.PathLike[str],
    settings: SyntheticSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write an archive, or leave the one that already stands there with the same settings.

    It is written beside `folder` and renamed into place, so that it is whole or not there.

    Parameters
    ----------
    folder
        Where; must not exist, be empty, or hold an archive of these settings.
    settings
        What to write.
    progress
        Called with the number of records written so far and in all, once for every block.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        If the folder holds anything else; what stands there is left as it is.
    """
    target, settings = Path(folder), settings.resolved()
    if _stands(target, settings):
        return target
    try:
        with replacing_folder(target) as beside:
            _write_into(beside, settings, progress)
            if _stands(target, settings):
                raise FileExistsError  # another process was quicker: keep its archive
    except FileExistsError:
        if not _stands(target, settings):
            raise
    return target


def _stands(target: Path, settings: SyntheticSettings) -> bool:
    """Whether the archive is there already; raises if something else is."""
    wanted = {"generator_version": GENERATOR_VERSION, "settings": asdict(settings)}
    if not target.exists():
        return False
    if not target.is_dir():
        raise DataError(f"{target}: expected a folder for a synthetic archive, found a file")
    if not (target / MARKER).exists():
        entries = sorted(os.listdir(target))
        if not entries:
            return False
        raise DataError(
            f"{target}: expected an empty folder or a synthetic archive (with {MARKER}), found "
            f"{len(entries)} other entries ({', '.join(entries[:3])}, …)"
        )
    there = read_json(target / MARKER)
    found = {key: there.get(key) for key in wanted} if isinstance(there, dict) else there
    if found != wanted:
        raise DataError(
            f"{target}: expected a synthetic archive of {wanted}, found one of {found}; give "
            "another folder or remove this one"
        )
    return True


def _write_into(
    root: Path, settings: SyntheticSettings, progress: Callable[[int, int], None] | None
) -> None:
    blocks, paths = [], []
    for index in range(-(-settings.n_records // BLOCK)):
        block = draw_block(settings.seed, index, settings.records_per_patient)
        n = min(BLOCK, settings.n_records - index * BLOCK)
        ids = range(index * BLOCK + 1, index * BLOCK + n + 1)
        paths += [_record_path(ecg_id, settings.fs) for ecg_id in ids]
        _write_records(
            root, paths[-n:], simulate(block, settings.fs, settings.duration_s, n), settings
        )
        blocks.append(_describe(block, n))
        if progress is not None:
            progress(len(paths), settings.n_records)
    table = pd.concat(blocks, ignore_index=True)
    leads = {"flat_leads": table.pop("flat"), "noisy_leads": table.pop("noisy")}
    _finish_table(table, paths, settings).to_csv(root / "ptbxl_database.csv", index=False)
    _statement_table().to_csv(root / "scp_statements.csv")
    defects = _damage(root, paths, settings)
    write_text(root / "README.txt", _readme(settings, len(defects)))
    marker: dict[str, Any] = {
        "kind": "synthetic",
        "generator_version": GENERATOR_VERSION,
        "settings": asdict(settings),
        "n_patients": int(table["patient_id"].nunique()),
        "defects": defects,
    }
    for key, lead_N in leads.items():
        marker[key] = {paths[n]: LEADS[lead_N[n]] for n in np.flatnonzero(lead_N >= 0)}
    write_json(root / MARKER, marker)


def _record_path(ecg_id: int, fs: int) -> str:
    suffix = "lr" if fs == 100 else "hr"
    return f"records{fs}/{ecg_id // 1000 * 1000:05d}/{ecg_id:05d}_{suffix}"


def _write_records(
    root: Path, paths: list[str], x_NLT: np.ndarray, settings: SyntheticSettings
) -> None:
    """Write format 16 signals and their headers; ``x_NLT`` (mV) is overwritten."""
    np.multiply(x_NLT, np.float32(UNITS_PER_MV), out=x_NLT)
    np.rint(x_NLT, out=x_NLT)
    # -32768 means "no sample" in format 16.
    np.clip(x_NLT, -32767, 32767, out=x_NLT)
    digital_NLT = x_NLT.astype("<i2")
    sums = digital_NLT.sum(axis=2, dtype=np.uint16).tolist()  # wraps at 16 bits, as the checksum
    x_NTL = np.ascontiguousarray(digital_NLT.transpose(0, 2, 1))
    firsts = x_NTL[:, 0].tolist()
    for parent in {os.path.dirname(path) for path in paths}:
        (root / parent).mkdir(parents=True, exist_ok=True)
    line = f".dat 16 {UNITS_PER_MV}.0(0)/mV 16 0 "
    for n, path in enumerate(paths):
        name = path[path.rindex("/") + 1 :]
        lines = [f"{name} {len(LEADS)} {settings.fs} {x_NTL.shape[1]}\n"]
        for lead, first, checksum in zip(LEADS, firsts[n], sums[n], strict=True):
            lines.append(f"{name}{line}{first} {checksum} 0 {lead}\n")
        base = f"{root}/{path}"
        with open(base + ".hea", "wb", buffering=0) as file:
            file.write("".join(lines).encode())
        with open(base + ".dat", "wb", buffering=0) as file:
            file.write(x_NTL[n].data)


def _describe(block: Block, n_records: int) -> pd.DataFrame:
    """Fill the columns of `ptbxl_database.csv` that a block decides; `flat` and `noisy` come along."""
    people = random_stream(block.seed, "people", block.index)
    p, healthy_N = block.patient_N, block.healthy_N
    sex_P = people.integers(0, 2, BLOCK)
    ageing_P = people.standard_normal(BLOCK)
    stature_P = people.standard_normal(BLOCK)
    build_P = people.standard_normal(BLOCK)
    age_N = np.where(healthy_N, 52 + 17 * ageing_P[p], 65 + 13 * ageing_P[p]).clip(18, 96).round()
    height_N = (175 - 12 * sex_P[p] + 7 * stature_P[p]).round()
    weight_N = (24.5 * (height_N / 100) ** 2 * np.exp(0.15 * build_P[p])).round()
    visit = random_stream(block.seed, "visits", block.index)
    site_N = visit.choice(6, BLOCK, p=[0.40, 0.30, 0.20, 0.06, 0.03, 0.01]).astype(float)
    device_N = np.array(["CS-12", "CS100    3", "AT-6 C"])[
        (site_N.astype(int) + visit.choice(3, BLOCK, p=[0.8, 0.1, 0.1])) % 3
    ]
    codes, reports = _read(block)
    infarct_N = np.array([any(code in STATEMENT_SHARE["MI"] for code in c) for c in codes])
    stadium_N = visit.choice(["unknown", "Stadium III", "Stadium II-III"], BLOCK, p=[0.7, 0.2, 0.1])
    loose_N = np.maximum(block.flat_N, block.noisy_N)
    table = pd.DataFrame(
        {
            "patient_id": (block.index * BLOCK + p + 1).astype(float),
            "age": np.where(age_N > 89, 300.0, age_N),  # PTB-XL's "over 89"
            "sex": sex_P[p],
            "height": np.where(visit.random(BLOCK) < 0.32, height_N, np.nan),
            "weight": np.where(visit.random(BLOCK) < 0.45, weight_N, np.nan),
            "nurse": visit.integers(0, 10, BLOCK).astype(float),
            "site": site_N,
            "device": device_N,
            "report": reports,
            "scp_codes": [str(c) for c in codes],
            "heart_axis": _heart_axis(block),
            "infarction_stadium1": np.where(infarct_N, stadium_N, ""),
            "validated_by": visit.integers(0, 6, BLOCK).astype(float),
            "second_opinion": visit.random(BLOCK) < 0.03,
            "initial_autogenerated_report": visit.random(BLOCK) < 0.25,
            "baseline_drift": np.where(block.wander_N > 0.12, " , alles", ""),
            "static_noise": np.where(np.median(block.muscle_NV, axis=1) > 0.025, " , alles", ""),
            "burst_noise": np.where(block.bump_NV.any(axis=1), "alles", ""),
            "electrodes_problems": [LEADS[lead] if lead >= 0 else None for lead in loose_N],
            "flat": block.flat_N,
            "noisy": block.noisy_N,
        }
    )
    return table[:n_records]


def _read(block: Block) -> tuple[list[dict[str, float]], list[str]]:
    """Statements with likelihoods, and reports, as a fallible reader of each record writes them.

    A condition is named when its severity, seen with an error, passes a threshold, and its
    likelihood grows with what was seen. Some readings are plainly wrong, so that no network can be
    perfect.
    """
    rng = random_stream(block.seed, "readings", block.index)
    seen_NC = block.severity_NC + rng.normal(0.0, 0.07, block.severity_NC.shape)
    seen_NC[block.severity_NC == 0.0] = 0.0
    overlooked_NC = rng.random(seen_NC.shape) < 0.03
    imagined_N = np.where(rng.random(BLOCK) < 0.04, rng.integers(0, len(CONDITIONS), BLOCK), -1)
    likelihood_NC = np.select(
        [seen_NC > limit for limit in (0.72, 0.60, 0.52, 0.45, 0.38)],
        [100.0, 80.0, 50.0, 35.0, 15.0],
        default=-1.0,
    )
    likelihood_NC[overlooked_NC | block.unread_N[:, None]] = -1.0
    likelihood_NC[(likelihood_NC > 0) & (rng.random(seen_NC.shape) < 0.015)] = 0.0
    luck = rng.random((BLOCK, 4))
    bpm_N, uneven_N = block.heart_rate_N, block.sinus_arrhythmia_N
    rhythm_N = np.select(
        [block.afib_N, bpm_N > 100, bpm_N < 53, uneven_N > 0.09],
        ["AFIB", "STACH", "SBRAD", "SARRH"],
        default="SR",
    ).tolist()
    words = {code: description for code, description, *_ in _STATEMENTS}
    readings, reports = [], []
    for n in range(BLOCK):
        found = {CONDITIONS[c]: likelihood_NC[n, c] for c in np.flatnonzero(likelihood_NC[n] >= 0)}
        if imagined_N[n] >= 0 and not block.unread_N[n]:
            found.setdefault(CONDITIONS[imagined_N[n]], (15.0, 35.0, 50.0)[n % 3])
        codes = {code: float(likelihood) for code, likelihood in found.items()}
        if not block.unread_N[n]:
            if not codes:
                codes["NORM"] = 100.0 if luck[n, 0] < 0.75 else 80.0
            elif len(codes) == 1 and max(codes.values()) <= 35.0 and luck[n, 0] < 0.5:
                codes = {"NORM": 80.0} | codes
        elif luck[n, 1] < 0.5:
            codes["ABQRS"] = 0.0
        for code in found:
            for form, share in _FORMS.get(code, ()):
                if luck[n, 2] < share:
                    codes[form] = 0.0
        codes[rhythm_N[n]] = 0.0
        readings.append(codes)
        diagnoses = [words[code] for code in codes if code != rhythm_N[n]]
        reports.append(". ".join(["simulated", words[rhythm_N[n]], *diagnoses]))
    return readings, reports


def _heart_axis(block: Block) -> np.ndarray:
    """Name the electrical axis in PTB-XL's words, from the area of the QRS events in I and aVF."""
    area_NED = block.width_NE[:, QRS, None] * block.amplitude_NED[:, QRS]
    lead_one, lead_two = DOWER[:2]
    i_N, avf_N = np.stack([lead_one, lead_two - lead_one / 2.0]) @ area_NED.sum(axis=1).T
    degrees_N = np.degrees(np.arctan2(avf_N, i_N))
    limits = [degrees_N < -90, degrees_N < -30, degrees_N < 30, degrees_N < 90, degrees_N < 120]
    return np.select(limits, ["ARAD", "ALAD", "LAD", "MID", "RAD"], default="ARAD")


def _finish_table(
    table: pd.DataFrame, paths: list[str], settings: SyntheticSettings
) -> pd.DataFrame:
    """Add what depends on all records (dates, folds, paths), in PTB-XL's order of columns."""
    n_records = len(paths)
    rng = random_stream(settings.seed, "table", 0)
    step = 7 * 365 * 86400 // n_records  # seven years of recordings
    seconds_N = np.arange(n_records) * step + rng.integers(0, max(1, step // 2), n_records)
    dates_N = np.datetime64("1984-11-09T09:17:34") + seconds_N.astype("timedelta64[s]")
    table["ecg_id"] = np.arange(1, n_records + 1)
    table["recording_date"] = pd.Series(np.datetime_as_string(dates_N)).str.replace("T", " ")
    table["strat_fold"] = _folds(table, rng)
    human_N = (table["strat_fold"] > N_FOLDS - 2) | (rng.random(n_records) < 0.7)
    table["validated_by_human"] = human_N
    table["validated_by"] = table["validated_by"].where(human_N)
    at_100 = settings.fs == 100
    table["filename_lr"] = paths if at_100 else None
    table["filename_hr"] = None if at_100 else paths
    for empty in ("infarction_stadium2", "extra_beats", "pacemaker"):
        table[empty] = None
    columns = (
        "ecg_id patient_id age sex height weight nurse site device recording_date report scp_codes "
        "heart_axis infarction_stadium1 infarction_stadium2 validated_by second_opinion "
        "initial_autogenerated_report validated_by_human baseline_drift static_noise burst_noise "
        "electrodes_problems extra_beats pacemaker strat_fold filename_lr filename_hr"
    )
    return table[columns.split()]


def _folds(table: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Folds 1..10, dealt in turn to the patients sorted by their statements and number of records."""
    patients = table.groupby("patient_id", sort=True)["scp_codes"].agg(["min", "size"])
    statements = patients["min"].str.replace(r": [0-9.]+", "", regex=True)
    order = np.lexsort((rng.random(len(patients)), patients["size"], statements))
    fold_P = np.empty(len(patients), np.int64)
    fold_P[order] = (np.arange(len(patients)) + rng.integers(N_FOLDS)) % N_FOLDS + 1
    return table["patient_id"].map(pd.Series(fold_P, index=patients.index)).to_numpy()


def _statement_table() -> pd.DataFrame:
    """`scp_statements.csv` with the publisher's columns; the foreign code systems stay empty."""
    rows = {
        code: {
            "description": description,
            "diagnostic": 1.0 if "d" in kind else None,
            "form": 1.0 if "f" in kind else None,
            "rhythm": 1.0 if "r" in kind else None,
            "diagnostic_class": superclass or None,
            "diagnostic_subclass": subclass or None,
            "Statement Category": None,
            "SCP-ECG Statement Description": description,
            "AHA code": None,
            "aECG REFID": None,
            "CDISC Code": None,
            "DICOM Code": None,
        }
        for code, description, kind, superclass, subclass in _STATEMENTS
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _damage(root: Path, paths: list[str], settings: SyntheticSettings) -> dict[str, str]:
    """Damage some records on disk, the kinds of `DEFECTS` in turn; gives path to kind."""
    rng = random_stream(settings.seed, "defects", 0)
    chosen = rng.choice(len(paths), settings.n_defective, replace=False)
    kinds = list(DEFECTS)
    defects = {paths[n]: kinds[i % len(kinds)] for i, n in enumerate(chosen)}
    for path, kind in defects.items():
        header, signal = root / f"{path}.hea", root / f"{path}.dat"
        if kind == "truncated_signal":
            os.truncate(signal, signal.stat().st_size * 3 // 5)
        elif kind == "missing_signal":
            signal.unlink()
        elif kind == "flipped_bytes":
            content = bytearray(signal.read_bytes())
            for lead in range(3):  # one byte of one sample each, so that no two changes cancel
                content[(100 + lead) * 2 * len(LEADS) + 2 * lead] ^= 0xFF
            signal.write_bytes(content)
        elif kind == "garbage_header":
            header.write_bytes(b"\x00\xff<html>502 Bad Gateway</html>\x80\n" + rng.bytes(200))
        elif kind == "wrong_checksum":
            lines = header.read_text().splitlines(keepends=True)
            words = lines[2].split(" ")
            words[6] = str((int(words[6]) + 1) % 65536)
            header.write_text("".join([*lines[:2], " ".join(words), *lines[3:]]))
    return dict(sorted(defects.items()))


def _readme(settings: SyntheticSettings, n_defective: int) -> str:
    return f"""SYNTHETIC ELECTROCARDIOGRAMS: NOT RECORDED FROM ANY PERSON

Written by rayecg (archive kind `synthetic`, generator version {GENERATOR_VERSION}) in the layout of
PTB-XL. Waveforms, labels, ages, sites and reports are simulated. They serve to try the program, to
load it and to test it. No figure got on them is evidence of clinical worth.

seed                 {settings.seed}
n_records            {settings.n_records}
fs                   {settings.fs} Hz
duration_s           {settings.duration_s}
records_per_patient  {settings.records_per_patient}

{n_defective} records are defective on purpose: signal cut short, missing or altered, header
replaced or with a wrong checksum. {MARKER} lists them, and the records with a flat lead or a
noisy electrode, and holds these settings for machines.
"""
