from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auralign.audio.resample import resample
from auralign.enhancement.stream import EnhanceStream, Treatment
from auralign.enhancement.upper import UpperGain
from auralign.errors import AudioError, UsageError
from auralign.models.log_mmse import LogMmse

RATES_HZ = (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000)


def ulps(out, recording) -> float:
    """How far both are from the recording together, in units of the larger term's last place."""
    largest = np.maximum(np.abs(out.enhanced), np.maximum(np.abs(out.residual), np.abs(recording)))
    return float((np.abs(out.enhanced + out.residual - recording) / np.spacing(largest)).max())


def tone(hz: float, rate_hz: int, seconds: float = 1.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz))[None].astype(
        np.float32
    )


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_an_enhancer_that_changes_nothing_gives_the_recording_back_at_every_rate(
    rate_hz, identity, noise, through
):
    wave = noise(2, int(1.3 * rate_hz))
    out = through(EnhanceStream(identity, rate_hz, 2), wave, (4_099,))
    np.testing.assert_allclose(out.enhanced, wave, atol=1e-6)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("upper", ["mask", "pass", "drop"])
def test_both_add_up_to_the_recording(rate_hz, upper, lowpass, noise, through):
    wave = noise(2, int(0.7 * rate_hz))
    treatment = Treatment(upper=upper, strength=0.9)
    out = through(EnhanceStream(lowpass, rate_hz, 2, treatment), wave, (5_000,))
    assert out.enhanced.shape == wave.shape
    assert ulps(out, wave) <= 1.0
    assert np.abs(out.residual).max() > 0.01


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("way", ["linked", "separate"])
def test_any_number_of_channels_is_kept(channels, way, lowpass, noise, through):
    wave = noise(channels, 11_111)
    out = through(EnhanceStream(lowpass, 22_050, channels, Treatment(channels=way)), wave)
    assert out.residual.shape == wave.shape
    assert ulps(out, wave) <= 1.0


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 192_000])
@pytest.mark.parametrize("frames", [1, 2, 255, 256, 257, 1_025, 4_097])
def test_length_is_kept_down_to_one_sample(frames, rate_hz, half, noise, through):
    wave = noise(1, frames)
    out = through(EnhanceStream(half, rate_hz, 1), wave)
    assert out.enhanced.shape == wave.shape
    assert ulps(out, wave) <= 1.0


@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (44_100, 2), (8_000, 3)])
def test_blocks_of_any_size_give_the_same_bits(rate_hz, channels, seeded, noise, through):
    wave = noise(channels, int(9.3 * rate_hz))
    whole = through(EnhanceStream(seeded, rate_hz, channels), wave)
    for sizes in ((rate_hz,), (7_777, 3, 50_000), (rate_hz * 4 + 1,)):
        parts = through(EnhanceStream(seeded, rate_hz, channels), wave, sizes)
        assert np.array_equal(parts.enhanced, whole.enhanced)
        assert np.array_equal(parts.residual, whole.residual)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=6), frames=st.integers(1, 60_000))
def test_any_blocks_of_any_sound_give_the_same_bits(sizes, frames, seeded, noise, through):
    wave = noise(1, frames)
    blocks = tuple(max(size, frames // 100) for size in sizes)
    whole = through(EnhanceStream(seeded, 22_050, 1), wave)
    parts = through(EnhanceStream(seeded, 22_050, 1), wave, blocks)
    assert np.array_equal(parts.enhanced, whole.enhanced)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_streamed_is_whole_for_an_enhancer_without_windows(rate_hz, lowpass, through):
    """Of two tones the one below 2 kHz passes at its level, over all seams, at any rate."""
    low, high = tone(1_500, rate_hz, 7), tone(3_000, rate_hz, 7)
    out = through(EnhanceStream(lowpass, rate_hz, 1), low + high)
    middle = slice(rate_hz // 10, -rate_hz // 10)
    np.testing.assert_allclose(out.enhanced[:, middle], low[:, middle], atol=2e-3)
    np.testing.assert_allclose(out.residual[:, middle], high[:, middle], atol=2e-3)


def test_a_tiny_network_runs_and_is_the_same_every_time(tiny, speech, through):
    once, again, other = (
        through(EnhanceStream(tiny, 16_000, 1, Treatment(seed=seed)), speech[:, :16_000])
        for seed in (0, 0, 1)
    )
    assert np.array_equal(once.enhanced, again.enhanced)
    assert not np.array_equal(once.enhanced, other.enhanced)
    assert ulps(once, speech[:, :16_000]) <= 1.0


def test_strength_nothing_is_the_recording_bit_for_bit(nothing, noise, through):
    wave = noise(2, 30_000)
    out = through(EnhanceStream(nothing, 44_100, 2, Treatment(strength=0.0)), wave)
    assert np.array_equal(out.enhanced, wave)
    assert not out.residual.any()


@pytest.mark.parametrize("strength", [0.25, 0.7, 0.9])
def test_strength_leaves_the_noise_that_much_lower(strength, nothing, noise, through):
    wave = noise(1, 30_000)
    out = through(EnhanceStream(nothing, 16_000, 1, Treatment(strength=strength)), wave)
    np.testing.assert_allclose(out.enhanced, (1 - strength) * wave, atol=1e-7)


@pytest.mark.parametrize(("upper", "gain"), [("pass", 1.0), ("mask", 0.5), ("drop", 0.0)])
def test_the_part_above_is_treated_as_asked(upper, gain, half, noise, through):
    """Noise below 8 kHz is halved; a tone at 15 kHz passes, is halved too, or goes."""
    rate_hz = 48_000
    high = tone(15_000, rate_hz)
    below = np.fft.rfft(noise(1, high.shape[1]))
    below[:, below.shape[1] * 7 // 24 :] = 0
    below = np.fft.irfft(below).astype(np.float32)
    out = through(EnhanceStream(half, rate_hz, 1, Treatment(upper=upper)), below + high)
    middle = slice(5_000, -5_000)
    np.testing.assert_allclose(out.enhanced[:, middle], (0.5 * below + gain * high)[:, middle], atol=3e-3)


def test_a_low_rate_loses_no_band(identity, half, through):
    """At 8 kHz `drop` has nothing above the model's band to drop."""
    wave = tone(3_900, 8_000)
    out = through(EnhanceStream(identity, 8_000, 1, Treatment(upper="drop")), wave)
    np.testing.assert_allclose(out.enhanced, wave, atol=1e-6)


def test_memory_does_not_grow_with_the_length(half, noise):
    stream, block = EnhanceStream(half, 48_000, 2), noise(2, 48_000)
    held = []
    for _ in range(24):
        stream.process(block)
        now = stream._waiting
        held.append(
            sum(
                a.nbytes if a.base is None else a.base.nbytes
                for a in (now.recording, now.returned, now.block)
            )
            + now.heard.untyped_storage().nbytes()
            + stream._windows._wave.untyped_storage().nbytes()
            + stream._upper._gain.untyped_storage().nbytes()
            + stream._upper._power.untyped_storage().nbytes()
        )
    assert max(held[12:]) <= 1.1 * max(held[:12])
    assert max(held) < 20e6


def test_silence_stays_silence(tiny, through):
    out = through(EnhanceStream(tiny, 44_100, 2), np.zeros((2, 60_000), np.float32))
    assert not out.enhanced.any()
    assert not out.residual.any()


@pytest.mark.parametrize("level", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("rate_hz", [16_000, 22_050])
def test_the_level_is_nobodys_business(level, rate_hz, speech, noise, through):
    wave = (speech[:, :30_000] + noise(1, 30_000) * 0.3).astype(np.float32)
    plain = through(EnhanceStream(LogMmse(), rate_hz, 1), wave).enhanced
    scaled = through(EnhanceStream(LogMmse(), rate_hz, 1), wave * np.float32(level)).enhanced
    np.testing.assert_allclose(scaled / np.float32(level), plain, atol=2e-4)


def test_energies_are_those_of_what_came_out(half, noise, through):
    wave = noise(1, 20_000)
    stream = EnhanceStream(half, 16_000, 1)
    through(stream, wave, (3_000,))
    assert stream.energy.recording == pytest.approx(float(np.square(wave).sum()), rel=1e-5)
    assert stream.energy.enhanced == pytest.approx(stream.energy.recording / 4, rel=1e-5)
    assert stream.energy.residual == pytest.approx(stream.energy.recording / 4, rel=1e-5)


def test_a_rate_at_which_nothing_is_understood_is_refused(half):
    with pytest.raises(AudioError, match="sample rate is 1000 Hz"):
        EnhanceStream(half, 1_000, 1)


def test_nothing_at_all_is_refused(half):
    with pytest.raises(AudioError, match="no samples"):
        EnhanceStream(half, 16_000, 1).process(np.zeros((1, 0), np.float32), True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": 1.1},
        {"strength": -0.1},
        {"strength": float("nan")},
        {"steps": 0},
        {"steps": 10_000},
        {"seed": -1},
    ],
)
def test_wrong_treatments_are_refused_and_name_the_flag(wrong):
    with pytest.raises(UsageError, match="--" + next(iter(wrong))):
        Treatment(**wrong)


def test_the_part_above_follows_the_part_below_in_time_over_all_seams(plain, noise, through):
    """A gate that opens and closes: streamed in windows, its gain above is what the whole sound gives."""
    rate_hz = 48_000

    def gate(wave: torch.Tensor, seed: int) -> torch.Tensor:
        power = torch.nn.functional.avg_pool1d(wave[:, None].square(), 801, 1, 400)[:, 0]
        return wave * (power > 1e-3)

    loud = np.repeat(np.random.default_rng(1).random(7 * 20) > 0.5, rate_hz // 20)
    wave = noise(1, 7 * rate_hz) * np.where(loud, 1.0, 0.1).astype(np.float32)
    out = through(EnhanceStream(plain(gate), rate_hz, 1), wave)
    heard = resample(wave, rate_hz, 16_000)
    said = gate(torch.from_numpy(heard), 0).numpy()
    upper = UpperGain(1, 16_000, rate_hz, linked=True)
    upper.process(torch.from_numpy(heard), torch.from_numpy(said), True)
    gain = upper.at(0, wave.shape[1]).numpy()
    expected = resample(said, 16_000, rate_hz) + gain * (wave - resample(heard, 16_000, rate_hz))
    np.testing.assert_allclose(out.enhanced, expected, atol=1e-4)
