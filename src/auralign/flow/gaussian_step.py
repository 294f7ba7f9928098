r"""The Gaussian of one stochastic step: draws, densities, divergences, per real scalar.

:math:`\ln \pi(x' | x) = -|x' - \mu|^2 / (2 s^2) - \ln s - \tfrac12 \ln 2\pi` for a real scalar. A complex number with
noise of E|ξ|² = 1 has :math:`-|x' - \mu|^2 / s^2 - \ln(\pi s^2)`, and counts as two real scalars of standard deviation
s / √2 each, so that complex data and real data of twice the channels have the same numbers.

Densities, ratios and divergences are **means over the real scalars** that are valid (Flow-GRPO, arXiv:2505.05470).
Times `scalars` they are those of the whole state, in nats: a clip range of ε on a mean is ε times `scalars` nats.

Symbols: x' next state (the action), μ mean, s standard deviation, D number of real scalars.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

from auralign.errors import UsageError
from auralign.flow.path import along, standard_normal_like

LOG_PI = math.log(math.pi)


@final
@dataclass(frozen=True, eq=False)
class GaussianStep:
    """N(μ, s²), of each item; gradients flow into μ.

    >>> step = GaussianStep(torch.zeros(1, 2), torch.ones(1))
    >>> round(step.log_prob(torch.zeros(1, 2)).item(), 4)
    -0.9189
    """

    mean: Inexact[Tensor, "batch *shape"]
    """μ, single precision or wider."""
    std: Float[Tensor, " batch"]
    """s; of a complex number as a whole, not of its parts. 0 is a deterministic step, which has no density."""
    valid: Bool[Tensor, "batch *#shape"] | None = None
    """Scalars that count; all by default."""

    @property
    def scalars(self) -> Float[Tensor, " batch"]:
        """D, number of real scalars that count; a complex number has two."""
        each = 2 if self.mean.is_complex() else 1
        if self.valid is None:
            return torch.full_like(self.std, each * math.prod(self.mean.shape[1:]))
        return self.valid.expand(self.mean.shape).flatten(1).sum(1).to(self.std.dtype) * each

    def at(self, item: Int[Tensor, " row"]) -> GaussianStep:
        """The steps of chosen items."""
        return GaussianStep(self.mean[item], self.std[item], None if self.valid is None else self.valid[item])

    def detach(self) -> GaussianStep:
        """The same step as a constant: the snapshot π_old, or a reference."""
        return GaussianStep(self.mean.detach(), self.std, self.valid)

    @torch.no_grad()
    def sample(self, *, generator: torch.Generator) -> Inexact[Tensor, "batch *shape"]:
        """Draws x' = μ + s ξ; no gradient."""
        return self.mean + along(self.std, self.mean) * standard_normal_like(self.mean, generator=generator)

    def log_prob(self, action: Inexact[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Mean log-density of the action per real scalar; no gradient into the action."""
        square = self._mean(_square_modulus(action.detach() - self.mean))
        return -square / (2 * self._noise() ** 2) - self._log_normaliser()

    def entropy(self) -> Float[Tensor, " batch"]:
        """Per real scalar, ½ + ln s + ½ ln 2π (½ + ln s + ½ ln π for complex noise); the policy cannot change it."""
        self._noise()
        return self._log_normaliser() + 0.5

    def kl(self, other: GaussianStep) -> Float[Tensor, " batch"]:
        """KL(self ‖ other) per real scalar, ln(s₂ / s₁) + (s₁² + |μ₁ − μ₂|²) / (2 s₂²) − ½.

        Steps of one law have s₁ = s₂, which leaves |μ₁ − μ₂|² / (2 s²). Flow-GRPO's code has no |Δ| in s²: its value
        is this one times |Δ|, and its coefficient accordingly larger.
        """
        square = self._mean(_square_modulus(self.mean - other.mean))
        own, others = self._noise(), other._noise()
        narrowing = (own / others) ** 2
        return square / (2 * others**2) + (narrowing - 1 - narrowing.log()) / 2

    def log_ratio(
        self, old: GaussianStep, action: Inexact[Tensor, "batch *shape"]
    ) -> Float[Tensor, " batch"]:
        """Log-ratio ln π(x') − ln π_old(x') per real scalar, for steps of the same spread.

        Re⟨μ − μ_old, 2 x' − μ − μ_old⟩ / (2 s²). The difference of two log-densities, each of the size of 1, is known
        to single precision only, which times D is up to hundredths of a nat; this form is five digits better.
        No gradient into old and the action.
        """
        if not torch.equal(self.std, old.std):
            raise UsageError(
                "the two steps have different spreads",
                where="GaussianStep.log_ratio",
                hint="use the same law, level and times for both",
            )
        old_mean = old.mean.detach()
        moved = self.mean - old_mean
        reached = 2 * action.detach() - self.mean - old_mean
        return self._mean(_real_product(moved, reached)) / (2 * self._noise() ** 2)

    def _mean(self, number: Tensor) -> Tensor:
        """Mean over what counts; 0 where nothing does."""
        if self.valid is None:
            return number.flatten(1).mean(1)
        counted = self.valid.expand(number.shape).flatten(1)
        return number.flatten(1).where(counted, 0).sum(1) / counted.sum(1).clamp_min(1)

    def _log_normaliser(self) -> Tensor:
        """Adds up ln s + ½ ln 2π, or ½ ln π of complex noise."""
        return self.std.log() + (LOG_PI if self.mean.is_complex() else LOG_PI + math.log(2)) / 2

    def _noise(self) -> Tensor:
        if not bool((self.std > 0).all()):
            raise UsageError(
                "a step without noise has no density",
                where="GaussianStep",
                why="its standard deviation is 0",
                hint="train on noisy steps only: a level above 0, and under CPS not the step that ends at t = 0",
            )
        return self.std


def _square_modulus(number: Tensor) -> Tensor:
    """|z|², with a gradient at 0 too."""
    return _real_product(number, number)


def _real_product(a: Tensor, b: Tensor) -> Tensor:
    """Re(conj(a) b), element by element."""
    return a.real * b.real + a.imag * b.imag if a.is_complex() else a * b
