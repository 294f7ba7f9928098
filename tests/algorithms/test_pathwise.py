from __future__ import annotations

import dataclasses

import pytest
import torch

from auralign.algorithms.batches import draw
from auralign.algorithms.mars_sep_parts import set_up
from auralign.algorithms.pathwise import pathwise_loss
from auralign.algorithms.scenes import Items, first_decision
from auralign.algorithms.separator_pass import separator_pass
from auralign.policy.beta_mask import BetaMask
from auralign.policy.exploration import draw_pathwise
from auralign.rewards.compose import Composite, Term
from auralign.rewards.load import CheckedReward
from auralign.rewards.signal import FidelityReward
from auralign.runtime.distributed import World

KAPPA = 9.0


@pytest.fixture
def parts(mars_config, tiny_watcher):
    """A model, what rewards see of it, and a decision whose proposal is a leaf."""
    cfg = mars_config(policy={"gradient": "pathwise"})
    made, state, _ = set_up(cfg, World())
    batch = draw(cfg, made.corpus, made.banks, 0, 0)
    with torch.no_grad():
        out = separator_pass(state.model, batch.mixture, batch.raw.embed(state.model.heads, unit=False))
    decision = first_decision(batch, Items.of(batch, 2), out)
    generator = torch.Generator().manual_seed(0)
    leaf = torch.rand(decision.proposal.shape, generator=generator) * 0.6 + 0.2
    return state.model, dataclasses.replace(decision, proposal=leaf.requires_grad_()), made.scene


def rewards(function) -> Composite:
    return Composite([Term("toy", CheckedReward(function, "toy", keep_graph=True))])


def loss_of(parts, reward, *, group: int = 2, entropy: float = 0.0):
    model, decision, scene = parts
    torch.manual_seed(3)
    return pathwise_loss(
        model, decision, rewards(reward), scene, group=group, kappa=KAPPA, entropy_weight=entropy
    )


def test_the_loss_is_the_negative_mean_reward_less_the_weighted_entropy(parts):
    model, decision, scene = parts
    loss, numbers = loss_of(parts, FidelityReward(), entropy=0.5)
    torch.manual_seed(3)
    mask = draw_pathwise(decision.proposal, 2, KAPPA)
    reward = FidelityReward()(scene(decision, decision.hear(model, mask)))
    entropy = BetaMask(decision.proposal, KAPPA).entropy().mean()
    torch.testing.assert_close(loss, -reward.mean() - 0.5 * entropy)
    assert numbers["reward/total"] == pytest.approx(float(reward.detach().mean()))
    assert numbers["entropy"] == pytest.approx(float(entropy.detach()), rel=1e-4)


def test_a_linear_reward_has_the_gradient_of_its_closed_form_on_average(parts):
    model, decision, _ = parts
    direction = torch.randn(decision.batch.mixture.shape[-1], generator=torch.Generator().manual_seed(1))

    def linear(scene):
        return scene.estimate @ direction

    loss, _ = loss_of(parts, linear, group=64)
    (found,) = torch.autograd.grad(loss, decision.proposal)
    plain = decision.hear(model, decision.proposal[:, None]) @ direction
    (slope,) = torch.autograd.grad(-plain.mean(), decision.proposal)
    expected = slope * KAPPA / (KAPPA + 2)  # the mean of the Beta is (1 + kappa P) / (kappa + 2)
    along = (found * expected).sum() / expected.square().sum()
    assert float(along) == pytest.approx(1.0, abs=0.02)
    assert float((found - expected).norm() / expected.norm()) < 0.2, "64 masks leave some noise in each cell"


def test_following_the_gradient_raises_the_expected_reward(parts):
    _, decision, _ = parts
    optimiser = torch.optim.Adam([decision.proposal], lr=0.03)
    losses = []
    for _ in range(8):
        loss, _ = loss_of(parts, FidelityReward())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3


def test_members_without_a_reward_are_left_out_and_leave_finite_gradients(parts):
    _, decision, _ = parts

    def some(scene):
        value = FidelityReward()(scene)
        gone = torch.zeros_like(value, dtype=torch.bool)
        gone[0, 0] = gone[:, 1] = True
        return torch.where(gone, torch.nan, value)

    loss, numbers = loss_of(parts, some, group=3)
    loss.backward()
    model, _, scene = parts
    torch.manual_seed(3)
    with torch.no_grad():
        reward = some(scene(decision, decision.hear(model, draw_pathwise(decision.proposal, 3, KAPPA))))
    assert float(loss.detach()) == pytest.approx(-float(reward.nanmean()), rel=1e-4)
    assert numbers["reward/total"] == pytest.approx(float(reward.nanmean()), rel=1e-4)
    assert decision.proposal.grad.isfinite().all()
    assert decision.proposal.grad[0].abs().sum() > 0, "its third member still counts"


def test_with_no_reward_at_all_only_the_entropy_is_left(parts):
    _, decision, _ = parts
    loss, _ = loss_of(parts, lambda scene: torch.full(scene.estimate.shape[:2], torch.nan), entropy=0.25)
    alone = -0.25 * BetaMask(decision.proposal, KAPPA).entropy().mean()
    torch.testing.assert_close(loss, alone)
    found, expected = (torch.autograd.grad(value, decision.proposal)[0] for value in (loss, alone))
    torch.testing.assert_close(found, expected)
