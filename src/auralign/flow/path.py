r"""Straight paths from data to a Gaussian prior, and what a velocity says about both ends.

Rectified flow (Liu et al. 2022, arXiv:2209.03003): :math:`x_t = (1 - t) x_0 + t x_1`, with the target velocity
:math:`v = x_1 - x_0`. The prior is :math:`x_1 = c + \sigma z`: pure noise has c = 0, σ = 1; enhancement starts from the
noisy recording, c = y (flowmse, arXiv:2508.06840, with its σ_min = 0). Then :math:`u = (x - c) / \sigma` follows a
rectified flow from pure noise, the *u-transform*, so that everything derived for noise priors holds for u.

Symbols: x₀ data, x₁ prior sample, t time (1 prior, 0 data), c centre, σ scale, z standard normal noise. Complex states
have complex noise, E|z|² = 1 (variance ½ in each of the two real components). The score of complex states is the
derivative of ln p in the conjugate of x; its two parts are half the derivatives in the real components.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from auralign.errors import UsageError

Velocity = Callable[[Tensor, Tensor], Tensor]
"""velocity(x "batch *shape", t "batch") → dx/dt "batch *shape"."""

FLOWMSE_SCALE = 0.487
"""σ_max of flowmse, in units of its compressed spectrogram."""


def standard_normal_like(
    state: Inexact[Tensor, "batch *shape"], *, generator: torch.Generator, shared: int = 1
) -> Inexact[Tensor, "batch *shape"]:
    """Noise z in the shape and kind of the state, in float32 or wider; complex noise has E|z|² = 1.

    Args:
        state: Gives shape, device and kind; real states get real noise.
        generator: Source of randomness, on the device of the state.
        shared: So many consecutive items get the same noise, such as the members of a group.
    """
    batch = state.shape[0]
    if shared < 1 or batch % shared:
        raise UsageError(
            f"a batch of {batch} cannot share noise {shared} by {shared}",
            where="shared",
            hint="it must divide the batch",
        )
    shape = (batch // shared, *state.shape[1:])
    noise = torch.randn(shape, dtype=wide_dtype(state), device=state.device, generator=generator)
    return noise.repeat_interleave(shared, 0) if shared > 1 else noise


@final
@dataclass(frozen=True, eq=False)
class StraightPath:
    """x_t = (1 − t) x₀ + t (c + σ z); made by `noise_prior` or `noisy_mean`.

    >>> path = noise_prior()
    >>> x_0, x_1, t = torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0.0, 0.5])
    >>> path.between(x_0, x_1, t)[:, 0].tolist()
    [1.0, 0.5]
    """

    center: Inexact[Tensor, "batch *shape"] | None = None
    """c, the mean of the prior; none is zero."""
    scale: float = 1.0
    """σ, its standard deviation (of a complex number as a whole)."""

    def __post_init__(self) -> None:
        """Refuses what is no Gaussian."""
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UsageError(
                f"a prior of scale {self.scale} is no Gaussian",
                where="StraightPath",
                hint="flowmse uses 0.487, noise priors 1",
            )

    def draw(
        self, like: Inexact[Tensor, "batch *shape"], *, generator: torch.Generator, shared: int = 1
    ) -> Inexact[Tensor, "batch *shape"]:
        """x₁ = c + σ z, where sampling starts; `shared` as in `standard_normal_like`."""
        return self.restore(standard_normal_like(like, generator=generator, shared=shared))

    def between(
        self,
        x_0: Inexact[Tensor, "batch *shape"],
        x_1: Inexact[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
    ) -> Inexact[Tensor, "batch *shape"]:
        """x_t = (1 − t) x₀ + t x₁; its velocity, the target of training, is x₁ − x₀ at every t."""
        time = along(t, x_0)
        return (1 - time) * x_0 + time * x_1

    def data(
        self,
        x: Inexact[Tensor, "batch *shape"],
        v: Inexact[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
    ) -> Inexact[Tensor, "batch *shape"]:
        """Expected data, x̂₀ = x − t v."""
        return x - along(t, x) * v

    def prior(
        self,
        x: Inexact[Tensor, "batch *shape"],
        v: Inexact[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
    ) -> Inexact[Tensor, "batch *shape"]:
        """Expected prior sample, x̂₁ = x + (1 − t) v."""
        return x + (1 - along(t, x)) * v

    def noise(
        self,
        x: Inexact[Tensor, "batch *shape"],
        v: Inexact[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
    ) -> Inexact[Tensor, "batch *shape"]:
        """Expected noise, ẑ = (x + (1 − t) v − c) / σ."""
        return self.standardise(self.prior(x, v, t))

    def score(
        self,
        x: Inexact[Tensor, "batch *shape"],
        v: Inexact[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
    ) -> Inexact[Tensor, "batch *shape"]:
        """Gradient of ln p_t at x, −ẑ / (t σ); infinite at t = 0, where p_t is the data itself."""
        return -self.noise(x, v, t) / (along(t, x) * self.scale)

    def standardise(self, x: Inexact[Tensor, "batch *shape"]) -> Inexact[Tensor, "batch *shape"]:
        """The u-transform, u = (x − c) / σ."""
        centred = x if self.center is None else x - self._fitting(x)
        return centred if self.scale == 1 else centred / self.scale

    def restore(self, u: Inexact[Tensor, "batch *shape"]) -> Inexact[Tensor, "batch *shape"]:
        """Back from u: x = c + σ u."""
        spread = u if self.scale == 1 else self.scale * u
        return spread if self.center is None else self._fitting(u) + spread

    def standard_velocity(self, velocity: Velocity) -> Velocity:
        """The field of u: v_u(u, t) = v(c + σ u, t) / σ, a rectified flow from pure noise."""
        return lambda u, t: velocity(self.restore(u), t) / self.scale

    def at(self, item: Int[Tensor, " row"]) -> StraightPath:
        """The same path for chosen items, in the given order and as often as named."""
        return self if self.center is None else StraightPath(self.center[item], self.scale)

    def _fitting(self, x: Tensor) -> Tensor:
        if self.center is None or self.center.shape != x.shape:
            raise UsageError(
                f"states of shape {tuple(x.shape)} do not belong to a path around {_shape(self.center)}",
                where="StraightPath",
                hint="take the path of these items with path.at(item)",
            )
        return self.center


def noise_prior() -> StraightPath:
    """From pure noise: c = 0, σ = 1 (Resonate, FlowSE of Wang et al. arXiv:2505.19476)."""
    return StraightPath()


def noisy_mean(noisy: Inexact[Tensor, "batch *shape"], *, scale: float = FLOWMSE_SCALE) -> StraightPath:
    """From the noisy recording and some noise: c = y, σ = σ_max (flowmse, arXiv:2508.06840, σ_min = 0)."""
    return StraightPath(noisy, scale)


def reverse_time(velocity: Velocity) -> Velocity:
    """A field of the other direction (0 noise, 1 data, v = data − noise) as one of ours: −v(x, 1 − t).

    F5-style models and FlowSE of Wang et al. are trained so. Their t = 0 is our t = 1.
    """
    return lambda x, t: -velocity(x, 1 - t)


def velocity_from_data(
    x: Inexact[Tensor, "batch *shape"], x_0: Inexact[Tensor, "batch *shape"], t: Float[Tensor, " batch"]
) -> Inexact[Tensor, "batch *shape"]:
    """Velocity (x − x̂₀) / t, for networks that predict data; t > 0."""
    return (x - x_0) / along(t, x)


def along(t: Float[Tensor, " batch"], x: Inexact[Tensor, "batch *shape"]) -> Tensor:
    """One time for each item, shaped to multiply states of any rank."""
    return t.reshape(t.shape[0], *[1] * (x.dim() - 1))


def wide_dtype(x: Inexact[Tensor, "..."]) -> torch.dtype:
    """The kind of x in at least single precision: trajectories and densities are never kept in half."""
    return torch.promote_types(x.dtype, torch.complex64 if x.is_complex() else torch.float32)


def real_dtype(x: Inexact[Tensor, "..."]) -> torch.dtype:
    """The real kind of x in at least single precision, which times and densities have."""
    return wide_dtype(x).to_real()


def _shape(center: Tensor | None) -> str:
    return "nothing" if center is None else str(tuple(center.shape))
