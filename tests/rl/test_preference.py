"""Pairs from groups, Diffusion-DPO and CRPO."""

from __future__ import annotations

import math

import pytest
import torch

from auralign.errors import UsageError
from auralign.flow.path import noise_prior
from auralign.rl.matching import excess_error, matching_error, noise_again
from auralign.rl.preference import best_against_worst, crpo, diffusion_dpo

NAN = math.nan


def excesses(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = 0.01 * torch.randn(2, count, generator=generator, dtype=torch.float64)
    return both[0].requires_grad_(), both[1].requires_grad_()


def test_a_pair_is_the_best_against_the_worst_scored_member():
    reward = torch.tensor(
        [[0.2, NAN, 0.9, 0.5], [3.0, 1.0, 2.0, NAN], [1.0, 1.0, 1.0, 1.0], [NAN, 7.0, NAN, NAN]]
    )
    found = best_against_worst(reward)
    assert found.winner.tolist() == [2, 4]
    assert found.loser.tolist() == [0, 5]
    assert found.gap.tolist() == pytest.approx([0.7, 2.0])
    assert found.dropped_share == 0.5
    assert found.interleaved.tolist() == [2, 0, 4, 5]
    flat = reward.flatten()
    assert bool((flat[found.winner] > flat[found.loser]).all())


def test_pairs_that_are_too_close_are_left_out():
    reward = torch.tensor([[0.0, 0.05], [0.0, 0.5], [0.5, 0.0]])
    found = best_against_worst(reward, least_gap=0.1)
    assert found.winner.tolist() == [3, 4]
    assert found.dropped_share == pytest.approx(1 / 3)
    assert best_against_worst(reward, least_gap=2.0).winner.tolist() == []


@pytest.mark.parametrize("reward", [torch.full((2, 3), NAN), torch.zeros(0, 4), torch.ones(3, 1)])
def test_groups_that_compare_nothing_give_no_pair_and_no_objective(reward):
    found = best_against_worst(reward)
    assert len(found.winner) == 0
    nothing = torch.zeros(0, requires_grad=True)
    objective = diffusion_dpo(nothing, nothing).objective
    assert objective.item() == 0.0
    objective.backward()
    assert crpo(nothing, nothing, nothing).objective.item() == 0.0


def test_dpo_is_the_log_of_the_logistic_of_the_margin():
    winner, loser = excesses()
    found = diffusion_dpo(winner, loser, strength=100.0)
    total = sum(
        -math.log(1 + math.exp(50 * (w - r))) for w, r in zip(winner.tolist(), loser.tolist(), strict=True)
    )
    assert found.objective.item() == pytest.approx(total / 6)
    margins = [r - w for w, r in zip(winner.tolist(), loser.tolist(), strict=True)]
    assert found.margin.item() == pytest.approx(sum(margins) / 6)
    assert found.accuracy.item() == pytest.approx(sum(m > 0 for m in margins) / 6)
    assert found.winner_excess.item() == pytest.approx(winner.mean().item())


def test_dpo_lowers_the_error_of_winners_and_raises_that_of_losers():
    winner, loser = excesses()
    by_winner, by_loser = torch.autograd.grad(diffusion_dpo(winner, loser).objective, [winner, loser])
    assert bool((by_winner < 0).all())
    torch.testing.assert_close(by_winner, -by_loser)


def test_crpo_pulls_at_the_winner_as_well():
    winner, loser = excesses()
    error = (winner + 1).detach().requires_grad_()
    plain, found = diffusion_dpo(winner, loser), crpo(winner, loser, error, winner_weight=0.5)
    expected = plain.objective - 0.5 * error.mean()
    assert found.objective.item() == pytest.approx(expected.item())
    (slope,) = torch.autograd.grad(found.objective, error)
    torch.testing.assert_close(slope, torch.full_like(error, -0.5 / 6))
    assert found.accuracy.item() == plain.accuracy.item()


def test_before_the_first_update_nothing_is_ranked_and_the_objective_is_log_one_half():
    samples = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    t = torch.rand(4, generator=torch.Generator().manual_seed(2)).repeat_interleave(2)
    noised = noise_again(noise_prior(), samples, t, generator=torch.Generator().manual_seed(3), shared=2)
    v = (0.3 * noised.x_t).requires_grad_()
    excess = excess_error(v, v.detach(), noised)
    found = diffusion_dpo(excess[::2], excess[1::2])
    assert found.objective.item() == pytest.approx(math.log(0.5))
    assert found.margin.item() == 0.0
    assert found.accuracy.item() == 0.0
    (slope,) = torch.autograd.grad(found.objective, v)
    lower = excess_error(v.detach() + 1e-4 * slope, v.detach(), noised)
    assert bool((lower[::2] < 0).all())
    assert bool((lower[1::2] > 0).all())
    assert matching_error(v, noised).shape == (8,)


def test_a_perfect_ranking_counts_as_such_and_stays_finite():
    found = diffusion_dpo(torch.full((3,), -5.0), torch.full((3,), 5.0))
    assert found.accuracy.item() == 1.0
    assert found.objective.item() == pytest.approx(0.0)
    assert diffusion_dpo(torch.full((3,), 5.0), torch.full((3,), -5.0)).objective.isfinite()


def test_what_has_no_meaning_is_refused():
    with pytest.raises(UsageError, match="gap"):
        best_against_worst(torch.zeros(1, 2), least_gap=-1.0)
    with pytest.raises(UsageError, match="strength"):
        diffusion_dpo(torch.zeros(1), torch.zeros(1), strength=0.0)
