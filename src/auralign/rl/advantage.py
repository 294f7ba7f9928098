r"""Advantages: how much better a reward was than what to expect, as pure functions of a batch of groups.

Symbols: R reward, A advantage, b baseline, G members of a group (masks drawn for one mixture). A reward of nan
means "cannot be scored": that member leaves its group, its advantage is 0 and `kept` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from auralign.errors import UsageError

EMA_DECAY = 0.92
"""Decay of the moving baseline in MARS-Sep."""

LEAST_STD = 1e-4
"""A group whose rewards spread less carries no signal."""

Fallback = Literal["zero", "batch"]
"""What a group without spread gets: nothing, or its place in the batch."""


@final
@dataclass(frozen=True, eq=False)
class Advantage:
    """Advantages of a batch, and how much of it could be used."""

    value: Float[Tensor, "batch group"]
    """A; 0 for members that left and for groups without signal."""
    kept: Bool[Tensor, "batch group"]
    """Members with a reward."""
    degenerate_share: float
    """Share of groups with fewer than two scored members or a standard deviation below the threshold."""


def group_relative(
    reward: Float[Tensor, "batch group"],
    *,
    eps: float = 1e-4,
    least_std: float = LEAST_STD,
    fallback: Fallback = "zero",
) -> Advantage:
    """Rewards centred and scaled within each group: A = (R − mean(R)) / (std(R) + ε).

    Shao et al. 2024 (arXiv:2402.03300), Sec. 4.1, with the population standard deviation.

    >>> group_relative(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).value.round().tolist()
    [[-1.0, 1.0], [0.0, 0.0]]

    Args:
        reward: R, nan where it cannot be scored.
        eps: Added to the standard deviation.
        least_std: A group that spreads less is degenerate.
        fallback: "zero" leaves degenerate groups out, "batch" gives their members `batch_standardised` values.
    """
    filled, kept = _without_nan(reward)
    mean, std = _moments(filled, kept, dim=1)
    flat = _is_degenerate(kept, std, least_std)
    value = (filled - mean) / (std + eps)
    spare = (
        batch_standardised(reward, eps=eps, least_std=least_std).value if fallback == "batch" else value * 0
    )
    return _advantage(torch.where(flat, spare, value), kept, flat)


def batch_standardised(
    reward: Float[Tensor, "batch group"], *, eps: float = 1e-4, least_std: float = LEAST_STD
) -> Advantage:
    """MARS-Sep's scaling, A = (R − μ(R)) / (σ(R) + ε), over all members of the batch.

    With one mask per mixture the batch is the only group there is. `degenerate_share` is 0 or 1.
    """
    filled, kept = _without_nan(reward)
    mean, std = _moments(filled.reshape(1, -1), kept.reshape(1, -1), dim=1)
    flat = _is_degenerate(kept.reshape(1, -1), std, least_std)
    return _advantage(torch.where(flat, 0.0, (filled - mean) / (std + eps)), kept, flat)


class Baseline:
    """The paper's moving baseline: part of the run's state although the batch scaling cancels it."""

    def __init__(self) -> None:
        self.value: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.value = state["value"]


def ema_baseline(
    previous: float | None, reward: Float[Tensor, "batch group"], *, decay: float = EMA_DECAY
) -> float:
    """MARS-Sep's moving baseline, b ← 0.92 b + 0.08 mean(R); the first one is the mean itself.

    A batch in which nothing could be scored leaves it as it was (nan if there is none yet).
    """
    filled, kept = _without_nan(reward)
    if not kept.any():
        return float("nan") if previous is None else previous
    mean = float(filled.sum() / kept.sum())
    return mean if previous is None or previous != previous else decay * previous + (1 - decay) * mean


def published(reward: Float[Tensor, "batch group"], baseline: float, *, eps: float = 1e-4) -> Advantage:
    """MARS-Sep as published: A = R − b, then standardised over the batch.

    b is the same number for every member, so the standardisation removes it again: the result is
    `batch_standardised(reward)` whatever the baseline.
    """
    return batch_standardised(reward - baseline, eps=eps)


def leave_one_out(
    reward: Float[Tensor, "batch group"], *, drawn_together: int = 1, least_std: float = LEAST_STD
) -> Advantage:
    """A_i = R_i − mean of the other members' rewards (RLOO), in the unit of the reward.

    Kool et al. 2019; Ahmadian et al. 2024 (arXiv:2402.14740), Eq. 7. The gradient is unbiased only if the baseline is
    independent of the member: antithetic masks come in pairs, and `drawn_together=2` leaves out the whole pair.

    >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])).value.tolist()
    [[-3.0, -1.5, 4.5]]

    Args:
        reward: R, nan where it cannot be scored.
        drawn_together: Neighbouring members that share noise: 1 for independent masks, 2 for antithetic ones.
        least_std: A group that spreads less is degenerate and gets 0.
    """
    filled, kept = _without_nan(reward)
    batch, group = reward.shape
    if drawn_together < 1 or group % drawn_together:
        raise UsageError(
            f"groups of {group} are not made of sets of {drawn_together}",
            where="drawn_together",
            hint="use 1, or 2 with antithetic masks",
        )
    blocks = (batch, group // drawn_together, drawn_together)
    own_sum = filled.reshape(blocks).sum(2, keepdim=True).expand(blocks).reshape(batch, group)
    own_count = kept.reshape(blocks).sum(2, keepdim=True).expand(blocks).reshape(batch, group)
    others = kept.sum(1, keepdim=True) - own_count
    baseline = (filled.sum(1, keepdim=True) - own_sum) / others.clamp_min(1)
    std = _moments(filled, kept, dim=1)[1]
    flat = _is_degenerate(kept, std, least_std) | (others.amax(1, keepdim=True) == 0)
    return _advantage(torch.where(flat | (others == 0), 0.0, filled - baseline), kept, flat)


def _without_nan(reward: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards with 0 for nan, as constants in at least float32, and who stays."""
    if torch.isinf(reward).any():
        raise UsageError(
            "a reward is infinite", where="reward", hint="return nan for a sound that cannot be scored"
        )
    kept = ~torch.isnan(reward)
    wide = reward.detach().to(torch.promote_types(reward.dtype, torch.float32))
    return torch.where(kept, wide, 0.0), kept


def _moments(filled: Tensor, kept: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    count = kept.sum(dim, keepdim=True).clamp_min(1)
    mean = filled.sum(dim, keepdim=True) / count
    centred = torch.where(kept, filled - mean, 0.0)
    return mean, (centred.square().sum(dim, keepdim=True) / count).sqrt()


def _is_degenerate(kept: Tensor, std: Tensor, least_std: float) -> Tensor:
    return (kept.sum(1, keepdim=True) < 2) | (std < least_std)


def _advantage(value: Tensor, kept: Tensor, degenerate: Tensor) -> Advantage:
    share = float(degenerate.float().mean()) if degenerate.numel() else 0.0
    return Advantage(torch.where(kept, value, 0.0), kept, share)
