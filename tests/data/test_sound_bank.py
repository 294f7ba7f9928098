from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.data.clip import Clip
from auralign.data.sound_bank import SoundBank
from auralign.errors import DataError


def _write(root: Path, name: str, wave: np.ndarray, rate_hz: int = 16_000, subtype: str = "PCM_16") -> Clip:
    soundfile.write(root / f"{name}.wav", wave, rate_hz, subtype=subtype)
    return Clip(name, f"{name}.wav", labels=(name[0],), kind="event", split="train", sha256=name)


def _noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples)


def test_samples_are_those_of_the_file(tmp_path):
    waves = {"a": _noise(500), "b": _noise(1, 1), "c": _noise(2000, 2)}
    bank = SoundBank([_write(tmp_path, name, wave) for name, wave in waves.items()], tmp_path)
    for n, wave in enumerate(waves.values()):
        assert bank.samples(n).dtype == np.float32
        np.testing.assert_allclose(bank.samples(n), wave, atol=1e-4)
    assert bank.labels() == ["a", "b", "c"]
    assert bank.by_id == {"a": 0, "b": 1, "c": 2}
    np.testing.assert_allclose(bank.samples(2, 100, 50), waves["c"][100:150], atol=1e-4)


def test_a_piece_never_runs_into_the_next_clip(tmp_path):
    clips = [_write(tmp_path, "a", np.full(100, 0.25)), _write(tmp_path, "b", np.full(100, -0.5))]
    bank = SoundBank(clips, tmp_path)
    piece = bank.samples(0, 90, 50)
    assert len(piece) == 10
    assert (piece > 0).all()


def test_channels_are_averaged_and_rates_converted(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    clip = _write(tmp_path, "a", np.stack([0.8 * tone, 0 * tone], axis=1), 44_100)
    bank = SoundBank([clip], tmp_path)
    assert bank.clips[0].length == 16_000
    expected = 0.4 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(bank.samples(0)[500:-500], expected[500:-500], atol=2e-3)


def test_offset_and_duration_cut_a_piece_out_of_a_file(tmp_path):
    wave = _noise(16_000)
    clip = dataclasses.replace(_write(tmp_path, "a", wave), offset_s=0.25, duration_s=0.5)
    np.testing.assert_allclose(SoundBank([clip], tmp_path).samples(0), wave[4000:12_000], atol=1e-4)


def test_samples_over_full_scale_are_clipped_and_not_wrapped(tmp_path):
    clip = _write(tmp_path, "a", np.array([2.0, -2.0, 0.5]), subtype="FLOAT")
    samples = SoundBank([clip], tmp_path).samples(0)
    assert samples[0] > 0.999
    assert samples[1] < -0.999


def test_the_cache_gives_exactly_what_decoding_gives(tmp_path):
    clips = [_write(tmp_path, "a", _noise(700)), _write(tmp_path, "b", _noise(300, 1))]
    cache = tmp_path / "cache"
    fresh = SoundBank(clips, tmp_path, cache=cache)
    for clip in clips:
        (tmp_path / clip.audio).unlink()
    cached = SoundBank(clips, tmp_path, cache=cache)
    for n in range(2):
        np.testing.assert_array_equal(cached.samples(n), fresh.samples(n))
    assert cached.clips == fresh.clips
    assert not [p for p in cache.iterdir() if ".tmp" in p.name]


def test_another_set_of_clips_or_another_source_is_decoded_anew(tmp_path):
    a, b = _write(tmp_path, "a", _noise(700)), _write(tmp_path, "b", _noise(300, 1))
    cache = tmp_path / "cache"
    SoundBank([a, b], tmp_path, cache=cache)
    assert len(SoundBank([b], tmp_path, cache=cache).clips) == 1
    soundfile.write(tmp_path / "a.wav", _noise(900, 5), 16_000)
    changed = dataclasses.replace(a, sha256="other")
    assert SoundBank([changed, b], tmp_path, cache=cache).clips[0].length == 900
    assert SoundBank([a, b], tmp_path, rate_hz=8_000, cache=cache).clips[0].length == 450


def test_a_damaged_clip_is_named(tmp_path):
    clip = _write(tmp_path, "a", _noise(700))
    (tmp_path / "a.wav").write_bytes(b"no sound at all")
    with pytest.raises(DataError, match=r"a\.wav: the clip cannot be read"):
        SoundBank([clip], tmp_path)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(DataError, match=r"a\.wav"):
        SoundBank([clip], tmp_path)


@pytest.mark.parametrize("wave", [np.zeros(0), np.array([0.1, np.nan, 0.1])])
def test_an_empty_or_not_finite_clip_is_named(tmp_path, wave):
    clip = _write(tmp_path, "a", wave, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: the clip is empty or not finite"):
        SoundBank([clip], tmp_path)


def test_an_offset_behind_the_end_is_named(tmp_path):
    clip = dataclasses.replace(_write(tmp_path, "a", _noise(700)), offset_s=9.0)
    with pytest.raises(DataError, match=r"a\.wav"):
        SoundBank([clip], tmp_path)


def test_no_clips_are_refused(tmp_path):
    with pytest.raises(DataError, match="no clip to load"):
        SoundBank([], tmp_path)
