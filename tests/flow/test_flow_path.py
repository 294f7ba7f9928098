from __future__ import annotations

import math

import pytest
import torch

from auralign.errors import UsageError
from auralign.flow.path import (
    StraightPath,
    noise_prior,
    noisy_mean,
    reverse_time,
    standard_normal_like,
    velocity_from_data,
)

SHAPES = {"latent": (3, 8, 5), "spectrogram": (3, 1, 4, 6)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(kind: str, seed: int = 0):
    dtype = torch.complex128 if kind == "spectrogram" else torch.float64
    return torch.randn(SHAPES[kind], dtype=dtype, generator=seeded(seed))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("around", ["noise", "noisy"])
def test_the_true_velocity_gives_back_both_ends_and_the_noise(kind, around):
    x_0, t = drawn(kind), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    path = noise_prior() if around == "noise" else noisy_mean(drawn(kind, 1))
    x_1 = path.draw(x_0, generator=seeded(2))
    x, v = path.between(x_0, x_1, t), x_1 - x_0
    torch.testing.assert_close(path.data(x, v, t), x_0)
    torch.testing.assert_close(path.prior(x, v, t), x_1)
    torch.testing.assert_close(path.noise(x, v, t), standard_normal_like(x_0, generator=seeded(2)))
    torch.testing.assert_close(velocity_from_data(x, x_0, t), v)


def test_the_derivative_of_the_path_is_its_target_velocity():
    x_0, x_1 = drawn("latent"), drawn("latent", 1)
    t = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    path, step = noise_prior(), 0.1
    slope = (path.between(x_0, x_1, t + step) - path.between(x_0, x_1, t)) / step
    torch.testing.assert_close(slope, x_1 - x_0)


def test_the_score_is_the_gradient_of_the_log_density():
    noisy, mean, std, t = 0.7, -0.4, 0.3, 0.6
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1).requires_grad_()
    path = noisy_mean(torch.full_like(x, noisy).detach())
    m_t, var_t = (1 - t) * mean + t * noisy, (1 - t) ** 2 * std**2 + t**2 * path.scale**2
    v = noisy - mean + (t * path.scale**2 - (1 - t) * std**2) / var_t * (x - m_t)
    density = torch.distributions.Normal(m_t, math.sqrt(var_t)).log_prob(x)
    (wanted,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(path.score(x, v, torch.full((9,), t, dtype=torch.float64)), wanted)


def test_flowmse_forward_drift_needs_no_network():
    """Forward SDE of flowmse: drift (y − x) / (1 − t) with g² = 2 σ_max² t / (1 − t), whatever the velocity."""
    x, v, noisy = drawn("spectrogram"), drawn("spectrogram", 1), drawn("spectrogram", 2)
    path, t = noisy_mean(noisy), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    time = t.view(3, 1, 1, 1)
    g_squared = 2 * path.scale**2 * time / (1 - time)
    torch.testing.assert_close(v + g_squared / 2 * path.score(x, v, t), (noisy - x) / (1 - time))


def test_the_u_transform_goes_there_and_back_and_carries_the_velocity():
    x, path, t = drawn("latent"), noisy_mean(drawn("latent", 1)), torch.full((3,), 0.4, dtype=torch.float64)
    torch.testing.assert_close(path.restore(path.standardise(x)), x)
    plain, v = noise_prior(), drawn("latent", 2)
    u, v_u = path.standardise(x), path.standard_velocity(lambda x, t: v)(path.standardise(x), t)
    torch.testing.assert_close(plain.noise(u, v_u, t), path.noise(x, v, t))
    torch.testing.assert_close(path.restore(plain.data(u, v_u, t)), path.data(x, v, t))


def test_complex_noise_has_half_the_variance_in_each_part():
    noise = standard_normal_like(torch.zeros(4, 50_000, dtype=torch.complex64), generator=seeded())
    assert noise.real.var().item() == pytest.approx(0.5, rel=0.01)
    assert noise.imag.var().item() == pytest.approx(0.5, rel=0.01)
    assert (noise.real * noise.imag).mean().item() == pytest.approx(0, abs=0.005)


def test_complex_score_is_half_the_real_one_of_twice_the_channels():
    x, v, noisy = (drawn("spectrogram", seed) for seed in range(3))
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    parts = torch.view_as_real
    real = StraightPath(parts(noisy), 0.487 / math.sqrt(2)).score(parts(x), parts(v), t)
    torch.testing.assert_close(2 * parts(noisy_mean(noisy).score(x, v, t)), real)


def test_members_may_share_their_noise():
    noise = standard_normal_like(torch.zeros(6, 4), generator=seeded(), shared=3)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[2], noise[3])
    with pytest.raises(UsageError, match="divide"):
        standard_normal_like(torch.zeros(6, 4), generator=seeded(), shared=4)


def test_half_precision_states_get_single_precision_noise():
    assert (
        standard_normal_like(torch.zeros(2, 3, dtype=torch.bfloat16), generator=seeded()).dtype
        == torch.float32
    )


def test_the_other_direction_is_turned_round():
    x_0, x_1, t = drawn("latent"), drawn("latent", 1), torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    seen = {}

    def towards_data(x, t):
        seen["t"] = t
        return x_0 - x_1

    torch.testing.assert_close(reverse_time(towards_data)(x_0, t), x_1 - x_0)
    torch.testing.assert_close(seen["t"], 1 - t)


def test_a_path_of_other_items_is_refused_and_at_takes_them():
    noisy = drawn("latent")
    path = noisy_mean(noisy)
    torch.testing.assert_close(path.at(torch.tensor([2, 2, 0])).center, noisy[[2, 2, 0]])
    with pytest.raises(UsageError, match=r"path\.at"):
        path.standardise(noisy[:2])
    assert noise_prior().at(torch.tensor([0])).center is None


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_prior_without_spread_is_refused(scale):
    with pytest.raises(UsageError, match="no Gaussian"):
        StraightPath(scale=scale)
