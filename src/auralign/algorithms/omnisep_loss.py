"""Losses of query-conditioned separation, one pure function each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def binary_target(
    source: Float[Tensor, "batch source row frame"],
    mixture: Float[Tensor, "batch row frame"],
    n_sources: int = 2,
) -> Float[Tensor, "batch source row frame"]:
    r"""The published target mask :math:`M^*_n = 1[\,|S_n| > |X| / N\,]` on warped magnitudes (N = 2: a half).

    Zhao et al. 2018; OmniSep keeps it.
    """
    return (source > mixture[:, None] / n_sources).to(source)


def magnitude_weight(mixture: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    r"""The published bin weight :math:`w = \operatorname{clamp}(\ln(1 + |X|), 10^{-3}, 10)`.

    >>> magnitude_weight(torch.tensor([0.0, 1e9])).tolist()
    [0.0010000000474974513, 10.0]
    """
    return torch.log1p(mixture).clamp(1e-3, 10)


def weighted_bce(
    logits: Float[Tensor, "batch query row frame"],
    target: Float[Tensor, "batch query row frame"],
    weight: Float[Tensor, "batch row frame"],
) -> Float[Tensor, ""]:
    r"""Mean over sources, bins and frames of :math:`w\,\mathrm{BCE}(M_n, M^*_n)` (OmniSep, Eq. of Sec. 3.1)."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * weight[:, None]).mean()


def mask_error_db(
    mask: Float[Tensor, "batch query band frame"],
    best: Float[Tensor, "batch query band frame"],
    energy: Float[Tensor, "batch band frame"],
    source_energy: Float[Tensor, "batch query band frame"],
    floor: float = 1e-3,
) -> Float[Tensor, "batch query"]:
    r"""Negative SNR of the masked mixture in dB, computed in the band domain.

    The error of a band mask is :math:`\sum E(m - R)^2 + \sum(|S|^2 - E R^2)`; the second part no band mask can remove.
    Divided by the source's energy, plus a floor that ends the reward at ``-10 log10(floor)`` dB.

    >>> one = torch.ones(1, 1, 2, 2)
    >>> mask_error_db(one, one, one[0], one, floor=0.001).round().tolist()
    [[-30.0]]
    """
    error = (energy[:, None] * (mask - best).square()).sum(dim=(2, 3))
    unreachable = (source_energy - energy[:, None] * best.square()).sum(dim=(2, 3)).clamp_min(0)
    total = source_energy.sum(dim=(2, 3)).clamp_min(1e-10)
    return 10 * torch.log10((error + unreachable) / total + floor)


def leak_db(
    mask: Float[Tensor, "batch query band frame"],
    energy: Float[Tensor, "batch band frame"],
    floor: float = 1e-2,
) -> Float[Tensor, "batch query"]:
    """Level of what the mask lets through, dB relative to the mixture: the loss of a query that is not there."""
    through = (energy[:, None] * mask.square()).sum(dim=(2, 3))
    return 10 * torch.log10(through / energy.sum(dim=(1, 2))[:, None].clamp_min(1e-10) + floor)


def soft_bce(
    logits: Float[Tensor, "batch query band frame"],
    best: Float[Tensor, "batch query band frame"],
    energy: Float[Tensor, "batch band frame"],
) -> Float[Tensor, ""]:
    """Cross-entropy to the best ratio mask, weighted by the mixture's magnitude relative to its mean."""
    magnitude = energy.clamp_min(1e-12).sqrt()
    weight = (magnitude / magnitude.mean(dim=(1, 2), keepdim=True)).clamp(max=10)
    loss = F.binary_cross_entropy_with_logits(logits, best.clamp(0, 1), reduction="none")
    return (loss * weight[:, None]).mean()
