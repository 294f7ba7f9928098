r"""Preference updates of flow policies: the better of two samples is made likelier than the worse.

Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908) with the error of flow matching e in the place of −ln π, noise
and time shared by a pair:

.. math:: L = -\ln \sigma(\tfrac{\beta}{2} m),\quad
    m = [e_\theta(x^l) - e_{ref}(x^l)] - [e_\theta(x^w) - e_{ref}(x^w)]

CRPO (TangoFlux, arXiv:2412.21037) adds the winner's own error, since DPO may lower both likelihoods as long as the
loser's falls faster. β belongs to errors that are means over scalars: 100 (Resonate) to 2000 (TangoFlux).

Symbols: w winner, l loser, m margin, β strength, R reward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from auralign.errors import UsageError


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """Which samples of which groups are compared; `winner` and `loser` index the flattened "batch group"."""

    winner: Int[Tensor, " pair"]
    """The better sample."""
    loser: Int[Tensor, " pair"]
    """The worse one, of the same group."""
    gap: Float[Tensor, " pair"]
    """Difference of their rewards, at least the asked one."""
    dropped_share: float
    """Share of groups without a pair: ties, too small a gap, fewer than two scored members."""

    @property
    def interleaved(self) -> Int[Tensor, " row"]:
        """winner, loser, winner, loser …: the order in which `matching.noise_again(shared=2)` shares noise."""
        return torch.stack([self.winner, self.loser], 1).flatten()


@final
@dataclass(frozen=True, eq=False)
class Preference:
    """Objective and the numbers to watch."""

    objective: Float[Tensor, ""]
    """To be maximised."""
    accuracy: Float[Tensor, ""]
    """Share of pairs that the policy ranks as the reward does, m > 0; none before the first update, when m = 0."""
    margin: Float[Tensor, ""]
    """Mean of m."""
    winner_excess: Float[Tensor, ""]
    """Mean e_θ(x^w) − e_ref(x^w): above 0 the winner has become less likely too."""


def best_against_worst(reward: Float[Tensor, "batch group"], *, least_gap: float = 0.0) -> Pairs:
    """One pair from each group, its best and its worst scored member; groups of equals have none.

    >>> found = best_against_worst(torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, torch.nan]]))
    >>> found.winner.tolist(), found.loser.tolist(), found.dropped_share
    ([1], [0], 0.5)

    Args:
        reward: R, nan where it cannot be scored.
        least_gap: Pairs that are closer are noise and are left out; in the unit of the reward.
    """
    if not (math.isfinite(least_gap) and least_gap >= 0):
        raise UsageError(f"a gap of {least_gap} is none", where="least_gap", hint="0 or a positive number")
    batch, group = reward.shape
    scored, reward = ~reward.isnan(), reward.detach()
    high = torch.where(scored, reward, -torch.inf).max(1)
    low = torch.where(scored, reward, torch.inf).min(1)
    gap = high.values - low.values
    usable = (scored.sum(1) >= 2) & (gap > 0) & (gap >= least_gap)
    first = torch.arange(batch, device=reward.device) * group
    dropped = 1 - float(usable.float().mean()) if batch else 0.0
    return Pairs((first + high.indices)[usable], (first + low.indices)[usable], gap[usable], dropped)


def diffusion_dpo(
    winner_excess: Float[Tensor, " pair"],
    loser_excess: Float[Tensor, " pair"],
    *,
    strength: float = 2000.0,
) -> Preference:
    """Diffusion-DPO, mean ln σ(β/2 · m) with m = loser's excess − winner's excess; 0 if there are no pairs.

    Args:
        winner_excess: e_θ(x^w) − e_ref(x^w), from `matching.excess_error(v, v_ref, noised)`.
        loser_excess: The same of the losers, with the same noise and time.
        strength: β.
    """
    if not strength > 0:
        raise UsageError(f"a strength of {strength} prefers nothing", where="strength", hint="100 to 2000")
    count = max(1, len(winner_excess))
    margin = loser_excess - winner_excess
    numbers = [
        value.detach().sum() / count for value in ((margin > 0).to(margin.dtype), margin, winner_excess)
    ]
    return Preference(logsigmoid(strength / 2 * margin).sum() / count, *numbers)


def crpo(
    winner_excess: Float[Tensor, " pair"],
    loser_excess: Float[Tensor, " pair"],
    winner_error: Float[Tensor, " pair"],
    *,
    strength: float = 2000.0,
    winner_weight: float = 1.0,
) -> Preference:
    """Diffusion-DPO − weight · mean e_θ(x^w) (TangoFlux, arXiv:2412.21037).

    Args:
        winner_excess: As in `diffusion_dpo`.
        loser_excess: As in `diffusion_dpo`.
        winner_error: e_θ(x^w), from `matching.matching_error`.
        strength: β.
        winner_weight: Of the winner's own error; 1 in the paper.
    """
    found = diffusion_dpo(winner_excess, loser_excess, strength=strength)
    own = winner_error.sum() / max(1, len(winner_error))
    return Preference(
        found.objective - winner_weight * own, found.accuracy, found.margin, found.winner_excess
    )
