"""Beat detection on MIT-BIH as ANSI/AAMI EC57 measures it: all 48 records, 150 ms, gross and average."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from rayecg.archives.catalogue import open_archive
from rayecg.archives.mitbih import DS1, DS2, read_flutter
from rayecg.core.experiment import ArchiveSettings
from rayecg.core.files import write_text
from rayecg.core.versions import versions
from rayecg.signal.beats import compare_beats, detect_beats, detection_lead

Detector = Callable[[np.ndarray, float], np.ndarray]

#: Learning periods (s) that are left out.
STARTS = (0, 300)
CASE = ["detector", "start_s", "flutter"]

CONVENTIONS = """\
- Lead: MLII; records 102 and 104 have none, there V5, the first signal of their files.
- A detection counts for a reference beat at most 150 ms away; each counts once, paired as WFDB's
  `bxb` does.
- Start 300 s leaves out the first five minutes, EC57's learning period; the detector still sees them.
- Flutter excluded: beats and detections inside the episodes of ventricular flutter (record 207) do
  not count. Included: they do, and as no beats are annotated there, every detection in an episode is
  a false positive.
- Gross: from the sums of all records' counts. Average: the mean of the records' own figures.
- DS1 and DS2: the 22 records each of de Chazal et al. 2004. What was chosen by comparison, was
  compared on DS1 (docstring of `rayecg.signal.beats.detect_beats`).
"""


def sleepecg_alone(signal_T: np.ndarray, fs: float) -> np.ndarray:
    """Run the first pass of `detect_beats` alone."""
    import sleepecg

    return sleepecg.detect_heartbeats(signal_T.astype(np.float64), fs)


def xqrs(signal_T: np.ndarray, fs: float) -> np.ndarray:
    """Run the detector of the wfdb package."""
    from wfdb.processing import xqrs_detect

    return xqrs_detect(signal_T.astype(np.float64), fs, verbose=False)


def measure(path: str, detectors: dict[str, Detector]) -> tuple[pd.DataFrame, dict[str, float]]:
    """Count every record under every convention; also gives each detector's time (s)."""
    archive = open_archive(ArchiveSettings("mitbih", path))
    rows, seconds = [], dict.fromkeys(detectors, 0.0)
    for row in archive.index().to_pylist():
        record = archive.read(row)
        assert record.beat_times is not None
        lead = detection_lead(record.leads)
        signal_T = record.physical[lead]
        episodes = read_flutter(Path(path) / row["path"], len(signal_T))
        for name, detect in detectors.items():
            started = time.perf_counter()
            found = detect(signal_T, record.fs)
            seconds[name] += time.perf_counter() - started
            for start_s in STARTS:
                for flutter, left_out in (("excluded", episodes), ("included", [])):
                    of = compare_beats(record.beat_times, found, record.fs, start_s, left_out)
                    case = dict(zip(CASE, (name, start_s, flutter), strict=True))
                    where = {"record": row["record_id"], "lead": record.leads[lead]}
                    rows.append({**case, **where, "tp": of.tp, "fn": of.fn, "fp": of.fp})
    table = pd.DataFrame(rows)
    table["sensitivity"] = 100 * table["tp"] / (table["tp"] + table["fn"])
    table["ppv"] = 100 * table["tp"] / (table["tp"] + table["fp"])
    return table.sort_values([*CASE, "record"], ignore_index=True), seconds


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Give gross and average figures (%) of each case, gross ones also of DS1 and DS2."""
    rows = []
    for case, own in table.groupby(CASE):
        row = dict(zip(CASE, case, strict=True))
        for group, names in (("gross", None), ("DS1", DS1), ("DS2", DS2)):
            part = own if names is None else own[own["record"].isin(names)]
            total = part[["tp", "fn", "fp"]].sum()
            row[f"{group} sensitivity"] = 100 * total["tp"] / (total["tp"] + total["fn"])
            row[f"{group} ppv"] = 100 * total["tp"] / (total["tp"] + total["fp"])
            if names is None:
                row |= {f"average {name}": own[name].mean() for name in ("sensitivity", "ppv")}
        rows.append(row | {name: int(own[name].sum()) for name in ("tp", "fn", "fp")})
    return pd.DataFrame(rows)


def markdown(rows: pd.DataFrame) -> str:
    """Write a table of percentages and counts."""
    lines = [" | ".join(rows.columns), " | ".join("---" for _ in rows.columns)]
    for row in rows.to_dict("records"):
        cells = [f"{v:.2f}" if isinstance(v, float) else f"{v}" for v in row.values()]
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def used() -> dict[str, str]:
    """Give the versions of what the figures rest on."""
    found = versions() | {"sleepecg": metadata.version("sleepecg")}
    return {n: found[n] for n in ("python", "rayecg", "numpy", "scipy", "sleepecg", "wfdb")}


def report(table: pd.DataFrame, summary: pd.DataFrame, seconds: dict[str, float]) -> str:
    """Write the whole of `summary.md`."""
    own = table[(table["detector"] == "detect_beats") & (table["start_s"] == 0)]
    own = own[own["flutter"] == "excluded"].drop(columns=CASE)
    hardest = own.assign(errors=own["fn"] + own["fp"]).nlargest(8, "errors")
    times = [f"{n} {s / seconds['sleepecg']:.1f}" for n, s in seconds.items() if n != "sleepecg"]
    return "\n".join(
        [
            "# Beat detection on MIT-BIH\n",
            f"{table['record'].nunique()} records, ANSI/AAMI EC57. Sensitivity and positive "
            "predictivity (ppv) in %.\n",
            markdown(summary),
            f"Time, sleepecg alone being 1: {', '.join(times)}.\n",
            "## Records with the most errors (detect_beats, from the start, flutter excluded)\n",
            markdown(hardest),
            "All records: `detection.csv`.\n",
            "## Conventions\n",
            CONVENTIONS,
            "## Versions\n",
            ", ".join(f"{name} {version}" for name, version in used().items()) + "\n",
        ]
    )


def main() -> None:
    """Measure, print the gross figures, and write the tables if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True, help="folder of the MIT-BIH records")
    parser.add_argument("--xqrs", action="store_true", help="compare wfdb's XQRS (minutes)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="folder for summary.md and detection.csv")
    given = parser.parse_args()
    detectors: dict[str, Detector] = {"detect_beats": detect_beats, "sleepecg": sleepecg_alone}
    if given.xqrs:
        detectors["xqrs"] = xqrs
    table, seconds = measure(given.path, detectors)
    summary = summarise(table)
    if given.out:
        write_text(given.out / "detection.csv", table.to_csv(index=False, float_format="%.4f"))
        write_text(given.out / "summary.md", report(table, summary, seconds))
    if given.json:
        tree = {"seconds": seconds, "versions": used(), "cases": summary.to_dict("records")}
        print(json.dumps(tree, indent=2))
    else:
        print(markdown(summary))


if __name__ == "__main__":
    main()
