from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from auralign.algorithms.query_banks import QueryBanks, build_banks, draw_queries
from auralign.algorithms.training import Corpus, load_corpus
from auralign.data.mixer import MixConfig
from auralign.models.query_encoder import QueryHeads, query_mixup

MIX = MixConfig(samples=4096)


@pytest.fixture
def corpus(corpus_root) -> Corpus:
    return load_corpus(corpus_root, MIX)


@pytest.fixture
def banks(corpus, fake_backbones) -> QueryBanks:
    return build_banks(corpus.mixer.bank, corpus.texts, corpus.pictures, fake_backbones, None)


def _draw(corpus, banks, shares, seed=0, size=24):
    batch = corpus.mixer.batch(np.random.default_rng(seed), size)
    return batch, draw_queries(np.random.default_rng(seed), batch, corpus.mixer, banks, shares)


def test_banks_hold_every_text_picture_and_clip(corpus, banks, fake_backbones):
    assert [len(texts) for texts in banks.texts] == [2] * 6
    assert [len(images) for images in banks.images] == [1, 1, 0, 0, 0, 0]
    assert banks.audio.shape == (len(corpus.mixer.bank.clips), 1024)
    assert torch.equal(banks.texts[2], fake_backbones.texts(corpus.texts[2]))
    wave = torch.from_numpy(corpus.mixer.bank.samples(5))[None]
    assert torch.equal(banks.audio[5], fake_backbones.audio(wave)[0])


def test_an_example_is_listened_to_for_at_most_four_seconds(corpus, fake_backbones, monkeypatch):
    asked = []
    bank = corpus.mixer.bank
    samples = bank.samples
    monkeypatch.setattr(bank, "samples", lambda *where: asked.append(where) or samples(*where))
    build_banks(bank, corpus.texts, corpus.pictures, fake_backbones, None)
    assert asked == [(n, 0, 64_000) for n in range(len(bank.clips))]


def test_the_cache_spares_the_backbones_and_gives_the_same(tmp_path, corpus, fake_backbones):
    parts = (corpus.mixer.bank, corpus.texts, corpus.pictures, fake_backbones, tmp_path)
    fresh = build_banks(*parts)
    assert fake_backbones.calls
    fake_backbones.calls.clear()
    cached = build_banks(*parts)
    assert fake_backbones.calls == []
    assert torch.equal(cached.audio, fresh.audio)
    for a, b in zip(cached.texts + cached.images, fresh.texts + fresh.images, strict=True):
        assert torch.equal(a, b)


def test_another_wording_is_another_cache(tmp_path, corpus, fake_backbones):
    build_banks(corpus.mixer.bank, corpus.texts, corpus.pictures, fake_backbones, tmp_path)
    fake_backbones.calls.clear()
    texts = [["new words"], *corpus.texts[1:]]
    banks = build_banks(corpus.mixer.bank, texts, corpus.pictures, fake_backbones, tmp_path)
    assert fake_backbones.calls
    assert len(banks.texts[0]) == 1


def test_queries_ask_for_both_sources_and_the_absent_class(corpus, banks):
    batch, raw = _draw(corpus, banks, (0.25, 0.25, 0.25, 0.25))
    labels = np.concatenate([batch.labels, batch.absent[:, None]], axis=1)
    assert raw.labels.tolist() == labels.tolist()
    for n in range(24):
        for k in range(3):
            label = int(labels[n, k])
            assert (raw.features["text"][n, k] == banks.texts[label]).all(dim=1).any()
            own = [i for i, c in enumerate(corpus.mixer.bank.clips) if c.label == corpus.labels[label]]
            assert (raw.features["audio"][n, k] == banks.audio[own]).all(dim=1).any()
            assert bool(raw.has_image[n, k]) == (label < 2)


@pytest.mark.parametrize(("shares", "column"), [((1, 0, 0, 0), 0), ((0, 1, 0, 0), 1)])
def test_a_query_of_one_kind_has_all_its_weight_there(corpus, banks, shares, column):
    _, raw = _draw(corpus, banks, tuple(float(s) for s in shares))
    assert torch.equal(raw.weights, F.one_hot(torch.tensor(column), 3).float().expand(24, 3, 3))


def test_a_picture_query_of_a_class_without_pictures_falls_back_to_text(corpus, banks):
    _, raw = _draw(corpus, banks, (0.0, 0.0, 1.0, 0.0))
    shown = raw.has_image.bool()
    assert shown.any()
    assert not shown.all()
    assert (raw.weights[shown] == torch.tensor([0.0, 0.0, 1.0])).all()
    assert (raw.weights[~shown] == torch.tensor([1.0, 0.0, 0.0])).all()


def test_mixed_queries_weigh_all_kinds_that_exist(corpus, banks):
    _, raw = _draw(corpus, banks, (0.0, 0.0, 0.0, 1.0))
    torch.testing.assert_close(raw.weights.sum(dim=-1), torch.ones(24, 3))
    assert (raw.weights[..., :2] > 0).all()
    assert torch.equal(raw.weights[..., 2] > 0, raw.has_image.bool())


def test_kinds_come_in_their_shares(corpus, banks):
    _, raw = _draw(corpus, banks, (0.6, 0.4, 0.0, 0.0), size=200)
    assert 0.54 < float((raw.weights[..., 0] == 1).float().mean()) < 0.66


def test_the_seed_decides_the_queries(corpus, banks):
    shares = (0.25, 0.25, 0.25, 0.25)
    one, again, other = (_draw(corpus, banks, shares, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(one.weights, again.weights)
    assert all(torch.equal(one.features[m], again.features[m]) for m in one.features)
    assert not torch.equal(one.weights, other.weights)


def test_embedding_is_the_mixup_of_the_heads(corpus, banks):
    _, raw = _draw(corpus, banks, (0.0, 0.0, 0.0, 1.0))
    heads = QueryHeads(dim=8, hidden=4)
    parts = torch.stack([heads(raw.features[m], m) for m in ("text", "audio", "image")], dim=2)
    expected = query_mixup(parts, raw.weights)
    torch.testing.assert_close(raw.embed(heads, unit=False), expected)
    torch.testing.assert_close(raw.embed(heads, unit=True), F.normalize(expected, dim=-1))
    alone = dataclasses.replace(raw, weights=torch.tensor([0.0, 1.0, 0.0]).expand(24, 3, 3))
    torch.testing.assert_close(alone.embed(heads, unit=False), parts[:, :, 1])
