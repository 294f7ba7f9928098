from __future__ import annotations

import dataclasses

import pytest
import torch

from auralign.algorithms.query_banks import RawQueries
from auralign.algorithms.scenes import Items, first_decision, residual_decision
from auralign.algorithms.separator_pass import Mixtures, SeparatorPass, separator_pass
from auralign.models.separator import SeparatorModel

LABELS = ["bell", "flute", "harp", "hiss"]
TEXTS = [f"the sound of a {label}" for label in LABELS]
SAMPLES = 4096
PRESENT = [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]


@pytest.fixture
def batch() -> Mixtures:
    """Three mixtures with a distractor; the second source of the second one is silent."""
    rng = torch.Generator().manual_seed(0)
    present = torch.tensor(PRESENT)
    sources = torch.randn(3, 2, SAMPLES, generator=rng) * 0.1 * present[:, :2, None]
    distractor = torch.randn(3, SAMPLES, generator=rng) * 0.02
    raw = RawQueries(
        features={
            "text": torch.randn(3, 3, 384, generator=rng),
            "audio": torch.randn(3, 3, 1024, generator=rng),
            "image": torch.randn(3, 3, 1280, generator=rng),
        },
        weights=torch.tensor([1.0, 0.0, 0.0]).expand(3, 3, 3).contiguous(),
        has_image=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
        labels=torch.tensor([[0, 1, 2], [2, 3, 0], [3, 0, 1]]),
    )
    return Mixtures(sources, sources.sum(1) + distractor, present, raw)


@pytest.fixture
def model(tiny_parts) -> SeparatorModel:
    torch.manual_seed(0)
    options = {"query_dim": 16, "levels": 4, "width": 4}
    made = SeparatorModel("omnisep", options, labels=LABELS, phrases=TEXTS, unit_queries=False).eval()
    torch.nn.init.normal_(made.net.frame_net.weight)
    return made


def a_pass(model: SeparatorModel, batch: Mixtures) -> tuple[SeparatorPass, torch.Tensor]:
    query = batch.raw.embed(model.heads, unit=False)
    return separator_pass(model, batch.mixture, query), query


def test_every_audible_source_is_asked_for_and_a_silent_or_absent_one_never(batch):
    both = Items.of(batch, 2)
    pairs = list(zip(both.mixture.tolist(), both.source.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert Items.of(batch, 1).source.tolist() == [0, 0, 0]
    assert Items.of(batch, 1).mixture.tolist() == [0, 1, 2]
    wrong = dataclasses.replace(batch, present=torch.ones(3, 3))
    assert Items.of(wrong, 3).source.max() == 1, "the third query has no sound to compare with"


def test_a_value_of_each_query_gives_the_rows_of_the_items(batch):
    items = Items.of(batch, 2)
    picked = items.pick(batch.sources)
    for row, (mixture, source) in enumerate(zip(items.mixture, items.source, strict=True)):
        assert torch.equal(picked[row], batch.sources[mixture, source])


def test_target_and_interferer_add_up_to_the_mixture_with_everything_else_in_it(batch, model):
    items = Items.of(batch, 2)
    decision = first_decision(batch, items, a_pass(model, batch)[0])
    estimate = torch.zeros(5, 3, SAMPLES)
    scene = decision.scene(estimate, LABELS, TEXTS)
    assert scene.estimate is estimate
    assert scene.rate_hz == 16_000
    torch.testing.assert_close(scene.target + scene.interferer, scene.mixture, atol=1e-7, rtol=0)
    for row, (mixture, source) in enumerate(zip(items.mixture, items.source, strict=True)):
        assert torch.equal(scene.target[row], batch.sources[mixture, source])
        assert torch.equal(scene.mixture[row], batch.mixture[mixture])
    alone = scene.interferer[2]
    assert alone.abs().max() > 0.01, "the distractor is unwanted too"


def test_labels_and_words_are_those_of_the_source_that_is_asked_for(batch, model):
    decision = first_decision(batch, Items.of(batch, 2), a_pass(model, batch)[0])
    scene = decision.scene(torch.zeros(5, 1, SAMPLES), LABELS, TEXTS)
    assert scene.labels == ("bell", "flute", "harp", "hiss", "bell")
    assert scene.texts == tuple(f"the sound of a {label}" for label in scene.labels)


def test_the_wanted_cue_is_of_the_source_and_the_unwanted_one_of_the_other(batch, model):
    items = Items.of(batch, 2)
    scene = first_decision(batch, items, a_pass(model, batch)[0]).scene(
        torch.zeros(5, 1, SAMPLES), LABELS, TEXTS
    )
    assert set(scene.wanted.features) == {"text", "image"}, "a reward has the clean sound itself"
    for row, (mixture, source) in enumerate(zip(items.mixture, items.source, strict=True)):
        for cue, of in ((scene.wanted, source), (scene.unwanted, 1 - source)):
            for modality in ("text", "image"):
                expected = batch.raw.features[modality][mixture, of]
                assert torch.equal(cue.features[modality][row], expected)
            assert bool(cue.valid["text"][row])
            assert bool(cue.valid["image"][row]) == bool(batch.raw.has_image[mixture, of])


def test_the_first_decision_is_the_separators_mask_of_each_item(batch, model):
    out, _ = a_pass(model, batch)
    items = Items.of(batch, 2)
    decision = first_decision(batch, items, out)
    for row, (mixture, source) in enumerate(zip(items.mixture, items.source, strict=True)):
        torch.testing.assert_close(decision.proposal[row], torch.sigmoid(out.logits[mixture, source]))
        assert torch.equal(decision.energy[row], out.energy[mixture])
        assert torch.equal(decision.spec[row], out.spec[mixture])
    assert decision.proposal.dtype == torch.float32
    decision.proposal.sum().backward()
    assert model.net.frame_net.weight.grad.abs().sum() > 0


# what was left over


def test_what_was_found_and_what_is_left_are_the_mixture(batch, model):
    out, query = a_pass(model, batch)
    first = first_decision(batch, Items.of(batch, 2), out)
    second = residual_decision(model, first, query, bfloat16=False)
    found = first.hear(model, first.proposal[:, None])[:, 0].detach()
    torch.testing.assert_close(second.before, found)
    left = model.spectrogram(batch.mixture[first.items.mixture] - found)[..., : SAMPLES // 256]
    torch.testing.assert_close(second.spec, left, atol=1e-5, rtol=1e-4)
    everything = second.hear(model, torch.ones_like(second.proposal)[:, None])[:, 0]
    mixture = batch.mixture[first.items.mixture]
    torch.testing.assert_close(everything[:, :-512], mixture[:, :-512], atol=1e-5, rtol=1e-4)
    nothing = second.hear(model, torch.zeros_like(second.proposal)[:, None])[:, 0]
    torch.testing.assert_close(nothing, found)


def test_the_second_decision_asks_each_items_own_query_and_learns_only_from_its_own_pass(batch, model):
    out, query = a_pass(model, batch)
    first = first_decision(batch, Items.of(batch, 2), out)
    fresh = query.detach().requires_grad_()
    second = residual_decision(model, first, fresh, bfloat16=False)
    assert not second.before.requires_grad
    row, mixture, source = 4, 2, 1
    second.proposal[row].sum().backward()
    touched = fresh.grad.abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[mixture, source]]
    assert second.proposal.shape == first.proposal.shape
