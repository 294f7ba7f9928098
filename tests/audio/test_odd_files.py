"""More than five hundred damaged or odd files from one seed: a right result or an AudioError."""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.audio.io import open_reader, probe, read
from auralign.errors import AudioError

CLIP = Path(__file__).parents[1] / "fixtures" / "audio" / "guit_harmonics.flac"
UNWRITABLE = {"RAW", "SD2"}  # headerless; in two files
STEP = {"PCM_S8": 7, "PCM_U8": 7, "PCM_16": 15, "PCM_24": 23, "PCM_32": 31, "FLOAT": 24, "DOUBLE": 30}
OWN_RATE_HZ = {"WVE": 8000, "XI": 44100, "VOC": 8000}  # what these can say
CHECKED_TRUNCATION = ["WAV", "W64", "RF64", "AIFF", "AU", "CAF", "FLAC", "MP3", "OGG"]


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    samples: np.ndarray | None = None  # what is in it, when it is whole
    rate_hz: int = 0
    subtype: str = ""


def clip(frames: int, channels: int) -> np.ndarray:
    sound = soundfile.read(CLIP, dtype="float32")[0]
    parts = [sound[2000 + 100 * c : 2000 + 100 * c + frames] for c in range(channels)]
    return np.stack(parts, axis=1)


def encoded(samples: np.ndarray, rate_hz: int, file_format: str, subtype: str) -> bytes | None:
    target = io.BytesIO()
    try:
        with soundfile.SoundFile(target, "w", rate_hz, samples.shape[1], subtype, format=file_format) as out:
            out.write(samples)
    except (soundfile.SoundFileError, ValueError):
        return None  # the format cannot hold this rate or channel count
    return target.getvalue()


def every_format() -> Iterator[Case]:
    for file_format in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(file_format):
            for channels in (1, 2):
                samples = clip(3000, channels)
                rates = [OWN_RATE_HZ[file_format]] if file_format in OWN_RATE_HZ else [16000, 8000]
                for rate_hz in [] if file_format in UNWRITABLE else rates:
                    data = encoded(samples, rate_hz, file_format, subtype)
                    if data is not None:
                        name = f"{file_format}-{subtype}-{channels}.{file_format.lower()}"
                        yield Case(name, data, samples.T, rate_hz, subtype)
                        break


def odd_shapes(rng: np.random.Generator) -> Iterator[Case]:
    for i in range(60):
        channels, frames = int(rng.integers(1, 17)), int(rng.choice([1, 2, 3, 17, 400, 2000]))
        rate_hz = int(
            rng.choice([1, 7, 4000, 11025, 48000, 192000, 384000, 1000000, rng.integers(1, 192000)])
        )
        subtype = str(rng.choice(["PCM_16", "PCM_24", "FLOAT"]))
        file_format = str(rng.choice(["WAV", "W64", "RF64", "AIFF", "CAF"]))
        samples = np.clip(clip(frames, channels) * float(rng.choice([1e-38, 1e-6, 1.0, 4.0])), -1, 0.99)
        data = encoded(samples, rate_hz, file_format, subtype)
        if data is not None:
            yield Case(f"odd{i}-{channels}ch.{file_format.lower()}", data, samples.T, rate_hz, subtype)
    whole = encoded(clip(500, 2), 16000, "WAV", "PCM_16") or b""
    for extension in ("mp3", "flac", "raw", "txt", "au", "sd2", "vox", "gsm", "m4a", "g722", "", "WAV"):
        yield Case(f"wrong.{extension}", whole, clip(500, 2).T, 16000, "PCM_16")
    dc = np.full((300, 1), 0.5, np.float32)
    yield Case("dc.wav", encoded(dc, 8000, "WAV", "FLOAT") or b"", dc.T, 8000, "FLOAT")
    tiny = np.full((300, 1), 1e-42, np.float32)
    yield Case("denormal.wav", encoded(tiny, 8000, "WAV", "FLOAT") or b"", tiny.T, 8000, "FLOAT")
    loud = np.full((300, 1), 1e30, np.float32)
    yield Case("loud.wav", encoded(loud, 8000, "WAV", "FLOAT") or b"", loud.T, 8000, "FLOAT")


def damaged(rng: np.random.Generator) -> Iterator[Case]:
    sources = [
        (f"{f}-{s}", encoded(clip(3000, c), 16000, f, s), f.lower())
        for f, s, c in [
            ("WAV", "PCM_16", 2),
            ("WAV", "FLOAT", 1),
            ("WAV", "IMA_ADPCM", 1),
            ("W64", "PCM_24", 2),
            ("RF64", "PCM_16", 2),
            ("FLAC", "PCM_16", 2),
            ("OGG", "VORBIS", 2),
            ("OGG", "OPUS", 1),
            ("MP3", "MPEG_LAYER_III", 2),
            ("AIFF", "PCM_24", 2),
            ("CAF", "PCM_16", 2),
            ("CAF", "ALAC_16", 2),
            ("AU", "PCM_16", 1),
            ("MAT5", "FLOAT", 2),
            ("VOC", "PCM_16", 2),
        ]
    ]
    fields = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff\xff\0\0", b"\x01\0\0\0"]
    for name, data, extension in sources:
        assert data is not None
        for i in range(8):
            cut = int(rng.integers(0, len(data)))
            yield Case(f"{name}-cut{i}.{extension}", data[:cut])
        for i in range(16):
            bits = bytearray(data)
            top = min(len(bits), 120) if i % 2 else len(bits)
            for _ in range(int(rng.integers(1, 8))):
                bits[rng.integers(0, top)] ^= 1 << int(rng.integers(0, 8))
            yield Case(f"{name}-flip{i}.{extension}", bytes(bits))
        for i in range(8):
            start = int(rng.integers(4, 80)) & ~1
            field = fields[int(rng.integers(0, len(fields)))]
            yield Case(f"{name}-field{i}.{extension}", data[:start] + field + data[start + 4 :])


def hopeless(rng: np.random.Generator) -> Iterator[Case]:
    yield Case("empty.wav", b"")
    yield Case("text.wav", b"these are words, not a sound\n" * 40)
    yield Case("text.au", b"these are words, not a sound\n" * 40)
    yield Case("text.g722", b"these are words, not a sound\n" * 40)
    yield Case("playlist.m4a", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    yield Case("riff.wav", b"RIFF\xff\xff\xff\xffWAVE")
    yield Case("one.wav", b"R")
    for magic in (
        b"ftypM4A ",
        b"\x1a\x45\xdf\xa3",
        b"fLaC",
        b"OggS\0\x02",
        b"ID3\x04",
        b"\xff\xfb\x90",
        b"caff",
    ):
        for i in range(2):
            body = magic if magic != b"ftypM4A " else bytes(4) + magic
            yield Case(f"{magic[:3].hex()}{i}.bin", body + rng.bytes(int(rng.integers(1, 3000))))
    for value in (np.nan, np.inf, -np.inf):
        samples = clip(700, 2)
        samples[[5, 100], 1] = value
        yield Case(f"{value}.wav", encoded(samples, 16000, "WAV", "FLOAT") or b"")
    yield Case("none.wav", encoded(np.zeros((0, 1), np.float32), 16000, "WAV", "PCM_16") or b"")
    yield Case("none.flac", encoded(np.zeros((0, 1), np.float32), 16000, "FLAC", "PCM_16") or b"")


def check_whole(case: Case, got: np.ndarray, rate_hz: int) -> None:
    assert case.samples is not None
    assert rate_hz == case.rate_hz, case.name
    if case.subtype in STEP:
        assert got.shape == case.samples.shape, case.name
        error = np.abs(got - case.samples).max()
        assert error <= 1.01 * 2.0 ** -STEP[case.subtype] * max(1, float(np.abs(case.samples).max())), (
            case.name
        )
        return
    assert got.shape[0] == case.samples.shape[0], case.name
    assert got.shape[1] >= case.samples.shape[1], case.name  # coders with fixed blocks fill the last one
    got = got[:, : case.samples.shape[1]]
    likeness = float((got * case.samples).sum() / np.sqrt((got**2).sum() * (case.samples**2).sum()))
    # MP3 and OPUS lose phase at 16 kHz, DPCM_8 and XI lose bits; a wrong offset or channel gives about 0
    assert likeness > 0.9, (case.name, likeness)


def drain(path: Path) -> None:
    with open_reader(path) as reader:
        while reader.read(700).shape[1]:
            pass


def outcome(path: Path, case: Case) -> str:
    """Read a file in three ways that must agree; 'read' or 'refused'."""
    try:
        sound = read(path)
    except AudioError:
        with pytest.raises(AudioError, match=re.escape(str(path))):
            drain(path)
        return "refused"
    info = probe(path)
    assert sound.samples.dtype == np.float32
    assert np.isfinite(sound.samples).all()
    assert (sound.channels, sound.rate_hz) == (info.channels, info.rate_hz)
    if info.frames is not None and info.format != "MP3":
        assert sound.frames == info.frames
    with (
        open_reader(io.BytesIO(case.data)) if not path.name.endswith(".g722") else open_reader(path) as reader
    ):
        assert np.array_equal(reader.read(2**40), sound.samples), case.name
    if case.samples is not None:
        check_whole(case, sound.samples, sound.rate_hz)
    return "read"


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    rng = np.random.default_rng(20)
    return [*every_format(), *odd_shapes(rng), *damaged(rng), *hopeless(rng)]


def open_paths() -> set[str]:
    """Every file that this process holds open, removed ones too; pipes and sockets of other threads are no files."""
    handles = Path("/proc/self/fd")
    targets = set()
    for handle in handles.iterdir() if handles.is_dir() else ():
        with contextlib.suppress(OSError):  # the listing's own handle is closed by now
            targets.add(os.readlink(handle))
    return {target for target in targets if target.startswith("/") and not target.startswith("/proc/")}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_an_open_file_is_noticed(tmp_path: Path) -> None:
    before = open_paths()
    path = tmp_path / "left-open.wav"
    path.write_bytes(b"RIFF")
    with path.open("rb"):
        path.unlink()
        assert len(open_paths() - before) == 1
    assert not open_paths() - before


def test_five_hundred_odd_files_are_read_right_or_refused_by_name(cases: list[Case], tmp_path: Path) -> None:
    assert len(cases) >= 500
    memory, before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, open_paths()
    counts = {"read": 0, "refused": 0}
    for case in cases:
        path = tmp_path / case.name
        path.write_bytes(case.data)
        result = outcome(path, case)
        counts[result] += 1
        assert not (case.samples is not None and result == "refused"), case.name
        path.unlink()
    assert counts["read"] > 150, counts
    assert counts["refused"] > 150, counts
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 200 * 1024  # KiB
    assert not open_paths() - before


@pytest.mark.parametrize("file_format", CHECKED_TRUNCATION)
def test_a_file_cut_anywhere_is_never_taken_for_whole(file_format: str, tmp_path: Path) -> None:
    samples = np.tile(clip(9000, 2), (8 if file_format == "OGG" else 1, 1))  # of several pages
    data = encoded(samples, 16000, file_format, soundfile.default_subtype(file_format))
    assert data is not None
    last = 0.7 if file_format == "MP3" else 1 - 1 / len(data)  # the last MP3 frames may be padding
    for cut in np.linspace(1, last * len(data), 25).astype(int):
        path = tmp_path / f"cut.{file_format.lower()}"
        path.write_bytes(data[: int(cut)])
        with pytest.raises(AudioError):
            read(path)
        with pytest.raises(AudioError):
            drain(path)


@pytest.mark.parametrize("file_format", ["WAV", "AIFF", "AU", "W64", "RF64"])
def test_allow_truncated_gives_what_is_there(file_format: str, tmp_path: Path) -> None:
    data = encoded(clip(9000, 2), 16000, file_format, "PCM_16")
    assert data is not None
    path = tmp_path / f"cut.{file_format.lower()}"
    path.write_bytes(data)
    whole = read(path).samples
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="truncated"):
        probe(path)
    part = read(path, allow_truncated=True).samples
    assert 4000 < part.shape[1] < 4600
    assert np.array_equal(part, whole[:, : part.shape[1]])


def test_headers_that_claim_the_moon_cost_no_memory(tmp_path: Path) -> None:
    data = bytearray(encoded(clip(50, 1), 16000, "FLAC", "PCM_16") or b"")
    data[21:26] = bytes([data[21] | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # 2^36 - 1 frames in the STREAMINFO block
    path = tmp_path / "moon.flac"
    path.write_bytes(bytes(data))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AudioError, match=r"truncated|decod"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50 * 1024
