"""A Gaussian target has a closed-form velocity, and every step is affine in x, so that moments go through exactly."""

from __future__ import annotations

import math

import pytest
import torch

from auralign.flow.path import StraightPath
from auralign.flow.schedule import shifted, stopped, uniform
from auralign.flow.sde import CPS, DanceSDE, FlowPolicy, FlowSDE, NoiseLaw

MEAN, STD = 1.3, 0.4


def gaussian_velocity(x, t, *, center=0.0, scale=1.0, mean=MEAN, std=STD):
    """E[x₁ − x₀ | x_t = x] for x₀ ~ N(mean, std²), x₁ ~ N(center, scale²)."""
    m_t, var_t = gaussian_marginal(t, center=center, scale=scale, mean=mean, std=std)
    return center - mean + (t * scale**2 - (1 - t) * std**2) / var_t * (x - m_t)


def gaussian_marginal(t, *, center=0.0, scale=1.0, mean=MEAN, std=STD):
    return (1 - t) * mean + t * center, (1 - t) ** 2 * std**2 + t**2 * scale**2


def walked_moments(law: NoiseLaw, times, *, center=0.0, scale=1.0, mean=MEAN, std=STD):
    """Mean and std at every knot, by the package's own step on two probes of every step."""
    t, t_next = times[:-1].repeat(2), times[1:].repeat(2)
    steps = len(times) - 1
    x = torch.cat([torch.zeros(steps, 1), torch.ones(steps, 1)]).double()
    v = gaussian_velocity(x, t[:, None], center=center, scale=scale, mean=mean, std=std)
    path = StraightPath(torch.full_like(x, center), scale)
    step = FlowPolicy(law, path).step(x, v, t, t_next)
    at_zero, at_one = step.mean.view(2, steps)
    m_t, var_t = gaussian_marginal(float(times[0]), center=center, scale=scale, mean=mean, std=std)
    moments = [(m_t, math.sqrt(var_t))]
    for offset, slope, spread in zip(
        at_zero.tolist(), (at_one - at_zero).tolist(), step.std[:steps].tolist(), strict=True
    ):
        m, s = moments[-1]
        moments.append((offset + slope * m, math.sqrt((slope * s) ** 2 + spread**2)))
    return torch.tensor(moments, dtype=torch.float64)


def std_error(law: NoiseLaw, times, *, below: float = 1.0, **target) -> float:
    """Largest difference of the standard deviation from the path's, over knots at t ≤ below."""
    wanted = gaussian_marginal(times, **target)[1].sqrt()
    found = walked_moments(law, times, **target)[:, 1]
    return float((found - wanted).abs()[times <= below].max())


@pytest.mark.parametrize(
    ("steps", "ode", "flow", "dance", "cps"),
    [
        (10, 0.3391, 0.3808, 0.3513, 0.2773),
        (40, 0.3839, 0.3968, 0.3871, 0.3071),
        (1000, 0.3993, 0.4006, 0.3995, 0.3219),
    ],
)
def test_table_of_final_standard_deviations(steps, ode, flow, dance, cps):
    laws = DanceSDE(0.0), FlowSDE(0.7, "guard"), DanceSDE(0.3), CPS(0.8)
    for law, wanted in zip(laws, (ode, flow, dance, cps), strict=True):
        mean, std = walked_moments(law, uniform(steps))[-1].tolist()
        assert mean == pytest.approx(MEAN, abs=1e-9)
        assert std == pytest.approx(wanted, abs=6e-5), law


def test_table_of_step_spreads():
    t = uniform(10)
    noise = FlowSDE(0.7, "guard").step_noise(t[:-1], t[1:])
    assert noise.spread.numpy().round(3).tolist() == [
        *(0.7, 0.664, 0.443, 0.338, 0.271, 0.221, 0.181, 0.145, 0.111, 0.074)
    ]


@pytest.mark.parametrize("grid", [uniform, shifted, lambda steps: stopped(steps)[:-1]])
@pytest.mark.parametrize(
    "law",
    [FlowSDE(0.4), FlowSDE(0.7), FlowSDE(1.4), DanceSDE(0.0), DanceSDE(0.3), DanceSDE(0.7), DanceSDE(1.4)],
)
def test_marginals_are_the_paths_and_converge_at_first_order(law, grid):
    def inside(steps):
        times = grid(steps)
        return times[times <= 0.8]

    coarse, fine = std_error(law, inside(1000)), std_error(law, inside(2000))
    assert fine < 2e-3
    assert 1.7 < coarse / fine < 2.3


@pytest.mark.parametrize("law", [FlowSDE(0.7), DanceSDE(0.5)])
def test_marginals_hold_around_a_noisy_mean(law):
    target = {"center": -2.0, "scale": 0.487, "mean": 0.9, "std": 0.3}
    times = uniform(2000)[200:]
    wanted = gaussian_marginal(times, **target)[0]
    assert std_error(law, times, **target) < 2e-3
    assert float((walked_moments(law, times, **target)[:, 0] - wanted).abs().max()) < 1e-9


@pytest.mark.parametrize("level", [0.4, 0.7, 1.4])
def test_guarded_first_step_slows_flow_sde_to_the_power_of_its_squared_level(level):
    """σ² ~ a² / (1 − t) is never small against 1 / Δ near t = 1; what the first steps do wrong decays as K^(−a²)."""
    law = FlowSDE(level, "guard")
    coarse, fine = (std_error(law, uniform(steps), below=0.9) for steps in (2000, 8000))
    assert math.log(coarse / fine, 4) == pytest.approx(min(1, level**2), abs=0.03)


@pytest.mark.parametrize("grid", [uniform(3), shifted(7), stopped(5)])
@pytest.mark.parametrize("level", [0.3, 0.8, 1.0])
def test_cps_keeps_the_marginals_of_a_single_point_exactly(grid, level):
    found = walked_moments(CPS(level), grid, std=0.0)
    mean, var = gaussian_marginal(grid, std=0.0)
    torch.testing.assert_close(found, torch.stack([mean, var.sqrt()], 1), rtol=0, atol=1e-12)


def test_cps_contracts_the_variance_of_a_spread_target():
    assert walked_moments(CPS(0.8), uniform(4000))[-1, 1] < 0.33


@pytest.mark.parametrize("level", [0.0, 0.25, 0.8, 1.0])
def test_cps_keeps_the_sum_of_squared_noise_weights(level):
    t = uniform(9)
    noise = CPS(level).step_noise(t[:-1], t[1:])
    torch.testing.assert_close((t[1:] + noise.pull) ** 2 + noise.spread**2, t[1:] ** 2)
    assert noise.spread[-1] == 0
