from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from auralign.errors import UsageError
from auralign.policy.beta_mask import BetaMask
from auralign.rl.advantage import (
    batch_standardised,
    ema_baseline,
    group_relative,
    leave_one_out,
    published,
)

NAN = math.nan


def rewards(seed: int = 0, shape: tuple[int, int] = (6, 4)) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_group_relative_is_the_z_score_of_each_group():
    reward = rewards()
    value = group_relative(reward, eps=0.0).value
    np.testing.assert_allclose(value.numpy(), scipy.stats.zscore(reward.numpy(), axis=1), rtol=1e-10)


def test_group_relative_ignores_the_scale_and_level_of_each_group():
    reward = rewards()
    level = torch.arange(6.0, dtype=torch.float64)[:, None]
    moved = group_relative((level + 0.5) * reward + 7 * level, eps=0.0).value
    torch.testing.assert_close(moved, group_relative(reward, eps=0.0).value)


def test_batch_standardised_is_the_z_score_of_the_batch():
    reward = rewards(shape=(8, 1))
    found = batch_standardised(reward, eps=0.0)
    np.testing.assert_allclose(found.value.numpy(), scipy.stats.zscore(reward.numpy(), axis=None), rtol=1e-10)
    assert found.degenerate_share == 0.0


def test_the_published_baseline_cancels_under_batch_standardisation():
    baseline = None
    for seed in range(5):
        reward = rewards(seed, (8, 1))
        baseline = ema_baseline(baseline, reward)
        torch.testing.assert_close(published(reward, baseline).value, batch_standardised(reward).value)
    torch.testing.assert_close(published(reward, 123.0).value, batch_standardised(reward).value)
    alone = reward - baseline
    assert not torch.allclose(alone - alone.mean(), alone)  # without the standardisation it would matter


def test_the_moving_baseline_has_decay_0_92_and_ignores_what_cannot_be_scored():
    first = ema_baseline(None, torch.tensor([[1.0, NAN], [2.0, 3.0]]))
    assert first == pytest.approx(2.0)
    assert ema_baseline(first, torch.tensor([[4.0]])) == pytest.approx(0.92 * 2 + 0.08 * 4)
    assert ema_baseline(first, torch.tensor([[NAN]])) == first
    assert math.isnan(ema_baseline(None, torch.tensor([[NAN]])))
    assert ema_baseline(NAN, torch.tensor([[4.0]])) == 4.0


def test_leave_one_out_is_the_difference_to_the_mean_of_the_others():
    reward = rewards()
    value = leave_one_out(reward).value
    for item in range(6):
        for member in range(4):
            others = [reward[item, j].item() for j in range(4) if j != member]
            assert value[item, member].item() == pytest.approx(reward[item, member].item() - np.mean(others))
    torch.testing.assert_close(value, (reward - reward.mean(1, keepdim=True)) * 4 / 3)


def test_leaving_out_a_pair_uses_only_the_other_pairs():
    value = leave_one_out(torch.tensor([[1.0, 2.0, 6.0, 10.0]]), drawn_together=2).value
    assert value.tolist() == [[-7.0, -6.0, 4.5, 8.5]]


def test_only_leaving_out_pairs_keeps_the_gradient_of_antithetic_masks_unbiased():
    policy = BetaMask(torch.full((20_000, 1), 0.3, dtype=torch.float64))
    mask = policy.sample(torch.Generator().manual_seed(0), 4, pairing="antithetic")
    score = policy.score(mask)[..., 0]
    reward = mask[..., 0]  # expected reward is the mean, whose derivative is κ / (κ + 2)
    truth = 9 / 11

    def estimate(drawn_together: int) -> tuple[float, float]:
        each = (leave_one_out(reward, drawn_together=drawn_together, least_std=0.0).value * score).mean(1)
        return each.mean().item(), each.std().item() / math.sqrt(each.numel())

    mean, error = estimate(2)
    assert mean == pytest.approx(truth, abs=4 * error)
    mean, error = estimate(1)
    assert abs(mean - truth) > 20 * error


@pytest.mark.parametrize("form", [group_relative, batch_standardised, leave_one_out])
def test_a_member_that_cannot_be_scored_leaves_and_changes_nothing_else(form):
    reward = torch.tensor([[0.1, NAN, 0.7, 0.4], [0.9, 0.2, 0.3, NAN]])
    found = form(reward)
    without = form(torch.tensor([[0.1, 0.7, 0.4], [0.9, 0.2, 0.3]]))
    assert found.kept.tolist() == (~reward.isnan()).tolist()
    assert found.value[~found.kept].tolist() == [0.0, 0.0]
    torch.testing.assert_close(found.value[found.kept], without.value.flatten())
    assert found.degenerate_share == 0.0


@pytest.mark.parametrize("form", [group_relative, leave_one_out])
def test_groups_without_spread_get_zero_and_are_counted(form):
    reward = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.5, 0.9], [0.3, NAN, NAN], [NAN, NAN, NAN]])
    found = form(reward)
    assert found.degenerate_share == 0.75
    assert found.value[[0, 2, 3]].abs().sum() == 0
    assert found.value[1].abs().sum() > 0


@pytest.mark.parametrize("form", [group_relative, leave_one_out])
def test_groups_of_one_have_no_advantage(form):
    found = form(torch.tensor([[0.5], [0.9]]))
    assert found.value.tolist() == [[0.0], [0.0]]
    assert found.degenerate_share == 1.0


def test_groups_without_spread_can_fall_back_to_the_batch():
    reward = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.9, 0.9]])
    found = group_relative(reward, fallback="batch")
    whole = batch_standardised(reward).value
    torch.testing.assert_close(found.value[[0, 2]], whole[[0, 2]])
    torch.testing.assert_close(found.value[1], group_relative(reward).value[1])
    assert found.degenerate_share == pytest.approx(2 / 3)
    ones = torch.tensor([[0.5], [0.9]])
    torch.testing.assert_close(group_relative(ones, fallback="batch").value, batch_standardised(ones).value)


def test_a_constant_batch_is_zero_not_nan():
    found = batch_standardised(torch.full((3, 2), 0.7))
    assert found.value.abs().sum() == 0
    assert found.degenerate_share == 1.0


def test_advantages_are_constants():
    reward = rewards().requires_grad_()
    for form in (group_relative, batch_standardised, leave_one_out):
        assert not form(reward).value.requires_grad


def test_infinite_rewards_and_broken_sets_are_refused():
    with pytest.raises(UsageError, match="infinite"):
        group_relative(torch.tensor([[1.0, math.inf]]))
    with pytest.raises(UsageError, match="sets of 2"):
        leave_one_out(rewards(shape=(2, 3)), drawn_together=2)
