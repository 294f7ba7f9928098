r"""One decision of a mask policy and what is learned from it: draw, listen, compare, push (MARS-Sep, Eq. 2, 4, 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.mars_sep_config import PolicyConfig
from auralign.policy.exploration import Draw
from auralign.rewards.base import Scene
from auralign.rewards.compose import Composite
from auralign.rl.advantage import Advantage, Baseline, ema_baseline, group_relative, leave_one_out, published
from auralign.rl.surrogate import clipped_surrogate, log_ratio, objective


@dataclass(frozen=True)
class RollOut:
    """What one snapshot of the policy did on a micro-batch, and what it was worth."""

    drawn: Draw
    old_log_prob: Float[Tensor, "item group *coordinates"]
    advantage: Advantage
    numbers: dict[str, float]


def draw_and_compare(
    p: PolicyConfig,
    rewards: Composite,
    baseline: Baseline,
    proposal: Float[Tensor, "item row frame"],
    energy: Float[Tensor, "item row frame"],
    listen: Callable[[Float[Tensor, "item group row frame"]], Scene],
    generator: torch.Generator,
    kappa: float,
) -> RollOut:
    """Draw masks around the frozen proposal, listen to them, compare their rewards; no gradient.

    MARS-Sep Eq. (2) and (5).

    Args:
        p: How to draw and compare.
        rewards: What is rewarded; its running normalisation learns.
        baseline: The paper's moving baseline, moved on if it is used.
        proposal: P.
        energy: Power of what is separated, cell by cell.
        listen: From masks to what the rewards see.
        generator: Decides the masks.
        kappa: Concentration.
    """
    with torch.no_grad():
        drawn = p.explore.draw(proposal, energy, generator, p.group, kappa)
        scored = rewards.learn(listen(drawn.mask))
        old = drawn.log_prob(drawn.old) if p.ratio == "per_bin" else drawn.old_log_prob()
    reward = scored.total
    if p.advantage == "leave_one_out":
        advantage = leave_one_out(reward, drawn_together=p.drawn_together)
    elif p.advantage == "group":
        advantage = group_relative(reward)
    else:
        baseline.value = ema_baseline(baseline.value, reward)
        advantage = published(reward, baseline.value)
    numbers = {f"reward/{name}": mean for name, mean in scored.means().items()} | {
        "reward/total": float(reward.nanmean()),
        "reward/spread": _spread(reward),
        "unscored_share": float((~advantage.kept).float().mean()),
        "degenerate_share": advantage.degenerate_share,
        "kappa": kappa,
    }
    return RollOut(drawn, old, advantage, numbers)


def policy_loss(
    p: PolicyConfig, roll: RollOut, proposal: Tensor, reference: Tensor | None = None
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """MARS-Sep Eq. (4), negative and scaled by the number of coordinates, with the numbers to watch.

    Args:
        p: Ratio, clip range and coefficients.
        roll: Masks that a snapshot of the policy drew, and their advantages.
        proposal: P of the policy that learns, ``item row frame``, with its graph.
        reference: P of a fixed separator, to stay close to.
    """
    fixed = None
    if reference is not None:
        fixed = p.explore.policy(reference, roll.drawn.energy, roll.drawn.old.kappa)
    terms = roll.drawn.terms(proposal, reference=fixed)
    bins = roll.drawn.coordinates
    new = roll.drawn.log_prob(roll.drawn.policy(proposal)) if p.ratio == "per_bin" else terms.log_prob
    ratio = log_ratio(new, roll.old_log_prob, form=p.ratio, bins=bins)
    weight = roll.drawn.weight if p.ratio == "per_bin" else None
    surrogate = clipped_surrogate(
        ratio, roll.advantage.value, clip=p.clip, kept=roll.advantage.kept, weight=weight
    )
    total = objective(
        surrogate.objective * (1 if p.ratio == "joint" else bins),
        entropy=terms.entropy,
        kl_old=terms.kl[0],
        kl_reference=terms.kl[1] if fixed is not None else None,
        coefficients=p.coefficients,
    )
    numbers = {
        "ratio": float(surrogate.ratio_mean),
        "clip_share": float(surrogate.clip_share),
        "approx_kl": float(surrogate.approx_kl),
        "entropy": float(terms.entropy.detach().mean()),
        "kl_old": float(terms.kl[0].detach().mean()),
    }
    return -total, numbers


def _spread(reward: Float[Tensor, "item group"]) -> float:
    """Mean standard deviation of rewards within a group."""
    centred = reward - reward.nanmean(dim=1, keepdim=True)
    return float(centred.square().nanmean(dim=1).sqrt().nanmean())
