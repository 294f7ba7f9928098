from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from auralign.algorithms.batches import draw
from auralign.algorithms.separator_pass import (
    LossConfig,
    alignment_loss,
    hear,
    separator_pass,
    supervised_terms,
    weighted_sum,
)
from auralign.algorithms.training import load_corpus
from auralign.models.query_encoder import QueryHeads
from auralign.models.separator import SeparatorModel

SAMPLES = 4096
OPTIONS = {
    "omnisep": {"query_dim": 16, "levels": 4, "width": 4},
    "small": {
        "widths": (8, 12, 16, 24),
        "blocks": (1, 1, 1, 1),
        "fine": 4,
        "hidden": 16,
        "query_dim": 16,
    },
}


def build(network: str) -> SeparatorModel:
    torch.manual_seed(0)
    made = SeparatorModel(network, OPTIONS[network], unit_queries=network == "small").eval()
    if network == "omnisep":
        torch.nn.init.normal_(made.net.frame_net.weight)
    return made


@pytest.fixture(params=["omnisep", "small"])
def model(request, tiny_parts) -> SeparatorModel:
    return build(request.param)


@pytest.fixture
def wave() -> torch.Tensor:
    return torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0)) * 0.1


def rows_of(model: SeparatorModel, wave: torch.Tensor) -> int:
    with torch.no_grad():
        query = torch.zeros(len(wave), 1, 16)
        return separator_pass(model, wave, query).logits.shape[2]


def test_an_open_mask_lets_the_mixture_through_but_for_its_last_frame(model, wave):
    spec = model.spectrogram(wave)[..., : SAMPLES // 256]
    ones = torch.ones(2, 3, rows_of(model, wave), SAMPLES // 256)
    heard = hear(model, ones, spec, SAMPLES)
    assert heard.shape == (2, 3, SAMPLES)
    expected = wave[:, None].expand_as(heard)
    torch.testing.assert_close(heard[..., :-512], expected[..., :-512], atol=1e-5, rtol=1e-4)


def test_what_is_heard_is_the_inverse_transform_of_mask_times_mixture(model, wave):
    rng = torch.Generator().manual_seed(1)
    spec = model.spectrogram(wave)[..., : SAMPLES // 256]
    mask = torch.rand(2, 2, rows_of(model, wave), SAMPLES // 256, generator=rng)
    heard = hear(model, mask, spec, SAMPLES)
    for item in range(2):
        for member in range(2):
            product = model.net.to_bins(mask)[item, member] * spec[item]
            frames = torch.cat([product, torch.zeros(513, 1)], dim=1)
            expected = torch.istft(frames, 1024, 256, window=torch.hann_window(1024), length=SAMPLES)
            torch.testing.assert_close(heard[item, member], expected, atol=1e-6, rtol=1e-4)
    halves = hear(model, mask * 0.25, spec, SAMPLES) + hear(model, mask * 0.75, spec, SAMPLES)
    torch.testing.assert_close(halves, heard, atol=1e-6, rtol=1e-4)


def test_gradients_flow_from_the_sound_into_the_mask(model, wave):
    spec = model.spectrogram(wave)[..., : SAMPLES // 256]
    mask = torch.full((2, 1, rows_of(model, wave), SAMPLES // 256), 0.5, requires_grad=True)
    hear(model, mask, spec, SAMPLES).square().sum().backward()
    assert mask.grad.isfinite().all()
    assert mask.grad.abs().sum() > 0


def test_one_pass_answers_each_query_as_if_it_were_alone(model, wave):
    query = F.normalize(torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    with torch.no_grad():
        together = separator_pass(model, wave, query)
        for n in range(3):
            alone = separator_pass(model, wave, query[:, n : n + 1])
            torch.testing.assert_close(together.logits[:, n : n + 1], alone.logits, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together.presence[:, n : n + 1], alone.presence, atol=1e-5, rtol=1e-4)


def test_the_energy_of_a_cell_is_the_mixtures_power_on_the_networks_grid(tiny_parts, wave):
    for network in ("omnisep", "small"):
        model = build(network)
        out = separator_pass(model, wave, torch.zeros(2, 1, 16))
        power = out.spec.abs().square()
        expected = (
            model.net.bands(power)
            if network == "small"
            else model.net.warp(power.sqrt()[:, None])[:, 0].square()
        )
        torch.testing.assert_close(out.energy, expected, atol=1e-5, rtol=1e-3)
        assert out.energy.shape == out.logits[:, 0].shape


def test_half_precision_keeps_energy_logits_and_presence_in_float32_and_close(model, wave):
    query = F.normalize(torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    with torch.no_grad():
        full = separator_pass(model, wave, query)
        half = separator_pass(model, wave, query, bfloat16=True)
    for name in ("energy", "logits", "presence"):
        assert getattr(half, name).dtype == torch.float32, name
    assert torch.equal(half.spec, full.spec)
    torch.testing.assert_close(half.energy, full.energy, atol=1e-5, rtol=1e-4)
    # bfloat16 has 8 bits: a few layers of it stay within some per cent of the logits' range
    spread = full.logits.abs().max()
    assert (half.logits - full.logits).abs().max() < 0.1 * spread
    assert not torch.equal(half.logits, full.logits)


# supervised terms


@pytest.fixture
def parts(corpus_root, mars_config, tiny_parts):
    cfg = mars_config(batch=3)
    corpus = load_corpus(corpus_root, cfg.mix)
    model = build("omnisep")
    return model, draw(cfg, corpus, corpus.query_banks(model.backbones), 0, 0)


def test_the_supervised_loss_is_the_weighted_sum_of_the_terms_that_exist(parts):
    model, batch = parts
    out = separator_pass(model, batch.mixture, batch.raw.embed(model.heads, unit=False))
    terms = supervised_terms(model, out, batch)
    assert set(terms) == {"bce", "leak_db", "presence", "align"}
    weights = LossConfig(error_db=100.0, leak_db=2.0, bce=3.0, presence=5.0, align=7.0)
    expected = 2 * terms["leak_db"] + 3 * terms["bce"] + 5 * terms["presence"] + 7 * terms["align"]
    torch.testing.assert_close(weighted_sum(terms, weights), expected)
    presence = F.binary_cross_entropy_with_logits(out.presence, batch.present)
    torch.testing.assert_close(terms["presence"], presence)


def test_a_silent_second_source_has_a_closed_mask_as_its_target(parts):
    model, batch = parts
    sources = batch.sources.clone()
    sources[:, 1] = 0
    present = torch.tensor([1.0, 0.0, 0.0]).expand(3, 3).contiguous()
    alone = dataclasses.replace(batch, sources=sources, mixture=sources.sum(1), present=present)
    out = separator_pass(model, alone.mixture, alone.raw.embed(model.heads, unit=False))
    opened = out.logits.clone()
    opened[:, 1] = 20.0
    closed = out.logits.clone()
    closed[:, 1] = -20.0
    bce = [
        float(supervised_terms(model, dataclasses.replace(out, logits=x), alone)["bce"].detach())
        for x in (opened, closed)
    ]
    assert bce[0] > bce[1] + 1


def test_alignment_is_of_the_given_heads(parts):
    model, batch = parts
    torch.manual_seed(1)
    other = QueryHeads(16, inputs=model.backbones.dims)
    out = separator_pass(model, batch.mixture, batch.raw.embed(model.heads, unit=False))
    terms = supervised_terms(model, out, batch, heads=other)
    torch.testing.assert_close(terms["align"], alignment_loss(other, batch.raw))
    assert not torch.equal(terms["align"], alignment_loss(model.heads, batch.raw))
