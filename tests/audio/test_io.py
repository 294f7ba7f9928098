"""Reading: paths, file objects, pipes and arrays; parts and rates; every refusal says what is wrong."""

from __future__ import annotations

import io
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from auralign.audio.io import AudioInfo, Sound, open_reader, probe, read
from auralign.audio.resample import resample
from auralign.errors import AudioError

FIXTURES = Path(__file__).parents[1] / "fixtures" / "audio"
DRUMS = FIXTURES / "loop_amen.flac"


def noise(channels: int, frames: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((channels, frames)) * 0.1).astype(np.float32)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.flac")), ids=lambda p: p.stem)
def test_a_recording_is_read_sample_by_sample(path: Path) -> None:
    want, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    sound = read(path)
    assert np.array_equal(sound.samples, want.T)
    assert (sound.rate_hz, sound.channels, sound.frames) == (rate_hz, want.shape[1], want.shape[0])
    assert sound.samples.flags.c_contiguous
    info = probe(str(path))
    assert info == AudioInfo(str(path), rate_hz, want.shape[1], want.shape[0], "FLAC", "PCM_16")
    assert info.duration_s == pytest.approx(sound.duration_s)


@pytest.mark.parametrize("block", [1, 7, 1000, 10**6])
def test_blocks_of_any_size_make_the_whole(block: int) -> None:
    whole = read(DRUMS).samples[:, :3000]
    with open_reader((whole, 22050)) as reader:
        parts = []
        while (part := reader.read(block)).shape[1]:
            parts.append(part)
        assert reader.read(block).shape == (2, 0)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_part_is_the_slice_of_the_whole(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind.lower()}"
    soundfile.write(path, read(DRUMS).samples.T, 22050, format=kind)
    whole = read(path)
    part = read(path, start_s=0.2, duration_s=0.1)
    assert np.array_equal(part.samples, whole.samples[:, 4410 : 4410 + 2205])
    assert read(path, start_s=0.5, duration_s=99).frames == whole.frames - 11025
    with pytest.raises(AudioError, match=r"nothing at 99 s, the sound ends at 0\.8"):
        read(path, start_s=99)


def test_another_rate_is_the_resampled_whole() -> None:
    sound = read(DRUMS)
    other = read(DRUMS, rate_hz=16000)
    assert other.rate_hz == 16000
    assert np.array_equal(other.samples, resample(sound.samples, 22050, 16000))


def test_file_objects_are_read_and_left_open() -> None:
    with DRUMS.open("rb") as file:
        assert np.array_equal(read(file).samples, read(DRUMS).samples)
        assert not file.closed
    memory = io.BytesIO(DRUMS.read_bytes())
    assert np.array_equal(read(memory).samples, read(DRUMS).samples)
    assert not memory.closed


def test_a_pipe_is_read_to_its_end() -> None:
    source, target = os.pipe()

    def feed() -> None:
        with os.fdopen(target, "wb") as out:
            out.write(DRUMS.read_bytes())

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(source, "rb") as pipe:
        sound = read(pipe)
    thread.join()
    assert np.array_equal(sound.samples, read(DRUMS).samples)


def test_arrays_and_tensors_are_sounds() -> None:
    x = noise(2, 100)
    assert np.array_equal(read((x, 8000)).samples, x)
    assert read((x[0], 8000)).samples.shape == (1, 100)
    assert np.array_equal(read((torch.from_numpy(x), 8000)).samples, x)
    assert np.array_equal(read((x.astype(np.float64), 8000.0)).samples, x)
    assert read((np.array([-32768, 0, 16384], np.int16), 8000)).samples.tolist() == [[-1, 0, 0.5]]
    assert read((np.array([0, 128, 192], np.uint8), 8000)).samples.tolist() == [[-1, 0, 0.5]]
    out = read((x, 8000)).samples
    out[:] = 0
    assert x.any()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((np.zeros((3, 4, 5)), 8000), r"shape \(3, 4, 5\)"),
        ((np.zeros((48000, 2)), 48000), r"look like \(time, channel\)"),
        ((np.zeros((2, 0)), 8000), "no samples"),
        ((np.zeros(5, complex), 8000), "complex128"),
        ((np.zeros(5, np.int64), 8000), "int64"),
        ((np.array(["a"]), 8000), "full scale"),
        (([[1.0], [1.0, 2.0]], 8000), "made into an array"),
        ((np.array([0, np.nan, np.inf]), 8000), "2 of its samples.*channel 0 at frame 1"),
        ((np.array([1e300]), 8000), "infinite"),
        ((np.zeros(5), 0), "0 Hz"),
        ((np.zeros(5), 44100.5), "whole number"),
        ((np.zeros(5), float("nan")), "whole number"),
        ((np.zeros(5), "44100"), "not a number"),
        ((np.zeros(5), True), "not a number"),
        ((np.zeros(5), 2_000_000), "outside"),
        ((np.zeros(5),), "tuple of 1"),
        (17, "a int"),
        (io.StringIO("words"), "text"),
        (io.BytesIO(b""), "0 bytes"),
    ],
)
def test_bad_sources_are_refused_in_words(source: object, words: str) -> None:
    with pytest.raises(AudioError, match=words):
        read(source)


def test_paths_that_are_no_files_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="does not exist"):
        read(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match="directory"):
        read(tmp_path)
    with pytest.raises(AudioError, match="cannot be opened"):
        read("a\0b.wav")
    with pytest.raises(AudioError, match=r"start_s is -1"):
        read(DRUMS, start_s=-1.0)
    with pytest.raises(AudioError, match=r"duration_s is 0"):
        read(DRUMS, duration_s=0.0)
    with pytest.raises(AudioError, match="rate"):
        read(DRUMS, rate_hz=0)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="not a regular file"):
        read(tmp_path / "pipe.wav")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.wav"
    path.write_bytes(DRUMS.read_bytes())
    path.chmod(0)
    with pytest.raises(AudioError, match="cannot be opened"):
        read(path)


def test_nan_in_a_file_is_counted_and_located_also_when_streamed(tmp_path: Path) -> None:
    x = noise(2, 5000)
    x[1, 1234] = np.nan
    x[0, 4000:4010] = np.inf
    path = tmp_path / "nan.wav"
    soundfile.write(path, x.T, 8000, subtype="FLOAT")
    words = "11 of its samples are NaN or infinite, the first in channel 1 at frame 1234"
    with pytest.raises(AudioError, match=words):
        read(path)
    with open_reader(path) as reader:
        assert reader.read(1000).shape == (2, 1000)
        with pytest.raises(AudioError, match=words):
            reader.read(1000)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_from_a_pipe_without_lengths_is_whole(size: int, tmp_path: Path) -> None:
    x = noise(1, 2000)
    path = tmp_path / "pipe.wav"
    soundfile.write(path, x.T, 8000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    start = data.index(b"data") + 4
    data[start : start + 4] = struct.pack("<I", size)
    data[4:8] = struct.pack("<I", 0xFFFFFFFF)
    whole = read(path).samples
    path.write_bytes(bytes(data))
    assert np.array_equal(read(path).samples, whole)


def test_an_error_while_reading_names_the_file(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        name = "stick/song.wav"

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 40_000:
                raise OSError("the stick was pulled out")
            return super().read(size)

    path = tmp_path / "x.wav"
    soundfile.write(path, noise(2, 50_000).T, 8000, subtype="PCM_16")
    with pytest.raises(AudioError, match=r"stick/song\.wav.*the stick was pulled out"):
        read(Failing(path.read_bytes()))


def test_a_sound_knows_its_length() -> None:
    sound = Sound(noise(3, 4000), 8000)
    assert (sound.channels, sound.frames, sound.duration_s) == (3, 4000, 0.5)
