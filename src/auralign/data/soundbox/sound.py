"""From the bytes of a recording to a tidy 16 kHz mono clip, and from a clip to reproducible Opus bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from auralign.errors import AudioError, DataError

RATE_HZ = 16_000
OPUS_COMPRESSION = 0.95  # about 19 kbit/s for 16 kHz mono in libsndfile
_MAX_SOURCE_S = 120.0

Mono = Float32[np.ndarray, "_"]


def decode(path: str, data: bytes) -> Mono:
    """Decode at most two minutes of a recording to 16 kHz mono; channels are averaged.

    Args:
        path: Its name; `.g722` selects raw G.722, everything else is recognised by its content.
        data: Its bytes.

    Raises:
        AudioError: The bytes are no sound that can be read, or hold no samples.
    """
    if path.endswith(".g722"):
        return _decode_g722(path, data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            samples = file.read(int(_MAX_SOURCE_S * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            "the recording cannot be decoded", where=path, why=str(error).rpartition(": ")[2]
        ) from error
    if not len(samples) or not np.isfinite(samples).all():
        raise AudioError("the recording is empty or not finite", where=path)
    mono = samples.mean(axis=1)
    return np.asarray(soxr.resample(mono, rate, RATE_HZ), np.float32) if rate != RATE_HZ else mono


def _decode_g722(path: str, data: bytes) -> Mono:
    try:
        import av
    except ImportError as error:
        raise AudioError(
            "G.722 speech needs PyAV", where=path, hint="install the `data` extra: pip install auralign[data]"
        ) from error
    codec = av.CodecContext.create("g722", "r")
    pieces = [data[at : at + 160] for at in range(0, len(data), 160)]
    frames = [frame for piece in pieces for frame in codec.decode(av.Packet(piece))]
    if not frames:
        raise AudioError("the recording is empty", where=path)
    samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
    return (samples.astype(np.float32) / 32768.0).astype(np.float32)


def frame_power(samples: Mono, frame: int = 320) -> Float32[np.ndarray, "frame"]:
    """Mean power of consecutive frames of `frame` samples (20 ms); the last one may be shorter."""
    edges = np.arange(0, len(samples), frame)
    sums = np.add.reduceat(samples.astype(np.float64) ** 2, edges)
    lengths = np.minimum(frame, len(samples) - edges)
    return (sums / lengths).astype(np.float32)


def trim(samples: Mono, *, below_db: float = 50.0) -> Mono:
    """Cut silence, `below_db` under the loudest 20 ms, from both ends.

    >>> x = np.concatenate([np.zeros(3200), np.ones(1600), np.zeros(3200)]).astype(np.float32)
    >>> len(trim(x))
    1600
    """
    if not len(samples):
        return samples
    power = frame_power(samples)
    loud = np.flatnonzero(power > power.max() * 10 ** (-below_db / 10))
    if not len(loud) or not power.max() > 0:
        return samples[:0]
    return samples[loud[0] * 320 : (loud[-1] + 1) * 320]


def tidy(samples: Mono, max_s: float) -> Mono:
    """Trim silence, keep at most `max_s` seconds from the most energetic place, and avoid clipping.

    The peak is kept, unless it lies above 0.98 of full scale. Cut ends fade over 10 ms.
    """
    clip = trim(samples - np.float32(samples.mean())) if len(samples) else samples
    limit = int(max_s * RATE_HZ)
    if len(clip) > limit:
        power = np.concatenate([[0.0], np.cumsum(clip.astype(np.float64) ** 2)])
        starts = np.arange(0, len(clip) - limit + 1, RATE_HZ // 2)
        start = int(starts[np.argmax(power[starts + limit] - power[starts])])
        clip = clip[start : start + limit].copy()
        ramp = np.linspace(0, 1, 160, dtype=np.float32)
        clip[:160] *= ramp
        clip[-160:] *= ramp[::-1]
    peak = float(np.abs(clip).max(initial=0.0))
    return (clip * np.float32(0.98 / peak) if peak > 0.98 else clip).astype(np.float32)


def sequence(
    takes: Sequence[Mono], rng: np.random.Generator, rhythm: tuple[float, float], seconds: float
) -> Mono:
    """String takes of one source into a rhythm, as a player or a walker would.

    One period is drawn from `rhythm`; each onset falls on a multiple of it (sometimes halved or
    doubled) with 2 % jitter, and each stroke differs in level by up to 6 dB.

    Args:
        takes: Single strokes.
        rng: Source of chance.
        rhythm: Shortest and longest period in seconds.
        seconds: Length of the result.
    """
    period = float(rng.uniform(*rhythm))
    out = np.zeros(int(seconds * RATE_HZ), np.float32)
    onset = 0.0
    while onset < seconds - 0.05:
        take = takes[int(rng.integers(len(takes)))] * np.float32(10 ** (rng.uniform(-6, 0) / 20))
        start = max(0, int((onset + rng.normal(0, 0.02) * period) * RATE_HZ))
        room = len(out) - start
        if room > 0:
            out[start : start + len(take)] += take[:room]
        onset += period * float(rng.choice([0.5, 1.0, 1.0, 1.0, 2.0]))
    return tidy(out, seconds)


def join(
    takes: Sequence[Mono], *, pause_s: float, seconds: float, rng: np.random.Generator
) -> list[tuple[Mono, list[int]]]:
    """Join short utterances, in order, into clips of about `seconds`, with pauses between them.

    Returns:
        Each clip with the indices of the utterances in it.
    """
    clips: list[tuple[Mono, list[int]]] = []
    parts: list[Mono] = []
    used: list[int] = []
    for index, take in enumerate(takes):
        parts += [take, np.zeros(int(pause_s * rng.uniform(0.6, 1.4) * RATE_HZ), np.float32)]
        used.append(index)
        if sum(map(len, parts)) >= seconds * RATE_HZ:
            clips.append((np.concatenate(parts[:-1]), used))
            parts, used = [], []
    if used and (not clips or sum(map(len, parts)) > 2 * RATE_HZ):
        clips.append((np.concatenate(parts[:-1]), used))
    return clips


def to_opus(samples: Mono) -> bytes:
    """Encode as Ogg Opus at 16 kHz, the same bytes every time.

    libsndfile numbers its Ogg streams at random; the number is set to 1 and the page checksums
    (RFC 3533, CRC-32 with polynomial 0x04C11DB7, not reflected) are computed again.
    """
    buffer = io.BytesIO()
    soundfile.write(
        buffer, samples, RATE_HZ, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION
    )
    return renumber_ogg(buffer.getvalue(), serial=1)


def renumber_ogg(data: bytes, *, serial: int) -> bytes:
    """Give every page of an Ogg file the stream number `serial` and a right checksum."""
    out = bytearray(data)
    at = 0
    while at < len(out):
        if out[at : at + 4] != b"OggS" or at + 27 > len(out):
            raise DataError("an Ogg page is damaged", why=f"no page header at byte {at}")
        segments = out[at + 26]
        size = 27 + segments + sum(out[at + 27 : at + 27 + segments])
        struct.pack_into("<I", out, at + 14, serial)
        struct.pack_into("<I", out, at + 22, 0)
        struct.pack_into("<I", out, at + 22, _ogg_crc(bytes(out[at : at + size])))
        at += size
    return bytes(out)


_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def _ogg_crc(page: bytes) -> int:
    """CRC of an Ogg page, by zlib's reflected CRC of the bit-reversed bytes.

    zlib starts and ends with all ones; Ogg with zeros. By linearity the two ends cancel against
    the checksum of as many zero bytes started the same way.
    """
    reflected = zlib.crc32(page.translate(_REVERSED)) ^ zlib.crc32(bytes(len(page)))
    return int(f"{reflected:032b}"[::-1], 2)
