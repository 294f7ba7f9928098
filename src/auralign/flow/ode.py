"""Solvers of the flow dx/dt = v(x, t), from the prior to data.

| solver    | order | evaluations of v in K steps |
|-----------|-------|-----------------------------|
| euler     | 1     | K                           |
| midpoint  | 2     | 2 K                         |
| heun      | 2     | 2 K, one less if it ends at 0 |
| multistep | 2     | K                           |

None of them evaluates v at t = 0, where networks are not trained. All are differentiable in x and in whatever the
field depends on. Symbols: t time, t' the next time, Δ = t' − t < 0.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Inexact
from torch import Tensor

from auralign.errors import UsageError
from auralign.flow.path import Velocity, along, real_dtype, wide_dtype
from auralign.flow.schedule import check_grid

Solver = Literal["euler", "midpoint", "heun", "multistep"]
"""Names of the solvers."""


def solve(
    velocity: Velocity,
    x: Inexact[Tensor, "batch *shape"],
    times: Float[Tensor, " time"],
    *,
    solver: Solver = "euler",
) -> Inexact[Tensor, "batch *shape"]:
    """The state at the last of the times.

    A part of a grid works too: the steps before a stochastic window can be run once and repeated for a group.

    Args:
        velocity: dx/dt.
        x: State at the first of the times, such as `path.draw(...)`; half precision is raised to single.
        times: Falling times, see `schedule`.
        solver: See the table above.

    >>> import torch
    >>> from auralign.flow.schedule import uniform
    >>> target = torch.tensor([[3.0]])
    >>> solve(lambda x, t: (x - target) / t[:, None], torch.zeros(1, 1), uniform(2)).item()
    3.0
    """
    check_grid(times)
    x = x.to(wide_dtype(x))
    knots = times.to(device=x.device, dtype=real_dtype(x)).unsqueeze(1).expand(-1, x.shape[0])
    ends_at_data = float(times[-1]) == 0
    v_before, delta_before = None, None
    for k in range(len(knots) - 1):
        t, t_next = knots[k], knots[k + 1]
        delta = along(t_next - t, x)
        v = evaluate(velocity, x, t)
        if solver == "midpoint":
            v = evaluate(velocity, x + v * (delta / 2), (t + t_next) / 2)
        elif solver == "heun" and not (ends_at_data and k == len(knots) - 2):
            v = (v + evaluate(velocity, x + v * delta, t_next)) / 2
        elif solver == "multistep":
            v, v_before = extrapolate(v, v_before, delta, delta_before), v
        x, delta_before = x + v * delta, delta
    return x


def extrapolate(v: Tensor, v_before: Tensor | None, delta: Tensor, delta_before: Tensor | None) -> Tensor:
    """Second-order Adams and Bashforth for unequal steps: v + Δ / (2 Δ_before) (v − v_before); the first is v."""
    if v_before is None or delta_before is None:
        return v
    return v + (delta / (2 * delta_before)) * (v - v_before)


def evaluations(solver: Solver, times: Float[Tensor, " time"]) -> int:
    """How often `solve` calls the velocity field (NFE).

    >>> import torch
    >>> evaluations("heun", torch.linspace(1, 0, 5))
    7
    """
    steps = len(times) - 1
    if solver == "heun":
        return 2 * steps - (float(times[-1]) == 0)
    return 2 * steps if solver == "midpoint" else steps


def evaluate(
    velocity: Velocity, x: Inexact[Tensor, "batch *shape"], t: Float[Tensor, " batch"]
) -> Inexact[Tensor, "batch *shape"]:
    """v(x, t) in the precision of x, whatever the network computes in."""
    v = velocity(x, t)
    if v.shape != x.shape or v.is_complex() != x.is_complex():
        raise UsageError(
            f"the field answered {tuple(v.shape)} ({v.dtype}) to states of {tuple(x.shape)} ({x.dtype})",
            where="velocity",
            hint="dx/dt has the shape of x, and is complex where x is",
        )
    return v.to(wide_dtype(x))
