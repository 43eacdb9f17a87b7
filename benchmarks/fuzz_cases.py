"""Cases for `fuzz_reader.py`: sound WFDB records, damaged or made of extremes by chance.

A case depends on the seed and its number alone.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy as np
import soundfile

from rayecg.archives.wfdb_reader import Checks, Frames
from rayecg.core.experiment import STANDARD_LEADS

Files = dict[str, bytes]

FORMATS = (8, 16, 24, 32, 61, 80, 160, 212, 310, 311)
BYTES_OF_20 = {8: 20, 16: 40, 24: 60, 32: 80, 61: 40, 80: 20, 160: 40, 212: 30, 310: 28, 311: 27}

NUMBERS = [
    "0", "-1", "1", "2", "3", "7", "16", "100", "4097", "65536", "1000000", "16777217", "100000000",
    "1100000001", "2147483647", "2147483648", "-2147483649", "9999999999", "9" * 19, "9" * 40,
    "9" * 400, "9" * 4301, "1e3", "1e30", "1e308", "-1e308", "1e-320", "0.1", "5000.0", "nan", "inf",
    "-inf", "0x10", "1_0", "+5", "--5", "٣", "1.2.3", "",
]  # fmt: skip
NAMES = [
    "../x", "../x.dat", "../outside/x.dat", "..", ".", "/etc/passwd", "~", "~root", "a\\b", "C:x",
    "sub/x.dat", "link.dat", "linked/x.dat", "inside.dat", "loop.dat", "pipe.dat", "sub", "r.hea",
    "r.dat", "r", "s0", "s1", "lay", "r\0", "a" * 300, "a" * 5000, "é", "\ufeffr", "x.dat", "-", "%s",
]  # fmt: skip
CODES = [str(code) for code in (*FORMATS, 508, 516, 524, 0, 1, 17, 212516)]
GAINS = ["200", "0", "-200", "1e9(5)/uV", "200/mmHg", "200(2147483647)", "/mV", "(", "1e-29/V"]


def make_seeds() -> list[Files]:
    """Make sound records named `r`, each as its files."""
    rng = np.random.default_rng(0)
    seeds = []
    for code in FORMATS:
        raw = rng.integers(0, 256, BYTES_OF_20[code], dtype=np.uint8).tobytes()
        seeds.append({"r.hea": header(20, [f"r.dat {code} 200/mV 12 0"]), "r.dat": raw})
        three = header(20, [f"r.dat {code} 200(5)/mV 12 0"] * 3)
        seeds.append({"r.hea": three, "r.dat": rng.bytes(3 * BYTES_OF_20[code] + 4)})
    samples_TL = rng.integers(-900, 900, (40, 12)).astype("<i2")
    sums = samples_TL.sum(axis=0, dtype=np.int64) % 65536
    names = STANDARD_LEADS
    lines = [
        f"r.mat 16+24 1000/mV 16 0 {samples_TL[0, i]} {sums[i]} 0 {names[i]}" for i in range(12)
    ]
    mat = {"r.mat": bytes(24) + samples_TL.tobytes()}
    seeds.append({"r.hea": header(40, lines, " 05-Feb-2020 11:39:16"), **mat})
    eight = [line for line in lines if line.split()[-1] in ("I", "II", *names[6:])]
    seeds.append({"r.hea": header(60, [line.replace("1000", "0") for line in eight]), **mat})
    dat = {"r.dat": samples_TL[:, :3].tobytes(), "q.dat": samples_TL[:, 3:].tobytes()}
    for lines, n_times in (
        (["r.dat 16x2 200/mV 16 0", "r.dat 16 200/uV 16 0"], 40),
        (["r.dat 16x2:1 200/mV 16 0", "r.dat 16:5 0/mV 16 0", "q.dat 212+3 200(5)/mV"], 30),
        (["r.dat 16x40 200/mV 16 0", "q.dat 16x7 200/uV 16 0", "q.dat 16 1/mmHg 16 0 0 0 0 P"], 3),
    ):
        seeds.append({"r.hea": header(n_times, lines), **dat})
    for code, subtype in ((508, "PCM_S8"), (516, "PCM_16"), (524, "PCM_24")):
        stream = io.BytesIO()
        sound_TL = samples_TL[:, :2].astype(np.int32) << 16
        soundfile.write(stream, sound_TL, 96_000, format="FLAC", subtype=subtype)
        flac = {"r.dat": stream.getvalue()}
        seeds.append({"r.hea": header(40, [f"r.dat {code} 200/mV 16 0"] * 2), **flac})
        seeds.append({"r.hea": header(None, [f"r.dat {code}x2+3 200/mV 16 0"] * 2), **flac})
    parts = {
        "s0.hea": header(20, ["s0.dat 16 200/mV 16 0 0", "s0.dat 16 200/mV 16 0 0"], name="s0"),
        "s1.hea": header(20, ["s1.dat 212 250/mV 12 0 0", "s1.dat 212 1/mV 12 0 0"], name="s1"),
        "s0.dat": samples_TL[:, 0].tobytes(),
        "s1.dat": rng.bytes(60),
        "lay.hea": header(0, ["~ 0 200/mV 16 0 0 0 0 lead0", "~ 0 1 16 0 0 0 0 V1"], name="lay"),
    }
    seeds.append({"r.hea": b"r/3 2 250 60\ns0 20\ns1 20\ns0 20\n", **parts})
    seeds.append({"r.hea": b"r/4 2 250 70\nlay 0\ns0 20\n~ 30\ns1 20\n", **parts})
    return seeds


def header(n_times: int | None, lines: list[str], more: str = "", name: str = "r") -> bytes:
    """Write a header; `n_times` None leaves the length to the file."""
    length = "" if n_times is None else f" {n_times}{more}"
    return "\n".join([f"{name} {len(lines)} 250{length}", *lines, "# a note", ""]).encode()


# Each kind of damage takes a source of chance, the files so far and all seeds, and changes the files.


def change_bytes(rng: random.Random, files: Files, seeds: list[Files]) -> None:
    """Overwrite, insert, remove or repeat a few bytes of one file."""
    name = rng.choice(list(files))
    raw = bytearray(files[name])
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, how = rng.randrange(len(raw) + 1), rng.randrange(4)
        if how == 0 and at < len(raw):
            raw[at] = rng.randrange(256)
        elif how == 1:
            raw[at:at] = rng.randbytes(rng.choice([1, 3, 30]))
        elif how == 2:
            del raw[at : at + rng.choice([1, 2, 20])]
        else:
            raw[at:at] = raw[at : at + 40] * rng.choice([1, 5])
    files[name] = bytes(raw)


def cut(rng: random.Random, files: Files, seeds: list[Files]) -> None:
    """Cut a file off, empty it, remove it, or let it go on."""
    name = rng.choice(list(files))
    how = rng.randrange(5)
    if how == 0:
        files[name] = b""
    elif how == 1 and name != "r.hea":
        del files[name]
    elif how == 2:
        files[name] += rng.randbytes(rng.choice([1, 600]))
    else:
        files[name] = files[name][: rng.randrange(len(files[name]) + 1)]


def noise(rng: random.Random, files: Files, seeds: list[Files]) -> None:
    """Replace a file by chance, or by a file of another record."""
    name = rng.choice(list(files))
    if rng.random() < 0.5:
        files[name] = rng.randbytes(rng.choice([3, 40, 400]))
    else:
        files[name] = rng.choice(list(rng.choice(seeds).values()))


def change_word(rng: random.Random, files: Files, seeds: list[Files]) -> None:
    """Put an extreme number, a name or another format in the place of a header's word."""
    lines, name = _lines(rng, files)
    row = rng.randrange(len(lines))
    words = lines[row].split(" ")
    at = rng.randrange(len(words))
    how = rng.randrange(6)
    if how == 0 or (at == 0 and how < 4):
        words[at] = rng.choice(NAMES)
    elif how == 1:
        words[at] = rng.choice(CODES) + rng.choice(["", "x", ":", "+"]) + rng.choice(NUMBERS)
    elif how == 2:
        words[at] += rng.choice(["x", ":", "+", "/", "(", ")", "."]) + rng.choice(NUMBERS)
    elif how == 3:
        words[at] = rng.choice(GAINS)
    else:
        words[at] = rng.choice(NUMBERS)
    lines[row] = " ".join(words)
    files[name] = "\n".join(lines).encode("utf-8", "surrogateescape")


def change_all_words(rng: random.Random, files: Files, seeds: list[Files]) -> None:
    """Put the same word in one column of all signal lines, so that the lines still agree."""
    lines, name = _lines(rng, files)
    at = rng.randrange(3)
    form = rng.choice(CODES) + rng.choice(["", "x", ":", "+"]) + rng.choice(NUMBERS)
    word = (rng.choice(NAMES), form, rng.choice(GAINS))[at]
    for row in range(1, len(lines)):
        words = lines[row].split(" ")
        if len(words) > at and words[0] != "#":
            words[at] = word
            lines[row] = " ".join(words)
    files[name] = "\n".join(lines).encode("utf-8", "surrogateescape")


def change_lines(rng: random.Random, files: Files, seeds: list[Files]) -> None:
    """Remove, repeat, exchange or borrow lines of a header, or end them in another way."""
    lines, name = _lines(rng, files)
    at, how = rng.randrange(len(lines)), rng.randrange(5)
    end = "\n"
    if how == 0:
        del lines[at]
    elif how == 1:
        lines[at:at] = [lines[at]] * (
            rng.choice([1, 3, 70, 5000]) if len(files[name]) < 9999 else 1
        )
        if rng.random() < 0.5 and lines[0].count(" "):
            words = lines[0].split(" ")
            words[1] = str(len(lines) - 1)
            lines[0] = " ".join(words)
    elif how == 2:
        rng.shuffle(lines)
    elif how == 3:
        other = rng.choice(seeds)["r.hea"].decode("utf-8", "surrogateescape").split("\n")
        lines[at:at] = rng.sample(other, rng.randrange(1, len(other)))
    else:
        end = rng.choice(["\r\n", "\r", "\x0b", "\x85", "\u2028", "\n\n", " \n\t"])
    files[name] = end.join(lines).encode("utf-8", "surrogateescape")


def many_segments(rng: random.Random, files: Files, seeds: list[Files]) -> None:
    """Make the record one of many segments, gaps and lengths at will."""
    names = [*(name[:-4] for name in files if name.endswith(".hea")), "~", "~", rng.choice(NAMES)]
    lengths = ["20", "20", "40", "0", rng.choice(NUMBERS)]
    n = rng.choice([1, 2, 3, 50, 3000])
    lines = [f"{rng.choice(names)} {rng.choice(lengths)}" for _ in range(n)]
    length = rng.choice(["", f" {20 * n}", f" {rng.choice(NUMBERS)}"])
    files["s0.hea"] = files["r.hea"]
    files["r.hea"] = "\n".join([f"r/{n} 2 250{length}", *lines]).encode("utf-8", "surrogateescape")


def _lines(rng: random.Random, files: Files) -> tuple[list[str], str]:
    name = rng.choice([name for name in files if name.endswith(".hea")])
    return files[name].decode("utf-8", "surrogateescape").split("\n"), name


DAMAGE: list[Callable[[random.Random, Files, list[Files]], None]] = [
    change_bytes, cut, noise, change_word, change_word, change_word, change_all_words,
    change_all_words, change_lines, many_segments,
]  # fmt: skip


# What follows the grammar reaches further into the reader than what is damaged.

WIDTHS = [1] * 16 + [2, 2, 3, 7, 40, 1001, 1002, 65_536, 1_000_000, 10**30]
LENGTHS = [None, 1, 1, 2, 3, 17, 40, 40, 300, 5000, 10**9, 10**18]
FACTORS = ["200/mV"] * 6 + [
    "200", "0", "-1000(7)", "204.8(-2147483647)/uV", "1e24/uV", "9e-25/V", "9e27", "3", "7e26",
    "99999999999999999999(1)", "250/mmHg", "1/nV", "(5)", "/uV", "250", "1000(-3)",
]  # fmt: skip
FIRSTS = ["0"] * 20 + ["5", "-5.0", "2147483647", "-2147483647", "-2147483649", "9" * 30, "1e300"]
LEADS = ["I", "II", "aVR", "V1", "v1", "MLII", "", "V1#2", "\u00e9", "resp", "lead0", "x" * 200]


def make_record(
    rng: random.Random, files: Files, name: str, n_times: int | None, leads: list[str]
) -> None:
    """Write a record of several signals, its numbers extreme and its files as long as they say."""
    n_frames = rng.choice([1, 4, 40]) if n_times is None or n_times > 5000 else n_times
    lines: list[str] = []
    width_of: list[int] = rng.choice([[1], [1], [1, 2], WIDTHS])
    for number in range(rng.choice([1, 1, 1, 2, 3])):
        file = f"{name}{number}.dat"
        code = rng.choice([*FORMATS, 508, 516, 524])
        n_own = rng.choice([1, 1, 2, 3])
        widths = [rng.choice(width_of) for _ in range(n_own)]
        if code > 500 and rng.random() < 0.8:
            widths = [widths[0]] * n_own
        offset = rng.choice([0] * 9 + [1, 24, 10**6, 10**30])
        lines += [
            f"{file} {code}x{width}:{rng.choice([0, 0, 0, 1, 5, 10**30])}+{offset} "
            f"{rng.choice(FACTORS)} 16 {rng.choice([0, 0, -9, 2**31 - 1])} {rng.choice(FIRSTS)} "
            f"{rng.choice([0, -1, 77])} 0 {leads[len(lines) + i]}"
            for i, width in enumerate(widths)
        ]
        n_samples = min(n_frames * min(sum(widths), 10**6) + rng.choice([0, 0, 0, -1, 9]), 200_000)
        if code > 500:
            files[file] = _flac(rng, n_samples, n_own, {508: "PCM_S8", 516: "PCM_16"}.get(code))
        else:
            size = -(-n_samples * BYTES_OF_20[code] // 20)
            small = rng.randbytes(min(size, 4096))
            files[file] = small * (size // 4096 + 1) if size > 4096 else small
    if rng.random() < 0.05:
        rng.shuffle(lines)
    length = "" if n_times is None else f" {n_times}"
    fs = rng.choice(["250", "250", "360/1000(5)", "1e-300", "9999999", "0.1"])
    first = f"{name} {len(lines)} {fs if name == 'r' else 250}{length}"
    files[f"{name}.hea"] = "\n".join([first, *lines]).encode()


def _flac(rng: random.Random, n_samples: int, n_signals: int, subtype: str | None) -> bytes:
    n_times = min(max(n_samples // n_signals, 0), 5000)
    sound_TL = np.frombuffer(rng.randbytes(4 * n_times * n_signals), dtype=np.int32)
    stream = io.BytesIO()
    sound_TL = sound_TL.reshape(n_times, n_signals) * rng.choice([0, 1])
    soundfile.write(stream, sound_TL, 8000, format="FLAC", subtype=subtype or "PCM_24")
    return stream.getvalue()


def make_grammatical(rng: random.Random) -> Files:
    """Make a record, or one of segments, that follows the grammar."""
    files: Files = {}
    if rng.random() < 0.6:
        make_record(rng, files, "r", rng.choice(LENGTHS), rng.choices(LEADS, k=9))
        return files
    lengths = {name: rng.choice([1, 2, 20]) for name in ("s0", "s1", "s2")}
    leads = rng.sample(LEADS, 9)
    for name, n_times in lengths.items():
        make_record(rng, files, name, n_times, leads)
    parts = [(name, lengths[name]) for name in rng.choices(list(lengths), k=rng.choice([1, 2, 5]))]
    if rng.random() < 0.5:
        parts.insert(
            rng.randrange(len(parts) + 1), ("~", rng.choice([0, 1, 7, 10**5, 10**6, 10**9]))
        )
    total = sum(n_times for _, n_times in parts)
    if rng.random() < 0.7:
        parts.insert(0, (rng.choice(["s0", "lay"]), 0))
        names = rng.sample(leads, 4)
        files["lay.hea"] = header(
            0, [f"~ 0 200/mV 16 0 0 0 0 {lead}" for lead in names], name="lay"
        )
    lines = [f"{name} {n_times}" for name, n_times in parts]
    length = rng.choice(["", f" {total}"])
    files["r.hea"] = "\n".join([f"r/{len(parts)} 2 250{length}", *lines]).encode()
    return files


def make_case(seeds: list[Files], seed: int, case: int) -> tuple[Files, Checks, Frames]:
    """Make the files of a case, and how they are to be read."""
    rng = random.Random(f"{seed}:{case}")
    if rng.random() < 0.4:
        checks_of_case: Checks = rng.choice(["flag", "off"])
        frames_of_case: Frames = rng.choice(["expand", "average"])
        return make_grammatical(rng), checks_of_case, frames_of_case
    files = dict(rng.choice(seeds))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 6])):
        rng.choice(DAMAGE)(rng, files, seeds)
    checks: Checks = rng.choice(["error", "flag", "off", "off"])
    frames: Frames = rng.choice(["expand", "expand", "average"])
    return files, checks, frames
