"""Low-rank adaptation: nothing changes at first, the base stays, merging changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from auralign.errors import UsageError
from auralign.models.low_rank import adapt, base_model, merge


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Flatten(2), nn.Linear(16, 10))


X = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))


def test_nothing_changes_before_training(net):
    before = net(X)
    trained = adapt(net, rank=4, alpha=8.0)
    torch.testing.assert_close(net(X), before)
    # a and b of both layers: 4 x (8·9) + 12 x 4, 4 x 16 + 10 x 4
    assert sum(p.numel() for p in trained) == 4 * 72 + 12 * 4 + 4 * 16 + 10 * 4
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in trained}


def test_training_moves_the_answer_and_leaves_the_base(net):
    before = net(X).detach()
    trained = adapt(net, rank=4, alpha=8.0)
    optimiser = torch.optim.SGD(trained, lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        net(X).square().sum().backward()
        optimiser.step()
    assert not torch.allclose(net(X), before, atol=1e-3)
    with base_model(net):
        torch.testing.assert_close(net(X), before)
    assert not torch.allclose(net(X), before, atol=1e-3)  # on again


def test_the_addition_is_b_times_a_times_alpha_over_rank(net):
    weight = net[3].weight.detach().clone()
    adapt(net, rank=4, alpha=8.0)
    part = net[3].parametrizations.weight[0]
    with torch.no_grad():
        part.b.normal_()
    torch.testing.assert_close(net[3].weight, weight + 2.0 * part.b @ part.a)


def test_merging_changes_names_and_nothing_else(net):
    names = set(net.state_dict())
    adapt(net, rank=2, alpha=4.0)
    with torch.no_grad():
        net[0].parametrizations.weight[0].b.normal_()
    after = net(X).detach()
    copied = copy.deepcopy(net)
    merge(copied)
    assert set(copied.state_dict()) == names
    torch.testing.assert_close(copied(X), after)


def test_what_adapts_nothing_is_refused(net):
    with pytest.raises(UsageError, match="adapts nothing"):
        adapt(net, rank=0, alpha=1.0)
    with pytest.raises(UsageError, match="no layer"):
        adapt(nn.Sequential(nn.Linear(4, 4)), rank=2, alpha=1.0)
