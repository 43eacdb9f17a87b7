"""The signal formats of WFDB: bytes to integers.

Source: G. Moody, WFDB Applications Guide, signal(5). A file holds its samples one after another,
frame by frame; within a frame each signal has its samples in the header's order.

Legend: S sample of a file.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rayecg.core.errors import RecordError
from rayecg.core.record import MAX_SAMPLES


@dataclass(frozen=True)
class Format:
    """How a format packs samples.

    Attributes
    ----------
    n_bytes
        Bytes that a number of samples takes.
    n_samples
        Whole samples in a number of bytes.
    decode
        From bytes (uint8) and a number of samples to integers, in the machine's byte order.
    invalid
        The value that marks an invalid sample; None where the format has none.
    dtype
        What the samples need.
    """

    n_bytes: Callable[[int], int]
    n_samples: Callable[[int], int]
    decode: Callable[[np.ndarray, int], np.ndarray]
    invalid: int | None
    dtype: type = np.int16


def _plain(dtype: str, invalid: int | None, needs: type = np.int16, zero: int = 0) -> Format:
    """Make a format of whole bytes, in two's complement or as offsets from `zero`."""
    stored = np.dtype(dtype)

    def decode(raw: np.ndarray, n_samples: int) -> np.ndarray:
        samples_S = raw.view(stored)[:n_samples]
        if zero:
            return (samples_S.astype(np.int32) - zero).astype(needs)
        return samples_S.astype(needs, copy=False)

    width = stored.itemsize
    return Format(lambda n: n * width, lambda n: n // width, decode, invalid, needs)


def _decode_24(raw: np.ndarray, n_samples: int) -> np.ndarray:
    samples_S = np.zeros((n_samples, 4), dtype=np.uint8)
    samples_S[:, 1:] = raw[: n_samples * 3].reshape(-1, 3)
    # In the upper three bytes the sign is in its place; the shift brings it down.
    return samples_S.view("<i4").reshape(-1).astype(np.int32, copy=False) >> 8


def _blocks(raw: np.ndarray, n_bytes: int, n_samples: int, per_block: int) -> np.ndarray:
    """Give whole blocks of bytes, the last one filled with zeros, a column for each byte."""
    n_blocks = -(-n_samples // per_block)
    if len(raw) < n_blocks * n_bytes:
        raw = np.concatenate([raw, np.zeros(n_blocks * n_bytes - len(raw), dtype=np.uint8)])
    return raw[: n_blocks * n_bytes].reshape(n_blocks, n_bytes).T.astype(np.int16)


def _decode_212(raw: np.ndarray, n_samples: int) -> np.ndarray:
    """Pairs of 12 bits in three bytes."""
    low, middle, high = _blocks(raw, 3, n_samples, 2)
    samples = np.empty((len(low), 2), dtype=np.int16)
    # Shifting the sign bit of the 12-bit value into bit 15 and back extends the sign.
    samples[:, 0] = ((middle & 0x0F) << 12 | low << 4) >> 4
    samples[:, 1] = ((middle & 0xF0) << 8 | high << 4) >> 4
    return samples.reshape(-1)[:n_samples]


def _decode_310(raw: np.ndarray, n_samples: int) -> np.ndarray:
    """Three times 10 bits in two 16-bit words: a sample in each, the third in their upper ends."""
    b0, b1, b2, b3 = _blocks(raw, 4, n_samples, 3)
    samples = np.empty((len(b0), 3), dtype=np.int16)
    samples[:, 0] = (b0 >> 1) | (b1 & 0x07) << 7
    samples[:, 1] = (b2 >> 1) | (b3 & 0x07) << 7
    samples[:, 2] = (b1 >> 3) | (b3 >> 3) << 5
    return _signed_10(samples)[:n_samples]


def _decode_311(raw: np.ndarray, n_samples: int) -> np.ndarray:
    """Three times 10 bits, from the lowest bit of four bytes upwards; two bits are left over."""
    b0, b1, b2, b3 = _blocks(raw, 4, n_samples, 3)
    samples = np.empty((len(b0), 3), dtype=np.int16)
    samples[:, 0] = b0 | (b1 & 0x03) << 8
    samples[:, 1] = (b1 >> 2) | (b2 & 0x0F) << 6
    samples[:, 2] = (b2 >> 4) | (b3 & 0x3F) << 4
    return _signed_10(samples)[:n_samples]


def _signed_10(samples: np.ndarray) -> np.ndarray:
    return ((samples << 6) >> 6).reshape(-1)


def _n_bytes_of_thirds(n_samples: int) -> int:
    """Bytes that hold so many samples of format 311; the last block need not be whole."""
    return -(-n_samples * 4 // 3)


def _n_bytes_310(n_samples: int) -> int:
    # The second sample of a block is in its last two bytes.
    whole, left = divmod(n_samples, 3)
    return whole * 4 + (0, 2, 4)[left]


FORMATS = {
    8: _plain("i1", None, np.int32),
    16: _plain("<i2", -(2**15)),
    24: Format(lambda n: n * 3, lambda n: n // 3, _decode_24, -(2**23), np.int32),
    32: _plain("<i4", -(2**31), np.int32),
    61: _plain(">i2", -(2**15)),
    80: _plain("u1", -(2**7), zero=128),
    160: _plain("<u2", -(2**15), zero=2**15),
    212: Format(lambda n: (n * 3 + 1) // 2, lambda n: n * 2 // 3, _decode_212, -(2**11)),
    310: Format(_n_bytes_310, lambda n: n * 3 // 4, _decode_310, -(2**9)),
    311: Format(_n_bytes_of_thirds, lambda n: n * 3 // 4, _decode_311, -(2**9)),
}

#: FLAC: the format's number to its width in bits.
FLAC = {508: 8, 516: 16, 524: 24}
_FLAC_SUBTYPES = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}
_FLAC_BLOCK = 1 << 18
#: A FLAC file may give so many samples for each of its bytes, and so many in any case: a few bytes
#: can stand for any number of equal samples, and recordings do not.
MAX_FLAC_RATIO, SMALL = 512, 1 << 24
#: Without any compression, a FLAC file of the largest record is smaller than this.
MAX_FLAC_BYTES = 4 * MAX_SAMPLES


def flac_invalid(code: int) -> int:
    """Give the value that marks an invalid sample in a FLAC format."""
    return -(1 << (FLAC[code] - 1))


def decode_flac(
    raw: bytes, code: int, n_signals: int, first: int, n_times: int | None, file: str
) -> np.ndarray:
    """Decode a FLAC signal file.

    Parameters
    ----------
    raw
        The file's bytes.
    code
        508, 516 or 524.
    n_signals, first, n_times
        Signals that the header gives the file, the first sample to read, and how many of each
        signal; None reads all.
    file
        Named in errors.

    Returns
    -------
    np.ndarray
        int16 or int32, as the format needs; times by signals.

    Raises
    ------
    RecordError
        `truncated_signal`, `bad_header`, `too_large`.
    """
    import soundfile  # for these formats alone

    def damaged(error: Exception) -> RecordError:
        reason = getattr(error, "error_string", type(error).__name__)
        return RecordError("truncated_signal", f"{file}: not a readable FLAC file ({reason})")

    # The library would try every kind of sound file that it knows.
    if raw[:4] != b"fLaC":
        raise RecordError("truncated_signal", f"{file}: does not begin as a FLAC file")
    try:
        stream = soundfile.SoundFile(io.BytesIO(raw))
    except MemoryError:
        raise
    except Exception as error:  # whatever the library raises on damaged bytes
        raise damaged(error) from None
    with stream:
        bits, wide = _FLAC_SUBTYPES.get(stream.subtype, 99), FLAC[code] > 16
        if stream.format != "FLAC" or bits > FLAC[code] or stream.channels != n_signals:
            raise RecordError(
                "bad_header",
                f"{file}: expected FLAC of {n_signals} signals in up to {FLAC[code]} bits, "
                f"came {stream.format} of {stream.channels} in {stream.subtype}",
            )
        limit = min(MAX_SAMPLES, max(SMALL, MAX_FLAC_RATIO * len(raw)))
        parts, n_read = [], 0
        # A file can claim any length: memory is taken for what it really gives, block by block.
        try:
            if first:
                stream.seek(first)
            while n_times is None or n_read < n_times:
                wanted = _FLAC_BLOCK if n_times is None else min(_FLAC_BLOCK, n_times - n_read)
                part = stream.read(wanted, dtype="int32" if wide else "int16", always_2d=True)
                n_read += len(part)
                parts.append(part)
                if n_read * n_signals > limit:
                    raise RecordError(
                        "too_large", f"{file}: over {limit} samples in {len(raw)} bytes"
                    )
                if len(part) < wanted:
                    break
        except (RecordError, MemoryError):
            raise
        except Exception as error:
            raise damaged(error) from None
    if n_read < (n_times or 1):
        raise RecordError(
            "truncated_signal", f"{file}: expected {n_times or 1} samples a signal, came {n_read}"
        )
    samples_TL = np.concatenate(parts)
    # The library puts the bits of narrower samples at the upper end.
    samples_TL >>= (32 if wide else 16) - bits
    return samples_TL
