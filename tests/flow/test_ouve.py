"""The diffusion of SGMSE+: closed forms against integration, sampling against Gaussians with known scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from auralign.errors import UsageError
from auralign.flow.ouve import OUVE, PredictorCorrector, langevin_step, reverse_diffusion_mean, sample
from auralign.flow.path import along
from auralign.flow.schedule import stopped, uniform

SGMSE, FULLBAND = OUVE(), OUVE(2.0, 0.1, 1.0)
NO_CORRECTION = PredictorCorrector(corrections=0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def no_score(x, t):
    return torch.zeros_like(x)


@pytest.mark.parametrize("sde", [SGMSE, FULLBAND, OUVE(0.3, 0.2, 0.25)])
def test_mean_and_variance_solve_their_equations(sde):
    """dμ/dt = θ (y − μ), dσ²/dt = −2 θ σ² + g², integrated by scipy."""

    def right_side(t, state):
        g = sde.diffusion(torch.tensor([t], dtype=torch.float64)).item()
        return [sde.theta * (0.7 - state[0]), -2 * sde.theta * state[1] + g * g]

    times = torch.linspace(0, 1, 7, dtype=torch.float64)
    ref = solve_ivp(right_side, (0, 1), [-1.3, 0.0], t_eval=times.numpy(), rtol=1e-10, atol=1e-12)
    x_0, y = torch.full((7, 1), -1.3, dtype=torch.float64), torch.full((7, 1), 0.7, dtype=torch.float64)
    np.testing.assert_allclose(sde.mean(x_0, y, times)[:, 0], ref.y[0], rtol=1e-8)
    np.testing.assert_allclose(sde.std(times).square(), ref.y[1], rtol=1e-7, atol=1e-10)


def test_closed_forms_are_those_of_the_paper():
    """The variance as printed, at SGMSE's setting."""
    t = np.array([0.03, 0.5, 1.0])
    k = np.log(10.0)
    ref = 0.05**2 * (10.0 ** (2 * t) - np.exp(-3.0 * t)) * k / (1.5 + k)
    np.testing.assert_allclose(SGMSE.std(torch.from_numpy(t)).square(), ref, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_simulated_forward_process_has_the_marginals(dtype):
    """Euler-Maruyama from one x₀: real and complex states have the same mean and E|x − μ|²."""
    x = torch.full((4000, 1), -0.5, dtype=dtype)
    x_0, y = x.clone(), torch.full_like(x, 0.8)
    generator, steps = seeded(), 100
    for k in range(steps):
        t = torch.full((len(x),), (k + 0.5) / steps, dtype=torch.float64)
        noise = torch.randn(x.shape, dtype=dtype, generator=generator)
        x = x + SGMSE.drift(x, y) / steps + along(SGMSE.diffusion(t), x) * noise / steps**0.5
    one = torch.ones(len(x), dtype=torch.float64)
    sigma = SGMSE.std(one)[0].item()
    assert abs((x - SGMSE.mean(x_0, y, one)).mean()) < 4 * sigma / len(x) ** 0.5
    spread = (x - SGMSE.mean(x_0, y, one)).abs().square().mean().item()
    assert spread == pytest.approx(sigma**2, rel=0.1)  # four standard errors of a variance of 4000


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gaussian_score_is_the_derivative_of_the_density(dtype):
    """By autograd; torch's gradient of a real function is twice the derivative in the conjugate."""
    x, x_0, y = (torch.randn(3, 2, dtype=dtype, generator=seeded(s)) for s in range(3))
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    x.requires_grad_(True)
    complex_kind = dtype.is_complex
    power = (x - SGMSE.mean(x_0, y, t)).abs().square() / along(SGMSE.std(t), x).abs().square()
    log_density = -power.sum() if complex_kind else -power.sum() / 2
    (gradient,) = torch.autograd.grad(log_density, x)
    torch.testing.assert_close(
        SGMSE.gaussian_score(x.detach(), x_0, y, t), gradient / 2 if complex_kind else gradient
    )


def test_without_a_score_a_step_is_the_forward_drift_undone():
    x, y = torch.randn(2, 2, 3, dtype=torch.complex128, generator=seeded())
    t, t_next = torch.tensor([0.8, 0.5]).double(), torch.tensor([0.6, 0.4]).double()
    out = reverse_diffusion_mean(SGMSE, no_score, x, y, t, t_next)
    torch.testing.assert_close(out, y + (x - y) * (1 + 1.5 * (t - t_next))[:, None])


def test_without_a_score_a_correction_only_adds_noise():
    x = torch.zeros(20_000, 1, dtype=torch.complex128)
    t = torch.full((len(x),), 0.4, dtype=torch.float64)
    out = langevin_step(SGMSE, no_score, x, t, snr=0.5, generator=seeded())
    assert out.abs().square().mean().item() == pytest.approx(SGMSE.std(t)[0].item() ** 2, rel=0.03)
    assert out.real.square().mean().item() == pytest.approx(out.imag.square().mean().item(), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_corrections_keep_the_gaussian_they_belong_to(dtype):
    """The stationary variance of a Langevin step of size ε on variance σ² is σ² / (1 − ε / (2σ²)) for a score −x/σ²."""
    t = torch.full((20_000,), 0.4, dtype=torch.float64)
    sigma = SGMSE.std(t)[0].item()
    x = sigma * torch.randn(len(t), 1, dtype=dtype, generator=seeded(1))
    for step in range(40):
        x = langevin_step(SGMSE, lambda x, t: -x / sigma**2, x, t, snr=0.1, generator=seeded(step + 2))
    epsilon = 2 * (0.1 * sigma) ** 2
    assert x.abs().square().mean().item() == pytest.approx(
        sigma**2 / (1 - epsilon / (2 * sigma**2)), rel=0.05
    )


def gaussian_target(mean, spread, noisy):
    """Exact score of data N(mean, spread²), seen through the process around the noisy value."""

    def score(x, t):
        center = SGMSE.mean(torch.full_like(x, mean), torch.full_like(x, noisy), t)
        variance = (-2 * SGMSE.theta * t).exp() * spread**2 + SGMSE.std(t).square()
        return (center - x) / along(variance, x)

    return score


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("how", [NO_CORRECTION, PredictorCorrector(0.1, 1)])
def test_a_gaussian_target_is_recovered(dtype, how):
    """Many small steps from the exact marginal at t = 1 give the data's mean and spread."""
    items, mean, spread, noisy = 4000, 0.6, 0.3, -0.4
    score = gaussian_target(mean, spread, noisy)
    one = torch.ones(1)
    deviation = ((-2 * SGMSE.theta * one).exp() * spread**2 + SGMSE.std(one).square()).sqrt()
    y = torch.full((items, 1), noisy, dtype=dtype)
    first = SGMSE.mean(torch.full_like(y, mean), y, torch.ones(items))
    first = first + deviation * torch.randn(y.shape, dtype=dtype, generator=seeded(5))
    x = sample(SGMSE, score, y, uniform(120), generator=seeded(6), how=how, start=first)
    assert x.mean().real.item() == pytest.approx(mean, abs=0.02)
    assert (x - x.mean()).abs().square().mean().sqrt().item() == pytest.approx(spread, rel=0.05)


def test_a_wrong_sign_of_the_score_is_seen():
    """The check above fails when the score is negated, as it is when the sign of a checkpoint is lost."""
    score = gaussian_target(0.6, 0.3, -0.4)
    y = torch.full((200, 1), -0.4)
    x = sample(SGMSE, lambda x, t: -score(x, t), y, uniform(50), generator=seeded(), how=NO_CORRECTION)
    assert not abs(x.mean() - 0.6) < 0.1


def test_published_settings_find_one_clean_value():
    """30 steps with one correction of 0.5 each from y: with the score of a single x₀ the last step lands near it."""
    x_0, y = torch.full((500, 1), 0.6 + 0.2j), torch.full((500, 1), 0.1 - 0.3j)
    asked = []

    def score(x, t):
        asked.append(t[0].item())
        return SGMSE.gaussian_score(x, x_0, y, t)

    how = PredictorCorrector()
    x = sample(SGMSE, score, y, stopped(30), generator=seeded(), how=how)
    assert len(asked) == how.evaluations(30) == 60
    assert min(asked) == pytest.approx(0.03)
    assert (x - x_0).abs().square().mean().sqrt() < 0.05 < (y - x_0).abs().square().mean().sqrt()


def test_equal_seeds_give_equal_results_and_the_last_step_has_no_noise():
    y = torch.randn(2, 4, dtype=torch.complex64, generator=seeded())
    first, again, other = (sample(SGMSE, no_score, y, uniform(3), generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    alone = sample(
        SGMSE, no_score, y, torch.tensor([0.5, 0.0]), generator=seeded(), how=NO_CORRECTION, start=2 * y
    )
    torch.testing.assert_close(alone, y + y * (1 + 1.5 * 0.5))


def test_start_has_the_prior_of_the_paper():
    y = torch.full((20_000, 1), 1.0 + 1.0j)
    x = SGMSE.draw(y, generator=seeded())
    sigma = SGMSE.std(torch.ones(1)).item()
    assert (x - y).abs().square().mean().sqrt().item() == pytest.approx(sigma, rel=0.02)
    real = SGMSE.draw(torch.zeros(20_000, 1), generator=seeded())
    assert real.std().item() == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize(
    "settings", [(0.0, 0.05, 0.5), (1.5, 0.5, 0.05), (1.5, 0.0, 0.5), (float("nan"), 0.05, 0.5)]
)
def test_processes_that_are_none_are_refused(settings):
    with pytest.raises(UsageError, match="OUVE"):
        OUVE(*settings)


@pytest.mark.parametrize("settings", [(0.0, 1), (float("inf"), 1), (0.5, -1)])
def test_corrections_that_are_none_are_refused(settings):
    with pytest.raises(UsageError, match="corrections"):
        PredictorCorrector(*settings)


def test_times_that_rise_are_refused():
    with pytest.raises(UsageError, match="fall"):
        sample(SGMSE, no_score, torch.zeros(1, 1), torch.tensor([0.0, 1.0]), generator=seeded())


def test_nothing_in_a_batch_is_nothing():
    x = sample(SGMSE, no_score, torch.zeros(0, 3), uniform(2), generator=seeded())
    assert x.shape == (0, 3)
