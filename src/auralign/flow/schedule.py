"""Which times a solver stops at, and which times training draws.

A grid of K steps is K + 1 times that fall strictly from at most 1 (the prior) to at least 0 (data), float64 on the
CPU; solvers move it to where the states are. Symbols: t time, K steps.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import UsageError

Grid = Float[Tensor, " time"]


def uniform(steps: int) -> Grid:
    """t_k = 1 − k / K (Liu et al. 2022, arXiv:2209.03003).

    >>> uniform(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    _check_steps(steps, "uniform")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def shifted(steps: int, shift: float = 3.0) -> Grid:
    r"""Uniform times u moved towards the prior, :math:`t = s u / (1 + (s - 1) u)`; s = 1 leaves them uniform.

    Esser et al. 2024 (arXiv:2403.03206), Sec. 5.3.2; Flow-GRPO's and DanceGRPO's image models use 3.

    >>> [round(t, 3) for t in shifted(4).tolist()]
    [1.0, 0.9, 0.75, 0.5, 0.0]
    """
    if not (math.isfinite(shift) and shift > 0):
        raise UsageError(
            f"a shift of {shift} gives no schedule", where="shifted", hint="1 is uniform, 3 is usual"
        )
    u = uniform(steps)
    return u / (u + (1 - u) / shift)  # the same, and exact at both ends


def stopped(steps: int, stop: float = 0.03) -> Grid:
    """K times evenly from 1 to `stop`, then one step from there to 0: the grid of flowmse (arXiv:2508.06840).

    For networks that were trained on t ≥ `stop` only: the last evaluation is at `stop`.

    >>> [round(t, 4) for t in stopped(5).tolist()]
    [1.0, 0.7575, 0.515, 0.2725, 0.03, 0.0]
    """
    _check_steps(steps, "stopped")
    if steps < 2 or not 0 < stop < 1:
        raise UsageError(
            f"{steps} steps with a stop at {stop} give no grid",
            where="stopped",
            hint="use at least 2 steps, and a stop between 0 and 1",
        )
    return torch.cat(
        [torch.linspace(1, stop, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    )


def check_grid(times: Float[Tensor, " time"]) -> None:
    """Refuses times that no solver can walk: they must fall strictly, within [0, 1]."""
    fault = ""
    if times.numel() < 2:
        fault = f"a grid of {times.numel()} times has no step"
    elif not bool((times.diff() < 0).all()):
        fault = "the times do not fall strictly"
    elif not (float(times[0]) <= 1 and float(times[-1]) >= 0):
        fault = f"the times run from {float(times[0]):g} to {float(times[-1]):g}, outside [0, 1]"
    if fault:
        raise UsageError(
            fault,
            where="times",
            hint="1 is noise and 0 is data; turn models of the other direction round with path.reverse_time",
        )


def draw_uniform(
    batch: int,
    *,
    low: float = 0.0,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " batch"]:
    """Training times t ~ U(low, 1); flowmse and SGMSE have low = 0.03. On the device of the generator."""
    if not 0 <= low < 1:
        raise UsageError(f"no time is drawn from {low} to 1", where="low", hint="flowmse uses 0.03")
    drawn = torch.rand(batch, generator=generator, dtype=dtype, device=generator.device)
    return low + (1 - low) * drawn


def draw_logit_normal(
    batch: int,
    *,
    location: float = 0.0,
    scale: float = 1.0,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " batch"]:
    """Training times t = sigmoid(n), n ~ N(location, scale²): the middle more often than the ends.

    Esser et al. 2024 (arXiv:2403.03206), Eq. (19); Resonate and TangoFlux use 0 and 1.
    """
    if not scale > 0:
        raise UsageError(f"a logit-normal scale of {scale} draws one time only", where="scale", hint="use 1")
    drawn = torch.randn(batch, generator=generator, dtype=dtype, device=generator.device)
    return (location + scale * drawn).sigmoid()


def _check_steps(steps: int, where: str) -> None:
    if steps < 1:
        raise UsageError(f"{steps} steps lead nowhere", where=where, hint="use at least 1")
