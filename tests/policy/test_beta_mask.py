from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.policy import gamma
from auralign.policy.beta_mask import (
    MASK_EPS,
    PROPOSAL_EPS,
    BetaMask,
    kappa_at,
    policy_terms,
    pool_tiles,
    render_tiles,
)

GOLDEN = [
    (0.0, 0.0909, 0.0830, -1.4026, 141.758),
    (0.1, 0.1727, 0.1091, -0.9128, 65.134),
    (0.5, 0.5000, 0.1443, -0.5228, 32.293),
    (0.9, 0.8273, 0.1091, -0.9128, 65.134),
    (1.0, 0.9091, 0.0830, -1.4026, 141.758),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(p: float, n: int = 1, kappa: float = 9.0, dtype: torch.dtype = torch.float32) -> BetaMask:
    return BetaMask(torch.full((1, n), p, dtype=dtype), kappa)


def random_policy(seed: int = 0, kappa: float = 9.0, shape: tuple[int, ...] = (2, 5, 7)) -> BetaMask:
    return BetaMask(torch.rand(shape, generator=seeded(seed), dtype=torch.float64), kappa)


@pytest.mark.parametrize(("p", "mean", "std", "entropy", "fisher"), GOLDEN)
def test_golden_values_of_the_specification(p, mean, std, entropy, fisher):
    policy = flat(p)
    assert policy.mean.item() == pytest.approx(mean, abs=1e-4)
    assert policy.entropy().item() == pytest.approx(
        entropy, abs=1e-3
    )  # 8.5e-4 of it from the clamp at 0 and 1
    edge = p in (0.0, 1.0)
    assert policy.fisher().item() == pytest.approx(
        fisher, rel=2e-3 if edge else 1e-4
    )  # 1.2e-3 from the clamp
    masks = flat(p, 200_000).sample(seeded(), 1)
    assert masks.mean().item() == pytest.approx(mean, rel=0.01)
    assert masks.std().item() == pytest.approx(std, rel=0.01)


def test_golden_divergence():
    assert flat(0.3).kl(flat(0.5)).item() == pytest.approx(0.690863, abs=1e-5)


@pytest.mark.parametrize("kappa", [0.5, 5.0, 9.0, 20.0])
def test_log_prob_entropy_and_moments_agree_with_scipy(kappa):
    policy = random_policy(kappa=kappa)
    oracle = scipy.stats.beta(policy.alpha.numpy(), policy.beta.numpy())
    mask = policy.sample(seeded(1), 1)
    np.testing.assert_allclose(
        policy.log_prob(mask)[:, 0].numpy(), oracle.logpdf(mask[:, 0].numpy()), atol=1e-9
    )
    np.testing.assert_allclose(policy.entropy().numpy(), oracle.entropy(), atol=1e-9)
    np.testing.assert_allclose(policy.mean.numpy(), oracle.mean(), atol=1e-12)


def test_float32_is_within_rounding_of_float64():
    policy = random_policy()
    narrow = BetaMask(policy.proposal.float(), policy.kappa)
    mask = policy.sample(seeded(1), 3)
    torch.testing.assert_close(
        narrow.log_prob(mask.float()).double(), policy.log_prob(mask), atol=2e-5, rtol=1e-5
    )
    torch.testing.assert_close(narrow.entropy().double(), policy.entropy(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("kappa", "kappa_other"), [(9.0, 9.0), (9.0, 5.0), (5.0, 20.0)])
def test_divergence_agrees_with_a_monte_carlo_estimate(kappa, kappa_other):
    one, two = flat(0.3, 100_000, kappa), flat(0.5, 100_000, kappa_other)
    mask = one.sample(seeded(), 4)
    difference = (one.log_prob(mask) - two.log_prob(mask)).double()
    error = difference.std().item() / math.sqrt(difference.numel())
    assert one.kl(two).double().mean().item() == pytest.approx(difference.mean().item(), abs=5 * error)


def test_divergence_agrees_with_torch_distributions():
    one, two = random_policy(0), random_policy(1, kappa=4.0)
    peers = [torch.distributions.Beta(q.alpha, q.beta) for q in (one, two)]
    torch.testing.assert_close(one.kl(two), torch.distributions.kl_divergence(*peers))


@settings(deadline=None, max_examples=15)
@given(
    p=st.floats(0, 1),
    q=st.floats(0, 1),
    kappa=st.floats(0.1, 50),
    other=st.floats(0.1, 50),
    bf16=st.booleans(),
)
def test_divergence_is_never_negative_and_zero_for_equal_policies(p, q, kappa, other, bf16):
    dtype = torch.bfloat16 if bf16 else torch.float64
    one = flat(p, 3, kappa, dtype)
    assert (one.kl(flat(q, 3, other, dtype)) >= -1e-4).all()
    mask = torch.full((1, 1, 3), 0.4)
    terms = policy_terms(one, mask, anchors=(one.detach(), flat(q, 3, other, dtype)))
    assert terms.kl[0].item() == 0.0
    assert terms.kl[1].item() >= -1e-4
    assert terms.log_prob.dtype == (torch.float32 if bf16 else torch.float64)


@pytest.mark.parametrize("kappa", [5.0, 9.0, 20.0])
@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("pairing", ["independent", "antithetic"])
def test_draws_follow_the_beta_law(p, kappa, pairing):
    policy = flat(p, 20_000, kappa, torch.float64)
    masks = policy.sample(seeded(round(100 * p + kappa)), 2, pairing=pairing)
    law = scipy.stats.beta(policy.alpha[0, 0].item(), policy.beta[0, 0].item())
    for member in masks[0]:
        assert scipy.stats.kstest(member.numpy(), law.cdf).pvalue > 1e-3


def test_draws_of_a_whole_proposal_follow_each_bins_own_law(monkeypatch):
    monkeypatch.setattr(gamma, "_CHUNK", 40_000)  # three rounds, the last one shorter
    policy = BetaMask(torch.rand(5, 20_000, generator=seeded(3)))
    masks = policy.sample(seeded(4), 2).double().numpy()
    uniform = scipy.stats.beta.cdf(masks, policy.alpha.numpy()[:, None], policy.beta.numpy()[:, None])
    for item in uniform.reshape(10, -1):
        assert scipy.stats.kstest(item, "uniform").pvalue > 1e-3


def test_rejected_draws_are_drawn_again_exactly_and_for_their_own_bin():
    shape = torch.tensor([[1.0, 1000.0], [1000.0, 1.0]], dtype=torch.float64).repeat_interleave(
        300_000, dim=1
    )
    drawn = gamma.standard_gamma(shape, 2, seeded(), "independent").view(2, 2, 2, -1)
    assert drawn.min() > 0
    exponential = torch.cat([drawn[0, :, 0].flatten(), drawn[1, :, 1].flatten()])
    assert scipy.stats.kstest(exponential.numpy(), scipy.stats.gamma(1).cdf).pvalue > 1e-3
    assert exponential.max() < 100
    assert drawn[0, :, 1].min() > 500
    assert drawn[1, :, 0].min() > 500


def test_antithetic_members_are_mirrored_and_others_are_not():
    for p, most in ((0.02, -0.3), (0.3, -0.8), (0.5, -0.9)):
        masks = flat(p, 50_000).sample(seeded(), 4, pairing="antithetic")[0]
        correlation = torch.corrcoef(masks)
        assert correlation[0, 1] < most
        assert correlation[2, 3] < most
        assert correlation[0, 2].abs() < 0.03
        assert correlation[1, 2].abs() < 0.03


def test_the_same_seed_draws_the_same_masks_and_no_gradient():
    policy = BetaMask(torch.rand(3, 4, 5, requires_grad=True))
    one, two = policy.sample(seeded(7), 3), policy.sample(seeded(7), 3)
    assert torch.equal(one, two)
    assert not torch.equal(one, policy.sample(seeded(8), 3))
    assert not one.requires_grad
    assert one.min() >= MASK_EPS
    assert one.max() <= 1 - MASK_EPS


def test_score_is_the_derivative_of_the_log_density_with_mean_zero_and_fisher_variance():
    policy = BetaMask(random_policy().proposal.clamp(0.01, 0.99).requires_grad_())
    mask = policy.sample(seeded(1), 1)
    (slope,) = torch.autograd.grad(policy.log_prob(mask).sum(), policy.proposal)
    torch.testing.assert_close(slope, policy.score(mask)[:, 0])
    wide = flat(0.3, 100_000)
    score = wide.score(wide.sample(seeded(2), 4)).double()
    fisher = wide.fisher()[0, 0].item()
    assert score.mean().item() == pytest.approx(0, abs=5 * math.sqrt(fisher / score.numel()))
    assert score.var().item() == pytest.approx(fisher, rel=0.01)


def weights(kind: str) -> torch.Tensor | None:
    return None if kind == "even" else torch.rand(2, 5, 7, generator=seeded(9), dtype=torch.float64) + 0.1


def mean_over_bins(value: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    share = torch.ones(2, 35, dtype=torch.float64) if weight is None else weight.flatten(1)
    share = share / share.sum(1, keepdim=True)
    return (value.flatten(-2) * (share if value.dim() == 3 else share[:, None])).sum(-1)


@pytest.mark.parametrize("kind", ["even", "weighted"])
def test_fused_terms_are_the_means_of_the_plain_ones_with_the_same_gradient(kind):
    weight = weights(kind)
    proposal = random_policy().proposal.clamp(0.001, 0.999).requires_grad_()
    policy, anchors = BetaMask(proposal), (random_policy(1), random_policy(2, kappa=4.0))
    mask = policy.sample(seeded(5), 3)
    fused = policy_terms(policy, mask, anchors=anchors, weight=weight)
    values = (fused.log_prob, fused.entropy, *fused.kl)
    plain = [policy.log_prob(mask), policy.entropy(), *(policy.kl(anchor) for anchor in anchors)]
    for value, wanted in zip(values, plain, strict=True):
        wanted = mean_over_bins(wanted, weight)
        torch.testing.assert_close(value, wanted, atol=1e-8, rtol=0)
        pull = torch.rand(value.shape, generator=seeded(6), dtype=value.dtype)
        (slope,) = torch.autograd.grad((value * pull).sum(), proposal, retain_graph=True)
        (expected,) = torch.autograd.grad((wanted * pull).sum(), proposal, retain_graph=True)
        torch.testing.assert_close(slope, expected, atol=1e-8, rtol=1e-8)


def test_fused_gradients_pass_gradcheck():
    proposal = (0.02 + 0.96 * random_policy(shape=(3, 4)).proposal).requires_grad_()
    mask = BetaMask(proposal).sample(seeded(5), 2)
    anchors = (random_policy(1, shape=(3, 4)), random_policy(2, kappa=20.0, shape=(3, 4)))

    def terms(p: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = policy_terms(BetaMask(p), mask, anchors=anchors)
        return (found.log_prob, found.entropy, *found.kl)

    assert torch.autograd.gradcheck(terms, (proposal,))


def test_fused_terms_do_not_depend_on_how_many_items_are_handled_at_once(monkeypatch):
    policy = BetaMask(torch.rand(5, 30, generator=seeded(), requires_grad=True))
    mask = policy.sample(seeded(1), 2)
    found = []
    for chunk in (1 << 16, 60, 1):
        monkeypatch.setattr(gamma, "_CHUNK", chunk)
        terms = policy_terms(policy, mask, anchors=(BetaMask(torch.full((5, 30), 0.4)),))
        total = (terms.log_prob.square() + (terms.entropy * terms.kl[0])[:, None]).sum()
        found.append((total.item(), *torch.autograd.grad(total, policy.proposal)))
    for value, slope in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-6)
        torch.testing.assert_close(slope, found[0][1])


def test_fused_float32_stays_finite_and_precise_at_the_edges():
    proposal = torch.tensor([[0.0, 1.0, 1e-9, 0.5]], requires_grad=True)
    mask = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    policy = BetaMask(proposal, 50.0)
    terms = policy_terms(policy, mask, anchors=(BetaMask(torch.tensor([[1.0, 0.0, 1.0, 0.0]])),))
    (terms.log_prob.sum() + terms.entropy.sum() + terms.kl[0].sum()).backward()
    assert torch.isfinite(proposal.grad).all()
    assert terms.log_prob.item() == pytest.approx(policy.log_prob(mask).mean().item(), rel=1e-5)
    assert terms.kl[0].item() > 1


def test_gamma_functions_agree_with_torch():
    x = torch.linspace(1, 80, 4001, dtype=torch.float64)
    for value, wanted in zip(gamma._gamma_family(x), (x.lgamma(), x.digamma(), x.polygamma(1)), strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-9, rtol=0)


def test_antithetic_noise_and_a_clamped_proposal_leave_no_gradient_outside_the_clamp():
    proposal = torch.tensor([[0.0, PROPOSAL_EPS / 2, 0.5]], requires_grad=True)
    terms = policy_terms(BetaMask(proposal), torch.full((1, 1, 3), 0.3))
    (slope,) = torch.autograd.grad(terms.entropy.sum() + terms.log_prob.sum(), proposal)
    assert slope[0, :2].tolist() == [0, 0]
    assert slope[0, 2] != 0


@pytest.mark.parametrize("kappa", [0.0, -1.0, math.nan, math.inf])
def test_a_useless_kappa_is_refused(kappa):
    with pytest.raises(UsageError, match="kappa"):
        flat(0.5, kappa=kappa)


def test_wrong_groups_and_shapes_are_refused():
    policy = flat(0.5, 4)
    with pytest.raises(UsageError, match="group of 0"):
        policy.sample(seeded(), 0)
    with pytest.raises(UsageError, match="antithetic"):
        policy.sample(seeded(), 3, pairing="antithetic")
    with pytest.raises(UsageError, match="do not belong"):
        policy.log_prob(torch.full((1, 2, 5), 0.5))
    with pytest.raises(UsageError, match="do not belong"):
        policy_terms(policy, torch.full((2, 2, 4), 0.5))
    with pytest.raises(UsageError, match="no bins"):
        BetaMask(torch.tensor([0.5]))


def test_tiles_pool_by_weight_and_smaller_at_the_edge():
    proposal = torch.arange(12.0).view(1, 3, 4) / 12
    assert pool_tiles(proposal, (2, 2))[0].tolist() == [
        [pytest.approx(2.5 / 12), pytest.approx(4.5 / 12)],
        [pytest.approx(8.5 / 12), pytest.approx(10.5 / 12)],
    ]
    weight = torch.zeros(1, 3, 4)
    weight[0, 1, 1] = 3.0
    assert pool_tiles(proposal, (2, 2), weight)[0, 0, 0].item() == pytest.approx(5 / 12)


def test_an_action_at_the_coarse_mode_renders_the_proposal_itself():
    proposal = torch.rand(2, 33, 21, generator=seeded()).clamp(0.01, 0.99)
    coarse = BetaMask(pool_tiles(proposal, (8, 8)))
    at_mode = coarse.mode.unsqueeze(1).expand(-1, 3, -1, -1)
    rendered = render_tiles(at_mode, coarse, proposal, (8, 8))
    torch.testing.assert_close(rendered, proposal.unsqueeze(1).expand_as(rendered))
    louder = render_tiles((at_mode + 0.2).clamp_max(0.99), coarse, proposal, (8, 8))
    assert (louder > rendered).all()
    assert louder.shape == (2, 3, 33, 21)


def test_the_score_of_tiles_reaches_every_bin_of_the_separators_mask():
    proposal = torch.rand(2, 33, 21, generator=seeded()).clamp(0.01, 0.99).requires_grad_()
    coarse = BetaMask(pool_tiles(proposal, (8, 8)))
    policy_terms(coarse, coarse.sample(seeded(1), 2)).log_prob[:, 0].sum().backward()
    assert (proposal.grad != 0).all()


def test_kappa_moves_linearly_through_its_knots():
    values = [kappa_at(step, 11) for step in range(12)]
    np.testing.assert_allclose(values, [5, 5.8, 6.6, 7.4, 8.2, 9, 11.2, 13.4, 15.6, 17.8, 20, 20])
    assert kappa_at(3, 10, knots=(9.0,)) == 9.0
    assert kappa_at(0, 1) == 5.0
    with pytest.raises(UsageError, match="no kappa"):
        kappa_at(-1, 10)
