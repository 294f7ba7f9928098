"""The STFT: torch as oracle, perfect reconstruction, and stream == whole for any block sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.audio.stft import IstftStream, Stft, StftStream
from auralign.errors import AudioError

SIZES = [(1024, 256), (2822, 706), (1022, 256), (15, 4), (2, 1), (512, 100), (9, 4)]


def noise(channels: int, time: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(channels, time, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
@pytest.mark.parametrize("length", [1, 2, 255, 1024, 5001])
def test_inverse_of_forward_is_the_sound(n_fft: int, hop: int, length: int) -> None:
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        x = noise(3, length, dtype=dtype)
        stft = Stft(n_fft, hop)
        spec = stft.forward(x)
        assert spec.shape == (3, stft.bins, stft.frames(length))
        assert (stft.inverse(spec, length) - x).abs().max() < limit


def test_reconstruction_error_of_sound_below_full_scale_is_under_1e_6() -> None:
    x = noise(2, 100_000).clamp(-3, 3) / 3
    for n_fft, hop in ((1024, 256), (2822, 706)):
        stft = Stft(n_fft, hop)
        assert (stft.inverse(stft.forward(x), 100_000) - x).abs().max() < 1e-6


def test_forward_is_torch_stft_with_zero_padding() -> None:
    x = noise(2, 4000)
    window = torch.hann_window(1024)
    want = torch.stft(x, 1024, 256, window=window, center=True, pad_mode="constant", return_complex=True)
    torch.testing.assert_close(Stft(1024, 256).forward(x), want)


def test_inverse_is_torch_istft_for_a_masked_spectrum() -> None:
    stft, x = Stft(512, 128), noise(2, 4000)
    spec = stft.forward(x)
    masked = spec * torch.rand(spec.shape, generator=torch.Generator().manual_seed(1))
    want = torch.istft(masked, 512, 128, window=torch.hann_window(512), length=4000)
    torch.testing.assert_close(stft.inverse(masked, 4000), want, atol=1e-6, rtol=0)


def test_a_frame_is_centred_on_its_sample() -> None:
    x = torch.zeros(1, 2000)
    x[0, 3 * 256] = 1
    power = Stft(1024, 256).forward(x).abs().sum(-2)
    assert power.argmax() == 3


@pytest.mark.parametrize("window", ["hann", "sqrt_hann", "hamming"])
def test_every_window_reconstructs(window: str) -> None:
    x = noise(1, 3000)
    stft = Stft(400, 133, window)
    torch.testing.assert_close(stft.inverse(stft.forward(x), 3000), x, atol=2e-5, rtol=0)


def test_gradient_passes_both_ways() -> None:
    x = noise(1, 1000).requires_grad_()
    stft = Stft(256, 64)
    stft.inverse(stft.forward(x), 1000).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach(), atol=1e-4, rtol=0)


def test_leading_axes_are_kept() -> None:
    x = noise(6, 700).reshape(2, 3, 700)
    stft = Stft(64, 16)
    spec = stft.forward(x)
    assert spec.shape[:2] == (2, 3)
    torch.testing.assert_close(stft.inverse(spec, 700), x, atol=1e-5, rtol=0)


@given(
    size=st.sampled_from(SIZES),
    length=st.integers(1, 6000),
    seed=st.integers(0, 2**16),
    channels=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_streamed_frames_and_samples_equal_the_whole(
    size: tuple[int, int], length: int, seed: int, channels: int
) -> None:
    rng = np.random.default_rng(seed)
    stft, x = Stft(*size), noise(channels, length, seed)
    cuts = np.sort(rng.integers(0, length + 1, rng.integers(0, 8)))
    blocks = torch.tensor_split(x, torch.tensor(cuts), dim=-1)
    forward, inverse = StftStream(stft, channels), IstftStream(stft, channels)
    specs, samples, expected_first = [], [], 0
    for i, block in enumerate(blocks):
        last = i == len(blocks) - 1
        out = forward.process(block, last=last)
        assert out.first == expected_first
        expected_first += out.spec.shape[-1]
        specs.append(out.spec)
        samples.append(inverse.process(out.spec, length=length if last else None))
    torch.testing.assert_close(torch.cat(specs, -1), stft.forward(x), atol=1e-5, rtol=1e-5)
    whole = stft.inverse(stft.forward(x), length)
    torch.testing.assert_close(torch.cat(samples, -1), whole, atol=2e-6, rtol=1e-5)


def test_stream_holds_a_constant_amount() -> None:
    stft = Stft(1024, 256)
    forward, inverse = StftStream(stft, 2), IstftStream(stft, 2)
    for _ in range(50):
        inverse.process(forward.process(torch.ones(2, 1000)).spec)
        assert forward._buffer.shape[-1] < 1024 + 1000
        assert inverse._wave.shape[-1] <= 1024


def test_a_masked_stream_equals_the_masked_whole() -> None:
    stft, x = Stft(2822, 706), noise(2, 30_000)
    mask = torch.rand(stft.bins, stft.frames(30_000), generator=torch.Generator().manual_seed(2))
    whole = stft.inverse(stft.forward(x) * mask, 30_000)
    forward, inverse, parts = StftStream(stft, 2), IstftStream(stft, 2), []
    for start in range(0, 30_000, 7001):
        last = start + 7001 >= 30_000
        out = forward.process(x[:, start : start + 7001], last=last)
        frames = slice(out.first, out.first + out.spec.shape[-1])
        parts.append(inverse.process(out.spec * mask[:, frames], length=30_000 if last else None))
    torch.testing.assert_close(torch.cat(parts, -1), whole, atol=1e-6, rtol=0)


def test_wrong_use_is_named() -> None:
    with pytest.raises(AudioError, match="hop"):
        Stft(1024, 513)
    with pytest.raises(AudioError, match="window"):
        Stft(1024, 256, "kaiser")
    with pytest.raises(AudioError, match="no samples"):
        Stft(1024, 256).forward(torch.zeros(1, 0))
    with pytest.raises(AudioError, match="frames"):
        Stft(1024, 256).inverse(torch.zeros(1, 513, 3, dtype=torch.complex64), 5000)
    stream = StftStream(Stft(8, 4), 1)
    stream.process(torch.ones(1, 3), last=True)
    with pytest.raises(AudioError, match="after the last"):
        stream.process(torch.ones(1, 3))
