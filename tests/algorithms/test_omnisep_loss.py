from __future__ import annotations

import math

import pytest
import torch

from auralign.algorithms.omnisep_loss import (
    binary_target,
    leak_db,
    magnitude_weight,
    mask_error_db,
    soft_bce,
    weighted_bce,
)
from auralign.metrics.sdr import snr
from auralign.models.bands import BandProjector, best_band_mask


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _bce(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def test_a_bin_belongs_to_a_source_that_exceeds_half_the_mixture():
    source = torch.tensor([0.6, 0.5, 0.4, 0.0]).reshape(1, 1, 1, 4)
    mixture = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 4)
    assert binary_target(source, mixture).flatten().tolist() == [1, 0, 0, 0]
    assert binary_target(source, mixture, n_sources=4).flatten().tolist() == [1, 1, 1, 0]


def test_targets_do_not_depend_on_the_level_and_cover_every_bin_of_two_sources():
    sources = _noise(3, 2, 8, 5).abs() + 1e-3
    mixture = sources.sum(dim=1)
    target = binary_target(sources, mixture)
    assert torch.equal(target.sum(dim=1), torch.ones(3, 8, 5))
    assert torch.equal(binary_target(sources * 1e-4, mixture * 1e-4), target)


@pytest.mark.parametrize(
    ("magnitude", "weight"), [(0.0, 1e-3), (1e-4, 1e-3), (1.0, math.log(2)), (math.e - 1, 1.0), (1e6, 10.0)]
)
def test_bin_weight_is_the_clamped_log_of_one_plus_magnitude(magnitude, weight):
    assert float(magnitude_weight(torch.tensor([magnitude]))[0]) == pytest.approx(weight, rel=1e-5)


def test_weighted_cross_entropy_equals_a_plain_loop():
    logits, weight = _noise(2, 3, 4, 5), _noise(2, 4, 5, seed=1).abs()
    target = (_noise(2, 3, 4, 5, seed=2) > 0).float()
    total = 0.0
    for b in range(2):
        for q in range(3):
            for f in range(4):
                for t in range(5):
                    place = (b, q, f, t)
                    total += float(weight[b, f, t]) * _bce(float(logits[place]), float(target[place]))
    assert float(weighted_bce(logits, target, weight)) == pytest.approx(total / 120, rel=1e-5)


def test_weighted_cross_entropy_survives_certain_wrong_masks_and_is_linear_in_the_weight():
    logits, weight = torch.full((1, 1, 2, 2), 200.0), torch.full((1, 2, 2), 0.5)
    assert float(weighted_bce(logits, torch.zeros(1, 1, 2, 2), weight)) == pytest.approx(100.0)
    assert float(weighted_bce(logits, torch.ones(1, 1, 2, 2), weight)) == 0
    logits, target = _noise(1, 2, 3, 4), torch.ones(1, 2, 3, 4)
    weight = _noise(1, 3, 4).abs()
    torch.testing.assert_close(
        weighted_bce(logits, target, 3 * weight), 3 * weighted_bce(logits, target, weight)
    )


def _scene(seed: int = 0):
    """Spectra of two queries' sources, their mixture, and its band energies and best masks."""
    bands = BandProjector(65, 20)
    sources = torch.complex(_noise(2, 2, 65, 6, seed=seed), _noise(2, 2, 65, 6, seed=seed + 1))
    mixture = sources.sum(dim=1)
    energy, best = best_band_mask(mixture[:, None], sources, bands)
    return bands, sources, mixture, energy[:, 0], best, bands(sources.abs().square())


def test_error_of_a_constant_mask_is_the_exact_snr_of_the_masked_mixture():
    _, sources, mixture, energy, best, source_energy = _scene()
    for value in (0.0, 0.3, 1.0):
        loss = mask_error_db(torch.full_like(best, value), best, energy, source_energy, floor=0.0)
        for b in range(2):
            for q in range(2):
                wanted = torch.view_as_real(sources[b, q]).flatten()[None]
                found = torch.view_as_real(value * mixture[b]).flatten()[None]
                error = (found - wanted).square().sum() / wanted.square().sum()
                assert float(loss[b, q]) == pytest.approx(float(10 * torch.log10(error)), abs=1e-3)
                if value > 0:
                    assert float(loss[b, q]) == pytest.approx(-float(snr(est=found, ref=wanted)), abs=1e-3)


def test_error_of_a_mask_that_is_constant_in_each_pair_of_bands_is_the_exact_snr():
    bands, sources, mixture, *_ = _scene(4)
    # where every bin belongs to one band only, any band mask is constant in a band
    bands.weight.copy_((bands.weight == bands.weight.amax(dim=0)).float())
    bands.weight.div_(bands.weight.sum(dim=0))
    single = (bands.weight > 0).sum(dim=0) == 1
    sources, mixture = sources * single[:, None], mixture * single[:, None]
    energy, best = best_band_mask(mixture[:, None], sources, bands)
    mask = torch.rand(2, 2, 20, 6, generator=torch.Generator().manual_seed(3))
    loss = mask_error_db(mask, best, energy[:, 0], bands(sources.abs().square()), floor=0.0)
    error = (bands.expand(mask) * mixture[:, None] - sources).abs().square().sum(dim=(2, 3))
    expected = 10 * torch.log10(error / sources.abs().square().sum(dim=(2, 3)))
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=0)


def test_error_is_least_at_the_best_mask_and_rises_both_ways():
    _, _, _, energy, best, source_energy = _scene()
    least = mask_error_db(best, best, energy, source_energy)
    for step in (-0.2, -0.01, 0.01, 0.2):
        assert (mask_error_db(best + step, best, energy, source_energy) > least).all()


def test_error_does_not_depend_on_the_level():
    _, _, _, energy, best, source_energy = _scene()
    mask = torch.sigmoid(best)
    loss = mask_error_db(mask, best, energy, source_energy)
    softer = mask_error_db(mask, best, energy * 1e-4, source_energy * 1e-4)
    torch.testing.assert_close(softer, loss, atol=1e-3, rtol=0)


def test_reward_of_a_perfect_mask_ends_at_the_floor_and_silence_is_finite():
    one = torch.ones(1, 1, 2, 2)
    assert float(mask_error_db(one, one, one[0], one, floor=1e-2)) == pytest.approx(-20)
    zero = torch.zeros(1, 1, 2, 2)
    assert mask_error_db(zero, zero, zero[0], zero).isfinite().all()
    assert mask_error_db(one, zero, zero[0], zero).isfinite().all()


def test_leak_is_the_energy_that_passes_relative_to_the_mixture():
    energy = _noise(2, 3, 4).square()
    for value in (1.0, 0.5, 0.1):
        leak = leak_db(torch.full((2, 2, 3, 4), value), energy, floor=0.0)
        torch.testing.assert_close(leak, torch.full((2, 2), 20 * math.log10(value)), atol=1e-4, rtol=0)
    mask = torch.zeros(2, 1, 3, 4)
    mask[:, :, 1] = 1
    expected = 10 * torch.log10(energy[:, 1].sum(dim=1) / energy.sum(dim=(1, 2)))
    torch.testing.assert_close(leak_db(mask, energy, floor=0.0)[:, 0], expected, atol=1e-4, rtol=0)


def test_leak_of_a_closed_mask_is_the_floor_and_silence_is_finite():
    assert float(leak_db(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2))) == pytest.approx(-20)
    assert leak_db(torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2)).isfinite().all()


def test_soft_cross_entropy_equals_a_plain_loop_with_magnitude_weights():
    logits, best, energy = _noise(2, 2, 3, 4), _noise(2, 2, 3, 4, seed=1), _noise(2, 3, 4, seed=2).square()
    total = 0.0
    for b in range(2):
        mean = float(energy[b].sqrt().mean())
        for q in range(2):
            for f in range(3):
                for t in range(4):
                    weight = min(10.0, math.sqrt(float(energy[b, f, t])) / mean)
                    wanted = min(1.0, max(0.0, float(best[b, q, f, t])))
                    total += weight * _bce(float(logits[b, q, f, t]), wanted)
    assert float(soft_bce(logits, best, energy)) == pytest.approx(total / 48, rel=1e-4)


def test_soft_cross_entropy_ignores_the_level_is_least_at_the_target_and_finite_in_silence():
    best = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    energy = _noise(1, 3, 4).square()
    at_target = soft_bce(torch.logit(best), best, energy)
    torch.testing.assert_close(soft_bce(torch.logit(best), best, energy * 1e4), at_target)
    for step in (-0.3, 0.3):
        assert soft_bce(torch.logit(best) + step, best, energy) > at_target
    assert soft_bce(torch.zeros_like(best), best, torch.zeros_like(energy)).isfinite()
