from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.metrics.sdr import si_sdr, si_sdri
from auralign.rewards.base import Scene
from auralign.rewards.signal import FidelityReward, bounded_si_sdr

SAMPLES = 2000


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _scene(batch: int = 3, group: int = 4, *, target: torch.Tensor | None = None) -> Scene:
    wanted = 0.1 * _noise(batch, SAMPLES, seed=1) if target is None else target
    mixture = wanted + 0.1 * _noise(batch, SAMPLES, seed=2)
    share = torch.linspace(0, 1, group)[None, :, None]
    return Scene(wanted[:, None] * (1 - share) + mixture[:, None] * share, mixture, 16_000, target=wanted)


@pytest.mark.parametrize("level_db", [-15.0, -5.0, 0.0, 5.0, 15.0])
def test_between_its_ceilings_it_is_the_si_sdr_of_the_metrics(level_db):
    ref = _noise(4, SAMPLES)
    est = ref + 10 ** (-level_db / 20) * _noise(4, SAMPLES, seed=3)
    expected = si_sdr(est=est, ref=ref).float()
    # the soft ceiling of 40 dB takes 10 log10(1 + 10^(-2.5)) = 0.014 dB at 15 dB
    torch.testing.assert_close(bounded_si_sdr(est, ref), expected, atol=0.03, rtol=0)


def test_it_levels_off_for_perfect_and_for_orthogonal_estimates():
    ref = _noise(SAMPLES)
    assert float(bounded_si_sdr(ref, ref)) == pytest.approx(40.0, abs=0.01)
    rest = _noise(SAMPLES, seed=4)
    rest = rest - ref * (rest @ ref) / (ref @ ref)
    assert float(bounded_si_sdr(rest, ref)) == pytest.approx(-40.0, abs=0.01)
    assert float(bounded_si_sdr(torch.zeros(SAMPLES), ref)) == -40.0
    assert bounded_si_sdr(ref, torch.zeros(SAMPLES)).isnan()


@settings(max_examples=20, deadline=None)
@given(gain_db=st.floats(-100, 60))
def test_the_level_of_the_estimate_changes_nothing(gain_db):
    scene = _scene()
    louder = Scene(scene.estimate * 10 ** (gain_db / 20), scene.mixture, 16_000, target=scene.target)
    torch.testing.assert_close(FidelityReward()(louder), FidelityReward()(scene), atol=1e-4, rtol=0)


def test_the_reward_is_the_bounded_improvement():
    scene = _scene()
    est = scene.estimate[:, 1:3]
    gained = si_sdri(
        est=est, ref=scene.target[:, None].expand_as(est), mixture=scene.mixture[:, None].expand_as(est)
    ).float()
    expected = 2 * torch.tanh(gained / 20)
    torch.testing.assert_close(FidelityReward()(scene)[:, 1:3], expected, atol=2e-3, rtol=0)


def test_better_estimates_score_higher_and_the_mixture_scores_nothing():
    reward = FidelityReward()(_scene(group=6))
    assert (reward.diff(dim=1) < 0).all()
    torch.testing.assert_close(reward[:, -1], torch.zeros(3), atol=1e-5, rtol=0)
    assert (reward.abs() <= 2).all()


def test_silence_is_punished_and_not_left_out():
    scene = _scene()
    silent = Scene(torch.zeros_like(scene.estimate), scene.mixture, 16_000, target=scene.target)
    assert (FidelityReward()(silent) < -1.9).all()


def test_without_a_target_nothing_is_scored():
    scene = _scene()
    assert FidelityReward()(Scene(scene.estimate, scene.mixture, 16_000)).isnan().all()
    silent = scene.target.clone()
    silent[1] = 0
    scored = FidelityReward()(Scene(scene.estimate, scene.mixture, 16_000, target=silent))
    assert scored[1].isnan().all()
    assert scored[[0, 2]].isfinite().all()


def test_where_the_mixture_is_the_target_it_is_best_left_alone():
    target = _noise(1, SAMPLES)
    halves = torch.stack([target, target + 0.3 * _noise(1, SAMPLES, seed=5)], dim=1)
    kept, spoiled = FidelityReward()(Scene(halves, target, 16_000, target=target))[0]
    assert float(kept) == pytest.approx(0.0, abs=1e-5)
    assert float(spoiled) < -1


def test_its_gradient_is_finite_everywhere_and_points_to_the_target():
    scene = _scene(batch=2, group=3)
    estimate = scene.estimate.clone()
    estimate[0, 0] = 0  # silent
    estimate[1, 0] = scene.target[1]  # perfect
    estimate.requires_grad_()
    silent = scene.target.clone()
    silent[0] = 0
    for target in (scene.target, silent):
        reward = FidelityReward()(Scene(estimate, scene.mixture, 16_000, target=target))
        (gradient,) = torch.autograd.grad(reward.nansum(), estimate)
        assert gradient.isfinite().all()
    better = estimate.detach() + 1e-3 * gradient / gradient.norm()
    before = FidelityReward()(Scene(estimate.detach(), scene.mixture, 16_000, target=scene.target))[1, 1]
    after = FidelityReward()(Scene(better, scene.mixture, 16_000, target=scene.target))[1, 1]
    assert float(after) > float(before)


def test_low_precision_input_is_scored_in_float32():
    scene = _scene()
    half = Scene(scene.estimate.bfloat16(), scene.mixture, 16_000, target=scene.target)
    reward = FidelityReward()(half)
    assert reward.dtype == torch.float32
    torch.testing.assert_close(reward[:, 1:], FidelityReward()(scene)[:, 1:], atol=0.02, rtol=0)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(UsageError, match="limit_db"):
        FidelityReward(limit)
