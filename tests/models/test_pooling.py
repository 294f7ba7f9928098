from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from auralign.errors import UsageError
from auralign.models.pooling import POOLINGS, Mlbp, make_pooling


def _parts(seed: int = 0, batch: int = 5, dim: int = 12) -> torch.Tensor:
    return F.normalize(torch.randn(batch, 3, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


SUBSETS = [list(flags) for flags in itertools.product([True, False], repeat=3) if any(flags)]


def _trained_mlbp(dim: int = 12, rank: int = 7) -> Mlbp:
    torch.manual_seed(3)
    pooling = Mlbp(dim, rank)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return pooling


def test_mlbp_is_the_written_formula():
    pooling = _trained_mlbp()
    parts = _parts()
    expected = []
    for item in parts:
        product = torch.ones(7)
        for m in range(3):
            shift = pooling.log_shift[m].exp()
            product = product * torch.tanh(pooling.inward[m] @ item[m] + shift) / torch.tanh(shift)
        out = pooling.outward.weight @ product + pooling.outward.bias
        expected.append(out / out.norm())
    torch.testing.assert_close(pooling(parts, torch.ones(5, 3, dtype=torch.bool)), torch.stack(expected))


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("subset", SUBSETS)
def test_every_pooling_gives_unit_vectors_that_ignore_what_is_not_there(name, subset):
    torch.manual_seed(0)
    pooling = make_pooling(name, dim=12, rank=7)
    valid = torch.tensor([subset] * 5)
    parts = _parts()
    spoiled = torch.where(valid[..., None], parts, torch.full_like(parts, torch.nan))
    fused = pooling(parts, valid)
    torch.testing.assert_close(fused.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(pooling(spoiled, valid), fused)


@pytest.mark.parametrize("name", POOLINGS)
def test_an_item_without_any_view_is_nan_and_leaves_the_others_alone(name):
    torch.manual_seed(0)
    pooling = make_pooling(name, dim=12, rank=7)
    parts = _parts().requires_grad_()
    valid = torch.ones(5, 3, dtype=torch.bool)
    valid[2] = False
    fused = pooling(parts, valid)
    assert fused[2].isnan().all()
    assert fused[[0, 1, 3, 4]].isfinite().all()
    fused[[0, 1, 3, 4]].sum().backward()
    assert parts.grad is not None
    assert parts.grad.isfinite().all()


def test_a_missing_view_is_the_neutral_element_of_the_bilinear_product():
    pooling = _trained_mlbp()
    parts = _parts()
    parts[:, 1] = 0  # a zero view multiplies every factor by one, exactly as a missing one
    with_zero = pooling(parts, torch.ones(5, 3, dtype=torch.bool))
    without = pooling(parts, torch.tensor([[True, False, True]]).expand(5, 3))
    torch.testing.assert_close(with_zero, without)


def test_untrained_mlbp_is_close_to_the_mean():
    torch.manual_seed(0)
    parts = _parts(dim=64)
    valid = torch.ones(5, 3, dtype=torch.bool)
    cosine = (Mlbp(64, 64)(parts, valid) * make_pooling("mean", dim=64, rank=64)(parts, valid)).sum(dim=1)
    assert cosine.min() > 0.9


def test_the_views_interact_in_the_bilinear_pooling_but_not_in_the_mean():
    parts, other = _parts(0), _parts(1)
    valid = torch.ones(5, 3, dtype=torch.bool)

    def interaction(fuse) -> float:
        """Second difference in text and audio: zero for anything that adds the views up."""
        a, b, c, d = (parts.clone() for _ in range(4))
        b[:, 0], c[:, 1] = other[:, 0], other[:, 1]
        d[:, 0], d[:, 1] = other[:, 0], other[:, 1]
        return float(
            (fuse(a, valid) - fuse(b, valid) - fuse(c, valid) + fuse(d, valid)).abs().amax().detach()
        )

    assert interaction(make_pooling("mean", dim=12, rank=7).fuse) < 1e-6
    assert interaction(_trained_mlbp().fuse) > 1e-2


def test_controls_are_the_mean_the_maximum_and_a_softmax_of_what_is_there():
    parts = torch.tensor([[[1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]]])
    valid = torch.tensor([[True, True, False]])
    half = 2**-0.5
    expected = {"mean": [half, -half], "max": [1.0, 0.0], "weighted": [half, -half]}
    for name, vector in expected.items():
        fused = make_pooling(name, dim=2, rank=2)(parts, valid)
        torch.testing.assert_close(fused, torch.tensor([vector]))
    weighted = make_pooling("weighted", dim=2, rank=2)
    with torch.no_grad():
        weighted.logits[0] += 20
    torch.testing.assert_close(weighted(parts, valid), torch.tensor([[1.0, 0.0]]), atol=1e-6, rtol=0)


def test_an_unknown_pooling_is_refused_by_name():
    with pytest.raises(UsageError, match="no pooling 'attention'"):
        make_pooling("attention", dim=2, rank=2)
