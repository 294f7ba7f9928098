r"""Trust-region objectives for flow policies, behind one function: ratios in, an objective to be maximised out.

| kind      | ratio of a row                       | what limits the step            | source                       |
|-----------|--------------------------------------|---------------------------------|------------------------------|
| flow_grpo | ρ = exp(ln ρ)                        | clip of every step              | Flow-GRPO, arXiv:2505.05470  |
| guard     | exp((ln ρ + δ) s), weight 1/|Δ|      | clip of every step              | GRPO-Guard, arXiv:2510.22319 |
| dppo      | ρ                                    | mask where δ > threshold        | Flow-DPPO, arXiv:2606.11025  |
| gspo      | exp(mean over steps of ln ρ)         | one clip for a trajectory       | GSPO, arXiv:2507.18071       |

The clipped ones maximise :math:`E[\min(\rho A, \mathrm{clip}(\rho, 1 - \epsilon_-, 1 + \epsilon_+) A)]`. Ratios are of
means over real scalars, so a published range such as 1e-4 means 6.6 nats on an image latent of 65,536 scalars, another
trust region on a sound of another length, and 0.2 never clips at all. Ranges here are **in nats on the whole state**
and divided by each row's D; the published form is `unit="mean"`.

GRPO-Guard: ln ρ has the mean −δ under π_old, so that plain ratios lie below 1 and the clip treats the two signs of A
unequally; ln ρ + δ = ⟨μ − μ_old, ξ⟩ / s is centred. Times s it is ⟨μ − μ_old, ξ⟩, of one size at all steps.

Symbols: as in `flow_steps`; ε clip range, ξ the noise that was drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.rl.flow_steps import FlowStepRatios, trajectories
from auralign.rl.surrogate import LARGEST_LOG_RATIO

TrustRegionKind = Literal["flow_grpo", "guard", "dppo", "gspo"]
"""Which objective; see the table."""


@final
@dataclass(frozen=True)
class ClipRange:
    """How far a ratio may go before its gradient is dropped.

    >>> low, high = ClipRange(below=1.0, above=2.0).bounds(torch.tensor([100.0, 200.0]))
    >>> high.tolist()
    [0.019999999552965164, 0.009999999776482582]
    """

    below: float = 1.5
    """Towards smaller ratios, above 0; in nats, ln ρ of the whole state is held above minus this."""
    above: float = 1.5
    """Towards larger ones; DAPO (arXiv:2503.14476) takes about 1.4 times as much."""
    unit: Literal["nats", "mean"] = "nats"
    """nats: on the whole state, |ln ρ| ≤ ε / D. mean: as published, 1 − ε to 1 + ε on the mean-reduced ratio."""

    def __post_init__(self) -> None:
        """Refuses ranges that allow nothing."""
        usable = all(math.isfinite(number) and number > 0 for number in (self.below, self.above))
        if not usable or (self.unit == "mean" and self.below >= 1):
            raise UsageError(
                f"a clip range of {self.below} below and {self.above} above in {self.unit} allows no step",
                where="ClipRange",
                hint="1 to 2 nats, or 1e-6 to 1e-4 with unit mean",
            )

    def bounds(self, scalars: Float[Tensor, " row"]) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Least and largest mean-reduced log-ratio of states of D scalars."""
        if self.unit == "mean":
            one = torch.ones_like(scalars)
            return one * math.log1p(-self.below), one * math.log1p(self.above)
        return -self.below / scalars, self.above / scalars


@final
@dataclass(frozen=True)
class TrustRegion:
    """Which objective, and how far it lets the policy go."""

    kind: TrustRegionKind = "flow_grpo"
    """See the table of the module."""
    clip: ClipRange = ClipRange()
    """Of flow_grpo, guard and gspo (there, for the mean step)."""
    largest_kl: float = 1e-5
    """Threshold of dppo on δ **per real scalar**, as published; 0.4 nats on a mel of 4 s (37,500 scalars)."""
    typical_std: float | None = None
    """Guard's ratio is in units of s, so nats become nats times this: the mean s of the whole rollout. None takes the
    mean of the rows of the call, which makes micro-batches differ slightly. Unused with unit mean."""
    common_scalars: float | None = None
    """Exponent 1 / D of the ratios: each row's own D, so that long and short sounds weigh alike, or one number for
    all, so that scalars do (Dr. GRPO, arXiv:2503.20783)."""

    def __post_init__(self) -> None:
        """Refuses thresholds without a meaning."""
        for name in ("largest_kl", "typical_std", "common_scalars"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}", where="TrustRegion", hint="give a positive number")


@final
@dataclass(frozen=True, eq=False)
class FlowSurrogate:
    """Objective and the numbers to watch; the means are over what counts."""

    objective: Float[Tensor, ""]
    """To be maximised."""
    ratio_mean: Float[Tensor, ""]
    """Mean ratio, mean-reduced; 1 before the first update."""
    clip_share: Float[Tensor, ""]
    """Share of rows (gspo: trajectories) whose gradient was dropped."""
    clip_above: Float[Tensor, ""]
    """The part of it with A > 0, that is, past the upper end."""
    kl_old: Float[Tensor, ""]
    """δ per real scalar; exact, where other surrogates estimate it from draws."""
    kl_old_nats: Float[Tensor, ""]
    """δ on whole states, in nats; of the size of the clip range when that is at work."""
    count: int
    """Rows (gspo: trajectories) in the means. Weigh objectives of micro-batches by it to equal that of the batch."""
    clipped: Bool[Tensor, " row"]
    """Rows whose gradient was dropped, for `flow_steps.by_step`."""


def surrogate(steps: FlowStepRatios, region: TrustRegion) -> FlowSurrogate:
    """The objective of a trust-region update, mean over kept rows; with none kept it is 0.

    At the first inner step every ratio is 1, nothing is clipped, and the gradient is that of A ln π.

    Args:
        steps: From `step_ratios`.
        region: Kind and limits.
    """
    share = steps.kept.to(steps.log_ratio.dtype) / steps.kept.sum().clamp_min(1)
    kl = steps.kl_old.detach().where(steps.kept, 0)
    found = _gspo(steps, region) if region.kind == "gspo" else _by_row(steps, region, share)
    return FlowSurrogate(
        objective=found.objective,
        ratio_mean=found.ratio_mean,
        clip_share=found.clip_share,
        clip_above=found.clip_above,
        kl_old=(kl * share).sum(),
        kl_old_nats=(kl * steps.scalars * share).sum(),
        count=found.count,
        clipped=found.clipped,
    )


@final
@dataclass(frozen=True, eq=False)
class _Found:
    objective: Tensor
    ratio_mean: Tensor
    clip_share: Tensor
    clip_above: Tensor
    count: int
    clipped: Tensor


def _by_row(steps: FlowStepRatios, region: TrustRegion, share: Tensor) -> _Found:
    """One ratio for each row: flow_grpo, guard, dppo."""
    log_ratio, size, unit = _common(steps, region)
    weight = torch.ones_like(size)
    if region.kind == "guard":
        # the bias first: rescaled by the same factor as the log-ratio that it centres
        log_ratio = (log_ratio + steps.kl_old * unit) * steps.std
        weight = 1 / steps.duration
    low, high = region.clip.bounds(size)
    if region.kind == "guard" and region.clip.unit == "nats":
        kept_std = (steps.std * share).sum() if region.typical_std is None else region.typical_std
        low, high = low * kept_std, high * kept_std
    if region.kind == "dppo":
        value, clipped = _masked(log_ratio, steps, region.largest_kl)
    else:
        value, clipped = _clipped(log_ratio, steps.advantage, low, high)
    return _found(value * weight, log_ratio, clipped, steps.advantage, steps.kept)


def _gspo(steps: FlowStepRatios, region: TrustRegion) -> _Found:
    """One ratio for each trajectory, exp of the mean log-ratio of its steps, and one clip (arXiv:2507.18071, Eq. 7)."""
    place, number = trajectories(steps)
    log_ratio, size, _ = _common(steps, region)
    kept = steps.kept.to(log_ratio.dtype)
    counted = kept.new_zeros(number).index_add(0, place, kept)

    def mean(value: Tensor) -> Tensor:
        return value.new_zeros(number).index_add(0, place, value.where(steps.kept, 0)) / counted.clamp_min(1)

    advantage, joint = mean(steps.advantage), mean(log_ratio)
    low, high = region.clip.bounds(mean(size).where(counted > 0, 1))
    value, clipped = _clipped(joint, advantage, low, high)
    found = _found(value, joint, clipped, advantage, counted > 0)
    return replace(found, clipped=found.clipped[place] & steps.kept)


def _common(steps: FlowStepRatios, region: TrustRegion) -> tuple[Tensor, Tensor, Tensor]:
    """Log-ratios in the unit of the region, the D that they are divided by, and the factor between the units."""
    if region.common_scalars is None:
        return steps.log_ratio, steps.scalars.clamp_min(1), torch.ones_like(steps.scalars)
    size = torch.full_like(steps.scalars, region.common_scalars)
    unit = steps.scalars / size
    return steps.log_ratio * unit, size, unit


def _clipped(log_ratio: Tensor, advantage: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """min(ρ A, clip(ρ) A) and where its gradient is gone.

    As A + min((ρ − 1) A, (clip(ρ) − 1) A): in single precision 1 + 1e-6 has one digit.
    """
    free = torch.expm1(_finite(log_ratio)) * advantage
    held = torch.expm1(log_ratio.clamp(low, high)) * advantage
    return advantage + torch.minimum(free, held), held.detach() < free.detach()


def _masked(log_ratio: Tensor, steps: FlowStepRatios, largest_kl: float) -> tuple[Tensor, Tensor]:
    """ρ A, as a constant where the policy is too far away and would go further."""
    value = steps.advantage + torch.expm1(_finite(log_ratio)) * steps.advantage
    away = steps.advantage * log_ratio.detach() > 0
    blocked = away & (steps.kl_old.detach() > largest_kl)
    return torch.where(blocked, value.detach(), value), blocked


def _found(value: Tensor, log_ratio: Tensor, clipped: Tensor, advantage: Tensor, kept: Tensor) -> _Found:
    count = int(kept.sum())
    clipped = clipped & kept
    with torch.no_grad():
        ratio = _finite(log_ratio).exp().where(kept, 0).sum() / max(1, count)
        share = clipped.to(value.dtype).sum() / max(1, count)
        above = (clipped & (advantage > 0)).to(value.dtype).sum() / max(1, count)
    return _Found(value.where(kept, 0).sum() / max(1, count), ratio, share, above, count, clipped)


def _finite(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
