"""How far masks are from mixtures: against oracles written out in the test, and what the entropy of phrases adds."""

from __future__ import annotations

import math

import pytest
import torch

from auralign.algorithms.bisep_measure import mask_measure, published_measure
from auralign.algorithms.separator_pass import SeparatorPass
from auralign.models.separator import SeparatorModel

TINY = {"widths": [16, 16, 16, 16], "blocks": [1, 1, 1, 1], "fine": 8, "hidden": 16}


@pytest.fixture(scope="module")
def model() -> SeparatorModel:
    torch.manual_seed(3)
    return SeparatorModel("bisep_small", TINY, encoder="tokens", unit_queries=False).eval()


@pytest.fixture(scope="module")
def heard(model) -> tuple[SeparatorPass, torch.Tensor]:
    """A pass over two pairs of noises, of which only spectrum and energy are read, and the noises."""
    generator = torch.Generator().manual_seed(5)
    mixtures = torch.randn(2, 2, 4096, generator=generator) * torch.tensor([1.0, 0.3])[:, None]
    spec = model.spectrogram(mixtures.sum(dim=1))[..., : 4096 // model.hop]
    energy = model.net.projector(spec.real.square() + spec.imag.square())
    logits = torch.randn(2, 2, *energy.shape[1:], generator=generator)
    return SeparatorPass(spec, energy, logits, torch.zeros(2, 2)), mixtures


def test_the_error_is_the_one_of_the_masked_mixture_in_db(model, heard):
    out, mixtures = heard
    mask = torch.sigmoid(out.logits)
    found = mask_measure(model, out, mixtures)(None, mask)
    bands = model.net.projector.weight.double()  # band bin
    whole = out.spec.to(torch.complex128)
    for item in range(2):
        for n in range(2):
            source = model.spectrogram(mixtures[item, n][None])[0, :, : whole.shape[-1]].to(torch.complex128)
            rows = mask[item, n].double()[:, None]  # one mask a band, applied to its share of every bin
            left = (rows * whole[item][None] - source[None]).abs().square()
            error = (bands[:, :, None] * left).sum()
            expected = 0.02 * 10 * torch.log10(error / source.abs().square().sum() + 1e-3)
            assert float(found[item, n]) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("claim", [1.0, 3.0])
def test_phrases_together_cost_their_cross_entropy_to_the_best_mask(model, heard, claim):
    out, mixtures = heard
    mask = torch.sigmoid(out.logits)
    by_logits = mask_measure(model, out, mixtures)(out.logits, mask)
    plain = mask_measure(model, out, mixtures)(None, mask)
    held = mask_measure(model, out, mixtures, claim=claim)(None, mask)
    torch.testing.assert_close(held - plain, claim * (by_logits - plain), rtol=1e-4, atol=1e-5)


def test_a_part_that_nobody_claims_costs_more_than_one_that_is_claimed(model, heard):
    out, mixtures = heard
    measure = mask_measure(model, out, mixtures, claim=1.0)
    costs = [float(measure(None, torch.full_like(out.logits, level)).mean()) for level in (0.0, 0.5)]
    assert all(map(math.isfinite, costs))
    assert costs[0] > costs[1]


def test_the_published_error_of_a_sum_is_weighed_by_the_mixture_and_that_of_a_caption_by_the_whole(
    model, heard
):
    out, mixtures = heard
    mask = torch.sigmoid(out.logits)
    measure = published_measure(model, out, mixtures)
    whole = out.spec.abs()[:, None]
    target = model.spectrogram(mixtures)[..., : whole.shape[-1]].abs()
    error = (model.net.to_bins(mask) * whole - target).abs()
    for logits, weighed in ((out.logits, whole), (None, target)):
        weight = torch.log1p(weighed).clamp(1e-3, 10)
        expected = (weight * error).mean(dim=(2, 3))
        torch.testing.assert_close(measure(logits, mask), expected)
