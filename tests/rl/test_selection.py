"""Best of N, reward-filtered fine-tuning, and the budget of scored clips."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from auralign.errors import UsageError
from auralign.rl.selection import ScoredClips, best_of_n, filtered_matching, reward_filter

NAN = math.nan
REWARD = torch.tensor([[1.0, 5.0, 2.0, 3.0], [NAN, 0.0, -1.0, NAN], [2.0, 2.0, 2.0, 2.0], [NAN] * 4])


def test_the_best_member_is_the_largest_scored_reward():
    found = best_of_n(REWARD)
    assert found.member.tolist() == [1, 1, 0, 0]
    assert found.reward[:3].tolist() == [5.0, 0.0, 2.0]
    assert found.found.tolist() == [True, True, True, False]
    assert found.scored_clips == 16


def test_the_best_of_more_is_never_worse():
    reward = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    best = [best_of_n(reward[:, :n]).reward for n in (1, 2, 4, 8, 16)]
    for fewer, more in itertools.pairwise(best):
        assert bool((more >= fewer).all())
    assert torch.equal(best[0], reward[:, 0])


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({"keep": "best"}, [1, 5]),
        ({"keep": "above_mean"}, [1, 3, 5]),
        ({"keep": "quantile", "quantile": 0.75}, [1, 5]),
        ({"keep": "quantile", "quantile": 0.5}, [1, 3, 5]),
        ({"keep": "above_mean", "least_gain": 1.0}, [1]),
        ({"keep": "above_mean", "least_reward": 3.0}, [1, 3]),
        ({"keep": "best", "least_reward": 9.0}, []),
    ],
)
def test_only_members_above_their_group_are_chosen(options, chosen):
    found = reward_filter(REWARD, **options)
    assert found.item.tolist() == chosen
    assert found.share == pytest.approx(len(chosen) / 16)
    assert found.scored_clips == 16
    assert set(found.weight.flatten().tolist()) <= {0.0, 1.0}
    if chosen:
        mean = REWARD.nanmean(1, keepdim=True).expand(4, 4).flatten()
        assert found.gain == pytest.approx(float((REWARD.flatten() - mean)[chosen].mean()))
    else:
        assert math.isnan(found.gain)


def test_a_constant_added_to_a_group_changes_no_choice():
    reward = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    for keep in ("best", "above_mean", "quantile"):
        one = reward_filter(reward, keep=keep)
        other = reward_filter(reward + torch.arange(6.0).unsqueeze(1), keep=keep)
        assert torch.equal(one.weight, other.weight)


def test_one_member_or_no_group_gives_nothing():
    assert reward_filter(torch.ones(3, 1)).item.tolist() == []
    assert reward_filter(torch.zeros(0, 4)).share == 0.0


def test_filtered_matching_is_the_weighted_mean_error():
    error = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    weight = torch.tensor([1.0, 0.0, 3.0])
    found = filtered_matching(error, weight)
    assert found.item() == pytest.approx(-13 / 4)
    (slope,) = torch.autograd.grad(found, error)
    assert slope.tolist() == pytest.approx([-0.25, 0.0, -0.75])
    assert filtered_matching(error).item() == pytest.approx(-7 / 3)
    nothing = filtered_matching(error, torch.zeros(3))
    assert nothing.item() == 0.0
    nothing.backward()
    assert error.grad.tolist() == [0.0, 0.0, 0.0]
    assert filtered_matching(error[:0]).item() == 0.0


def test_the_budget_counts_every_scored_clip():
    budget = ScoredClips(100).spend(REWARD.numel()).spend(80)
    assert (budget.spent, budget.left) == (96, 4)
    assert budget.affords(4)
    assert not budget.affords(5)
    with pytest.raises(UsageError, match="4 of 100 are left"):
        budget.spend(5)
    with pytest.raises(UsageError, match="quantile"):
        reward_filter(REWARD, keep="quantile", quantile=1.5)
