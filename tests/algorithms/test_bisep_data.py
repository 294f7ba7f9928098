"""Mixtures of mixtures: what is drawn, from what, at which level, and with which phrases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from auralign.algorithms.bisep_data import PairConfig, PairMixer, Pairs, Texts
from auralign.data.captioned import load_captioned

SAMPLES = 2048


@pytest.fixture
def make(captioned_root, fake_words):
    """A mixer over splits of the tiny corpus."""

    def build(mixtures=("train-2",), singles=(), **changes) -> PairMixer:
        cfg = PairConfig(**{"samples": SAMPLES, **changes})
        parts = [
            load_captioned(captioned_root, s, samples=SAMPLES) if s else None for s in (mixtures, singles)
        ]
        names = [text for part in parts if part for text in part.texts()]
        return PairMixer(*parts, Texts.of(names, fake_words, 16, None), cfg)

    return build


def draw(mixer: PairMixer, size: int = 4, seed: int = 0) -> Pairs:
    return mixer.batch(np.random.default_rng(seed), size)


def phrases_of(mixer: PairMixer, batch: Pairs, item: int, mix: int) -> set[str]:
    row = batch.phrases[item, mix][batch.share[item, mix] > 0]
    return {mixer.texts.names[int(n)] for n in row}


# texts


def test_texts_are_the_encoders_rows_each_once_and_their_sentence_vectors(fake_words):
    texts = Texts.of(["a bell", "a saw", "a bell"], fake_words, 16, None)
    assert texts.names == ("a bell", "a saw")
    assert texts.number == {"a bell": 0, "a saw": 1}
    rows = fake_words.texts(["a bell", "a saw"])
    torch.testing.assert_close(texts.vectors.float(), rows, atol=1e-3, rtol=1e-3)
    assert texts.vectors.dtype == torch.float16
    torch.testing.assert_close(texts.unit, rows[:, :16], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(texts.unit.norm(dim=1), torch.ones(2))


def test_the_kept_features_are_the_same_and_belong_to_these_texts_and_this_encoder(
    tmp_path, fake_words, monkeypatch
):
    first = Texts.of(["a bell", "a saw"], fake_words, 16, tmp_path / "cache")
    asked = []
    texts = type(fake_words).texts
    monkeypatch.setattr(
        type(fake_words), "texts", lambda self, names: (asked.append(list(names)), texts(self, names))[1]
    )
    again = Texts.of(["a bell", "a saw"], fake_words, 16, tmp_path / "cache")
    assert not asked
    assert torch.equal(first.vectors, again.vectors)
    Texts.of(["a bell", "a harp"], fake_words, 16, tmp_path / "cache")
    fake_words.spec = "others"
    Texts.of(["a bell", "a saw"], fake_words, 16, tmp_path / "cache")
    assert asked == [["a bell", "a harp"], ["a bell", "a saw"]]
    assert len(list((tmp_path / "cache").iterdir())) == 3


# pairs


def test_the_same_seed_gives_the_same_batch_and_another_another(make):
    mixer = make()
    once, again, other = draw(mixer), draw(make()), draw(mixer, seed=1)
    for name, value in vars(once).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(once.mixtures, other.mixtures)
    assert not torch.equal(once.captions, other.captions)


def test_every_mixture_is_at_its_gain_and_half_as_loud_as_alone(make):
    """The published loader divides targets twice; here what is asked for adds up to what is heard."""
    batch = draw(make(gain=(0.5, 1.5)), 24)
    level = batch.mixtures.square().mean(dim=-1).sqrt()
    gain = 2 * level / 0.1
    assert float(gain.min()) >= 0.499
    assert float(gain.max()) <= 1.501
    assert float(gain.min()) < 0.7 < 1.3 < float(gain.max())
    fixed = draw(make(gain=(1.0, 1.0)), 3).mixtures.square().mean(dim=-1).sqrt()
    torch.testing.assert_close(fixed, torch.full((3, 2), 0.05), atol=1e-5, rtol=1e-4)


def test_recordings_that_share_a_phrase_are_not_mixed_unless_asked_for(make):
    shared = {}
    for apart in (True, False):
        mixer = make(apart=apart)
        batch = draw(mixer, 80)
        shared[apart] = sum(
            bool(phrases_of(mixer, batch, n, 0) & phrases_of(mixer, batch, n, 1)) for n in range(80)
        )
    assert shared[True] == 0
    assert shared[False] > 20


def test_phrases_that_say_nearly_the_same_count_as_shared(make):
    mixer = make(same=-1.0)  # now every two phrases say the same
    one, other = (mixer._mixtures.cut(np.random.default_rng(0), n) for n in (0, 14))
    assert not {*one.phrases} & {*other.phrases}
    assert mixer._share_a_phrase(one, other)
    assert not make()._share_a_phrase(one, other)


def test_captions_and_phrases_belong_to_what_is_heard(make):
    mixer = make()
    batch = draw(mixer, 20)
    for n in range(20):
        for k in range(2):
            caption = mixer.texts.names[int(batch.captions[n, k])]
            assert set(caption.split(" and ")) == phrases_of(mixer, batch, n, k)


@pytest.mark.parametrize("singles", [(), ("train-1",)])
def test_the_absent_phrase_is_in_neither_mixture(make, singles):
    """Even where every other recording shares something with what is heard."""
    mixer = make(singles=singles, single_draw=0.0)
    batch = draw(mixer, 60)
    gone = [mixer.texts.names[int(n)] for n in batch.absent]
    for n in range(60):
        assert gone[n] not in phrases_of(mixer, batch, n, 0) | phrases_of(mixer, batch, n, 1)
        assert " and " not in gone[n]
    assert len(set(gone)) == 6


def test_where_captions_are_asked_for_the_absent_text_is_a_caption_of_other_phrases(make):
    mixer = make(mixtures=(), singles=("train-1", "val-2"), absent_phrase=False)
    batch = draw(mixer, 40)
    gone = [mixer.texts.names[int(n)] for n in batch.absent]
    assert any(" and " in text for text in gone)
    for n in range(40):
        heard = phrases_of(mixer, batch, n, 0) | phrases_of(mixer, batch, n, 1)
        assert not heard & set(gone[n].split(" and "))


# phrases


def test_short_lists_are_masked_and_columns_without_any_phrase_are_left_out(make):
    batch = draw(make(singles=("train-1",), most_phrases=7, single_draw=0.5), 12)
    assert batch.phrases.shape == (12, 2, 2)
    count = (batch.share > 0).sum(dim=-1)
    assert torch.equal(count, 1 + batch.weak.long())
    assert set(batch.share.unique().tolist()) == {0.0, 1.0}
    assert not batch.phrases[batch.share == 0].any()


def test_longer_lists_are_subsampled_without_repeats(make):
    mixer = make(most_phrases=1)
    batch = draw(mixer, 40)
    assert batch.phrases.shape == (40, 2, 1)
    assert torch.equal(batch.share, torch.ones(40, 2, 1))
    first = second = 0
    for n in range(40):
        caption = mixer.texts.names[int(batch.captions[n, 0])].split(" and ")
        (kept,) = phrases_of(mixer, batch, n, 0)
        first, second = first + (kept == caption[0]), second + (kept == caption[1])
    assert first + second == 40
    assert min(first, second) > 8


@pytest.mark.parametrize("most", [2, 3])
def test_the_published_padding_repeats_and_each_phrase_counts_once(make, most):
    mixer = make(repeat=True, most_phrases=most, apart=False)
    batch = draw(mixer, 12)
    assert batch.phrases.shape == (12, 2, most)
    assert (batch.share > 0).all()
    torch.testing.assert_close(batch.share.sum(dim=-1), torch.full((12, 2), 2.0))
    for n in range(12):
        assert len(phrases_of(mixer, batch, n, 0)) == 2
        for number in set(batch.phrases[n, 0].tolist()):
            assert float(batch.share[n, 0][batch.phrases[n, 0] == number].sum()) == pytest.approx(1.0)


# what is heard


@pytest.mark.parametrize(("chance", "weak"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_chance_of_a_single_sound_at_its_ends(make, chance, weak):
    batch = draw(make(singles=("train-1",), single_draw=chance), 10)
    assert torch.equal(batch.weak, torch.full((10, 2), weak))


def test_single_sounds_come_as_often_as_asked_for_and_are_flagged(make):
    mixer = make(singles=("train-1",), single_draw=0.25, apart=False)
    batch = draw(mixer, 200)
    assert 0.68 < float(batch.weak.mean()) < 0.82
    for n in range(200):
        for k in range(2):
            several = " and " in mixer.texts.names[int(batch.captions[n, k])]
            assert float(batch.weak[n, k]) == float(several)


def test_with_single_sounds_alone_none_is_weak(make):
    batch = draw(make(mixtures=(), singles=("train-1",), single_draw=0.0), 6)
    assert not batch.weak.any()


def test_nothing_to_draw_from_is_an_error(make):
    mixer = make()
    mixer._mixtures = None
    with pytest.raises(ValueError, match="neither mixtures nor single sounds"):
        draw(mixer)


def test_a_batch_goes_to_a_device_whole(make):
    batch = draw(make())
    moved = batch.to(torch.device("meta"))
    assert {f.name for f in dataclasses.fields(Pairs)} == set(vars(moved))
    assert all(value.is_meta for value in vars(moved).values())
