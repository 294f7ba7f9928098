"""The loss terms against plain loops over the equations, their edges, and what the released form does otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auralign.algorithms.bisep_loss import (
    consistent_reconstruction,
    contrastive,
    gather,
    perceptual_weight,
    reconstruction_of_mixtures,
    repeat_phrases,
    weighted_l1,
)
from auralign.algorithms.bisep_terms import as_loud_as

BATCH, MIX, PHRASE, BIN, FRAME = 2, 2, 3, 4, 5


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def units(rows: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def weight(magnitude: float) -> float:
    return min(10.0, max(1e-3, math.log(1 + magnitude)))


# perceptual weight and weighted error


def test_the_weight_is_a_logarithm_between_a_thousandth_and_ten():
    edges = torch.tensor([0.0, 1e-4, math.expm1(1e-3), 0.5, math.expm1(10.0), 1e9])
    found = perceptual_weight(edges)
    torch.testing.assert_close(found, torch.tensor([1e-3, 1e-3, 1e-3, math.log(1.5), 10.0, 10.0]))


def test_the_weighted_error_is_a_mean_over_bins_and_frames_of_each_item():
    a, b, w = (draw(BATCH, BIN, FRAME, seed=n) for n in range(3))
    for n in range(BATCH):
        by_hand = sum(
            float(w[n, f, t]) * abs(float(a[n, f, t]) - float(b[n, f, t]))
            for f in range(BIN)
            for t in range(FRAME)
        ) / (BIN * FRAME)
        assert float(weighted_l1(a, b, w)[n]) == pytest.approx(by_hand, rel=1e-5)


# reconstruction


def test_url_weighs_by_the_mixture_of_mixtures():
    mask, whole, mixture = (
        draw(BATCH, MIX, BIN, FRAME),
        draw(BATCH, BIN, FRAME, seed=1),
        draw(2, 2, BIN, FRAME),
    )
    found = reconstruction_of_mixtures(mask, whole, mixture)
    for b in range(BATCH):
        for n in range(MIX):
            total = 0.0
            for f in range(BIN):
                for t in range(FRAME):
                    m = float(whole[b, f, t])
                    total += weight(m) * abs(float(mask[b, n, f, t]) * m - float(mixture[b, n, f, t]))
            assert float(found[b, n]) == pytest.approx(total / (BIN * FRAME), rel=1e-5)


def test_crl_weighs_by_each_mixture_and_adds_up_the_shares_of_its_phrases():
    masks, share = draw(BATCH, MIX, PHRASE, BIN, FRAME), draw(BATCH, MIX, PHRASE, seed=1)
    whole, mixture = draw(BATCH, BIN, FRAME, seed=2), draw(BATCH, MIX, BIN, FRAME, seed=3)
    found = consistent_reconstruction(masks, share, whole, mixture)
    for b in range(BATCH):
        for n in range(MIX):
            total = 0.0
            for f in range(BIN):
                for t in range(FRAME):
                    heard = sum(float(share[b, n, k] * masks[b, n, k, f, t]) for k in range(PHRASE))
                    x = float(mixture[b, n, f, t])
                    total += weight(x) * abs(heard * float(whole[b, f, t]) - x)
            assert float(found[b, n]) == pytest.approx(total / (BIN * FRAME), rel=1e-5)


def test_a_phrase_without_share_changes_nothing():
    masks, share = draw(BATCH, MIX, PHRASE, BIN, FRAME), draw(BATCH, MIX, PHRASE, seed=1)
    share[..., -1] = 0
    whole, mixture = draw(BATCH, BIN, FRAME, seed=2), draw(BATCH, MIX, BIN, FRAME, seed=3)
    with_padding = consistent_reconstruction(masks, share, whole, mixture)
    without = consistent_reconstruction(masks[:, :, :-1], share[..., :-1], whole, mixture)
    torch.testing.assert_close(with_padding, without)


def test_repeats_at_their_shares_add_up_to_the_phrase_once():
    masks = draw(1, 1, 2, BIN, FRAME)
    whole, mixture = draw(1, BIN, FRAME, seed=2), draw(1, 1, BIN, FRAME, seed=3)
    plain = consistent_reconstruction(masks, torch.ones(1, 1, 2), whole, mixture)
    index, share = repeat_phrases(2, 5, torch.tensor([0, 0, 1, 0, 1]))
    repeated = consistent_reconstruction(masks[:, :, index], share[None, None], whole, mixture)
    torch.testing.assert_close(repeated, plain)


@pytest.mark.parametrize("how", ["sum", "union"])
def test_phrases_together_are_their_sum_or_their_union(how):
    masks, share = draw(BATCH, MIX, PHRASE, BIN, FRAME) / 3, draw(BATCH, MIX, PHRASE, seed=1) / 3
    share[0, 1, 1:] = 0
    found = gather(masks, share, how)
    for place in [(0, 0, 0, 0), (0, 1, 2, 3), (1, 1, 3, 4)]:
        b, n, f, t = place
        claimed = [float(share[b, n, k] * masks[b, n, k, f, t]) for k in range(PHRASE)]
        union = 1 - math.prod(1 - part for part in claimed)
        assert float(found[place]) == pytest.approx(sum(claimed) if how == "sum" else union, abs=1e-6)
    torch.testing.assert_close(
        gather(masks, share * torch.tensor([1.0, 1, 0]), how), gather(masks[:, :, :2], share[..., :2], how)
    )


def test_a_union_never_claims_more_than_all_and_its_gradient_passes_full_masks():
    masks = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 3, 1, 1).requires_grad_()
    union = gather(masks, torch.ones(1, 1, 3), "union")
    assert float(union.detach()) == 1.0
    union.sum().backward()
    assert torch.isfinite(masks.grad).all()


def test_true_masks_of_disjoint_sources_leave_no_error():
    place = torch.arange(BIN * FRAME).view(BIN, FRAME) % 6  # every cell belongs to one of six phrases
    whole = draw(1, BIN, FRAME) + 0.1
    masks = torch.stack([(place == k).float() for k in range(6)]).view(1, 2, 3, BIN, FRAME)
    mixture = masks.sum(dim=2) * whole
    assert not reconstruction_of_mixtures(masks.sum(dim=2), whole, mixture).any()
    assert not consistent_reconstruction(masks, torch.ones(1, 2, 3), whole, mixture).any()
    swapped = masks.flip(1)
    assert (reconstruction_of_mixtures(swapped.sum(dim=2), whole, mixture) > 0).all()
    assert (consistent_reconstruction(swapped, torch.ones(1, 2, 3), whole, mixture) > 0).all()


def test_silence_costs_nothing_and_pulls_at_nothing():
    masks = draw(1, 2, 3, BIN, FRAME).requires_grad_()
    whole, mixture = torch.zeros(1, BIN, FRAME), torch.zeros(1, 2, BIN, FRAME)
    loss = reconstruction_of_mixtures(masks.sum(dim=2), whole, mixture)
    loss = loss + consistent_reconstruction(masks, torch.ones(1, 2, 3), whole, mixture)
    assert not loss.any()
    loss.sum().backward()
    assert not masks.grad.any()


# contrast


def cross_entropy(audio, text, scale, target, gone=()) -> float:
    """Mean over estimates of the cross-entropy with ``target``, a list of positives' places for each."""
    total = 0.0
    for i in range(len(audio)):
        logit = {j: scale * float(audio[i] @ text[j]) for j in range(len(text)) if (i, j) not in gone}
        norm = math.log(sum(math.exp(value) for value in logit.values()))
        total += -sum(logit[j] - norm for j in target[i]) / len(target[i])
    return total / len(audio)


def test_the_released_contrast_goes_one_way_and_its_labels_are_the_diagonal():
    audio, text, number = units(4), units(4, seed=1), torch.tensor([7, 7, 3, 7])
    found = contrastive(audio, text, 5.0, number, multi_positive=False, symmetric=False)
    assert float(found) == pytest.approx(cross_entropy(audio, text, 5.0, [[0], [1], [2], [3]]), rel=1e-5)


def test_rows_with_the_same_words_are_positives_of_each_other():
    audio, text, number = units(4), units(4, seed=1), torch.tensor([7, 7, 3, 7])
    found = contrastive(audio, text, 5.0, number, symmetric=False)
    positives = [[0, 1, 3], [0, 1, 3], [2], [0, 1, 3]]
    assert float(found) == pytest.approx(cross_entropy(audio, text, 5.0, positives), rel=1e-5)


@pytest.mark.parametrize("multi_positive", [False, True])
def test_the_symmetric_form_is_the_mean_of_both_directions(multi_positive):
    audio, text, number = units(5), units(5, seed=1), torch.tensor([1, 2, 1, 4, 2])
    found = contrastive(audio, text, 3.0, number, multi_positive=multi_positive)
    positives = [[0, 2], [1, 4], [0, 2], [3], [1, 4]] if multi_positive else [[n] for n in range(5)]
    both = [cross_entropy(a, b, 3.0, positives) for a, b in ((audio, text), (text, audio))]
    assert float(found) == pytest.approx(sum(both) / 2, rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_words_that_say_nearly_the_same_are_no_negatives(symmetric):
    audio, text, number = units(4), units(4, seed=1), torch.tensor([1, 2, 3, 1])
    close = torch.eye(4, dtype=torch.bool)
    close[0, 1] = close[1, 0] = True
    close[0, 3] = close[3, 0] = True  # the same words: a positive stays one
    found = contrastive(audio, text, 4.0, number, symmetric=symmetric, left_out=close)
    positives, gone = [[0, 3], [1], [2], [0, 3]], {(0, 1), (1, 0)}
    expected = cross_entropy(audio, text, 4.0, positives, gone)
    if symmetric:
        expected = (expected + cross_entropy(text, audio, 4.0, positives, gone)) / 2
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_with_defaults_an_estimate_is_never_pushed_away_from_a_duplicate_of_its_own_phrase():
    text = units(3, seed=1)
    text[1] = text[0]
    number = torch.tensor([5, 5, 6])
    pushes = {}
    for multi_positive in (False, True):
        logits = torch.zeros(3, 3, requires_grad=True)
        contrastive(
            logits, torch.eye(3), 1.0, number, multi_positive=multi_positive, symmetric=False
        ).backward()
        pushes[multi_positive] = float(logits.grad[0, 1])
    assert pushes[False] > 0 > pushes[True]


def test_no_row_and_one_row_cost_nothing():
    nothing = torch.zeros(0, 6, requires_grad=True)
    loss = contrastive(nothing, torch.zeros(0, 6), 9.0, torch.zeros(0, dtype=torch.long))
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert float(contrastive(units(1), units(1, seed=2), 9.0, torch.tensor([4]))) == 0.0


def test_the_contrast_falls_when_an_estimate_comes_closer_to_its_phrase():
    text = units(4, seed=1)
    number = torch.arange(4)
    levels = [
        float(contrastive(torch.nn.functional.normalize(units(4) + pull * text, dim=1), text, 5.0, number))
        for pull in (0.0, 0.5, 2.0)
    ]
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("form", [{}, {"multi_positive": False, "symmetric": False}])
def test_the_order_of_rows_does_not_matter(form):
    audio, text, number = units(6), units(6, seed=1), torch.tensor([1, 2, 1, 4, 2, 6])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        contrastive(audio[order], text[order], 5.0, number[order], **form),
        contrastive(audio, text, 5.0, number, **form),
    )


# the published padding


@given(count=st.integers(1, 5), extra=st.integers(0, 4), seed=st.integers(0, 99))
def test_every_phrase_of_a_padded_list_counts_once_in_all(count, extra, seed):
    size = count + extra
    picks = torch.randint(count, (size,), generator=torch.Generator().manual_seed(seed))
    index, share = repeat_phrases(count, size, picks)
    assert index[:count].tolist() == list(range(count))
    assert torch.equal(index[count:], picks[count:])
    for phrase in range(count):
        held = index == phrase
        assert float(share[held].sum()) == pytest.approx(1.0)
        assert len(share[held].unique()) == 1


def test_a_faint_estimate_counts_by_its_level_and_sounds_the_same():
    generator = torch.Generator().manual_seed(7)
    whole = torch.randn(3, 400, generator=generator)
    wave = (whole * torch.tensor([[2.0], [1.0], [0.01]])).requires_grad_()
    heard = as_loud_as(wave, whole)
    torch.testing.assert_close(heard, wave)
    (gradient,) = torch.autograd.grad(heard.sum(), wave)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([1.0, 1.0, 0.01]))
    silent = torch.zeros(1, 400, requires_grad=True)
    (none,) = torch.autograd.grad(as_loud_as(silent, whole[:1]).sum(), silent)
    assert not none.any()
