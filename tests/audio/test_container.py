"""The header check: it counts the bytes that are missing, and nothing when all are there."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.audio.container import missing_bytes


def sound_file(file_format: str) -> bytes:
    target = io.BytesIO()
    samples = np.random.default_rng(0).standard_normal((4001, 1)) * 0.1
    soundfile.write(target, samples, 16000, format=file_format, subtype="PCM_24")
    return target.getvalue()


@pytest.mark.parametrize("file_format", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"])
def test_missing_bytes_are_counted(file_format: str) -> None:
    data = sound_file(file_format)
    assert missing_bytes(io.BytesIO(data)) == 0
    for lost in (20, 1000, 9000):
        count = missing_bytes(io.BytesIO(data[:-lost]))
        assert lost - 8 <= count <= lost  # the last bytes may be padding
    file = io.BytesIO(data)
    file.seek(77)
    missing_bytes(file)
    assert file.tell() == 77


def test_chunks_after_the_sound_are_no_loss() -> None:
    data = sound_file("WAV")
    assert missing_bytes(io.BytesIO(data + b"LIST\4\0\0\0abcd")) == 0
    assert missing_bytes(io.BytesIO(data + b"rubbish at the end")) == 0


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.mkv", "flac")])
def test_missing_bytes_of_containers_are_counted(name: str, codec: str, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / name), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream(codec, rate=16000, layout="mono")
        wave = (np.random.default_rng(0).standard_normal((1, 1024)) * 3000).astype(np.int16)
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, i * 1024
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    data = (tmp_path / name).read_bytes()
    assert missing_bytes(io.BytesIO(data)) == 0
    assert missing_bytes(io.BytesIO(data[:-500])) == 500


@pytest.mark.parametrize(
    "data", [b"", b"R", b"RIFF" + bytes(8), b"\x1a\x45\xdf\xa3", bytes(4) + b"ftyp", b"caff" * 9]
)
def test_rubbish_is_left_to_the_decoder(data: bytes) -> None:
    assert missing_bytes(io.BytesIO(data)) == 0
