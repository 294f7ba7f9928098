"""Spreads that advantages are divided by, GDPO, and gates."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from auralign.errors import UsageError
from auralign.rl.advantage import Advantage, group_relative
from auralign.rl.multi_reward import Gate, apply_gates, gdpo, scaled_advantage

NAN = math.nan
SCALES = ["centred", "group", "all", "none"]


def rewards(seed: int = 0, batch: int = 5, group: int = 6) -> torch.Tensor:
    return torch.randn(batch, group, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", SCALES)
def test_advantages_are_centred_rewards_over_the_chosen_spread(scale):
    reward = rewards() + 10 * torch.arange(5.0).unsqueeze(1)
    reward[1, 2] = NAN
    rows = [[r for r in row if r == r] for row in reward.tolist()]
    centred = [r - statistics.fmean(row) for row in rows for r in row]
    spread = {
        "centred": [math.sqrt(statistics.fmean(c * c for c in centred)) + 1e-4] * 5,
        "group": [statistics.pstdev(row) + 1e-4 for row in rows],
        "all": [statistics.pstdev(r for row in rows for r in row) + 1e-4] * 5,
        "none": [1.0] * 5,
    }[scale]
    found = scaled_advantage(reward, scale=scale)
    for k, row in enumerate(rows):
        expected = [(r - statistics.fmean(row)) / spread[k] for r in row]
        assert found.value[k][found.kept[k]].tolist() == pytest.approx(expected)
    assert found.value[1, 2].item() == 0.0
    assert found.kept.sum().item() == 29


def test_what_the_input_decides_shrinks_raw_spreads_but_not_centred_ones():
    reward = rewards()
    easy_and_hard = reward + 20 * torch.arange(5.0).unsqueeze(1)
    for scale, changes in (("centred", False), ("group", False), ("all", True)):
        one, other = scaled_advantage(reward, scale=scale), scaled_advantage(easy_and_hard, scale=scale)
        assert torch.allclose(one.value, other.value) != changes


@pytest.mark.parametrize("scale", SCALES)
def test_groups_without_signal_get_nothing_and_outliers_are_held(scale):
    reward = torch.tensor([[2.0, 2.0, 2.0], [NAN, NAN, 1.0], [0.0, 1.0, 900.0]])
    found = scaled_advantage(reward, scale=scale, limit=0.5)
    assert found.value[:2].abs().max() == 0.0
    assert found.degenerate_share == pytest.approx(2 / 3)
    assert found.value.abs().max() <= 0.5
    assert scaled_advantage(reward[:, :1], scale=scale).value.abs().max() == 0.0
    assert scaled_advantage(torch.full((2, 3), NAN), scale=scale).value.abs().max() == 0.0
    with pytest.raises(UsageError, match="limit"):
        scaled_advantage(reward, limit=0.0)


def test_gdpo_standardises_sums_and_standardises_again():
    parts = {"a": rewards(0), "b": 50 * rewards(1) + 3, "logged": rewards(2)}
    found = gdpo(parts, {"a": 0.6, "b": 1.0})
    sums = []
    for k in range(5):
        row = [0.0] * 6
        for name, weight in (("a", 0.6), ("b", 1.0)):
            values = parts[name][k].tolist()
            mean, std = statistics.fmean(values), statistics.pstdev(values)
            row = [s + weight * (r - mean) / (std + 1e-4) for s, r in zip(row, values, strict=True)]
        sums += row
    mean, std = statistics.fmean(sums), statistics.pstdev(sums)
    assert found.value.flatten().tolist() == pytest.approx([(s - mean) / (std + 1e-4) for s in sums])
    assert found.value.square().mean().item() == pytest.approx(1.0, abs=1e-3)


def test_gdpo_does_not_know_the_unit_of_a_reward():
    parts = {"a": rewards(0), "b": rewards(1)}
    weights = {"a": 0.6, "b": 1.0}
    one = gdpo(parts, weights, eps=1e-12)
    other = gdpo({"a": 1000 * parts["a"] - 7, "b": 0.01 * parts["b"]}, weights, eps=1e-12)
    torch.testing.assert_close(one.value, other.value)
    # a raw sum does know it
    assert not torch.allclose(
        group_relative(parts["a"] + parts["b"]).value, group_relative(1000 * parts["a"] + parts["b"]).value
    )


def test_with_one_reward_and_equal_groups_gdpo_is_the_group_advantage():
    reward = rewards()
    torch.testing.assert_close(
        gdpo({"a": reward}, {"a": 3.0}).value, group_relative(reward).value, rtol=1e-3, atol=1e-3
    )


def test_gdpo_leaves_out_what_cannot_be_scored():
    a, b = rewards(0), rewards(1)
    a[0, 0] = b[0, 1] = NAN
    a[1, 1] = b[1, 1] = NAN
    b[2] = 4.0
    a[3], b[3] = 1.0, NAN
    found = gdpo({"a": a, "b": b}, {"a": 1.0, "b": 1.0})
    assert found.kept.sum().item() == 29
    assert found.value.isfinite().all()
    assert found.value[1, 1].item() == 0.0
    assert found.value[3].abs().max() == 0.0
    assert found.degenerate_share == pytest.approx(0.2)
    assert found.value[2].abs().max() > 0.1
    nothing = gdpo({"a": torch.full((2, 3), NAN)}, {"a": 1.0})
    assert nothing.value.abs().max() == 0.0
    assert not nothing.kept.any()


def test_gdpo_names_what_is_missing():
    with pytest.raises(UsageError, match="'speaker'"):
        gdpo({"a": rewards()}, {"speaker": 1.0})
    with pytest.raises(UsageError, match="no reward has a weight"):
        gdpo({"a": rewards()}, {"a": 0.0})


@pytest.mark.parametrize(("action", "stopped"), [("no_gain", [0.0, -1.0]), ("worst", [-1.5, -1.5])])
def test_a_gate_takes_the_gain_of_members_below_the_limit(action, stopped):
    value = torch.tensor([[2.0, -1.0, -1.5, 0.5]])
    kept = torch.ones(1, 4, dtype=torch.bool)
    metric = torch.tensor([[0.87, 0.87, 0.88, 0.95]])
    gate = Gate("speaker", 0.02, action)
    found = apply_gates(
        Advantage(value, kept, 0.0), [gate], {"speaker": metric}, {"speaker": torch.tensor([0.9])}
    )
    assert found.advantage.value[0].tolist() == [*stopped, -1.5, 0.5]
    assert found.closed_share == {"speaker": 0.5}


def test_a_gate_that_never_closes_changes_nothing_and_one_that_cannot_measure_is_closed():
    value, kept = torch.tensor([[2.0, -1.0, 1.0]]), torch.tensor([[True, True, False]])
    base = {"pesq": torch.tensor([2.0]), "stoi": torch.tensor([0.5])}
    advantage = Advantage(value, kept, 0.25)
    open_gate = apply_gates(advantage, [Gate("pesq", 0.05)], {"pesq": torch.full((1, 3), 2.0)}, base)
    assert torch.equal(open_gate.advantage.value, value)
    assert open_gate.advantage.degenerate_share == 0.25
    metrics = {"pesq": torch.tensor([[NAN, 3.0, 3.0]]), "stoi": torch.ones(1, 3)}
    both = apply_gates(advantage, [Gate("pesq", 0.05), Gate("stoi", 0.0)], metrics, base)
    assert both.advantage.value.tolist() == [[0.0, -1.0, 1.0]]
    assert both.closed_share == {"pesq": 0.5, "stoi": 0.0}


def test_the_lowest_advantage_is_that_of_kept_members_whatever_the_order_of_the_gates():
    value, kept = torch.tensor([[2.0, -1.0, -9.0]]), torch.tensor([[True, True, False]])
    metrics = {"a": torch.tensor([[0.0, 1.0, 1.0]]), "b": torch.tensor([[0.0, 1.0, 1.0]])}
    base = {"a": torch.ones(1), "b": torch.ones(1)}
    gates = [Gate("a", 0.1, "worst"), Gate("b", 0.1)]
    for order in (gates, gates[::-1]):
        found = apply_gates(Advantage(value, kept, 0.0), order, metrics, base)
        assert found.advantage.value.tolist() == [[-1.0, -1.0, -9.0]]


def test_the_worst_of_a_group_is_never_a_gain():
    value, kept = torch.tensor([[2.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    gate, metric = Gate("a", 0.0, "worst"), {"a": torch.tensor([[0.0, 2.0]])}
    found = apply_gates(Advantage(value, kept, 0.0), [gate], metric, {"a": torch.ones(1)})
    assert found.advantage.value.tolist() == [[0.0, 1.0]]


def test_a_gate_without_its_metric_is_refused():
    advantage = group_relative(rewards())
    with pytest.raises(UsageError, match="nothing to watch"):
        apply_gates(advantage, [Gate("speaker", 0.02)], {}, {})
    with pytest.raises(UsageError, match="limit"):
        Gate("speaker", -0.1)
