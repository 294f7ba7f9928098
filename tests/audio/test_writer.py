"""Writing: bit-exact round trips, bit depth kept, nothing clipped, nothing half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import auralign.audio.writer as writer_module
from auralign.audio.io import AudioWriter, probe, read
from auralign.audio.level import Level
from auralign.audio.loudness import integrated_loudness
from auralign.audio.quantise import quantise
from auralign.audio.writer import close_together, kept_subtype
from auralign.errors import AudioError, UsageError

DRUMS = Path(__file__).parents[1] / "fixtures" / "audio" / "loop_amen.flac"


def noise(channels: int, frames: int, peak: float = 0.5) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((channels, frames))
    return np.asarray(x / np.abs(x).max() * peak, np.float32)


def write(path: Path, samples: np.ndarray, rate_hz: int = 48000, block: int = 1000, **options: object):
    with AudioWriter(path, rate_hz=rate_hz, channels=samples.shape[0], **options) as out:
        for start in range(0, samples.shape[1], block):
            out.write(samples[:, start : start + block])
    assert out.result is not None
    return out.result


@pytest.mark.parametrize("suffix", ["wav", "flac", "w64", "rf64", "aiff", "caf", "au"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_what_was_read_is_written_back_bit_for_bit(suffix: str, subtype: str, tmp_path: Path) -> None:
    bits = {"PCM_16": 16, "PCM_24": 24}[subtype]
    codes = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (2, 5000))
    codes[:, 0], codes[:, 1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    samples = (codes / 2.0 ** (bits - 1)).astype(np.float32)
    result = write(tmp_path / f"a.{suffix}", samples, subtype=subtype)
    assert (result.subtype, result.gain_db, result.note) == (subtype, 0.0, "")
    assert np.array_equal(read(tmp_path / f"a.{suffix}").samples, samples)


@pytest.mark.parametrize("suffix", ["wav", "w64", "rf64", "aiff", "caf", "au"])
def test_float_holds_everything(suffix: str, tmp_path: Path) -> None:
    samples = noise(3, 4000, peak=7.5)
    result = write(tmp_path / f"a.{suffix}", samples)
    assert result.subtype == "FLOAT"
    assert result.peak == pytest.approx(7.5)
    assert np.array_equal(read(tmp_path / f"a.{suffix}").samples, samples)


@pytest.mark.parametrize("block", [1, 999, 100_000])
def test_the_file_does_not_depend_on_the_block_size(block: int, tmp_path: Path) -> None:
    samples = noise(2, 3000)
    write(tmp_path / "a.flac", samples, block=block)
    write(tmp_path / "b.flac", samples, block=777)
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()


def test_the_bit_depth_of_the_source_is_kept(tmp_path: Path) -> None:
    samples = noise(1, 500)
    for subtype, want in [
        ("PCM_U8", "PCM_16"),
        ("PCM_16", "PCM_16"),
        ("PCM_24", "PCM_24"),
        ("FLOAT", "FLOAT"),
    ]:
        soundfile.write(tmp_path / "in.wav", samples.T, 8000, subtype=subtype)
        result = write(tmp_path / "out.wav", samples, 8000, like=probe(tmp_path / "in.wav"))
        assert result.subtype == want
        assert probe(tmp_path / "out.wav").subtype == want
    soundfile.write(tmp_path / "in.ogg", samples.T, 8000)
    assert kept_subtype(probe(tmp_path / "in.ogg"), ".wav") == "PCM_24"
    assert kept_subtype(probe(tmp_path / "in.wav"), ".mp3") == "MPEG_LAYER_III"


@pytest.mark.parametrize("suffix", ["wav", "aiff", "caf"])
def test_a_peak_beyond_full_scale_becomes_float_not_clipping(suffix: str, tmp_path: Path) -> None:
    samples = noise(2, 3000, peak=1.7)
    result = write(tmp_path / f"a.{suffix}", samples, subtype="PCM_16")
    assert (result.subtype, result.clipped, result.gain_db) == ("FLOAT", False, 0.0)
    assert "float32 instead of PCM_16" in result.note
    assert np.array_equal(read(tmp_path / f"a.{suffix}").samples, samples)


def test_flac_beyond_full_scale_gets_a_stated_gain(tmp_path: Path) -> None:
    samples = noise(2, 3000, peak=2.0)
    result = write(tmp_path / "a.flac", samples, subtype="PCM_16")
    assert result.subtype == "PCM_24"
    assert result.gain_db == pytest.approx(-6.03, abs=0.01)
    assert "FLAC cannot hold it" in result.note
    back = read(tmp_path / "a.flac").samples * 10 ** (-result.gain_db / 20)
    assert np.abs(back - samples).max() < 1e-6


@pytest.mark.parametrize(
    ("suffix", "rate_hz", "loss_db"), [("ogg", 44100, 15), ("opus", 48000, 10), ("mp3", 44100, 13)]
)
def test_lossy_formats_keep_length_and_sound(
    suffix: str, rate_hz: int, loss_db: float, tmp_path: Path
) -> None:
    samples = np.tile(read(DRUMS, rate_hz=rate_hz).samples, (1, 2)) * 0.5
    result = write(tmp_path / f"a.{suffix}", samples, rate_hz)
    back = read(tmp_path / f"a.{suffix}").samples
    assert back.shape == samples.shape
    noise_power = ((back - samples) ** 2).mean()
    assert 10 * np.log10((samples**2).mean() / noise_power) > loss_db
    assert ("MP3 adds silence" in result.note) == (suffix == "mp3")


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.wav"
    target.write_bytes(b"older")
    out = AudioWriter(target, rate_hz=8000, channels=1)

    def work() -> None:
        with out:
            out.write(noise(1, 10))
            raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        work()
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
    assert target.read_bytes() == b"older"


def test_the_file_appears_only_when_whole(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "deep" / "a.wav", rate_hz=8000, channels=1) as out:
        out.write(noise(1, 10))
        assert not (tmp_path / "deep" / "a.wav").exists()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.wav"]


def test_bad_blocks_and_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suffix"):
        AudioWriter(tmp_path / "a.txt", rate_hz=8000, channels=1)
    with pytest.raises(UsageError, match="9 channels"):
        AudioWriter(tmp_path / "a.flac", rate_hz=8000, channels=9)
    with pytest.raises(UsageError, match="44100"):
        AudioWriter(tmp_path / "a.opus", rate_hz=44100, channels=1)
    with pytest.raises(UsageError, match="subtype"):
        AudioWriter(tmp_path / "a.caf", rate_hz=8000, channels=1, subtype="ALAC_24")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match="directory"):
        AudioWriter(tmp_path / "folder.wav", rate_hz=8000, channels=1)
    out = AudioWriter(tmp_path / "a.wav", rate_hz=8000, channels=2)
    with pytest.raises(AudioError, match="channels"):
        out.write(noise(1, 4))
    with pytest.raises(AudioError, match="frame 3"):
        out.write(np.array([[0, 0, 0, np.nan], [0, 0, 0, 0]], np.float32))
    with pytest.raises(AudioError, match="nothing was written"):
        out.close()
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_long_wav_becomes_rf64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_RIFF_LIMIT", 10_000)
    samples = noise(2, 5000)
    result = write(tmp_path / "a.wav", samples)
    assert result.format == "RF64"
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RF64"
    assert np.array_equal(read(tmp_path / "a.wav").samples, samples)


def test_level_keep_changes_nothing_and_peak_and_lufs_reach_their_target(tmp_path: Path) -> None:
    samples = noise(2, 96000, peak=0.3)
    assert write(tmp_path / "k.wav", samples).gain_db == 0
    result = write(tmp_path / "p.wav", samples, level=Level.parse("peak:-3"))
    assert np.abs(read(tmp_path / "p.wav").samples).max() == pytest.approx(10 ** (-3 / 20), abs=1e-5)
    assert result.peak == pytest.approx(10 ** (-3 / 20), abs=1e-5)
    assert "peak" in result.note
    write(tmp_path / "l.wav", samples, level=Level.parse("lufs:-30"))
    assert integrated_loudness(read(tmp_path / "l.wav").samples, 48000) == pytest.approx(-30, abs=0.01)


def test_stems_closed_together_share_one_gain_and_still_add_up(tmp_path: Path) -> None:
    mixture = noise(2, 5000, peak=0.9)
    target = mixture * np.linspace(0, 1, 5000, dtype=np.float32)
    stems = [target, mixture - target]
    writers = [
        AudioWriter(tmp_path / f"{i}.wav", rate_hz=8000, channels=2, level=Level.parse("peak:-6"))
        for i in range(2)
    ]
    for out, stem in zip(writers, stems, strict=True):
        out.write(stem)
    results = close_together(writers)
    assert results[0].gain_db == results[1].gain_db
    total = read(tmp_path / "0.wav").samples + read(tmp_path / "1.wav").samples
    assert np.abs(total - mixture * 10 ** (results[0].gain_db / 20)).max() < 1e-6


def test_quantise_rounds_to_the_nearest_step() -> None:
    x = np.linspace(-0.99, 0.99, 4001, dtype=np.float32)[:, None]
    error = quantise(x, "PCM_16") / 2.0**15 - x
    assert np.abs(error).max() <= 2.0**-16
    assert abs(error.mean()) < 2.0**-20


def test_quantise_never_wraps() -> None:
    x = np.array([[-3.0], [-1.0], [0.99999], [1.0], [3.0]], np.float32)
    assert quantise(x, "PCM_16").ravel().tolist() == [-32768, -32768, 32767, 32767, 32767]
    assert (quantise(x, "PCM_24").ravel() >> 8).tolist() == [
        -(2**23),
        -(2**23),
        8388524,
        2**23 - 1,
        2**23 - 1,
    ]
    assert quantise(x, "FLOAT") is x


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_audio_error(tmp_path: Path) -> None:
    out = AudioWriter(tmp_path / "a.wav", rate_hz=8000, channels=1)
    out._file.close()
    out._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - closed by discard
    with pytest.raises(AudioError, match="No space left"):
        out.write(noise(1, 10_000))
    out.discard()
    assert not list(tmp_path.iterdir())
