from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from auralign.algorithms import alignment_data
from auralign.algorithms.alignment_data import (
    CHANGED,
    ESTIMATES,
    INTERFERER,
    MIXTURE,
    SIZE,
    TARGET,
    VARIANTS,
    SceneConfig,
    SceneMaker,
    _complement,
    beta_noise,
    patched,
    scene_features,
)
from auralign.algorithms.alignment_pairs import rank_correlation
from auralign.algorithms.training import load_corpus
from auralign.data.mixer import MixConfig
from auralign.metrics.sdr import si_sdr
from auralign.models.reward_encoder import RewardEncoder

TINY = SceneConfig(scenes=SIZE, validation=SIZE, seconds=(0.512,), separator="", equaliser_db=0.0)


class Spectra(RewardEncoder):
    """Band energies in place of the backbone's features."""

    def __init__(self) -> None:
        super().__init__(dim=4, hidden=4, rank=4)
        self.heard = 0

    def audio_features(self, wave, *, grad=False):
        self.heard += len(wave)
        return torch.fft.rfft(wave, n=62).abs()


@pytest.fixture
def maker(corpus_root) -> SceneMaker:
    corpus = load_corpus(corpus_root, MixConfig())
    classes = json.loads((corpus_root / "classes.json").read_text())
    kinds = {label: classes[label]["kind"] for label in corpus.labels}
    return SceneMaker(corpus.mixer.bank, corpus.labels, kinds, {"bell": {"flute"}}, TINY, None, [])


def test_a_scene_holds_target_interferer_their_sum_and_graded_separations(maker):
    sounds, quality, labels, sources = maker.block(0, 0)
    assert sounds.shape == (SIZE, VARIANTS, 8192)
    assert len(ESTIMATES) == VARIANTS - 4
    torch.testing.assert_close(sounds[:, MIXTURE], sounds[:, TARGET] + sounds[:, INTERFERER])
    target = sounds[:, :1].expand_as(sounds)
    expected = si_sdr(est=sounds, ref=target).float().clamp(-30, 30)
    keep = [n for n in range(VARIANTS) if n not in (CHANGED, INTERFERER)]
    torch.testing.assert_close(quality[:, keep], expected[:, keep])
    assert (quality[:, [TARGET, CHANGED]] == 30).all()
    assert (labels[:, 0] != labels[:, 1]).all()
    assert (sources[:, 0] != sources[:, 1]).all()


def test_leaks_hold_the_interferer_at_the_drawn_level(maker):
    sounds, quality, _, _ = maker.block(0, 0)
    for place, low, high in ((4, -25, -8), (5, -8, 10)):
        leak = sounds[:, place] - sounds[:, TARGET]
        level = 10 * torch.log10(leak.square().mean(1) / sounds[:, TARGET].square().mean(1))
        assert (level > low - 0.01).all()
        assert (level < high + 0.01).all()
        other = torch.nn.functional.cosine_similarity(leak, sounds[:, INTERFERER])
        torch.testing.assert_close(other, torch.ones(SIZE), atol=1e-3, rtol=0)
    assert (quality[:, 4] > quality[:, 5]).all()


def test_ideal_masks_are_better_than_the_mixture_and_turning_them_round_is_worse(maker):
    quality = maker.block(0, 0)[1].median(dim=0).values
    ideal = 4 + ESTIMATES.index("ideal mask to a power")
    turned = 4 + ESTIMATES.index("ideal mask, turned round")
    assert quality[ideal] > quality[MIXTURE] + 5
    assert quality[ideal] > quality[turned] + 5


def test_a_block_follows_from_seed_and_number(maker):
    first, again, other = maker.block(3, 1), maker.block(3, 1), maker.block(4, 1)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0], other[0])


def test_features_are_computed_once_and_then_read(maker, tmp_path):
    encoder = Spectra()
    first = scene_features(maker, encoder, count=SIZE + 5, seed=0, name="train", cache=tmp_path)
    assert len(first) == SIZE + 5
    assert first.audio.shape == (SIZE + 5, VARIANTS, 32)
    heard = encoder.heard
    again = scene_features(maker, encoder, count=SIZE + 5, seed=0, name="train", cache=tmp_path)
    assert encoder.heard == heard
    assert torch.equal(first.audio, again.audio)
    scene_features(maker, encoder, count=SIZE, seed=1, name="train", cache=tmp_path)
    assert encoder.heard > heard


def test_close_pairs_are_the_confusable_ones_and_music_is_no_class_apart():
    near = {"violin": {"viola", "music"}, "viola": {"violin"}, "dog": {"wolf"}, "music": {"violin"}}
    labels = ["dog", "music", "viola", "violin"]
    far = _complement(labels, near, set(labels))
    assert far["violin"] == {"dog", "music", "violin"}  # leaves the viola
    assert far["dog"] == set()  # its double is not there: any other will do
    assert far["music"] == set()


def test_mask_noise_keeps_masks_masks():
    mask = torch.rand(4, 33, 20, generator=torch.Generator().manual_seed(0))
    for made in (
        beta_noise(mask, 9.0, torch.Generator().manual_seed(1)),
        patched(mask, 1.0, torch.Generator().manual_seed(1)),
    ):
        assert made.shape == mask.shape
        assert made.min() >= 0
        assert made.max() <= 1
        assert (made - mask).abs().mean() > 0.03
    near = patched(mask, 1e-4, torch.Generator().manual_seed(1))
    torch.testing.assert_close(near, mask.clamp(1e-3, 1 - 1e-3), atol=1e-3, rtol=0)


def test_the_shipped_separator_takes_part_when_named(corpus_root, monkeypatch, maker):
    asked = []

    class Separator:
        def __call__(self, wave, query):
            asked.append((len(wave), tuple(query.shape)))
            shape = (len(wave), 1, 513, wave.shape[1] // 256 + 1)
            return type("Answer", (), {"mask": torch.zeros(shape)})()

    maker.separator, maker._queries = Separator(), torch.randn(6, 4)
    sounds, quality, _, _ = maker.block(0, 0)
    assert asked == [(SIZE, (SIZE, 1, 4))]
    assert not sounds[:, 4 + ESTIMATES.index("separator")].any()  # a closed mask is silence
    assert (quality[:, 4 + ESTIMATES.index("separator")] == -30).all()


def test_rank_correlation_is_spearmans_with_ties():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, size=(6, 9)).astype(np.float32)
    second = rng.normal(size=(6, 9)).astype(np.float32)
    mine = rank_correlation(torch.from_numpy(first), torch.from_numpy(second))
    for row in range(6):
        assert float(mine[row]) == pytest.approx(spearmanr(first[row], second[row]).statistic, abs=1e-6)
    assert rank_correlation(torch.zeros(1, 4), torch.arange(4.0)[None]).isnan().all()
    assert alignment_data.VARIANTS == 14
