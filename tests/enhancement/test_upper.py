from __future__ import annotations

import numpy as np
import pytest
import torch

from auralign.enhancement.upper import UpperGain


def gains_of(
    heard: torch.Tensor, enhanced: torch.Tensor, *, rate_hz: int = 48_000, linked: bool = True, block=1000
):
    """Gains for the whole sound, taken in blocks."""
    upper = UpperGain(len(heard), 16_000, rate_hz, linked=linked)
    total, out, first = round(heard.shape[1] * rate_hz / 16_000), [], 0
    for at in range(0, heard.shape[1], block):
        upper.process(heard[:, at : at + block], enhanced[:, at : at + block], at + block >= heard.shape[1])
        count = min(upper.ready(), total) - first
        if count > 0:
            out.append(upper.at(first, count))
            first += count
    return torch.cat(out, dim=-1)


@pytest.fixture
def wave(noise) -> torch.Tensor:
    return torch.from_numpy(noise(2, 16_000))


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100, 96_000])
def test_the_gain_is_that_of_the_octave_below(gain, rate_hz, wave):
    found = gains_of(wave, gain * wave, rate_hz=rate_hz)
    assert found.shape == (1, rate_hz)
    assert found == pytest.approx(np.full((1, rate_hz), max(gain, 1e-4)), abs=1e-4)


def test_only_the_octave_counts(wave):
    spec = torch.fft.rfft(wave)
    below = spec.clone()
    below[:, :3_900] = 0  # 1 s: bins are hertz
    found = gains_of(wave, torch.fft.irfft(below))
    assert found[:, 2_000:-2_000].min() > 0.97


def test_nothing_is_made_louder(wave):
    assert gains_of(wave, 3 * wave).max() == 1.0


def test_an_octave_that_holds_nothing_says_nothing():
    turns = torch.arange(16_000, dtype=torch.float64) * 500 / 16_000
    tone = (torch.sin(2 * np.pi * turns)[None] * torch.hann_window(16_000)).float()
    assert gains_of(tone, 0 * tone)[:, 6_000:-6_000].min() > 0.9


def test_silence_passes_as_silence():
    assert torch.equal(gains_of(torch.zeros(1, 5000), torch.zeros(1, 5000)), torch.ones(1, 15_000))


def test_channels_share_a_gain_or_have_their_own(wave):
    enhanced = torch.stack([wave[0], 0 * wave[1]])
    linked = gains_of(wave, enhanced)
    assert linked.mean() == pytest.approx(0.7, abs=0.05)
    own = gains_of(wave, enhanced, linked=False)
    assert own[0].min() > 0.999
    assert own[1].max() < 1e-3


@pytest.mark.parametrize("block", [7, 100, 1_013, 16_000])
def test_blocks_of_any_size_give_the_same_gains(block, wave):
    part, gate = wave[:, : 1_000 if block == 7 else 16_000], torch.rand(wave.shape[1]).round()
    enhanced = part * gate[: part.shape[1]]
    whole = gains_of(part, enhanced, block=16_000)
    torch.testing.assert_close(gains_of(part, enhanced, block=block), whole, atol=1e-6, rtol=1e-5)


def test_the_gain_follows_in_time_within_the_smoothing(wave):
    enhanced = wave.clone()
    enhanced[:, 8_000:] = 0
    found = gains_of(wave, enhanced, rate_hz=16_000)[0]
    assert found[: 8_000 - 600].min() > 0.99
    assert found[8_000 + 600 :].max() < 0.01


def test_levels_beyond_float32_squares_are_no_trouble(wave):
    assert gains_of(wave * 1e30, wave * 1e29).mean() == pytest.approx(0.1, abs=1e-3)
