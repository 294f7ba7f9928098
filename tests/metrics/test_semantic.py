from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.metrics.semantic import class_rank, cosine, margin


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cosine_equals_torch():
    a, b = vectors(4, 3, 8), vectors(4, 3, 8, seed=1)
    expected = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
    torch.testing.assert_close(cosine(est=a, ref=b), expected, atol=1e-12, rtol=0)


@settings(max_examples=30, deadline=None)
@given(a=st.floats(1e-3, 1e3), b=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_cosine_ignores_the_norm_of_embeddings(a, b, seed):
    x, y = vectors(8, seed=seed), vectors(8, seed=seed + 100)
    assert float(cosine(est=a * x, ref=b * y)) == pytest.approx(float(cosine(est=x, ref=y)), abs=1e-5)


def test_cosine_of_nothing_is_nan():
    assert math.isnan(cosine(est=torch.zeros(4), ref=torch.ones(4)))
    assert math.isnan(cosine(est=torch.tensor([math.inf, 1.0]), ref=torch.ones(2)))


def test_margin_is_positive_when_the_estimate_is_nearer_to_its_reference():
    ref, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert float(margin(est=torch.tensor([0.9, 0.1]), ref=ref, other=other)) > 0
    assert float(margin(est=torch.tensor([0.1, 0.9]), ref=ref, other=other)) < 0
    assert float(margin(est=ref, ref=ref, other=ref)) == 0


def test_rank_equals_sorting():
    prototypes, est = vectors(20, 8), vectors(5, 8, seed=1)
    target = torch.tensor([0, 3, 7, 19, 4])
    ranks = class_rank(est=est, prototypes=prototypes, target=target)
    for i in range(5):
        agreement = torch.nn.functional.cosine_similarity(est[i].double(), prototypes.double(), dim=-1)
        order = agreement.argsort(descending=True).tolist()
        assert ranks[i] == order.index(int(target[i])) + 1


def test_tied_classes_share_the_middle_rank():
    prototypes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    est = torch.tensor([1.0, 0.2])
    assert float(class_rank(est=est, prototypes=prototypes, target=torch.tensor(1))) == 2.0
    assert float(class_rank(est=est, prototypes=prototypes, target=torch.tensor(3))) == 4.0


def test_rank_of_nothing_is_nan_and_a_wrong_index_is_an_error():
    assert math.isnan(class_rank(est=torch.zeros(3), prototypes=torch.eye(3), target=torch.tensor(0)))
    with pytest.raises(UsageError, match="index the rows"):
        class_rank(est=torch.ones(3), prototypes=torch.eye(3), target=torch.tensor(3))
