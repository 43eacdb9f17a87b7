"""Small folders of WFDB records, and what units wrote of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import wfdb

from rayecg.archives.catalogue import open_archive
from rayecg.core.experiment import ArchiveSettings, ShardSettings
from rayecg.core.record import Record
from rayecg.core.shard_reader import read_records
from rayecg.core.units import Units
from rayecg.shards.build import as_bytes
from rayecg.shards.unit import UnitWriter


def shard_files(out):
    """List what units have written, also before the manifest is there."""
    return sorted((out / "records").glob("*.parquet"))


def rows_of(out: Path) -> list[tuple[dict, Record]]:
    return [pair for file in shard_files(out) for pair in read_records(file)]


def write_wfdb(folder: Path, name: str, leads: list[str], n_times: int, fmt: str, **header) -> None:
    rng = np.random.default_rng(n_times)
    folder.mkdir(parents=True, exist_ok=True)
    n_leads = len(leads)
    wanted = {
        "fs": 250,
        "units": ["mV"] * n_leads,
        "sig_name": leads,
        "d_signal": rng.integers(-500, 500, (n_times, n_leads)),
        "fmt": [fmt] * n_leads,
        "adc_gain": [200.0] * n_leads,
        "baseline": [0] * n_leads,
    }
    wfdb.wrsamp(name, write_dir=str(folder), **(wanted | header))


def written(folder: Path, out: Path, settings: ShardSettings = ShardSettings()) -> Path:  # noqa: B008
    opened = open_archive(ArchiveSettings("wfdb", str(folder)))
    UnitWriter(opened, settings, Units(out, "0" * 16))(
        {"unit": "0", "rows": as_bytes(opened.index())}
    )
    return out
