r"""Flow matching on samples of the policy: noise added again, and how far velocities are from the right one.

On a straight path :math:`x_t = (1 - t) x_0 + t x_1` the velocity of a sample is :math:`u = x_1 - x_0`. Its error
:math:`e_\theta = \mathrm{mean} |v_\theta(x_t, t) - u|^2` stands for the log-likelihood of x₀ (the ELBO of diffusion
models, up to a weight of t), without any trajectory: updates of the forward process and of preference are made of it.

Errors are **means over the real scalars** that count; a complex number is two of them, so that complex data and real
data of twice the channels have the same numbers.

Symbols: x₀ sample, x₁ prior sample, t time, u target, v velocity, e error. Rows are samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

from auralign.flow.path import StraightPath, wide_dtype


@final
@dataclass(frozen=True, eq=False)
class Noised:
    """Samples with noise, one a row; made by `noise_again`."""

    x_0: Inexact[Tensor, "row *shape"]
    """The clean sample, as the policy made it."""
    x_t: Inexact[Tensor, "row *shape"]
    """The network's input."""
    t: Float[Tensor, " row"]
    """Its time."""
    target: Inexact[Tensor, "row *shape"]
    """u = x₁ − x₀."""
    valid: Bool[Tensor, "row *#shape"] | None = None
    """Scalars that exist, such as frames before the end of a shorter sound; all by default."""

    def take(self, row: Int[Tensor, " some"]) -> Noised:
        """Chosen rows."""
        valid = None if self.valid is None else self.valid[row]
        return Noised(self.x_0[row], self.x_t[row], self.t[row], self.target[row], valid)


@torch.no_grad()
def noise_again(
    path: StraightPath,
    x_0: Inexact[Tensor, "row *shape"],
    t: Float[Tensor, " row"],
    *,
    generator: torch.Generator,
    shared: int = 1,
    valid: Bool[Tensor, "row *#shape"] | None = None,
) -> Noised:
    """Fresh noise on clean samples.

    Args:
        path: Prior of each row, that is `path.at(item)`.
        x_0: Clean samples.
        t: Time of each row. Shares noise: the same for rows that share.
        generator: Source of randomness.
        shared: So many consecutive rows get the same noise: 2 for (winner, loser) pairs.
        valid: Scalars that exist.
    """
    x_0 = x_0.to(wide_dtype(x_0))
    x_1 = path.draw(x_0, generator=generator, shared=shared)
    return Noised(x_0, path.between(x_0, x_1, t), t, x_1 - x_0, valid)


def matching_error(velocity: Inexact[Tensor, "row *shape"], noised: Noised) -> Float[Tensor, " row"]:
    """Error of each row, e = mean |v − u|²."""
    return mean_square(velocity - noised.target, noised.valid)


def excess_error(
    velocity: Inexact[Tensor, "row *shape"], other: Inexact[Tensor, "row *shape"], noised: Noised
) -> Float[Tensor, " row"]:
    """e(v) − e(other) = mean Re⟨v − other, v + other − 2u⟩, without the loss of digits of a difference of errors.

    Preference losses multiply it by 2000, and clip ranges of 1e-5 apply to it. No gradient into `other`.
    """
    other = other.detach()
    moved, sum_of_errors = _real(velocity - other), _real(velocity + other - 2 * noised.target)
    return _mean(moved * sum_of_errors, velocity, noised.valid)


def mean_square(
    number: Inexact[Tensor, "row *shape"], valid: Bool[Tensor, "row *#shape"] | None = None
) -> Float[Tensor, " row"]:
    """Mean over real scalars of their squares, such as a velocity's distance from the reference; 0 if none count.

    >>> mean_square(torch.tensor([[3 + 4j]]))
    tensor([12.5000])
    """
    return _mean(_real(number).square(), number, valid)


def mean_modulus(
    number: Inexact[Tensor, "row *shape"], valid: Bool[Tensor, "row *#shape"] | None = None
) -> Float[Tensor, " row"]:
    """Mean over real scalars of their absolute values (of a complex number, of its two parts)."""
    return _mean(_real(number).abs(), number, valid)


def mean_of(value: Float[Tensor, " row"], kept: Bool[Tensor, " row"] | None = None) -> Float[Tensor, ""]:
    """Mean over the rows that count, 0 if none do."""
    if kept is None:
        return value.sum() / max(1, len(value))
    return value.where(kept, 0).sum() / kept.sum().clamp_min(1)


def real_scalars(number: Tensor, valid: Tensor | None = None) -> Float[Tensor, " row"]:
    """D, number of real scalars of each row that count."""
    each = 2 if number.is_complex() else 1
    counted = number.real.detach() * 0 + 1
    if valid is not None:
        counted = counted.where(valid.expand(number.shape), 0)
    return counted.flatten(1).sum(1) * each


def _real(number: Tensor) -> Tensor:
    """Real scalars, in a last axis of 2 (complex) or 1."""
    return torch.view_as_real(number.resolve_conj()) if number.is_complex() else number.unsqueeze(-1)


def _mean(scalar: Tensor, like: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over real scalars, `scalar` with the last axis of `_real`."""
    if valid is None:
        return scalar.flatten(1).mean(1)
    counted = valid.expand(like.shape).unsqueeze(-1).expand(scalar.shape).flatten(1)
    return scalar.flatten(1).where(counted, 0).sum(1) / counted.sum(1).clamp_min(1)
