from __future__ import annotations

import math

import pytest
import torch

from auralign.errors import UsageError
from auralign.flow.ode import Solver, evaluations, solve
from auralign.flow.schedule import shifted, uniform

SOLVERS: dict[Solver, int] = {"euler": 1, "midpoint": 2, "heun": 2, "multistep": 2}


def swinging(x, t):
    """dx/dt = x cos 2t, with x(t) = x(1) exp((sin 2t − sin 2) / 2)."""
    return x * torch.cos(2 * t).view(-1, *[1] * (x.dim() - 1))


def error(solver: Solver, times, dtype=torch.float64) -> float:
    start = torch.full((2, 3), 1.5, dtype=dtype)
    wanted = 1.5 * math.exp((math.sin(2 * float(times[-1])) - math.sin(2 * float(times[0]))) / 2)
    return float((solve(swinging, start, times, solver=solver) - wanted).abs().max())


@pytest.mark.parametrize("grid", [uniform, shifted, lambda steps: 0.1 + 0.8 * uniform(steps)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_halving_the_step_shows_the_order(solver, grid):
    assert math.log2(error(solver, grid(100)) / error(solver, grid(200))) == pytest.approx(
        SOLVERS[solver], abs=0.15
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_straight_flows_need_one_step(solver):
    data = torch.randn(2, 3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    start = torch.zeros_like(data)
    for steps in (1, 2, 5):
        solved = solve(lambda x, t: (x - data) / t.view(2, 1, 1), start, uniform(steps), solver=solver)
        torch.testing.assert_close(solved, data)


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_are_counted_and_never_at_zero(solver):
    seen = []

    def field(x, t):
        seen.append(float(t.min()))
        assert t.shape == (2,)
        return -x

    for times in (uniform(4), uniform(4)[:-1]):
        seen.clear()
        solve(field, torch.ones(2, 3), times, solver=solver)
        assert len(seen) == evaluations(solver, times)
        assert min(seen) > 0


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_a_grid_may_be_walked_in_parts(solver):
    times, start = shifted(8), torch.ones(2, 3)
    whole = solve(swinging, start, times, solver=solver)
    assert torch.equal(
        whole, solve(swinging, solve(swinging, start, times[:4], solver=solver), times[3:], solver=solver)
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_reach_the_start_and_the_field(solver):
    start = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda start, rate: solve(lambda x, t: rate * x * t[:, None], start, uniform(3), solver=solver),
        (start, rate),
    )


def test_half_precision_is_raised():
    solved = solve(lambda x, t: x.bfloat16(), torch.ones(1, 2, dtype=torch.bfloat16), uniform(3))
    assert solved.dtype == torch.float32


@pytest.mark.parametrize("answer", [torch.ones(2, 4), torch.ones(2, 3, dtype=torch.complex64)])
def test_a_field_of_another_shape_or_kind_is_refused(answer):
    with pytest.raises(UsageError, match="dx/dt has the shape of x"):
        solve(lambda x, t: answer, torch.ones(2, 3), uniform(2))


def test_rising_times_are_refused():
    with pytest.raises(UsageError, match="reverse_time"):
        solve(swinging, torch.ones(1, 2), uniform(4).flip(0))
