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

from rayecg.archives.base import SYNTHETIC_MARKER
from rayecg.archives.morphology import LEADS
from rayecg.archives.synthesis import BLOCK, draw_block, random_stream, simulate
from rayecg.archives.synthetic_labels import describe, finish_table, statement_table
from rayecg.core.errors import DataError
from rayecg.core.files import read_json, replacing_folder, write_json, write_text

GENERATOR_VERSION = 1  # one higher whenever the same settings give other bytes
UNITS_PER_MV = 1000

#: Kinds of defects, and the error code (`rayecg.core.errors`) that a reader should give for each.
DEFECTS = {
    "truncated_signal": "truncated_signal",
    "missing_signal": "missing_file",
    "flipped_bytes": "checksum_mismatch",
    "garbage_header": "bad_header",
    "wrong_checksum": "checksum_mismatch",
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
    if not (target / SYNTHETIC_MARKER).exists():
        entries = sorted(os.listdir(target))
        if not entries:
            return False
        raise DataError(
            f"{target}: expected an empty folder or a synthetic archive (with {SYNTHETIC_MARKER}), found "
            f"{len(entries)} other entries ({', '.join(entries[:3])}, …)"
        )
    there = read_json(target / SYNTHETIC_MARKER)
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
        blocks.append(describe(block, n))
        if progress is not None:
            progress(len(paths), settings.n_records)
    table = pd.concat(blocks, ignore_index=True)
    leads = {"flat_leads": table.pop("flat"), "noisy_leads": table.pop("noisy")}
    finish_table(table, paths, settings.seed, settings.fs).to_csv(
        root / "ptbxl_database.csv", index=False
    )
    statement_table().to_csv(root / "scp_statements.csv")
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
    write_json(root / SYNTHETIC_MARKER, marker)


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
replaced or with a wrong checksum. {SYNTHETIC_MARKER} lists them, and the records with a flat lead or a
noisy electrode, and holds these settings for machines.
"""
