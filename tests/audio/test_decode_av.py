"""Containers through PyAV: m4a, webm, mkv, video, g722; damaged ones; and what is said without PyAV."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from auralign.audio.io import open_reader, probe, read
from auralign.errors import AudioError

av = pytest.importorskip("av")
DRUMS = Path(__file__).parents[1] / "fixtures" / "audio" / "loop_amen.flac"


def encode(path: Path, codec: str, rate_hz: int, channels: int, *, video: bool = False) -> np.ndarray:
    """Write a recording through FFmpeg; the samples that went in."""
    samples = np.tile(read(DRUMS, rate_hz=rate_hz).samples[:channels], (1, 2))
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(str(path), "w") as out:
        if video:
            picture = out.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        stream = out.add_stream(codec, rate=rate_hz, layout=layout)
        if video:
            for _ in range(5):
                image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                out.mux(picture.encode(image))
            out.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate_hz, 0
        frame.time_base = Fraction(1, rate_hz)
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate_hz)
        fifo = av.AudioFifo()
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while (chunk := fifo.read(size)) or (chunk := fifo.read(0, partial=True)):
            out.mux(stream.encode(chunk))
        out.mux(stream.encode())
    return samples


def likeness(got: np.ndarray, want: np.ndarray, delay: int = 0) -> float:
    got = got[:, delay:]
    n = min(got.shape[1], want.shape[1])
    a, b = got[:, :n], want[:, :n]
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "channels"),
    [
        ("a.m4a", "aac", 44100, 2),
        ("a.mp4", "aac", 16000, 1),
        ("a.webm", "libopus", 48000, 2),
        ("a.mkv", "flac", 22050, 2),
        ("a.m4a", "alac", 44100, 1),
        ("a.g722", "g722", 16000, 1),
        ("a.avi", "pcm_s16le", 11025, 2),
        ("a.wv", "wavpack", 44100, 2),
    ],
)
def test_a_container_gives_back_what_went_in(
    name: str, codec: str, rate_hz: int, channels: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    samples = encode(path, codec, rate_hz, channels)
    sound = read(path)
    assert (sound.rate_hz, sound.channels) == (rate_hz, channels)
    assert abs(sound.frames - samples.shape[1]) <= 2048  # the last coder frame may be padded
    # a delay of a few samples would fall below this; the filter bank of G.722 has one of 22 (ITU-T G.722)
    assert likeness(sound.samples, samples, 22 if codec == "g722" else 0) > 0.95
    info = probe(path)
    assert (info.rate_hz, info.channels) == (rate_hz, channels)
    with open_reader(path) as reader:
        parts = []
        while (part := reader.read(999)).shape[1]:
            parts.append(part)
    assert np.array_equal(np.concatenate(parts, axis=1), sound.samples)


def test_sound_of_a_video_is_read(tmp_path: Path) -> None:
    samples = encode(tmp_path / "film.mp4", "aac", 44100, 2, video=True)
    assert likeness(read(tmp_path / "film.mp4").samples, samples) > 0.95


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    encode(tmp_path / "a.m4a", "aac", 44100, 2)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.m4a").read_bytes())
    assert np.array_equal(read(tmp_path / "a.wav").samples, read(tmp_path / "a.m4a").samples)


def test_a_video_without_sound_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        out.mux(stream.encode(image))
        out.mux(stream.encode())
    with pytest.raises(AudioError, match="no audio stream"):
        read(path)


@pytest.mark.parametrize("name", ["a.m4a", "a.webm", "a.g722", "a.mkv"])
def test_damaged_containers_are_finite_or_refused(name: str, tmp_path: Path) -> None:
    codec = {"a.m4a": "aac", "a.webm": "libopus", "a.g722": "g722", "a.mkv": "flac"}[name]
    rate_hz = {"libopus": 48000, "g722": 16000}.get(codec, 44100)
    path = tmp_path / name
    encode(path, codec, rate_hz, 1)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for i in range(40):
        bad = bytearray(data)
        if i % 2:
            bad = bad[: int(rng.integers(0, len(bad)))]
        for _ in range(int(rng.integers(0, 6)) if i % 2 else 6):
            if bad:
                bad[rng.integers(0, min(len(bad), 400) if i % 4 else len(bad))] = int(rng.integers(0, 256))
        path.write_bytes(bytes(bad))
        try:
            sound = read(path)
        except AudioError:
            continue
        assert np.isfinite(sound.samples).all()


@pytest.mark.parametrize("name", ["a.m4a", "a.webm"])
def test_a_cut_container_is_refused_unless_allowed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    encode(path, "aac" if name == "a.m4a" else "libopus", 48000, 2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError):
        read(path)


def test_without_pyav_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(bytes(4) + b"ftypM4A " + bytes(100))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"pip install 'auralign\[video\]'"):
        read(path)
