r"""Stochastic steps that keep the flow's marginals, as Gaussian policies.

For every free σ_t the reverse SDE :math:`dx = [v - \tfrac12 \sigma_t^2 \nabla \ln p_t]\, dt + \sigma_t\, dw` (dt < 0)
has the marginals of the flow dx/dt = v (Song et al. 2021, arXiv:2011.13456). With :math:`\nabla \ln p_t = -\hat z / t`,
the score of a straight path from unit noise, it is Flow-GRPO's (arXiv:2505.05470),
:math:`dx = [v + \tfrac{\sigma_t^2}{2t} (x + (1 - t) v)]\, dt + \sigma_t\, dw`. All laws here are one Euler step with
two coefficients, the *pull* p and the *spread* s:

    x' = x + v Δ + p (x + (1 − t) v − c) + s σ ξ,     ξ standard normal

| law       | spread s          | pull p               | source                     |
|-----------|-------------------|----------------------|----------------------------|
| Flow-SDE  | a √(t/(1−t)) √−Δ  | −s² / (2t)           | Flow-GRPO arXiv:2505.05470 |
| Dance-SDE | η √−Δ             | −s² / (2t)           | DanceGRPO arXiv:2505.07818 |
| CPS       | t' sin(η π/2)     | √(t'² − s²) − t'     | Flow-CPS arXiv:2509.05952  |

The predicted noise ẑ = (x + (1 − t) v − c) / σ loses weight p, and fresh noise of weight s comes in. Flow-SDE and
Dance-SDE keep the marginals as Δ → 0. CPS keeps the sum of squared noise weights, (t' + p)² + s² = t'², at any step
size; that is the marginal only where the data given x is a single point, elsewhere it contracts the variance.

Symbols: t time, t' next time, Δ = t' − t < 0, v velocity, c centre and σ scale of the path's prior, a and η levels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

from auralign.errors import UsageError
from auralign.flow.gaussian_step import GaussianStep
from auralign.flow.path import StraightPath, along, real_dtype, wide_dtype

NEAR_ONE = 1e-6
"""Times closer to 1 than this are 1: what single precision leaves of it."""


@final
@dataclass(frozen=True, eq=False)
class StepNoise:
    """What a law does to a step, for a prior of scale 1."""

    pull: Float[Tensor, " batch"]
    """p ≤ 0, weight that the predicted noise loses."""
    spread: Float[Tensor, " batch"]
    """s, weight of the fresh noise; infinite where the law is singular."""


class NoiseLaw(ABC):
    """How much noise a step has. Leaves: `FlowSDE`, `DanceSDE`, `CPS`."""

    level: float

    @abstractmethod
    def step_noise(self, t: Float[Tensor, " batch"], t_next: Float[Tensor, " batch"]) -> StepNoise:
        """Pull and spread of the steps from t to t_next."""


@final
@dataclass(frozen=True)
class FlowSDE(NoiseLaw):
    """Flow-GRPO: σ_t = a √(t / (1 − t)); much noise early, little late.

    σ is infinite at t = 1 (in data direction: at t = 0). Flow-GRPO's code puts the second time of the grid there, which
    makes the first spread a: `first_step="guard"`. It is not the SDE, and its log-probability is not comparable with
    that of later steps, so that it has to be asked for; the default refuses a stochastic step from t = 1.
    """

    level: float = 0.7
    """a: 0.7 in Flow-GRPO and Resonate, 0.4 in the reproductions of FlowSE-GRPO; √2 cancels the velocity of the
    forward SDE (flowmse's form)."""
    first_step: Literal["refuse", "guard"] = "refuse"
    """At t = 1: refuse, or put t' in the place of t under the root's denominator."""

    def __post_init__(self) -> None:
        """Refuses levels without a meaning."""
        _check_level(self, math.inf)

    def step_noise(self, t: Float[Tensor, " batch"], t_next: Float[Tensor, " batch"]) -> StepNoise:
        """Spread a √(t / (1 − t)) √−Δ, pull −s² / (2t)."""
        at_prior = 1 - t < NEAR_ONE
        left = torch.where(at_prior, 1 - t_next if self.first_step == "guard" else 0 * t, 1 - t)
        spread = (t / left * (t - t_next)).sqrt() * self.level if self.level else 0 * t
        return StepNoise(-(spread**2) / (2 * t), spread)


@final
@dataclass(frozen=True)
class DanceSDE(NoiseLaw):
    """DanceGRPO: σ_t = η at every t, defined also at t = 1."""

    level: float = 0.3
    """η: 0.3 in DanceGRPO, 0.7 in MixGRPO."""

    def __post_init__(self) -> None:
        """Refuses levels without a meaning."""
        _check_level(self, math.inf)

    def step_noise(self, t: Float[Tensor, " batch"], t_next: Float[Tensor, " batch"]) -> StepNoise:
        """Spread η √−Δ, pull −s² / (2t)."""
        spread = self.level * (t - t_next).sqrt()
        return StepNoise(-(spread**2) / (2 * t), spread)


@final
@dataclass(frozen=True)
class CPS(NoiseLaw):
    """Coefficients-preserving sampling: x' = (1 − t') x̂₀ + √(t'² − s²) ẑ + s ξ; no noise in a step that ends at 0."""

    level: float = 0.8
    """η from 0 (the ODE) to 1 (all noise is fresh at every step)."""

    def __post_init__(self) -> None:
        """Refuses levels without a meaning."""
        _check_level(self, 1.0)

    def step_noise(self, t: Float[Tensor, " batch"], t_next: Float[Tensor, " batch"]) -> StepNoise:
        """Spread t' sin(η π/2), pull √(t'² − s²) − t' = −t' (1 − cos(η π/2))."""
        angle = self.level * math.pi / 2
        return StepNoise(t_next * (math.cos(angle) - 1), t_next * math.sin(angle))


@final
@dataclass(frozen=True, eq=False)
class FlowPolicy:
    """The policy of one step, π(x' | x) = N(μ, s²σ²): a law on the path of a batch.

    The velocity enters from outside, so that rollout, update and reference use the same equation on three networks.
    """

    law: NoiseLaw
    """How noisy the steps are."""
    path: StraightPath
    """Prior of each item."""
    valid: Bool[Tensor, "batch *#shape"] | None = None
    """Scalars that exist, such as frames before the end of a shorter sound; the others leave densities. All."""

    def at(self, item: Int[Tensor, " row"]) -> FlowPolicy:
        """The policy of chosen items, in the given order and as often as named."""
        return FlowPolicy(self.law, self.path.at(item), None if self.valid is None else self.valid[item])

    def step(
        self,
        x: Inexact[Tensor, "batch *shape"],
        v: Inexact[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        t_next: Float[Tensor, " batch"],
        *,
        noisy: Bool[Tensor, " batch"] | None = None,
    ) -> GaussianStep:
        """μ = x + v Δ + p (x + (1 − t) v − c) and its spread, in at least single precision; differentiable in v.

        Args:
            x: States at t.
            v: Velocities there.
            t: Time of each item; items of a batch may be at different steps.
            t_next: Time after the step.
            noisy: Items that take a stochastic step; for the others it is an Euler step, exactly. All by default.
        """
        noise = self.step_noise(t, t_next, noisy=noisy)
        dtype = wide_dtype(x)
        x, v, time = x.to(dtype), v.to(dtype), along(t.to(real_dtype(x)), x)
        delta = along(t_next.to(time.dtype), x) - time
        drawn_away = x + (1 - time) * v
        if self.path.center is not None:
            drawn_away = drawn_away - self.path.center
        mean = x + v * delta + along(noise.pull.to(time.dtype), x) * drawn_away
        return GaussianStep(mean, noise.spread.to(time.dtype) * self.path.scale, self.valid)

    def step_noise(
        self,
        t: Float[Tensor, " batch"],
        t_next: Float[Tensor, " batch"],
        *,
        noisy: Bool[Tensor, " batch"] | None = None,
    ) -> StepNoise:
        """Pull and spread, zero where nothing is noisy; a singular step is refused."""
        if not bool(((t_next < t) & (t <= 1) & (t_next >= 0)).all()):
            raise UsageError(
                "a step does not go from a time of at most 1 down to a time of at least 0",
                where="FlowPolicy",
                why="t = 0 is data: no step starts there",
                hint="turn models of the other direction round with path.reverse_time",
            )
        noise = self.law.step_noise(t, t_next)
        singular = ~noise.spread.isfinite()
        if noisy is not None:
            singular = singular & noisy
        if bool(singular.any()):
            raise UsageError(
                "the step that starts at t = 1 cannot be stochastic under Flow-SDE",
                where=type(self.law).__name__,
                why="σ = a √(t / (1 − t)) is infinite there; for models in data direction this is t = 0",
                hint='begin the window at step 1, or ask for FlowSDE(level, first_step="guard")',
            )
        if noisy is None:
            return noise
        return StepNoise(noise.pull.where(noisy, 0), noise.spread.where(noisy, 0))


def _check_level(law: NoiseLaw, largest: float) -> None:
    if not (math.isfinite(law.level) and 0 <= law.level <= largest):
        raise UsageError(
            f"a noise level of {law.level} has no meaning",
            where=type(law).__name__,
            hint="use 0 to 1"
            if math.isfinite(largest)
            else "use 0 (the ODE) or a positive number, such as 0.4",
        )
