"""The other way to follow a reward: differentiate it, masks and sounds included. A reference, not MARS-Sep's method.

Where a reward is differentiable, the Beta can be reparameterised and the gradient of the expected reward flows through
every bin (implicit reparameterisation, Figurnov et al. 2018). It has far less variance than the score function, cannot
use a reward that is only a number (a person's, a language model's, a program's), and finds every weakness of one that
is a network.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.scenes import Decision
from auralign.models.separator import SeparatorModel
from auralign.policy.beta_mask import BetaMask
from auralign.policy.exploration import draw_pathwise
from auralign.rewards.base import Scene
from auralign.rewards.compose import Composite


def pathwise_loss(
    model: SeparatorModel,
    decision: Decision,
    rewards: Composite,
    scene: Callable[[Decision, Tensor], Scene],
    *,
    group: int,
    kappa: float,
    entropy_weight: float,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Negative expected reward less the entropy bonus, with gradients through masks, sounds and rewards.

    Randomness comes from torch's global generator; seed it first.

    Args:
        model: The separator, to make sounds of masks.
        decision: The masks to choose, with their graph.
        rewards: Differentiable rewards that keep their graph.
        scene: Makes what the rewards see of the estimates.
        group: Masks for each item.
        kappa: Concentration.
        entropy_weight: Weight of the mean entropy.
    """
    mask = draw_pathwise(decision.proposal, group, kappa)
    scored = rewards.learn(scene(decision, decision.hear(model, mask)))
    kept = scored.total[~scored.total.isnan()]
    entropy = BetaMask(decision.proposal, kappa).entropy().mean()
    loss = -(kept.sum() / max(1, kept.numel())) - entropy_weight * entropy
    numbers = {f"reward/{name}": mean for name, mean in scored.means().items()}
    numbers["reward/total"] = float(kept.detach().mean()) if kept.numel() else float("nan")
    return loss, numbers | {"entropy": float(entropy.detach())}
