r"""Selection instead of a gradient of the reward: keep what scored well, and match it.

*Best of N* draws N samples and keeps the best, at the price of N scored clips for each output. *Reward-filtered
fine-tuning* (RAFT, arXiv:2304.06767) trains on chosen samples by plain flow matching,
:math:`L = \sum w e_\theta / \sum w`. It is the control that reinforcement learning has to beat **at the same number of
scored clips**, so both count what they spend.

Symbols: R reward, w weight, e error of matching. A reward of nan cannot be scored and is never chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from auralign.errors import UsageError

Keep = Literal["best", "above_mean", "quantile"]
"""Of each group: its best member, all above its mean, or all at or above a quantile of it."""


@final
@dataclass(frozen=True)
class ScoredClips:
    """A budget in clips that rewards have scored: the currency in which methods are compared.

    >>> ScoredClips(100).spend(64).left
    36
    """

    limit: int
    """How many there are."""
    spent: int = 0
    """How many are gone; a clip that could not be scored has cost as much."""

    @property
    def left(self) -> int:
        """How many remain."""
        return max(0, self.limit - self.spent)

    def affords(self, clips: int) -> bool:
        """Whether so many more can be scored."""
        return self.spent + clips <= self.limit

    def spend(self, clips: int) -> ScoredClips:
        """The budget after scoring so many."""
        if clips < 0 or not self.affords(clips):
            raise UsageError(
                f"{clips} more clips cannot be scored, {self.left} of {self.limit} are left",
                where="ScoredClips",
                hint="end the run when `affords` says no",
            )
        return ScoredClips(self.limit, self.spent + clips)


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """What filtered fine-tuning trains on."""

    weight: Float[Tensor, "batch group"]
    """w, 1 for chosen members and 0 for the others."""
    share: float
    """Share of members chosen."""
    gain: float
    """Mean reward of the chosen less that of their groups, nan if nothing was chosen."""
    scored_clips: int
    """Clips spent on the choice, unscorable ones included."""

    @property
    def item(self) -> Int[Tensor, " row"]:
        """Chosen members in the flattened "batch group"."""
        return self.weight.flatten().nonzero()[:, 0]


@final
@dataclass(frozen=True, eq=False)
class Best:
    """The best member of each group."""

    member: Int[Tensor, " batch"]
    """Its number in the group; the first of equals, and 0 where nothing could be scored."""
    reward: Float[Tensor, " batch"]
    """Its reward, nan where nothing could be scored."""
    scored_clips: int
    """Clips spent."""

    @property
    def found(self) -> Bool[Tensor, " batch"]:
        """Groups in which anything could be scored."""
        return ~self.reward.isnan()


def best_of_n(reward: Float[Tensor, "batch group"]) -> Best:
    """The member with the largest reward of each group.

    >>> best_of_n(torch.tensor([[1.0, torch.nan, 3.0]])).member.tolist()
    [2]
    """
    filled = torch.where(reward.isnan(), -torch.inf, reward.detach())
    high = filled.max(1)
    found = high.values > -torch.inf
    return Best(high.indices.where(found, 0), high.values.where(found, torch.nan), reward.numel())


def reward_filter(
    reward: Float[Tensor, "batch group"],
    *,
    keep: Keep = "best",
    quantile: float = 0.75,
    least_gain: float = 0.0,
    least_reward: float | None = None,
) -> Chosen:
    """Members worth imitating; never one that is not above the mean of its group, so groups of equals give none.

    >>> reward_filter(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])).weight.tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]

    Args:
        reward: R, nan where it cannot be scored.
        keep: Which members of a group.
        quantile: Of the scored members, from 0 to 1; used by "quantile".
        least_gain: A member has to exceed the mean of its group by this much.
        least_reward: And to reach this reward.
    """
    if not 0 <= quantile <= 1:
        raise UsageError(f"there is no quantile {quantile}", where="quantile", hint="0.75 keeps a quarter")
    reward = reward.detach()
    scored = ~reward.isnan()
    above = reward - reward.nanmean(1, keepdim=True)
    chosen = scored & (above > max(least_gain, 0.0))
    if keep == "best":
        best = best_of_n(reward).member
        chosen &= torch.arange(reward.shape[1], device=reward.device) == best.unsqueeze(1)
    elif keep == "quantile":
        chosen &= reward >= reward.nanquantile(quantile, dim=1, keepdim=True)
    if least_reward is not None:
        chosen &= reward >= least_reward
    gain = float(above[chosen].mean()) if bool(chosen.any()) else math.nan
    share = float(chosen.float().mean()) if chosen.numel() else 0.0
    return Chosen(chosen.to(reward.dtype), share, gain, reward.numel())


def filtered_matching(
    error: Float[Tensor, " row"], weight: Float[Tensor, " row"] | None = None
) -> Float[Tensor, ""]:
    """−Σ w e / Σ w, to be maximised; 0 if nothing was chosen.

    Args:
        error: e_θ from `matching.matching_error`.
        weight: w of each row; 1 by default, when the rows are `Chosen.item`.
    """
    if weight is None:
        return -error.sum() / max(1, len(error))
    whole = weight.sum()
    return -(error * weight).sum() / torch.where(whole > 0, whole, 1)
