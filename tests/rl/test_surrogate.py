from __future__ import annotations

import math

import pytest
import torch

from auralign.errors import UsageError
from auralign.policy.beta_mask import BetaMask, policy_terms
from auralign.rl.surrogate import Coefficients, clipped_surrogate, log_ratio, objective

BINS = 12


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first_step() -> tuple[BetaMask, torch.Tensor, torch.Tensor]:
    """A policy, masks drawn from its own snapshot, and advantages."""
    proposal = torch.rand(3, 4, 3, generator=seeded(), dtype=torch.float64).clamp(0.01, 0.99).requires_grad_()
    policy = BetaMask(proposal)
    advantage = torch.randn(3, 5, generator=seeded(2), dtype=torch.float64)
    return policy, policy.detach().sample(seeded(1), 5), advantage


@pytest.mark.parametrize("form", ["joint", "mean_log", "per_bin"])
def test_at_the_first_inner_step_the_ratio_is_exactly_1_and_nothing_is_clipped(form):
    policy, mask, advantage = first_step()
    if form == "per_bin":
        new, old = policy.log_prob(mask), policy.detach().log_prob(mask)
    else:
        new, old = policy_terms(policy, mask).log_prob, policy_terms(policy.detach(), mask).log_prob
    ratio = log_ratio(new, old, form=form, bins=BINS)
    assert (ratio == 0).all()
    found = clipped_surrogate(ratio, advantage)
    assert found.objective.item() == pytest.approx(advantage.mean().item())
    assert found.ratio_mean.item() == pytest.approx(1.0)
    assert found.clip_share.item() == 0.0
    assert found.approx_kl.item() == 0.0


@pytest.mark.parametrize(("form", "scale"), [("mean_log", 1 / BINS), ("joint", 1.0), ("per_bin", 1 / BINS)])
def test_at_the_first_inner_step_the_gradient_is_advantage_times_score_over_bins(form, scale):
    policy, mask, advantage = first_step()
    new = policy.log_prob(mask) if form == "per_bin" else policy_terms(policy, mask).log_prob
    found = clipped_surrogate(log_ratio(new, new.detach(), form=form, bins=BINS), advantage)
    (slope,) = torch.autograd.grad(found.objective, policy.proposal)
    expected = (advantage[..., None, None] * policy.score(mask)).sum(1) * scale / advantage.numel()
    torch.testing.assert_close(slope, expected.detach(), rtol=1e-7, atol=1e-10)


def test_at_the_first_inner_step_the_divergence_has_no_gradient_but_the_entropy_has():
    policy, mask, _ = first_step()
    terms = policy_terms(policy, mask, anchors=(policy.detach(),))
    (slope,) = torch.autograd.grad(terms.kl[0].sum(), policy.proposal, retain_graph=True)
    assert slope.abs().max() == 0.0
    (slope,) = torch.autograd.grad(terms.entropy.sum(), policy.proposal)
    assert slope.abs().max() > 0.0


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0])
def test_the_surrogate_is_the_smaller_of_two_products_and_flat_where_clipped(ratio, advantage):
    step = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    found = clipped_surrogate(step, torch.tensor([[advantage]], dtype=torch.float64), clip=0.2)
    expected = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert found.objective.item() == pytest.approx(expected)
    clipped = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
    assert found.clip_share.item() == float(clipped)
    (slope,) = torch.autograd.grad(found.objective, step)
    assert slope.item() == pytest.approx(0.0 if clipped else ratio * advantage)


def test_approx_kl_is_not_negative_in_any_draw_and_the_old_policy_gets_no_gradient():
    new = torch.tensor([[0.3], [-0.3]], requires_grad=True)
    old = torch.zeros(2, 1, requires_grad=True)
    step = log_ratio(new, old, form="mean_log")
    for each in step.detach():
        found = clipped_surrogate(each[None], torch.ones(1, 1))
        assert found.approx_kl.item() == pytest.approx(math.exp(each.item()) - 1 - each.item(), rel=1e-5)
    clipped_surrogate(step, torch.tensor([[1.0], [1.0]])).objective.backward()
    assert old.grad is None
    assert new.grad.tolist() == [[0.0], [pytest.approx(math.exp(-0.3) / 2)]]


def test_approx_kl_estimates_the_divergence_of_the_old_from_the_new_policy():
    old = BetaMask(torch.full((1, 1), 0.3, dtype=torch.float64))
    new = BetaMask(torch.full((1, 1), 0.4, dtype=torch.float64))
    mask = old.sample(seeded(), 200_000)
    step = log_ratio(new.log_prob(mask), old.log_prob(mask), form="per_bin")
    found = clipped_surrogate(step, torch.ones(1, 200_000, dtype=torch.float64))
    assert found.approx_kl.item() == pytest.approx(old.kl(new).item(), rel=0.02)  # Monte-Carlo
    assert found.ratio_mean.item() == pytest.approx(1.0, abs=0.01)


def test_the_three_forms_are_power_root_and_single_ratios_of_one_density():
    policy, mask, _ = first_step()
    moved = BetaMask((policy.proposal.detach() + 0.01).clamp(0, 1))
    each = log_ratio(moved.log_prob(mask), policy.log_prob(mask), form="per_bin")
    means = [policy_terms(one, mask).log_prob for one in (moved, policy)]
    root = log_ratio(means[0], means[1], form="mean_log")
    joint = log_ratio(means[0], means[1], form="joint", bins=BINS)
    torch.testing.assert_close(root, each.flatten(2).mean(2), atol=1e-8, rtol=0)
    torch.testing.assert_close(joint, BINS * root)


def test_a_joint_ratio_of_a_large_mask_saturates_where_the_mean_log_ratio_does_not():
    policy = BetaMask(torch.full((1, 256, 256), 0.3, dtype=torch.float64))
    noise = 1e-2 * torch.randn(1, 256, 256, generator=seeded(3), dtype=torch.float64)
    mask = policy.sample(seeded(4), 4)
    new, old = (policy_terms(BetaMask(p), mask).log_prob for p in (policy.proposal + noise, policy.proposal))
    joint = clipped_surrogate(log_ratio(new, old, form="joint", bins=65_536), -torch.ones(1, 4))
    assert joint.clip_share.item() == 1.0
    root = clipped_surrogate(log_ratio(new, old, form="mean_log"), -torch.ones(1, 4))
    assert root.clip_share.item() == 0.0
    assert torch.isfinite(log_ratio(new + 5, old, form="joint", bins=65_536).exp()).all()


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)])
def test_members_that_left_do_not_count(shape):
    step = 0.1 * torch.randn(shape, generator=seeded())
    advantage = torch.randn(2, 3, generator=seeded(1))
    kept = torch.tensor([[True, False, True], [True, True, False]])
    found = clipped_surrogate(step, advantage, kept=kept)
    other = clipped_surrogate(step[kept][None], advantage[kept][None])
    for name in ("objective", "ratio_mean", "clip_share", "approx_kl"):
        assert getattr(found, name).item() == pytest.approx(getattr(other, name).item(), rel=1e-5)
    nothing = clipped_surrogate(step.requires_grad_(), advantage, kept=torch.zeros_like(kept))
    assert nothing.objective.item() == 0.0
    nothing.objective.backward()
    assert step.grad.abs().max() == 0.0


def test_weights_of_bins_do_not_depend_on_their_scale_and_silent_bins_do_not_count():
    step = 0.1 * torch.randn(2, 3, 4, 5, generator=seeded())
    advantage = torch.randn(2, 3, generator=seeded(1))
    weight = torch.rand(2, 4, 5, generator=seeded(2))
    one = clipped_surrogate(step, advantage, weight=weight).objective
    torch.testing.assert_close(clipped_surrogate(step, advantage, weight=50 * weight).objective, one)
    even = clipped_surrogate(step, advantage, weight=torch.full((2, 4, 5), 3.0)).objective
    torch.testing.assert_close(even, clipped_surrogate(step, advantage).objective)
    weight[:, 0] = 0.0
    louder = step.clone()
    louder[:, :, 0] = 1.0
    torch.testing.assert_close(
        clipped_surrogate(louder, advantage, weight=weight).objective,
        clipped_surrogate(step, advantage, weight=weight).objective,
    )


def test_the_objective_adds_entropy_and_takes_divergences():
    coefficients = Coefficients(entropy=0.1, kl_old=0.01, kl_reference=0.5)
    found = objective(
        torch.tensor(2.0),
        entropy=torch.tensor([-1.0, -3.0]),
        kl_old=torch.tensor([1.0, 3.0]),
        kl_reference=torch.tensor([0.0, 2.0]),
        coefficients=coefficients,
    )
    assert found.item() == pytest.approx(2 - 0.2 - 0.02 - 0.5)


def test_a_coefficient_without_its_divergence_is_refused():
    with pytest.raises(UsageError, match="kl_reference"):
        objective(
            torch.tensor(0.0),
            entropy=torch.zeros(1),
            kl_old=torch.zeros(1),
            coefficients=Coefficients(kl_reference=0.1),
        )


def test_shapes_and_ranges_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="per_bin"):
        log_ratio(torch.zeros(2, 3), torch.zeros(2, 3), form="per_bin")
    with pytest.raises(UsageError, match="mean_log"):
        log_ratio(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), form="mean_log")
    with pytest.raises(UsageError, match="clip"):
        clipped_surrogate(torch.zeros(2, 3), torch.zeros(2, 3), clip=0.0)
    with pytest.raises(UsageError, match="no bins"):
        clipped_surrogate(torch.zeros(2, 3), torch.zeros(2, 3), weight=torch.ones(2))


def test_gradient_steps_on_the_surrogate_raise_the_reward():
    proposal = torch.full((1, 6), 0.5, requires_grad=True)
    goal = torch.tensor([0.9, 0.1, 0.9, 0.1, 0.9, 0.1])
    generator = seeded()
    for _ in range(60):
        policy = BetaMask(proposal)
        mask = policy.sample(generator, 64)
        reward = -(mask - goal).square().mean(2)
        advantage = reward - reward.mean()
        new = policy_terms(policy, mask).log_prob
        found = clipped_surrogate(log_ratio(new, new.detach(), form="mean_log"), advantage)
        (slope,) = torch.autograd.grad(found.objective, proposal)
        proposal = (
            (proposal + 2 * slope / slope.norm().clamp_min(1) * 3).detach().clamp(0.02, 0.98).requires_grad_()
        )
    assert (proposal.detach() - goal).abs().mean() < 0.15
