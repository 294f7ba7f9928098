"""Resampling: exact lengths, no delay, stream == whole, physics of the low pass, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.audio.resample import StreamResampler, resample, resample_torch
from auralign.errors import AudioError

RATES = [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000, 12345, 44101]


def tone(frequency_hz: float, rate_hz: int, frames: int) -> np.ndarray:
    time = np.arange(frames) / rate_hz
    return np.sin(2 * np.pi * frequency_hz * time)[None].astype(np.float32)


@given(
    from_hz=st.sampled_from(RATES),
    to_hz=st.sampled_from(RATES),
    frames=st.integers(1, 9000),
    channels=st.integers(1, 3),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_streamed_equals_whole_and_length_is_exact(
    from_hz: int, to_hz: int, frames: int, channels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((channels, frames)) * 0.3).astype(np.float32)
    whole = resample(x, from_hz, to_hz)
    assert whole.shape == (channels, max(1, round(frames * to_hz / from_hz)))
    stream, parts = StreamResampler(from_hz, to_hz, channels), []
    blocks = np.split(x, np.sort(rng.integers(0, frames + 1, rng.integers(0, 6))), axis=1)
    for i, block in enumerate(blocks):
        parts.append(stream.process(block, last=i == len(blocks) - 1))
    streamed = np.concatenate(parts, axis=1)
    assert streamed.shape == whole.shape
    assert np.abs(streamed - whole).max() <= 1e-6


@pytest.mark.parametrize("from_hz", RATES)
@pytest.mark.parametrize("to_hz", [16000, 44100])
def test_a_tone_keeps_its_phase(from_hz: int, to_hz: int) -> None:
    out = resample(tone(440, from_hz, from_hz), from_hz, to_hz)
    want = tone(440, to_hz, to_hz)
    middle = slice(to_hz // 10, -to_hz // 10)
    assert np.abs(out[:, middle] - want[:, middle]).max() < 1e-3


def test_what_lies_above_the_new_nyquist_is_gone() -> None:
    out = resample(tone(15000, 48000, 48000), 48000, 16000)[:, 800:-800]
    assert np.abs(out).max() < 1e-4


def test_one_shot_of_soxr_is_the_oracle() -> None:
    x = np.random.default_rng(0).standard_normal((44100, 2)).astype(np.float32)
    want = soxr.resample(x, 44100, 16000, quality="HQ").T
    got = resample(np.ascontiguousarray(x.T), 44100, 16000)
    assert np.abs(got - want[:, : got.shape[1]]).max() < 1e-6


def test_same_rate_copies_and_bad_input_is_refused() -> None:
    x = np.ones((1, 3), np.float32)
    out = resample(x, 8000, 8000)
    out[:] = 0
    assert x.all()
    with pytest.raises(AudioError, match="NaN"):
        resample(np.array([[0, np.nan]], np.float32), 8000, 16000)
    with pytest.raises(AudioError, match="rate"):
        resample(x, 0, 16000)
    stream = StreamResampler(8000, 16000, 1)
    stream.process(x, last=True)
    with pytest.raises(AudioError, match="after the last"):
        stream.process(x)


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(44100, 16000), (48000, 16000), (16000, 44100), (8000, 16000)]
)
def test_the_differentiable_resampler_agrees_with_soxr_below_the_cutoff(from_hz: int, to_hz: int) -> None:
    limit = min(from_hz, to_hz) / 2
    rng = np.random.default_rng(0)
    x = sum(tone(float(f), from_hz, from_hz) for f in rng.uniform(50, 0.85 * limit, 12)) / 12
    x = np.asarray(x, np.float32)
    want = resample(x, from_hz, to_hz)
    got = resample_torch(torch.from_numpy(x), from_hz, to_hz).numpy()
    assert got.shape == want.shape
    edge = to_hz // 20
    assert np.abs(got - want)[:, edge:-edge].max() < 1e-4


def test_the_differentiable_resampler_stops_what_would_alias() -> None:
    out = resample_torch(torch.from_numpy(tone(9000, 48000, 48000)), 48000, 16000)
    assert out[:, 800:-800].abs().max() < 1e-3


def test_the_differentiable_resampler_has_the_gradient_of_a_linear_map() -> None:
    x = torch.randn(2, 60, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: resample_torch(v, 3, 2, zeros=4), (x,))
    y = torch.randn(1, 500, dtype=torch.float64)
    constant = resample_torch(torch.ones(1, 2000, dtype=torch.float64), 44100, 16000)[:, 100:-100]
    assert (constant - 1).abs().max() < 1e-3
    assert torch.equal(resample_torch(y, 8000, 8000), y)


def test_a_filter_bank_too_large_for_memory_is_refused() -> None:
    with pytest.raises(AudioError, match="filter bank"):
        resample_torch(torch.zeros(1, 100), 44101, 16000)
