from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from auralign.errors import UsageError
from auralign.models.encoders import Backbones
from auralign.models.query_encoder import (
    BACKBONE_DIMS,
    MODALITIES,
    QueryHeads,
    info_nce,
    negative_query,
    query_augment,
    query_mixup,
)


def _unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


SCALE = torch.tensor(5.0)


def test_heads_follow_the_encoders_sizes_and_refuse_what_it_does_not_take():
    heads = QueryHeads(dim=16, hidden=8, inputs={"text": 5, "audio": 7})
    assert heads(torch.ones(2, 7), "audio").shape == (2, 16)
    with pytest.raises(UsageError, match="takes no image query"):
        heads(torch.ones(2, 9), "image")


@pytest.mark.parametrize("modality", MODALITIES)
def test_heads_give_unit_vectors_that_do_not_depend_on_the_features_length(modality):
    heads = QueryHeads(dim=16, hidden=8)
    raw = torch.randn(4, 3, BACKBONE_DIMS[modality])
    vectors = heads(raw, modality)
    assert vectors.shape == (4, 3, 16)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4, 3))
    torch.testing.assert_close(heads(raw * 37, modality), vectors, atol=1e-5, rtol=1e-4)


def test_heads_start_as_an_orthogonal_map():
    heads = QueryHeads(dim=16, hidden=8)
    weight = heads.heads["text"].linear.weight.detach()
    torch.testing.assert_close(weight @ weight.t(), torch.eye(16), atol=1e-5, rtol=0)
    assert not heads.heads["text"].second.weight.any()
    assert float(heads.log_scale.detach().exp()) == pytest.approx(1 / 0.07, rel=1e-5)


def test_mixup_is_the_weighted_sum_and_stays_in_the_convex_hull():
    parts = _unit(5, 3, 8)
    weights = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) + 0.1
    mixed = query_mixup(parts, weights)
    expected = sum(weights[:, m, None] / weights.sum(1, keepdim=True) * parts[:, m] for m in range(3))
    torch.testing.assert_close(mixed, expected)
    assert (mixed.norm(dim=-1) <= 1 + 1e-6).all(), "a mean of unit vectors is no longer than one"
    assert (mixed >= parts.amin(dim=1) - 1e-6).all()
    assert (mixed <= parts.amax(dim=1) + 1e-6).all()


def test_mixup_does_not_depend_on_the_sum_of_the_weights_and_is_not_renormalised():
    parts, weights = _unit(1, 3, 8), torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(query_mixup(parts, weights * 10), query_mixup(parts, weights))
    assert query_mixup(parts, weights).norm() < 0.99
    torch.testing.assert_close(query_mixup(parts, torch.tensor([[0.0, 5.0, 0.0]])), parts[:, 1])


def test_negative_query_is_the_published_extrapolation():
    query, unwanted = _unit(4, 8), _unit(4, 8, seed=1)
    torch.testing.assert_close(negative_query(query, unwanted), 1.5 * query - 0.5 * unwanted)
    assert torch.equal(negative_query(query, unwanted, 0.0), query)
    assert torch.allclose(negative_query(query, query, 0.7), query), "what is wanted cannot push itself away"
    before, after = (query * unwanted).sum(-1), (negative_query(query, unwanted) * unwanted).sum(-1)
    assert (after < before).all()


def test_query_aug_finds_the_row_with_the_largest_product():
    bank = _unit(7, 8)
    query = bank[[4, 0, 6]] + 0.05 * _unit(3, 8, seed=2)
    vectors, index = query_augment(query, bank)
    assert index.tolist() == [4, 0, 6]
    assert torch.equal(vectors, bank[index])
    one, number = query_augment(query[0], bank)
    assert int(number) == 4
    assert torch.equal(one, bank[4])


def test_info_nce_with_distinct_labels_is_plain_cross_entropy_both_ways():
    a, b = _unit(6, 8), _unit(6, 8, seed=1)
    logits = SCALE * a @ b.t()
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
    torch.testing.assert_close(info_nce(a, b, target, SCALE), expected)


def test_info_nce_takes_every_pair_of_one_label_as_a_positive():
    a, b = _unit(4, 8), _unit(4, 8, seed=1)
    labels = torch.tensor([3, 5, 3, 9])
    total = 0.0
    for one, other in ((a, b), (b, a)):
        for i in range(4):
            scores = [5.0 * float(one[i] @ other[j]) for j in range(4)]
            log_sum = math.log(sum(math.exp(s) for s in scores))
            same = [j for j in range(4) if labels[j] == labels[i]]
            total -= sum((scores[j] - log_sum) / len(same) for j in same) / 4
    assert float(info_nce(a, b, labels, SCALE)) == pytest.approx(total / 2, rel=1e-5)


def test_info_nce_is_symmetric_and_does_not_depend_on_the_order_of_rows():
    a, b, labels = _unit(5, 8), _unit(5, 8, seed=1), torch.tensor([0, 1, 1, 2, 0])
    loss = info_nce(a, b, labels, SCALE)
    torch.testing.assert_close(info_nce(b, a, labels, SCALE), loss)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(info_nce(a[order], b[order], labels[order], SCALE), loss)


def test_info_nce_leaves_invalid_rows_out_and_is_zero_without_any():
    a, b, labels = _unit(5, 8), _unit(5, 8, seed=1), torch.tensor([0, 1, 1, 2, 0])
    valid = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(
        info_nce(a, b, labels, SCALE, valid), info_nce(a[valid], b[valid], labels[valid], SCALE)
    )
    scale = torch.tensor(5.0, requires_grad=True)
    none = info_nce(a, b, labels, scale, torch.zeros(5, dtype=torch.bool))
    assert float(none.detach()) == 0
    none.backward()
    assert scale.grad == 0, "a batch without pictures still has a gradient to add"


def test_aligned_modalities_have_a_lower_loss_than_shuffled_ones():
    a, labels = _unit(8, 16), torch.arange(8)
    assert info_nce(a, a, labels, SCALE) < info_nce(a, a.roll(1, 0), labels, SCALE)


def test_an_empty_text_is_refused_before_a_backbone_is_loaded():
    backbones = Backbones()
    with pytest.raises(UsageError, match="a text query is empty"):
        backbones.texts(["violin", "  "])
    assert not backbones._loaded


def test_copies_of_a_separator_share_the_frozen_backbones():
    backbones = Backbones()
    assert copy.deepcopy({"own": backbones})["own"] is backbones
    assert Backbones()._loaded is not backbones._loaded


def test_audio_queries_do_not_hear_the_examples_level():
    wave = torch.sin(torch.arange(16_000) * 0.2)[None] * 0.1
    backbones = Backbones()
    loud, quiet = backbones.audio(wave), backbones.audio(wave * 0.01)
    assert loud.shape == (1, 1024)
    assert F.cosine_similarity(loud, quiet) > 0.9999
    assert backbones.audio(torch.zeros(1, 8_000)).isfinite().all()
