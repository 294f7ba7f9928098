"""How masks are drawn around a proposal: in every bin, or tile by tile.

A mask has tens of thousands of bins and one reward, the worst case for a score-function gradient. Exploring on a coarse
grid lowers the number of coordinates (its variance grows with them) and makes changes that a listener would hear; the
price is that the signal reaches only the mean of each tile. Both forms end in a `BetaMask`, so densities stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Beta

from auralign.policy.beta_mask import (
    KAPPA,
    MASK_EPS,
    BetaMask,
    PolicyTerms,
    policy_terms,
    pool_tiles,
    render_tiles,
)
from auralign.policy.gamma import Pairing

Form = Literal["bin", "tile"]


@final
@dataclass(frozen=True)
class Exploration:
    """How to draw masks around a proposal."""

    form: Form = "tile"
    """One Beta a bin (the paper) or one a tile."""
    tile: tuple[int, int] = (16, 16)
    """Rows and frames of a tile."""
    pairing: Pairing = "antithetic"
    """Whether masks are drawn alone or in mirrored pairs."""
    emphasis: float = 0.5
    """Coordinates are weighed by the mixture's energy in them to this power (0: all alike, as in the paper).

    Where there is nothing to hear a reward says nothing, and the noise of those coordinates only blurs the others.
    """

    def policy(
        self,
        proposal: Float[Tensor, "item row frame"],
        energy: Float[Tensor, "item row frame"],
        kappa: float = KAPPA,
    ) -> BetaMask:
        """The policy of a proposal; a tile's P is the mean of its bins, weighted by the mixture's energy."""
        if self.form == "bin":
            return BetaMask(proposal, kappa)
        return BetaMask(pool_tiles(proposal, self.tile, _relative(energy)), kappa)

    def weight(self, energy: Float[Tensor, "item row frame"]) -> Float[Tensor, "item *coordinates"] | None:
        """Importance of each coordinate of the policy; none if all are alike."""
        if self.emphasis == 0:
            return None
        relative = _relative(energy)
        if self.form == "tile":
            relative = pool_tiles(relative, self.tile)
        return relative.clamp_min(1e-6) ** self.emphasis

    def draw(
        self,
        proposal: Float[Tensor, "item row frame"],
        energy: Float[Tensor, "item row frame"],
        generator: torch.Generator,
        group: int,
        kappa: float = KAPPA,
    ) -> Draw:
        """Masks around a frozen proposal; no gradient."""
        frozen = proposal.detach()
        old = self.policy(frozen, energy, kappa)
        action = old.sample(generator, group, pairing=self.pairing)
        mask = action if self.form == "bin" else render_tiles(action, old, frozen, self.tile)
        return Draw(self, old, action, mask, energy)


@final
@dataclass(frozen=True, eq=False)
class Draw:
    """Actions of one snapshot of the policy, and the masks that they make."""

    how: Exploration
    old: BetaMask
    """π_old, a constant."""
    action: Float[Tensor, "item group *coordinates"]
    mask: Float[Tensor, "item group row frame"]
    energy: Float[Tensor, "item row frame"]

    @property
    def coordinates(self) -> int:
        """Number of independent coordinates of an action."""
        return self.action[0, 0].numel()

    @property
    def weight(self) -> Float[Tensor, "item *coordinates"] | None:
        """Importance of each coordinate."""
        return self.how.weight(self.energy)

    def policy(self, proposal: Float[Tensor, "item row frame"]) -> BetaMask:
        """π_θ of a proposal, on the grid and with the concentration of this draw."""
        return self.how.policy(proposal, self.energy, self.old.kappa)

    def log_prob(self, policy: BetaMask) -> Float[Tensor, "item group *coordinates"]:
        """Log-density of each coordinate of the actions, for ratios formed one by one."""
        return policy.log_prob(self.action)

    def terms(
        self, proposal: Float[Tensor, "item row frame"], *, reference: BetaMask | None = None
    ) -> PolicyTerms:
        """Log-probability, entropy and divergences of π_θ, with gradients into its proposal."""
        anchors = (self.old,) if reference is None else (self.old, reference)
        return policy_terms(self.policy(proposal), self.action, anchors=anchors, weight=self.weight)

    def old_log_prob(self) -> Float[Tensor, "item group"]:
        """Mean log-density of each action under π_old, summed exactly as `terms` does."""
        return policy_terms(self.old, self.action, weight=self.weight).log_prob


def draw_pathwise(
    proposal: Float[Tensor, "item row frame"], group: int, kappa: float = KAPPA
) -> Float[Tensor, "item group row frame"]:
    """Reparameterised masks: gradients of what is done with them flow back into the proposal.

    Implicit reparameterisation (Figurnov et al. 2018, arXiv:1805.08498) as torch.distributions has it; randomness comes
    from torch's global generator. Not in the paper: it needs a differentiable reward and no density ratio.
    """
    policy = BetaMask(proposal, kappa)
    drawn: Tensor = Beta(policy.alpha, policy.beta, validate_args=False).rsample(torch.Size([group]))
    return drawn.transpose(0, 1).clamp(MASK_EPS, 1 - MASK_EPS)


def _relative(energy: Tensor) -> Tensor:
    """Energy relative to the item's mean, so that floors mean the same at every level."""
    return energy.detach() / energy.mean(dim=(1, 2), keepdim=True).clamp_min(1e-20)
