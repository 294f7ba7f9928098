from __future__ import annotations

import math

import pytest
import torch

from auralign.models.bands import (
    BandProjector,
    LogWarp,
    band_centres,
    best_band_mask,
    linear_to_warp,
    warp_to_linear,
)


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_warp_and_its_inverse_cancel_on_the_whole_axis():
    u = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(linear_to_warp(warp_to_linear(u)), u, atol=1e-12, rtol=0)
    torch.testing.assert_close(warp_to_linear(linear_to_warp(u)), u, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("u", "hertz"), [(0.0, 1433), (-0.5, 456), (1.0, 8000), (-1.0, 0)])
def test_warped_axis_has_the_published_frequencies_at_16_khz(u, hertz):
    y = float(warp_to_linear(torch.tensor(u, dtype=torch.float64)))
    assert round((y + 1) / 2 * 8000) == hertz


def test_warp_samples_bilinearly_between_neighbouring_bins():
    x = _noise(1, 1, 33, 5)
    warp = LogWarp(33, 16)
    position = (warp_to_linear(torch.linspace(-1, 1, 16, dtype=torch.float64)) + 1) / 2 * 32
    expected = torch.empty(16, 5)
    for row, place in enumerate(position.tolist()):
        low = min(math.floor(place + 1e-9), 31)
        share = place - low
        expected[row] = x[0, 0, low] * (1 - share) + x[0, 0, low + 1] * share
    torch.testing.assert_close(warp(x)[0, 0], expected, atol=1e-5, rtol=0)


def test_a_smooth_mask_survives_513_to_256_to_513_within_two_percent():
    k = torch.arange(513) / 512
    t = torch.arange(32) / 31
    mask = 0.5 + 0.4 * torch.sin(4 * math.pi * k)[:, None] * torch.cos(2 * math.pi * t)[None]
    warp = LogWarp(513, 256)
    back = warp.inverse(warp(mask[None, None]))[0, 0]
    assert back.shape == mask.shape
    assert (back - mask).abs().max() < 0.02


def test_warp_keeps_constants_exactly_and_frames_untouched():
    warp = LogWarp(65, 32)
    assert torch.allclose(warp(torch.full((2, 3, 65, 4), 0.7)), torch.tensor(0.7))
    ramp = torch.arange(6.0).expand(1, 1, 65, 6)
    torch.testing.assert_close(warp(ramp), torch.arange(6.0).expand(1, 1, 32, 6), atol=1e-5, rtol=0)


def test_warp_of_a_single_frame_works():
    assert LogWarp(65, 32)(_noise(1, 1, 65, 1)).isfinite().all()


def test_band_centres_rise_by_at_least_almost_one_bin_and_reach_both_ends():
    centres = band_centres(513, 128)
    assert centres[0] == 0
    assert abs(float(centres[-1]) - 512) < 1e-9
    steps = centres.diff()
    assert steps.min() > 0.99
    assert (steps.diff() > -1e-9).all()


@pytest.mark.parametrize(("n_bins", "n_bands"), [(513, 128), (513, 64), (129, 48), (17, 17), (9, 2)])
def test_bands_share_every_bin_out_completely(n_bins, n_bands):
    bands = BandProjector(n_bins, n_bands)
    torch.testing.assert_close(bands.weight.sum(dim=0), torch.ones(n_bins))
    assert (bands.weight >= 0).all()
    assert (bands.weight.sum(dim=1) > 0.4).all(), "no band may be empty"
    power = _noise(2, n_bins, 3).square()
    torch.testing.assert_close(bands(power).sum(dim=1), power.sum(dim=1))
    torch.testing.assert_close(bands.expand(torch.ones(n_bands, 3)), torch.ones(n_bins, 3))


def test_each_bin_lies_in_two_neighbouring_bands_at_most():
    weight = BandProjector(513, 128).weight
    for column in weight.t():
        hit = column.nonzero().flatten()
        assert len(hit) <= 2
        assert int(hit[-1] - hit[0]) <= 1


def test_expanding_a_band_mask_is_the_adjoint_of_pooling():
    bands = BandProjector(65, 20)
    mask, power = torch.rand(20, 4), torch.rand(65, 4)
    torch.testing.assert_close((bands(power) * mask).sum(), (power * bands.expand(mask)).sum())


def test_more_bands_than_bins_is_refused():
    with pytest.raises(ValueError, match="20 bands do not fit into 9 bins"):
        BandProjector(9, 20)


def _spectra(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.complex(_noise(65, 6, seed=seed), _noise(65, 6, seed=seed + 1))
    other = torch.complex(_noise(65, 6, seed=seed + 2), _noise(65, 6, seed=seed + 3))
    return source + other, source


def _error(bands: BandProjector, mixture: torch.Tensor, source: torch.Tensor, mask: torch.Tensor):
    """Per band and frame: sum_k W_bk |m X_k - S_k|^2, by the definition."""
    distance = (mask[:, None] * mixture[None] - source[None]).abs().square()  # (band, bin, frame)
    return (bands.weight[:, :, None] * distance).sum(dim=1)


def test_best_band_mask_has_no_gradient_and_beats_every_other_mask_on_a_grid():
    bands = BandProjector(65, 20)
    mixture, source = _spectra()
    _, best = best_band_mask(mixture, source, bands)
    leaf = best.clone().requires_grad_(True)
    _error(bands, mixture, source, leaf).sum().backward()
    assert leaf.grad.abs().max() < 1e-3
    least = _error(bands, mixture, source, best)
    for step in torch.linspace(-2, 2, 41):
        assert (_error(bands, mixture, source, torch.full_like(best, float(step))) >= least - 1e-4).all()


def test_error_of_any_mask_exceeds_the_best_by_energy_times_squared_distance():
    bands = BandProjector(65, 20)
    mixture, source = _spectra(9)
    energy, best = best_band_mask(mixture, source, bands)
    mask = torch.rand(20, 6)
    excess = _error(bands, mixture, source, mask) - _error(bands, mixture, source, best)
    torch.testing.assert_close(excess, energy * (mask - best).square(), atol=1e-3, rtol=1e-3)


def test_best_band_mask_of_the_mixture_itself_is_one_and_of_silence_is_zero():
    bands = BandProjector(65, 20)
    mixture, _ = _spectra()
    torch.testing.assert_close(best_band_mask(mixture, mixture, bands)[1], torch.ones(20, 6))
    silence = torch.zeros_like(mixture)
    energy, best = best_band_mask(silence, silence, bands)
    assert not energy.any()
    assert not best.any()
