"""The other way to follow a reward: differentiate it, masks and sounds included. A reference, not MARS-Sep's method.

Where a reward is differentiable, the Beta can be reparameterised and the gradient of the expected reward flows through
every bin (implicit reparameterisation, Figurnov et al. 2018). It has far less variance than the score function, cannot
use a reward that is only a number (a person's, a language model's, a program's), and finds every weakness of one that
is a network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.mars_sep_config import Config
from auralign.algorithms.scenes import Items
from auralign.algorithms.separator_pass import Mixtures, SeparatorPass, hear
from auralign.models.separator import SeparatorModel
from auralign.policy.beta_mask import BetaMask, kappa_at
from auralign.policy.exploration import draw_pathwise
from auralign.rewards.base import Scene
from auralign.rewards.compose import Composite
from auralign.runtime.seed import derive


def pathwise_loss(
    cfg: Config,
    rewards: Composite,
    model: SeparatorModel,
    batch: Mixtures,
    items: Items,
    out: SeparatorPass,
    scene: Callable[[Mixtures, Items, Tensor], Scene],
    seed: tuple[int, int],
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Negative expected reward less the entropy bonus, with gradients through masks, sounds and rewards.

    Args:
        cfg: Group, concentration and coefficients.
        rewards: Differentiable rewards that keep their graph.
        model: The separator, to make sounds of masks.
        batch: The mixtures.
        items: What is asked for.
        out: The separator's pass, with its graph.
        scene: Makes what the rewards see.
        seed: Step and micro-batch.
    """
    step, micro = seed
    torch.manual_seed(derive(cfg.seed, "mask", step, micro))
    kappa = kappa_at(step, cfg.steps, knots=cfg.policy.kappa)
    proposal = items.proposal(out)
    mask = draw_pathwise(proposal, cfg.policy.group, kappa)
    estimate = hear(model, mask, items.spec(out), batch.mixture.shape[-1])
    scored = rewards.learn(scene(batch, items, estimate))
    kept = scored.total[~scored.total.isnan()]
    entropy = BetaMask(proposal, kappa).entropy().mean()
    loss = -(kept.sum() / max(1, kept.numel())) - cfg.policy.coefficients.entropy * entropy
    numbers = {f"reward/{name}": mean for name, mean in scored.means().items()}
    numbers["reward/total"] = float(kept.detach().mean()) if kept.numel() else float("nan")
    return loss, numbers | {"kappa": kappa, "entropy": float(entropy.detach())}
