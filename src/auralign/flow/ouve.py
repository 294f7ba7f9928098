r"""The diffusion of SGMSE+: towards the noisy recording, with growing noise, and back by predictor and corrector.

Richter et al. 2023 (arXiv:2208.05830), the Ornstein-Uhlenbeck process with exploding variance,

.. math:: dx = \theta (y - x)\, dt + g(t)\, dw, \qquad g(t) = \sigma_{\min} q^t \sqrt{2 \ln q},

with :math:`q = \sigma_{\max} / \sigma_{\min}`. Given clean data its states are Gaussian, with :math:`k = \ln q`:

.. math::
    \mu_t = e^{-\theta t} x_0 + (1 - e^{-\theta t})\, y, \qquad
    \sigma_t^2 = \frac{\sigma_{\min}^2 k}{\theta + k} \left(q^{2t} - e^{-2 \theta t}\right).

The way back is :math:`dx = [\theta (y - x) - g^2 \nabla \ln p_t]\, dt + g\, dw` (dt < 0; Song et al. 2021,
arXiv:2011.13456). A step is first corrected by annealed Langevin dynamics, then predicted by reverse diffusion.

Symbols: x₀ clean, y noisy, x state, t time (1 noisy, 0 clean), s score. Complex states have complex noise, E|z|² = 1,
and a score as in `path`: the derivative of ln p in the conjugate of x, so that :math:`s = -z / \sigma_t` and every
equation here reads the same for real and complex states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Inexact
from torch import Generator, Tensor

from auralign.errors import UsageError
from auralign.flow.path import along, real_dtype, standard_normal_like, wide_dtype
from auralign.flow.schedule import check_grid

Score = Callable[[Tensor, Tensor], Tensor]
"""score(x "batch *shape", t "batch") → ∇ ln p_t(x) "batch *shape"."""


@final
@dataclass(frozen=True)
class OUVE:
    """The process and its closed forms; the defaults are those of SGMSE+ at 16 kHz.

    >>> import torch
    >>> sde = OUVE()
    >>> [round(s, 4) for s in sde.std(torch.tensor([0.0, 0.03, 1.0])).tolist()]
    [0.0, 0.0188, 0.389]
    """

    theta: float = 1.5
    """θ, stiffness: how fast the mean goes to the noisy recording."""
    sigma_min: float = 0.05
    sigma_max: float = 0.5

    def __post_init__(self) -> None:
        """Refuses what is no such process."""
        finite = all(math.isfinite(v) for v in (self.theta, self.sigma_min, self.sigma_max))
        if not (finite and self.theta > 0 and 0 < self.sigma_min < self.sigma_max):
            raise UsageError(
                f"θ = {self.theta} and σ from {self.sigma_min} to {self.sigma_max} give no OUVE process",
                where="OUVE",
                hint="SGMSE+ uses 1.5 and 0.05 to 0.5",
            )

    @property
    def growth(self) -> float:
        """The rate k = ln(σ_max / σ_min)."""
        return math.log(self.sigma_max / self.sigma_min)

    def drift(
        self, x: Inexact[Tensor, "batch *shape"], noisy: Inexact[Tensor, "batch *shape"]
    ) -> Inexact[Tensor, "batch *shape"]:
        """θ (y − x)."""
        return self.theta * (noisy - x)

    def diffusion(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """g(t) = σ_min q^t √(2 k)."""
        return self.sigma_min * (self.growth * t).exp() * math.sqrt(2 * self.growth)

    def mean(
        self,
        x_0: Inexact[Tensor, "batch *shape"],
        noisy: Inexact[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
    ) -> Inexact[Tensor, "batch *shape"]:
        """μ_t = e^{−θt} x₀ + (1 − e^{−θt}) y."""
        left = along((-self.theta * t).exp(), x_0)
        return left * x_0 + (1 - left) * noisy

    def std(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """σ_t, of a complex number as a whole; 0 at t = 0.

        Written with exp(2 (θ + k) t) − 1, which stays exact for small t.
        """
        total = self.theta + self.growth
        spread = (2 * total * t).expm1() * (-2 * self.theta * t).exp() * (self.growth / total)
        return self.sigma_min * spread.sqrt()

    def draw(
        self, noisy: Inexact[Tensor, "batch *shape"], *, generator: Generator
    ) -> Inexact[Tensor, "batch *shape"]:
        """x₁ = y + σ₁ z, where sampling starts: the clean part e^{−θ} (x₀ − y) that is left at t = 1 is unknown."""
        noise = standard_normal_like(noisy, generator=generator)
        one = noise.real.new_ones(1)
        return noisy + self.std(one) * noise

    def gaussian_score(
        self,
        x: Inexact[Tensor, "batch *shape"],
        x_0: Inexact[Tensor, "batch *shape"],
        noisy: Inexact[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
    ) -> Inexact[Tensor, "batch *shape"]:
        """−(x − μ_t) / σ_t², the score given the clean data: the target of training; t > 0."""
        return (self.mean(x_0, noisy, t) - x) / along(self.std(t), x).square()


@final
@dataclass(frozen=True)
class PredictorCorrector:
    """How SGMSE+ samples: 30 steps, one correction before each, 60 evaluations."""

    snr: float = 0.5
    """r, size of a correction; 0.33 for SGMSE+ on reverberation."""
    corrections: int = 1
    """Langevin steps before each prediction."""

    def __post_init__(self) -> None:
        """Refuses sizes without a meaning."""
        if not (math.isfinite(self.snr) and self.snr > 0) or self.corrections < 0:
            raise UsageError(
                f"{self.corrections} corrections of size {self.snr} cannot be made",
                where="PredictorCorrector",
                hint="SGMSE+ makes 1 of 0.5",
            )

    def evaluations(self, steps: int) -> int:
        """How often the score is asked (NFE)."""
        return steps * (1 + self.corrections)


def langevin_step(
    sde: OUVE,
    score: Score,
    x: Inexact[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
    *,
    snr: float,
    generator: Generator,
) -> Inexact[Tensor, "batch *shape"]:
    """Annealed Langevin dynamics at one time: x + ε s + √(2ε) z with ε = 2 (r σ_t)²; p_t stays as it is to order ε."""
    epsilon = along(2 * (snr * sde.std(t)).square(), x)
    noise = standard_normal_like(x, generator=generator)
    return x + epsilon * score(x, t) + (2 * epsilon).sqrt() * noise


def reverse_diffusion_mean(
    sde: OUVE,
    score: Score,
    x: Inexact[Tensor, "batch *shape"],
    noisy: Inexact[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
    t_next: Float[Tensor, " batch"],
) -> Inexact[Tensor, "batch *shape"]:
    """Mean of the reverse step, x − θ (y − x) δ + g(t)² δ s with δ = t − t'; its noise is g(t) √δ z."""
    length, strength = along(t - t_next, x), along(sde.diffusion(t).square(), x)
    return x - sde.drift(x, noisy) * length + strength * length * score(x, t)


def sample(
    sde: OUVE,
    score: Score,
    noisy: Inexact[Tensor, "batch *shape"],
    times: Float[Tensor, " time"],
    *,
    generator: Generator,
    how: PredictorCorrector | None = None,
    start: Inexact[Tensor, "batch *shape"] | None = None,
) -> Inexact[Tensor, "batch *shape"]:
    """Clean states by predictor and corrector; the last step ends without noise.

    Args:
        sde: The process.
        score: Its score, such as a network; never asked at t = 0.
        noisy: y, also the centre of the start.
        times: Falling times; SGMSE+ takes `schedule.stopped(30, 0.03)`.
        generator: Source of randomness, on the device of the states.
        how: Size and number of corrections; those of SGMSE+ by default.
        start: State at the first of the times; drawn around the noisy states by default.
    """
    check_grid(times)
    how = how or PredictorCorrector()
    noisy = noisy.to(wide_dtype(noisy))
    x = sde.draw(noisy, generator=generator) if start is None else start.to(wide_dtype(start))
    knots = times.to(device=x.device, dtype=real_dtype(x)).unsqueeze(1).expand(-1, x.shape[0])
    for k in range(len(knots) - 1):
        t, t_next = knots[k], knots[k + 1]
        for _ in range(how.corrections):
            x = langevin_step(sde, score, x, t, snr=how.snr, generator=generator)
        x = reverse_diffusion_mean(sde, score, x, noisy, t, t_next)
        if k < len(knots) - 2:
            spread = along(sde.diffusion(t) * (t - t_next).sqrt(), x)
            x = x + spread * standard_normal_like(x, generator=generator)
    return x
