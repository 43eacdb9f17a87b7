"""An archive of WFDB records with one planted defect each, and what is to be said of every one.

    planted = write_planted_archive(tmp_path)
    planted.path        the archive's folder
    planted.records     what each record is, by `record_id`: every `.hea` of the folder

Nothing of the archive is real. A record without a planted defect has no flag, of the reader or of
quality, and no two records have the same samples but where that is the defect.

Legend: L lead, T time.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from rayecg.archives.wfdb_header import MAX_HEADER_BYTES
from rayecg.core.experiment import STANDARD_LEADS

FS, N_TIMES = 250, 1500
#: R wave of each lead, mV; the limb leads follow from I and II.
_R_MV = {"I": 0.6, "II": 1.0, "V1": -0.8, "V2": -0.5, "V3": 0.4, "V4": 1.2, "V5": 1.1, "V6": 0.9}
_SPELLED = ["Lead III", "v6", "AVR", "MDC_ECG_LEAD_V1", "ecg II", "V2", "avl", "lead_i", "V5", "aVF",
            "v3", "V4"]  # fmt: skip

Edit = Callable[[list[str]], list[str]]
Cut = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Planted:
    """A record of the archive.

    Attributes
    ----------
    record_id
        Its path below the archive's folder.
    kind
        What was planted.
    expect
        `error` and its code; `flag` and the flag; or `ok` and nothing, for a record that is as good
        as any. A record with a flag can have others that follow from the same defect.
    by
        Who says so: the reader, the measures of quality, or the stage that makes shards.
    expected_LT
        What it holds, uV, of the standard leads in their order; None where nothing is said.
    step_uv
        How far the samples may be from that, beside the rounding to float32.
    """

    record_id: str
    kind: str
    expect: tuple[Literal["error", "flag", "ok"], str]
    by: Literal["reader", "quality", "shards"] = "reader"
    expected_LT: np.ndarray | None = None
    step_uv: float = 0.0


@dataclass(frozen=True)
class PlantedArchive:
    """Where it lies, and what is in it."""

    path: Path
    records: dict[str, Planted]


def waveform_uv(name: str, fs: int = FS, n_times: int = N_TIMES) -> np.ndarray:
    """Simulate twelve leads in uV, leads by times, int16; the name is the seed."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    time_T = np.arange(n_times) / fs
    phase_T = (time_T + rng.uniform(0, 0.8)) % rng.uniform(0.7, 0.9)

    def wave(at: float, width: float) -> np.ndarray:
        return np.exp(-(((phase_T - at) / width) ** 2))

    beat_T = wave(0.40, 0.012) + 0.12 * wave(0.22, 0.025) + 0.25 * wave(0.62, 0.05)
    lead = {
        name: np.round(1000 * (height * beat_T) + rng.normal(0, 5, n_times))
        for name, height in _R_MV.items()
    }
    lead["III"] = lead["II"] - lead["I"]
    lead["aVR"] = -np.round((lead["I"] + lead["II"]) / 2)
    lead["aVL"] = lead["I"] - np.round(lead["II"] / 2)
    lead["aVF"] = lead["II"] - np.round(lead["I"] / 2)
    return np.array([lead[name] for name in STANDARD_LEADS]).astype(np.int16)


class _Writer:
    """Writes the archive, and keeps the list of what is in it."""

    def __init__(self, root: Path) -> None:
        self.path = root / "archive"
        self.outside = root / "outside"
        for folder in (self.path / "sound", self.path / "defects", self.outside):
            folder.mkdir(parents=True)
        self.records: dict[str, Planted] = {}

    def note(self, record_id: str, kind: str, expect: str, **more) -> None:
        """Enter a record: `expect` is "error CODE", "flag FLAG" or "ok"."""
        what, _, which = expect.partition(" ")
        assert record_id not in self.records
        self.records[record_id] = Planted(record_id, kind, (what, which), **more)

    def write(
        self,
        record_id: str,
        digital_LT: np.ndarray,
        leads: list[str] | None = None,
        *,
        fs: int = FS,
        gain: str = "1000/mV",
        fmt: str = "16",
        raw: bytes | None = None,
        file: str | None = None,
        header: Edit = lambda lines: lines,
        signal: Cut = lambda raw: raw,
    ) -> None:
        """Write a header and a signal file, each changed on the way."""
        path = self.path / record_id
        file = file or f"{path.name}.dat"
        leads = leads or list(STANDARD_LEADS)
        samples_TL = digital_LT.T.astype("<i2")
        lines = [f"{path.name} {len(leads)} {fs} {samples_TL.shape[0]}"]
        lines += [
            f"{file} {fmt} {gain} 16 0 {row_T[0]} {int(row_T.sum(dtype=np.int64)) % 65536} 0 {lead}"
            for row_T, lead in zip(samples_TL.T, leads, strict=True)
        ]
        lines += ["# simulated"]
        path.with_suffix(".hea").write_text("\n".join(header(lines)) + "\n", encoding="utf-8")
        raw = samples_TL.tobytes() if raw is None else raw
        (path.parent / file).write_bytes(signal(raw))

    def plant(self, kind: str, expect: str, **more) -> Path:
        """Write a sound record, changed in one respect; gives its path."""
        record_id = f"defects/{kind}"
        told = {name: more.pop(name) for name in ("by", "expected_LT", "step_uv") if name in more}
        digital_LT = more.pop("digital", waveform_uv(kind))
        self.write(record_id, digital_LT, **more)
        self.note(record_id, kind, expect, **told)
        return self.path / record_id


def write_planted_archive(root: Path) -> PlantedArchive:
    """Write the archive to `root/archive`, and what it must not reach to `root/outside`."""
    writer = _Writer(root)
    for name in ("a", "b", "c"):
        writer.write(f"sound/{name}", waveform_uv(name))
        writer.note(f"sound/{name}", "nothing", "ok")
    _plant_signal_errors(writer)
    _plant_header_errors(writer)
    _plant_escapes(writer)
    _plant_flags(writer)
    _plant_variants(writer)
    _plant_waveforms(writer)
    _plant_segments(writer)
    return PlantedArchive(writer.path, writer.records)


def word(row: int | slice, at: int, text: str) -> Edit:
    """Make an edit that puts a word into one or several lines of a header."""

    def edit(lines: list[str]) -> list[str]:
        rows = range(len(lines))[row] if isinstance(row, slice) else [row]
        for i in rows:
            words = lines[i].split(" ")
            lines[i] = " ".join([*words[:at], text, *words[at + 1 :]])
        return lines

    return edit


SIGNALS = slice(1, -1)


def _plant_signal_errors(writer: _Writer) -> None:
    plant = writer.plant
    plant("truncated", "error truncated_signal", signal=lambda raw: raw[:-1])
    plant("empty_signal", "error truncated_signal", signal=lambda raw: b"")
    plant("claims_more", "error truncated_signal", header=word(0, 3, str(10 * N_TIMES)))
    plant(
        "flipped_bytes", "error checksum_mismatch", signal=lambda raw: raw[:99] + b"x" + raw[100:]
    )
    plant("wrong_checksum", "error checksum_mismatch", header=word(3, 6, "12345"))
    swapped = waveform_uv("wrong_initial")
    swapped[4, [0, 1]] = swapped[4, 0] - 3, swapped[4, 1] + 3  # the sum stays
    plant(
        "wrong_initial",
        "error bad_initial_value",
        signal=lambda _: swapped.T.astype("<i2").tobytes(),
    )
    plant("all_invalid", "error all_invalid", digital=np.full((12, N_TIMES), -(2**15)))
    (plant("missing_signal", "error missing_file").with_suffix(".dat")).unlink()
    path = plant("folder_as_signal", "error missing_file").with_suffix(".dat")
    path.unlink()
    path.mkdir()
    path = plant("pipe_as_signal", "error missing_file").with_suffix(".dat")
    path.unlink()
    os.mkfifo(path)
    path = plant("link_to_nothing", "error missing_file").with_suffix(".dat")
    path.unlink()
    path.symlink_to("nothing.dat")
    flac = writer.path / "defects" / "truncated_flac.dat"
    plant("truncated_flac", "error truncated_signal", fmt="516", header=_eight_of_flac)
    soundfile.write(flac, waveform_uv("truncated_flac")[_EIGHT].T, 96_000, format="FLAC")
    os.truncate(flac, flac.stat().st_size // 2)


def _plant_header_errors(writer: _Writer) -> None:
    plant = writer.plant

    def header(kind: str, content: bytes) -> None:
        plant(kind, "error bad_header").with_suffix(".hea").write_bytes(content)

    header("empty_header", b"")
    header("only_comments", b"# nothing\n# else\n")
    header("garbage_header", b"<html>\n502 Bad Gateway\n</html>\n")
    header("binary_header", bytes(range(256)) * 4)
    plant("too_few_lines", "error bad_header", header=lambda lines: lines[:-3])
    plant("length_is_no_number", "error bad_header", header=word(0, 3, "long"))
    plant("two_formats_in_a_file", "error bad_header", header=word(2, 1, "212"))
    path = plant("long_header", "error bad_header").with_suffix(".hea")
    os.truncate(path, MAX_HEADER_BYTES + 1)
    for kind in ("pipe_as_header", "folder_as_header"):
        path = plant(kind, "error missing_file").with_suffix(".hea")
        path.unlink()
        os.mkfifo(path) if kind.startswith("pipe") else path.mkdir()
    plant("unknown_format", "error unsupported_format", header=word(SIGNALS, 1, "999"))
    plant("absurd_length", "error too_large", header=word(0, 3, "9" * 15))
    plant("absurd_signals", "error too_large", header=word(0, 1, "9" * 15))
    plant("absurd_frames", "error too_large", header=word(SIGNALS, 1, "16x99999999"))
    plant("only_pressure", "error bad_units", header=word(SIGNALS, 2, "100/mmHg"))


def _plant_escapes(writer: _Writer) -> None:
    plant = writer.plant
    secret = writer.outside / "secret.dat"
    secret.write_bytes(waveform_uv("secret").T.astype("<i2").tobytes())
    (writer.outside / "secret.hea").write_text(f"secret 1 {FS} 9\nsecret.dat 16\n")
    names = {"dots": "../../outside/secret.dat", "absolute": str(secret), "home": "~/secret.dat",
             "backslash": "..\\secret.dat", "above": ".."}  # fmt: skip
    for kind, name in names.items():
        plant(f"path_{kind}", "error outside_archive", header=word(SIGNALS, 0, name))
    path = plant("link_out", "error outside_archive").with_suffix(".dat")
    path.unlink()
    path.symlink_to("../../outside/secret.dat")
    path = plant("header_link_out", "error outside_archive").with_suffix(".hea")
    path.unlink()
    path.symlink_to("../../outside/secret.hea")
    # A folder that is a link is not searched: what lies behind is no record of the archive.
    (writer.path / "folder_link_out").symlink_to("../outside")
    path = plant("name_is_not_unicode", "error outside_archive").with_suffix(".hea")
    os.rename(path, os.fsencode(path.parent) + b"/name\xff.hea")
    found = writer.records.pop("defects/name_is_not_unicode")
    writer.note("defects/name\\xff", found.kind, "error outside_archive")


def _plant_flags(writer: _Writer) -> None:
    plant = writer.plant
    odd = {"name_with_dot": (0, "a.mat"), "length_with_point": (3, f"{N_TIMES}.0"),
           "odd_date": (4, "14:00:00 2020-05-05")}  # fmt: skip
    for kind, (at, text) in odd.items():
        plant(kind, "flag nonstandard_header", header=word(0, at, text))
    plant(
        "more_lines", "flag nonstandard_header", header=lambda lines: [*lines, "Age: 61", "Sex: F"]
    )
    georgia = word(0, 4, "05-May-2020 14:00:00")
    plant(
        "E00001",
        "flag nonstandard_header",
        file="E00001.mat",
        fmt="16+24",
        header=lambda lines: georgia(word(0, 0, "E00001.mat")(lines)),
        signal=lambda raw: b"\0" * 24 + raw,
    )
    plant("zero_gain", "flag default_gain:V1", header=word(7, 2, "0/mV"))
    plant("no_gain", "flag default_gain:V6", header=word(12, 2, "(0)"))
    plant("repeated_name", "flag repeated_lead:V1", header=word(8, 8, "v1"))
    plant("pressure_beside", "flag other_signal:ABP", header=_pressure_last)
    plant("longer_file", "flag longer_file", signal=lambda raw: raw + b"\1" * 5000)


def _pressure_last(lines: list[str]) -> list[str]:
    return word(12, 2, "100/mmHg")(word(12, 8, "ABP")(lines))


def _plant_variants(writer: _Writer) -> None:
    """Plant what is as good as any other record, in another dress."""

    def plant(kind: str, digital_LT: np.ndarray | None = None, expect: str = "ok", **more) -> Path:
        uv_LT = waveform_uv(kind)
        digital_LT = uv_LT if digital_LT is None else digital_LT
        return writer.plant(kind, expect, digital=digital_LT, expected_LT=uv_LT, **more)

    plant("microvolts", gain="1(0)/uV")
    plant("volts", gain="1000000/V")
    plant("baseline", waveform_uv("baseline") + 77, gain="1000(77)/mV")
    order = [STANDARD_LEADS.index(_standard(name)) for name in _SPELLED]
    plant("spelled_and_shuffled", waveform_uv("spelled_and_shuffled")[order], leads=_SPELLED)
    for kind, dtype, fmt in (("big_endian", ">i2", "61"), ("32_bits", "<i4", "32")):
        plant(kind, fmt=fmt, raw=waveform_uv(kind).T.astype(dtype).tobytes())
    plant("offset", fmt="16+512", signal=lambda raw: bytes(512) + raw)
    eighth = np.round(waveform_uv("8_bits") / 20).astype(np.int64)
    raw = (eighth + 128).T.astype(np.uint8).tobytes()
    plant("8_bits", eighth, gain="50/mV", fmt="80", raw=raw, step_uv=10.0)
    path = plant("flac", expect="flag derived:aVR", fmt="516", header=_eight_of_flac, step_uv=0.5)
    soundfile.write(path.with_suffix(".dat"), waveform_uv("flac")[_EIGHT].T, 96_000, format="FLAC")
    path = plant("latin_1").with_suffix(".hea")
    path.write_bytes(path.read_bytes() + "# Größe \x85 unbekannt\n".encode("latin-1"))
    path = plant("windows_lines").with_suffix(".hea")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    path = plant("link_inside").with_suffix(".dat")
    path.rename(path.with_suffix(".bin"))
    path.symlink_to("link_inside.bin")
    # Between a lead that was rounded and one that was derived lies half an ADC unit.
    leads = [STANDARD_LEADS[i] for i in _EIGHT]
    digital_LT = waveform_uv("eight_leads")[_EIGHT]
    plant("eight_leads", digital_LT, "flag derived:III", leads=leads, step_uv=0.5)
    rest = [i for i, lead in enumerate(STANDARD_LEADS) if lead != "aVL"]
    leads = [STANDARD_LEADS[i] for i in rest]
    digital_LT = waveform_uv("eleven_leads")[rest]
    plant("eleven_leads", digital_LT, "flag derived:aVL", leads=leads, step_uv=0.5)
    writer.plant("another_rate", "ok", digital=waveform_uv("another_rate", 100, 1000), fs=100)
    writer.plant("another_length", "ok", digital=waveform_uv("another_length", n_times=4000))
    two_LT = waveform_uv("two_leads")[[1, 6]]
    writer.plant("two_leads", "ok", digital=two_LT, leads=["MLII", "V1"])
    # Of two records that are the same the later one says so.
    writer.write("sound/zz_copy", waveform_uv("c"))
    writer.note("sound/zz_copy", "copy", "flag duplicate:sound/c", by="shards")


#: The leads that the limb leads' other four follow from.
_EIGHT = [i for i, lead in enumerate(STANDARD_LEADS) if lead in _R_MV]


def _eight_of_flac(lines: list[str]) -> list[str]:
    return word(0, 1, "8")([lines[0], *(lines[1 + i] for i in _EIGHT)])


def _standard(spelled: str) -> str:
    bare = spelled.lower().replace("mdc_ecg_lead_", "").replace("lead", "").replace("ecg", "")
    return {lead.lower(): lead for lead in STANDARD_LEADS}[bare.strip(" _")]


def _plant_waveforms(writer: _Writer) -> None:
    """What only a look at the samples finds."""

    def plant(kind: str, flag: str, change: Callable[[np.ndarray], None]) -> None:
        digital_LT = waveform_uv(kind)
        change(digital_LT)
        writer.plant(kind, f"flag {flag}", by="quality", digital=digital_LT)

    rng = np.random.default_rng(9)
    v1, v5 = 6, 10

    def clip(digital_LT: np.ndarray) -> None:
        digital_LT[v5] = np.clip(6 * digital_LT[v5].astype(int), -2048, 2047)

    def noise(digital_LT: np.ndarray) -> None:
        digital_LT[v1] += rng.normal(0, 100, N_TIMES).astype(np.int16)

    def wander(digital_LT: np.ndarray) -> None:
        digital_LT[v1] += np.round(1500 * np.sin(np.arange(N_TIMES) / 300)).astype(np.int16)

    def swap_arms(digital_LT: np.ndarray) -> None:
        digital_LT[0] *= -1
        digital_LT[[1, 2, 3, 4]] = digital_LT[[2, 1, 4, 3]]

    def break_law(digital_LT: np.ndarray) -> None:
        digital_LT[2] = digital_LT[v5]

    plant("flat", "flat:V1", lambda digital_LT: digital_LT[v1].fill(3))
    plant("flat_half", "flat:V1", lambda digital_LT: digital_LT[v1, 700:].fill(3))
    plant("saturated", "saturated:V5", clip)
    plant("some_invalid", "some_invalid:V5", lambda d: d[v5, 40:90].fill(-(2**15)))
    plant("invalid", "invalid:V1", lambda digital_LT: digital_LT[v1].fill(-(2**15)))
    plant("noise", "noise:V1", noise)
    plant("wander", "wander:V1", wander)
    plant("arms_exchanged", "limb_reversal", swap_arms)
    plant("limbs_contradict", "einthoven", break_law)


def _plant_segments(writer: _Writer) -> None:
    """Plant records of several segments; each segment is a record of its own."""
    digital_LT = waveform_uv("segments")
    half = N_TIMES // 2
    parts = {"s0": digital_LT[:, :half], "s1": digital_LT[:, half:]}
    for name, part in parts.items():
        writer.write(f"defects/{name}", part)
        writer.note(f"defects/{name}", "segment", "ok")
    writer.write("defects/s2", waveform_uv("s2", n_times=half) * 3, gain="3000.5/mV")
    writer.note("defects/s2", "segment of another gain", "ok")

    def master(kind: str, expect: str, segments: str, length: int = N_TIMES, **told) -> None:
        pairs = [pair.split(":") for pair in segments.split()]
        lines = [f"{kind}/{len(pairs)} 12 {FS} {length}", *(" ".join(pair) for pair in pairs)]
        path = writer.path / "defects" / f"{kind}.hea"
        path.write_text("\n".join(lines) + "\n")
        writer.note(f"defects/{kind}", kind, expect, **told)

    layout = [f"layout 12 {FS} 0", *(f"~ 0 1000/mV 16 0 0 0 0 {lead}" for lead in STANDARD_LEADS)]
    (writer.path / "defects" / "layout.hea").write_text("\n".join(layout) + "\n")
    # A layout names no files, and is no record.
    writer.note("defects/layout", "layout", "error outside_archive")
    both = f"s0:{half} s1:{half}"
    turned_LT = np.roll(digital_LT, -half, axis=1)
    master("segments", "ok", both, expected_LT=digital_LT)
    master("segments_of_layout", "ok", f"layout:0 s1:{half} s0:{half}", expected_LT=turned_LT)
    master("segments_gap", "flag gaps", f"layout:0 {both} ~:100", N_TIMES + 100)
    master("segments_gains", "flag requantised:I", f"s0:{half} s2:{half}")
    master("segment_missing", "error missing_file", f"s0:{half} s9:{half}")
    master("segment_outside", "error outside_archive", f"s0:{half} ../sound/b:{N_TIMES}", 0)
    master("segment_shorter", "error bad_header", f"s0:{half} s1:{half + 1}", N_TIMES + 1)
    master("segments_of_another_length", "error bad_header", both, N_TIMES - 1)
    master("segments_in_themselves", "error bad_header", f"s0:{half} segments:{N_TIMES}", 0)
    master("segments_gap_without_end", "error too_large", f"layout:0 {both} ~:90000000", 0)
