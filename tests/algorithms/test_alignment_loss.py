from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from auralign.algorithms.alignment_loss import (
    audio_picture,
    consistency,
    hard_info_nce,
    ranking,
    stage_one,
    stage_three,
    stage_two,
    triplet,
)
from auralign.models.query_encoder import info_nce

SCALE = torch.tensor(5.0)


def _unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_stage_one_is_symmetric_info_nce():
    a, t, labels = _unit(6, 8), _unit(6, 8, seed=1), torch.tensor([0, 1, 2, 0, 3, 4])
    torch.testing.assert_close(stage_one(a, t, labels, SCALE), stage_one(t, a, labels, SCALE))
    alone = stage_one(a[:4][[0, 1, 2]], t[:4][[0, 1, 2]], torch.arange(3), SCALE)
    logits = SCALE * a[:3] @ t[:3].t()
    expected = (F.cross_entropy(logits, torch.arange(3)) + F.cross_entropy(logits.t(), torch.arange(3))) / 2
    torch.testing.assert_close(alone, expected)


def test_hard_negatives_enter_the_denominator_as_written():
    a, p, n = _unit(4, 8), _unit(4, 8, seed=1), _unit(4, 2, 8, seed=2)
    labels = torch.tensor([0, 1, 2, 0])
    classes = torch.tensor([[1, -1], [3, -1], [0, -1], [2, -1]])
    rows = []
    for i in range(4):
        own = [math.exp(5 * float(a[i] @ p[j])) for j in range(4)]
        extra = [
            math.exp(5 * float(a[i] @ n[k, h]))
            for k in range(4)
            for h in range(2)
            if (classes[k, h] >= 0 and classes[k, h] != labels[i]) or (classes[k, h] < 0 and k == i)
        ]
        positives = [j for j in range(4) if labels[j] == labels[i]]
        rows.append(-sum(math.log(own[j] / (sum(own) + sum(extra))) for j in positives) / len(positives))
    backward = F.cross_entropy(
        5 * p @ a.t(), F.normalize((labels[:, None] == labels[None]).float(), p=1, dim=1)
    )
    expected = (sum(rows) / 4 + float(backward)) / 2
    assert float(hard_info_nce(a, p, labels, SCALE, n, classes)) == pytest.approx(expected, rel=1e-5)


def test_a_hard_negative_of_the_same_class_does_not_count():
    a, p, n = _unit(3, 8), _unit(3, 8, seed=1), _unit(3, 1, 8, seed=2)
    labels = torch.zeros(3, dtype=torch.long)
    same = hard_info_nce(a, p, labels, SCALE, n, torch.zeros(3, 1, dtype=torch.long))
    torch.testing.assert_close(same, info_nce(a, p, labels, SCALE))
    other = hard_info_nce(a, p, labels, SCALE, n, torch.ones(3, 1, dtype=torch.long))
    assert other > same


def test_hard_info_nce_has_finite_gradients_everywhere():
    a, p, n = (x.requires_grad_() for x in (_unit(3, 8), _unit(3, 8, seed=1), _unit(3, 2, 8, seed=2)))
    classes = torch.tensor([[0, -1], [0, -1], [0, -1]])
    hard_info_nce(a, p, torch.zeros(3, dtype=torch.long), torch.tensor(100.0), n, classes).backward()
    assert all(x.grad.isfinite().all() for x in (a, p, n))


def test_triplet_is_zero_beyond_the_margin_and_linear_before_it():
    a = torch.tensor([[1.0, 0.0]])
    near, far = torch.tensor([[0.8, 0.6]]), torch.tensor([[[0.0, 1.0]]])
    assert float(triplet(a, near, far, 0.2)) == 0
    assert float(triplet(a, near, far, 0.9)) == pytest.approx(0.1)
    assert float(triplet(a, far[:, 0], near[:, None], 0.2)) == pytest.approx(1.0)


def test_consistency_is_the_squared_distance():
    x, y = _unit(4, 8), _unit(4, 8, seed=1)
    torch.testing.assert_close(consistency(x, y), (2 - 2 * (x * y).sum(1)).mean())
    assert float(consistency(x, x)) == 0


def test_ranking_is_the_written_sum_over_ordered_pairs():
    score, quality = torch.tensor([[0.9, 0.2, 0.5]]), torch.tensor([[20.0, 0.0, 0.5]])
    pairs = [(0, 1), (0, 2)]  # 0.5 dB apart says nothing
    expected = 0.0
    for u, w in pairs:
        need = 0.02 * float(quality[0, u] - quality[0, w]) - float(score[0, u] - score[0, w])
        expected += 0.05 * math.log1p(math.exp(need / 0.05)) / len(pairs)
    assert float(ranking(score, quality)) == pytest.approx(expected, rel=1e-5)


def test_ranking_falls_when_the_better_sound_rises_and_ignores_scenes_without_difference():
    quality = torch.tensor([[10.0, 0.0], [5.0, 5.0]])
    score = torch.zeros(2, 2, requires_grad=True)
    ranking(score, quality).backward()
    assert score.grad[0, 0] < 0 < score.grad[0, 1]
    assert not score.grad[1].any()
    assert float(ranking(torch.zeros(1, 2), torch.zeros(1, 2))) == 0


def test_stages_are_weighted_sums_of_named_terms():
    two = {"contrast": 1.0, "triplet": 10.0, "consistency": 100.0, "ranking": 1000.0, "earlier": 1e4}
    three = {"nce_av": 1.0, "triplet_av": 10.0, "stage_one": 100.0, "stage_two": 1000.0, "pooling": 1e4}
    for stage, terms in ((stage_two, two), (stage_three, three)):
        tensors = {name: torch.tensor(value) for name, value in reversed(terms.items())}
        assert float(stage(tensors, (1.0, 2.0, 3.0, 4.0, 5.0))) == pytest.approx(54321)


def test_picture_terms_use_only_items_with_a_picture():
    a, v, n = _unit(4, 8), _unit(4, 8, seed=1), _unit(4, 2, 8, seed=2)
    labels, shown = torch.arange(4), torch.tensor([True, False, True, False])
    spoiled = torch.where(shown[:, None], v, torch.zeros_like(v))
    for left, right in zip(
        audio_picture(a, v, labels, SCALE, shown, n, 0.2),
        audio_picture(a, spoiled, labels, SCALE, shown, n, 0.2),
        strict=True,
    ):
        torch.testing.assert_close(left, right)
    none = audio_picture(a, v, labels, SCALE, torch.zeros(4, dtype=torch.bool), n, 0.2)
    assert [float(x) for x in none] == [0.0, 0.0]
