"""Gamma variates and gamma functions of whole arrays, for arguments of at least 1.

What `beta_mask` needs and torch has only slowly or without a generator: exact draws, and ln Γ, ψ (digamma) and
ψ₁ (trigamma) from shared parts. Names are public to the package, not to users.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Pairing = Literal["independent", "antithetic"]
"""How the members of a group are drawn: each alone, or 2i and 2i + 1 from mirrored noise."""

_CHUNK = 1 << 16
"""Bins handled at once on a CPU, so that temporaries stay in its cache."""


def rows_at_once(value: Float[Tensor, "batch bin"]) -> int:
    """Items to handle together: few enough for the cache on a CPU, all of them elsewhere."""
    batch, bins = value.shape
    return max(1, _CHUNK // max(bins, 1)) if value.device.type == "cpu" else max(1, batch)


def beta_family(
    p: Float[Tensor, "batch bin"], kappa: float
) -> tuple[
    Float[Tensor, "batch bin"],
    Float[Tensor, "batch bin"],
    Float[Tensor, "batch bin"],
    Float[Tensor, "batch bin"],
    Float[Tensor, "batch bin"],
]:
    """Five functions of P: ln B(α, β), ψ(β), ψ(α) − ψ(β), ψ₁(β) and ψ₁(α) + ψ₁(β)."""
    alpha = (kappa * p).add_(1)
    log_a, psi_a, tri_a = _gamma_family(alpha)
    log_b, psi_b, tri_b = _gamma_family((kappa + 2) - alpha)
    log_beta = log_a.add_(log_b).sub_(math.lgamma(kappa + 2))
    return log_beta, psi_b, psi_a.sub_(psi_b), tri_b, tri_a.add_(tri_b)


def log_beta_of(p: Float[Tensor, "batch bin"], kappa: float) -> Float[Tensor, "batch bin"]:
    """Only ln B(α, β), by the same operations, so that equal policies have a divergence of exactly 0."""
    alpha = (kappa * p).add_(1)
    log_a = _log_gamma(*_shifted(alpha))
    return log_a.add_(_log_gamma(*_shifted((kappa + 2) - alpha))).sub_(math.lgamma(kappa + 2))


def _shifted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y = x + 6, ln y, and q = x (x + 5); then x (x + 1) … (x + 5) = q (q + 4) (q + 6)."""
    y = x + 6
    return y, y.log(), (x + 5).mul_(x)


def _log_gamma(y: Tensor, log_y: Tensor, q: Tensor) -> Tensor:
    """Log of Γ(x) for x ≥ 1: Stirling's series at y = x + 6 less the log of the product; error below 1e-9."""
    r = y.reciprocal()
    r2 = r * r
    series = r2.mul(1 / 1260).sub_(1 / 360).mul_(r2).add_(1 / 12).mul_(r)
    return series.addcmul_(y - 0.5, log_y).sub_(y).add_(0.5 * math.log(2 * math.pi)).sub_(_product(q).log_())


def _product(q: Tensor) -> Tensor:
    return (q + 4).mul_(q).mul_(q + 6)


def _gamma_family(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ln Γ, ψ and ψ₁ of x ≥ 1 from shared parts: asymptotic series at x + 6 and six steps of the recurrence.

    The steps pair up: 1/(x + k) + 1/(x + 5 − k) = (2x + 5) / (q + c), c = 0, 4, 6; error below 1e-9.
    """
    y, log_y, q = _shifted(x)
    i0, i1, i2 = q.reciprocal(), (q + 4).reciprocal_(), (q + 6).reciprocal_()
    twice = (2 * x).add_(5)
    steps = (i0 + i1).add_(i2)
    squares = i0.mul_(i0).addcmul_(i1, i1).addcmul_(i2, i2)
    r = y.reciprocal()
    r2 = r * r
    tail = r2.mul(1 / 252).sub_(1 / 120).mul_(r2).add_(1 / 12).mul_(r2)
    psi = log_y - tail.add_(r, alpha=0.5).addcmul_(twice, steps)
    tri = r2.mul(1 / 42).sub_(1 / 30).mul_(r2).add_(1 / 6).mul_(r).add_(0.5).mul_(r2).add_(r)
    tri.addcmul_(twice.mul_(twice), squares).sub_(steps, alpha=2)
    return _log_gamma(y, log_y, q), psi, tri


def standard_gamma(
    shape: Float[Tensor, "batch bin"], group: int, generator: torch.Generator, pairing: Pairing
) -> Float[Tensor, "batch group bin"]:
    """Exact Gamma(shape, 1) draws for shapes ≥ 1: Marsaglia and Tsang 2000, all bins at once, rejected ones again.

    With d = shape − 1/3, c = 1/√(9d), z normal, u uniform, v = (1 + cz)³: d·v is kept if
    ln u < z²/2 + d (1 − v + ln v). Mirroring z before the test keeps each draw exact, because z and −z have the
    same law and are tested with separate u; what is drawn again is independent.
    """
    batch, bins = shape.shape
    like: dict[str, Any] = {"dtype": shape.dtype, "device": shape.device, "generator": generator}
    d = shape - 1 / 3
    c = (9 * d).rsqrt_()
    if pairing == "antithetic":
        half = torch.randn(batch, group // 2, 1, bins, **like)
        z = torch.cat([half, -half], dim=2).view(batch, group, bins)
    else:
        z = torch.randn(batch, group, bins, **like)
    u = torch.rand(batch, group, bins, **like)
    t = (z * c.unsqueeze(1)).add_(1)
    v = (t * t).mul_(t)
    bound = t.log_().mul_(3).sub_(v).add_(1).mul_(d.unsqueeze(1)).addcmul_(z, z, value=0.5)
    kept = u.log_() < bound  # v ≤ 0 makes the bound nan or −∞, which compares as False
    drawn = v.mul_(d.unsqueeze(1)).view(-1)
    index = kept.logical_not_().view(-1).nonzero().squeeze(1)
    while index.numel():
        cell = index.div(group * bins, rounding_mode="floor") * bins + index % bins
        d_cell = d.view(-1)[cell]
        z, u = torch.randn(index.shape, **like), torch.rand(index.shape, **like)
        v = (z * c.view(-1)[cell]).add_(1).pow_(3)
        kept = u.log_() < 0.5 * z * z + d_cell * (1 - v + v.log())
        kept |= d_cell.isnan()  # a nan shape would never be accepted: its draw is nan
        drawn[index[kept]] = (d_cell * v)[kept]
        index = index[~kept]
    return drawn.view(batch, group, bins)


def digamma_of(x: float) -> float:
    """ψ of one number."""
    return float(torch.tensor(x, dtype=torch.float64).digamma())
