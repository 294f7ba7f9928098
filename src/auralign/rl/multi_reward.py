r"""Advantages from several rewards, and gates that no gain in one reward can buy off.

Summed raw, the reward with the largest spread decides. GDPO (arXiv:2601.05242; TRL's `normalize_then_sum`)
standardises each reward inside its group, sums with weights, and standardises the sums over the batch.

A **gate** watches a metric of the clip, such as speaker similarity: where it falls below that of the base model by
more than a limit, the clip is not to be learned from, whatever else it gained. Larger metrics are better throughout.

Symbols: R reward, A advantage, w weight. A reward of nan cannot be scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.rl.advantage import LEAST_STD, Advantage, group_relative

Scale = Literal["centred", "group", "all", "none"]
"""What group-centred rewards are divided by: the spread of all **centred** rewards of the batch, that of the group,
that of all raw rewards (Flow-GRPO's `global_std`), or nothing (Dr. GRPO)."""

LARGEST_ADVANTAGE = 5.0
"""Flow-GRPO's clamp."""

PUBLISHED_LIMITS: Mapping[str, float] = MappingProxyType(
    {"sig": 0.03, "speaker": 0.02, "content": 0.005, "stoi": 0.005, "pesq": 0.05}
)
"""How far GA-AF-FlowSE lets a metric fall below the base model; word error rate 0.02, with its sign turned."""


def scaled_advantage(
    reward: Float[Tensor, "batch group"],
    *,
    scale: Scale = "centred",
    eps: float = 1e-4,
    limit: float = LARGEST_ADVANTAGE,
    least_std: float = LEAST_STD,
) -> Advantage:
    """A = clip((R − mean of the group) / (std + ε), ±limit).

    In enhancement the input's noise decides most of the spread of raw rewards, which makes "all" shrink every
    advantage; "centred" is the spread that advantages are made of, and unlike "group" does not blow up easy groups.

    >>> scaled_advantage(torch.tensor([[1.0, 3.0], [50.0, 54.0]])).value.round().tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]

    Args:
        reward: R, nan where it cannot be scored.
        scale: Which spread.
        eps: Added to it.
        limit: Largest size of an advantage.
        least_std: A group that spreads less is degenerate and gets 0.
    """
    if not limit > 0:
        raise UsageError(f"a limit of {limit} leaves no advantage", where="limit", hint="5 in Flow-GRPO")
    base = group_relative(reward, eps=eps, least_std=least_std)
    if scale == "group":
        return _within(base, base.value, limit)
    wide = reward.detach().to(torch.promote_types(reward.dtype, torch.float32))
    filled = torch.where(base.kept, wide, 0.0)
    count = base.kept.sum().clamp_min(1)
    centred = _centred(filled, base.kept, dim=1)
    if scale == "none":
        std = torch.ones_like(centred[:1, :1])
        eps = 0.0
    else:
        spread = centred if scale == "centred" else _centred(filled.flatten(), base.kept.flatten(), dim=0)
        std = (spread.square().sum() / count).sqrt()
    # group_relative gives exactly 0 to degenerate groups, and to members at the mean of theirs
    return _within(base, torch.where(base.value == 0, 0.0, centred / (std + eps)), limit)


def gdpo(
    rewards: Mapping[str, Float[Tensor, "batch group"]],
    weights: Mapping[str, float],
    *,
    eps: float = 1e-4,
    limit: float = LARGEST_ADVANTAGE,
    least_std: float = LEAST_STD,
) -> Advantage:
    """Each reward standardised in its group, weighted sum, standardised over the batch (GDPO).

    A term that cannot score a member is left out of that member's sum; a member that no term can score leaves.
    A reward may be multiplied by any positive number without effect, as long as ε and the least spread are small.

    Args:
        rewards: R by name, nan where it cannot be scored; names without a weight are ignored.
        weights: w by name.
        eps: Added to standard deviations.
        limit: Largest size of an advantage.
        least_std: A group whose rewards spread less gets nothing from that term.
    """
    missing = sorted(set(weights) - set(rewards))
    if missing or not any(weights.values()):
        raise UsageError(
            f"there is no reward called {missing[0]!r}" if missing else "no reward has a weight",
            where="gdpo",
            hint=f"there are {sorted(rewards)}",
        )
    terms = {
        name: group_relative(rewards[name], eps=eps, least_std=least_std)
        for name, weight in weights.items()
        if weight
    }
    total = torch.stack([weights[name] * term.value for name, term in terms.items()]).sum(0)
    kept = torch.stack([term.kept for term in terms.values()]).any(0)
    centred = _centred(torch.where(kept, total, 0.0).flatten(), kept.flatten(), dim=0).view_as(total)
    std = (centred.square().sum() / kept.sum().clamp_min(1)).sqrt()
    flat = torch.stack([(term.value == 0).all(1) for term in terms.values()]).all(0)
    # a group without signal is no evidence against its members: the mean of the batch must not move it
    value = torch.where(flat.unsqueeze(1) | (std < least_std), 0.0, centred / (std + eps))
    share = float(flat.float().mean()) if len(flat) else 0.0
    return _within(Advantage(value, kept, share), value, limit)


@final
@dataclass(frozen=True)
class Gate:
    """A metric that must not fall.

    >>> Gate("speaker", 0.02).closed(torch.tensor([[0.85, 0.89]]), torch.tensor([0.9])).tolist()
    [[True, False]]
    """

    name: str
    """Of the metric, in logs."""
    limit: float
    """How far it may fall below the base, in its own unit; see `PUBLISHED_LIMITS`."""
    action: Literal["no_gain", "worst"] = "no_gain"
    """no_gain: a positive advantage becomes 0. worst: the advantage becomes the lowest of the group,
    which is at most 0."""

    def __post_init__(self) -> None:
        """Refuses limits without a meaning."""
        if not (math.isfinite(self.limit) and self.limit >= 0):
            raise UsageError(f"a limit of {self.limit} is none", where=f"gate {self.name!r}", hint="0.02")

    def closed(
        self, metric: Float[Tensor, "batch group"], base: Float[Tensor, " batch"]
    ) -> Bool[Tensor, "batch group"]:
        """Members whose metric is below base − limit, and those it cannot measure: unmeasurable is no way out."""
        return ~(metric.detach() >= base.detach().unsqueeze(1) - self.limit)


@final
@dataclass(frozen=True, eq=False)
class Gated:
    """Advantages after the gates, and how often each closed."""

    advantage: Advantage
    """With values changed only where a gate closed."""
    closed_share: Mapping[str, float]
    """Share of kept members that each gate stopped, by its name."""


def apply_gates(
    advantage: Advantage,
    gates: Sequence[Gate],
    metrics: Mapping[str, Float[Tensor, "batch group"]],
    bases: Mapping[str, Float[Tensor, " batch"]],
) -> Gated:
    """Takes away what was gained at the expense of a watched metric.

    A group without signal stays without: its lowest advantage is 0.

    Args:
        advantage: A of all members.
        gates: In any order; they do not interact.
        metrics: By the gates' names, of each member.
        bases: By the gates' names, of the base model's output for each item.
    """
    value, shares = advantage.value, {}
    lowest = torch.where(advantage.kept, value, 0.0).clamp_max(0).amin(1, keepdim=True).expand_as(value)
    for gate in gates:
        if gate.name not in metrics or gate.name not in bases:
            raise UsageError(
                f"the gate {gate.name!r} has nothing to watch",
                where="apply_gates",
                hint=f"there are metrics {sorted(metrics)} and bases {sorted(bases)}",
            )
        closed = gate.closed(metrics[gate.name], bases[gate.name]) & advantage.kept
        value = torch.where(closed, lowest if gate.action == "worst" else value.clamp_max(0), value)
        shares[gate.name] = float(closed.sum() / advantage.kept.sum().clamp_min(1))
    return Gated(Advantage(value, advantage.kept, advantage.degenerate_share), shares)


def _centred(filled: Tensor, kept: Tensor, *, dim: int) -> Tensor:
    """Less the mean of what is kept; 0 elsewhere."""
    mean = filled.sum(dim, keepdim=True) / kept.sum(dim, keepdim=True).clamp_min(1)
    return torch.where(kept, filled - mean, 0.0)


def _within(base: Advantage, value: Tensor, limit: float) -> Advantage:
    return Advantage(value.clamp(-limit, limit), base.kept, base.degenerate_share)
