from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from auralign.data.manifest import read_manifest
from auralign.data.mixtures import active_power
from auralign.data.speech_effects import band_limited, clipped, hiss, played
from auralign.data.speech_mixer import SpeechBatch, SpeechMixConfig, SpeechMixer
from auralign.data.speech_noise import noise_clips, only_in_test
from auralign.data.speech_recipes import RoomDraw, Spoken, lay_out, received, repeat, room_filter
from auralign.errors import DataError

PLAIN = SpeechMixConfig(
    reverberant=0.0,
    hiss=0.0,
    clean=0.0,
    clipped=0.0,
    band_limited=0.0,
    speed=0.0,
    rooms=4,
    level_db=(-30.0, -28.0),
)


def mixer(speech: Path, noise: Path, cfg: SpeechMixConfig, split: str = "train") -> SpeechMixer:
    return SpeechMixer.load(speech, noise, split, cfg)


def drawn(speech: Path, noise: Path, cfg: SpeechMixConfig, size: int = 12, seed: int = 0) -> SpeechBatch:
    return mixer(speech, noise, cfg).batch(np.random.default_rng(seed), size)


def power_db(wave: torch.Tensor) -> float:
    return 10 * math.log10(float(wave.double().square().mean()))


def test_noisy_is_speech_plus_noise_and_the_same_for_a_seed(tiny_speech: Path, tiny_noise: Path) -> None:
    cfg = replace(SpeechMixConfig(), rooms=3, samples=16_000)
    one, two = (drawn(tiny_speech, tiny_noise, cfg, 24) for _ in range(2))
    intact = ~one.degraded
    assert torch.equal(one.noisy[intact], (one.received + one.noise)[intact])
    for field in ("clean", "noisy", "received", "noise", "snr_db"):
        assert torch.equal(getattr(one, field), getattr(two, field))
        assert getattr(one, field).dtype == torch.float32
    assert one.noisy.shape == (24, 16_000)
    assert torch.isfinite(one.noisy).all()
    assert one.noisy.abs().max() <= 0.9901  # rounding
    assert not torch.equal(one.noisy, drawn(tiny_speech, tiny_noise, cfg, 24, seed=1).noisy)


def test_the_ratio_is_that_of_active_speech_to_noise(tiny_speech: Path, tiny_noise: Path) -> None:
    batch = drawn(tiny_speech, tiny_noise, replace(PLAIN, snr_db=((-5.0, 20.0, 1.0),)))
    for n in range(12):
        ratio = 10 * math.log10(active_power(batch.received[n].numpy())) - power_db(batch.noise[n])
        assert ratio == pytest.approx(float(batch.snr_db[n]), abs=1e-3)


def test_ranges_are_drawn_by_their_shares(tiny_speech: Path, tiny_noise: Path) -> None:
    cfg = replace(PLAIN, samples=4000, snr_db=((-5.0, 0.0, 0.25), (10.0, 20.0, 0.75)), two_noises=0.0)
    snr = drawn(tiny_speech, tiny_noise, cfg, 200).snr_db
    assert ((snr <= 0) | (snr >= 10)).all()
    assert 0.15 < float((snr <= 0).float().mean()) < 0.35


def test_levels_lie_in_their_range(tiny_speech: Path, tiny_noise: Path) -> None:
    batch = drawn(tiny_speech, tiny_noise, PLAIN)
    for wave in batch.noisy:
        assert -30.01 <= power_db(wave) <= -27.99
    loud = drawn(tiny_speech, tiny_noise, replace(PLAIN, level_db=(0.0, 0.0)))
    assert loud.noisy.abs().max() == pytest.approx(0.99, abs=1e-5)


def test_without_a_room_the_target_is_the_speech(tiny_speech: Path, tiny_noise: Path) -> None:
    batch = drawn(tiny_speech, tiny_noise, PLAIN)
    assert torch.equal(batch.clean, batch.received)
    assert not batch.reverberant.any()


def test_in_a_room_the_target_is_the_early_part(tiny_speech: Path, tiny_noise: Path) -> None:
    cfg = replace(PLAIN, reverberant=1.0, rt60_s=(0.5, 0.6))
    batch = drawn(tiny_speech, tiny_noise, cfg)
    assert batch.reverberant.all()
    for clean, heard in zip(batch.clean, batch.received, strict=True):
        late = power_db(heard - clean) - power_db(heard)
        assert -30 < late < 3  # speech in the room may be weaker than its beginning alone
    everything = drawn(tiny_speech, tiny_noise, replace(cfg, early_s=5.0))
    torch.testing.assert_close(everything.clean, everything.received)


def test_clean_inputs_have_no_noise(tiny_speech: Path, tiny_noise: Path) -> None:
    batch = drawn(tiny_speech, tiny_noise, replace(PLAIN, clean=1.0))
    assert torch.equal(batch.noisy, batch.clean)
    assert torch.isinf(batch.snr_db).all()
    assert set(batch.noises) == {()}


@pytest.mark.parametrize("share", ["clipped", "band_limited"])
def test_degraded_inputs_keep_their_target(tiny_speech: Path, tiny_noise: Path, share: str) -> None:
    batch = drawn(tiny_speech, tiny_noise, replace(PLAIN, **{share: 1.0}), 4)
    assert batch.degraded.all()
    whole = batch.received + batch.noise
    assert torch.equal(batch.clean, batch.received)
    if share == "clipped":
        assert (batch.noisy.abs().amax(1) <= 0.81 * whole.abs().amax(1)).all()
    else:
        high = torch.fft.rfft(batch.noisy)[:, 12_000:].abs().square().sum(1)
        assert (high < 1e-3 * torch.fft.rfft(whole)[:, 12_000:].abs().square().sum(1)).all()


def test_splits_keep_speakers_noises_and_rooms_apart(tiny_speech: Path, tiny_noise: Path) -> None:
    cfg = replace(PLAIN, reverberant=1.0)
    parts = {split: mixer(tiny_speech, tiny_noise, cfg, split) for split in ("train", "val", "test")}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(parts[one].speakers) & set(parts[other].speakers)
        assert not set(parts[one].noise.by_id) & set(parts[other].noise.by_id)
        seeds = [{draw.seed for draw in parts[name]._draws} for name in (one, other)]
        assert not seeds[0] & seeds[1]


def test_noise_is_no_voice_and_no_single_instrument(tiny_noise: Path) -> None:
    clips = read_manifest(tiny_noise / "manifest.jsonl")
    assert [clip.id for clip in noise_clips(clips, "train")] == ["drill-train", "music-train", "rain-train"]
    assert "geyser-unseen" in {clip.id for clip in noise_clips(clips, "test")}
    assert only_in_test(clips) == ("geyser",)


def test_two_noises_and_hiss(tiny_speech: Path, tiny_noise: Path) -> None:
    both = drawn(tiny_speech, tiny_noise, replace(PLAIN, two_noises=1.0, music=0.0))
    assert {len(names) for names in both.noises} == {2}
    assert {name for names in both.noises for name in names} == {"rain", "drill"}
    assert set(drawn(tiny_speech, tiny_noise, replace(PLAIN, hiss=1.0)).noises) == {("hiss",)}


def test_hiss_falls_with_frequency_as_told() -> None:
    wave = hiss(1 << 18, slope=2.0, generator=np.random.default_rng(0))
    power = np.square(np.abs(np.fft.rfft(wave)))
    octaves = [power[low : 2 * low].mean() for low in (4096, 8192, 16_384)]  # 250, 500, 1000 Hz on
    np.testing.assert_allclose(10 * np.log10(np.divide(octaves[:-1], octaves[1:])), 6.02, atol=0.3)
    assert float(np.mean(np.square(wave))) == pytest.approx(0.01, rel=1e-3)


def test_playing_faster_raises_the_pitch() -> None:
    t = np.arange(20_000) / 16_000
    wave = np.sin(2 * np.pi * 440 * t).astype(np.float32)
    np.testing.assert_allclose(played(wave, 1.0, 9000), wave[:9000], atol=1e-6)
    ours = played(wave, 1.1, 16_000)
    np.testing.assert_allclose(ours[5:], np.sin(2 * np.pi * 484 * t[:16_000])[5:], atol=2e-3)  # cubic


def test_effects_on_silence() -> None:
    silence = np.zeros(1000, np.float32)
    for wave in (clipped(silence, 0.5), band_limited(silence, 3500.0), played(silence, 1.05, 900)):
        assert not wave.any()


def test_noise_is_repeated_without_steps() -> None:
    wave = np.ones(1000, np.float32)
    looped = repeat(wave, 400, 3000)
    assert looped[600] == 0
    assert looped[599] == 0
    assert looped.max() == 1
    np.testing.assert_array_equal(repeat(np.arange(1000, dtype=np.float32), 200, 500), np.arange(200, 700))


def test_words_are_laid_out_where_they_belong() -> None:
    words = {"a": np.ones(1000, np.float32), "b": np.full(5000, 0.5, np.float32)}
    parts = (Spoken("a", 100, 0, 0.0), Spoken("b", 2000, 500, 20 * math.log10(2)))
    out = lay_out(parts, words.__getitem__, 4000)
    assert not out[:101].any()
    assert out[600] == 1
    assert not out[1100:2001].any()
    np.testing.assert_allclose(out[2100:], 1.0, rtol=1e-6)
    assert words["a"].min() == 1  # what was read is not changed


def test_convolution_removes_the_delay_of_the_direct_sound() -> None:
    room = room_filter(RoomDraw(7, 0.3, 0.4))
    click = np.zeros(4000, np.float32)
    click[1000] = 1
    heard, clean = received(click, room)
    assert int(np.argmax(np.abs(clean))) in (1000, 1001)  # the fraction of a sample stays
    np.testing.assert_allclose(heard[1000:], room.whole[:3000], atol=1e-6)
    np.testing.assert_allclose(clean[1000:1800], room.whole[:800], atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"hiss": 1.5}, {"samples": 10}, {"snr_db": ()}, {"snr_db": ((5.0, 0.0, 1.0),)}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError):
        replace(PLAIN, **wrong)


def test_an_unknown_split_is_refused(tiny_speech: Path, tiny_noise: Path) -> None:
    with pytest.raises(DataError, match="train, val, test"):
        SpeechMixer.load(tiny_speech, tiny_noise, "dev")
