r"""Clipped surrogate with entropy and divergences: the objective of a trust-region update, as pure functions.

MARS-Sep (arXiv:2510.10509), Eq. (4):
:math:`J = E[\min(r \tilde A, \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon) \tilde A)
+ \lambda_H H(\pi_\theta) - \lambda_{KL} KL(\pi_\theta \| \pi_{old})]`, maximised.

Symbols: r ratio of the new to the old density of an action, D log-ratio, A advantage, ε clip range, n bins of a
mask, λ coefficients. The paper does not say how a ratio over 65,536 bins is formed; the three ways are named here.
With one update per snapshot r is exactly 1, nothing is clipped, and the objective is REINFORCE with entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from auralign.errors import UsageError

RatioForm = Literal["joint", "mean_log", "per_bin"]
"""Density ratio of whole masks, its n-th root (the geometric mean over bins), or one ratio for each bin."""

CLIP = 0.2
"""ε of the paper."""

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are held within ±20, where the clip has long been active, so that r stays finite."""


@final
@dataclass(frozen=True)
class Coefficients:
    """Weights of the regularisers, each against a mean over bins."""

    entropy: float = 0.01
    """λ_H; the paper has 0.1, which pulls masks to grey."""
    kl_old: float = 0.01
    """λ_KL, to the policy that drew the masks; its gradient is zero at the first inner step."""
    kl_reference: float = 0.0
    """To a fixed reference, such as the supervised separator; not in the paper."""


@final
@dataclass(frozen=True, eq=False)
class Surrogate:
    """Clipped objective and the numbers to watch."""

    objective: Float[Tensor, ""]
    """Mean over scored members, to be maximised."""
    ratio_mean: Float[Tensor, ""]
    """Mean ratio; far from 1 the step was too large."""
    clip_share: Float[Tensor, ""]
    """Share of ratios whose gradient the clip removed."""
    approx_kl: Float[Tensor, ""]
    """KL(π_old ‖ π_θ) from the same draws: mean of r − 1 − ln r (Schulman 2020), never negative."""


def log_ratio(
    new: Float[Tensor, "batch group *bins"],
    old: Float[Tensor, "batch group *bins"],
    *,
    form: RatioForm,
    bins: int = 1,
) -> Float[Tensor, "batch group *bins"]:
    """MARS-Sep Eq. (4), ln r = ln π_θ(M) − ln π_old(M), in one of three forms.

    Args:
        new: Log-probability under π_θ: means over bins for joint and mean_log, one for each bin for per_bin.
        old: The same under π_old; no gradient.
        form: joint is n times the difference of means, the other two are the difference itself.
        bins: n, used by joint.
    """
    if (form == "per_bin") != (new.dim() > 2):
        raise UsageError(
            f"log-probabilities of shape {tuple(new.shape)} do not fit the form {form}",
            where="log_ratio",
            hint="per_bin needs batch × group × bins; joint and mean_log need means over bins",
        )
    difference = new - old.detach()
    if form == "joint":
        difference = difference * bins
    return difference.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def clipped_surrogate(
    log_ratio: Float[Tensor, "batch group *bins"],
    advantage: Float[Tensor, "batch group"],
    *,
    clip: float = CLIP,
    kept: Bool[Tensor, "batch group"] | None = None,
    weight: Float[Tensor, "batch *bins"] | None = None,
) -> Surrogate:
    """MARS-Sep Eq. (4), first term: mean of min(r A, clip(r, 1 − ε, 1 + ε) A).

    Args:
        log_ratio: ln r of each member, or of each bin.
        advantage: A, a constant.
        clip: ε.
        kept: Members that count (`Advantage.kept`); all by default. With none the objective is 0.
        weight: Importance of each bin, such as mixture energy; scaled here to sum to 1 in each item. Per bin only:
            the other forms are weighted where their means are taken (`policy_terms`).
    """
    if not clip > 0:
        raise UsageError(f"a clip range of {clip} allows no step", where="clip", hint="the paper uses 0.2")
    if weight is not None and log_ratio.dim() == 2:
        raise UsageError("there are no bins to weigh", where="weight", hint="give it to policy_terms instead")
    share = _share(log_ratio, kept, weight)
    gain = advantage.detach().reshape(*advantage.shape, *[1] * (log_ratio.dim() - 2))
    ratio = log_ratio.exp()
    free, held = ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain
    with torch.no_grad():
        seen = ratio.detach()
        divergence = torch.special.expm1(log_ratio) - log_ratio
        numbers = [(value * share).sum() for value in (seen, (held < free).to(seen.dtype), divergence)]
    return Surrogate((torch.minimum(free, held) * share).sum(), *numbers)


def objective(
    surrogate: Float[Tensor, ""],
    *,
    entropy: Float[Tensor, " batch"],
    kl_old: Float[Tensor, " batch"] | None = None,
    kl_reference: Float[Tensor, " batch"] | None = None,
    coefficients: Coefficients,
) -> Float[Tensor, ""]:
    """MARS-Sep Eq. (4), J = J_clip + λ_H H − λ_KL KL(π_θ ‖ π_old) − λ_ref KL(π_θ ‖ π_ref); the loss is −J.

    Entropy and divergences are means over bins, so that a coefficient means the same for masks of any size. They
    count for every item, also for those that no reward could score.
    """
    total = surrogate + coefficients.entropy * entropy.mean()
    for name, value, weight in (
        ("kl_old", kl_old, coefficients.kl_old),
        ("kl_reference", kl_reference, coefficients.kl_reference),
    ):
        if value is not None:
            total = total - weight * value.mean()
        elif weight:
            raise UsageError(
                f"the coefficient {name} is {weight}, but no {name} was given",
                where=name,
                hint="pass it, or set 0",
            )
    return total


def _share(log_ratio: Tensor, kept: Tensor | None, weight: Tensor | None) -> Tensor:
    """Weight of every ratio in the mean; members that left have none."""
    batch, group, *bins = log_ratio.shape
    if kept is None:
        kept = torch.ones(batch, group, dtype=torch.bool, device=log_ratio.device)
    member = (kept.to(log_ratio.dtype) / kept.sum().clamp_min(1)).view(batch, group, *[1] * len(bins))
    if weight is None:
        return (member / max(1, math.prod(bins))).expand(log_ratio.shape)
    flat = weight.detach().to(log_ratio.dtype).flatten(1)
    return (flat / flat.sum(1, keepdim=True)).view(batch, 1, *bins) * member
