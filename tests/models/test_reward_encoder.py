from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from auralign.errors import ModelUnavailableError, UsageError
from auralign.models import audio_statistics as statistics
from auralign.models import reward_encoder
from auralign.models.audio_statistics import EMBEDDING_FIRST, FEATURES, SHORTEST, at_level, audio_statistics
from auralign.models.encoders import Backbones, QueryBackbones
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.yamnet import load_yamnet
from auralign.rewards.base import Cue


class OtherBackbones(QueryBackbones):
    """Words and sounds of another kind, as a user's CLAP would give them; no pictures."""

    def __init__(self, spec: str) -> None:
        self.spec, self.dims = spec, {"text": 6, "audio": 9}

    def texts(self, texts):
        seeds = [zlib.crc32((self.spec + text).encode()) for text in texts]
        return torch.stack([torch.randn(6, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def audio(self, wave):
        return torch.fft.rfft(wave, n=16).abs()

    def images(self, images):
        raise UsageError("no pictures")

    def read_picture(self, path):
        raise UsageError("no pictures")


@pytest.fixture(scope="module")
def encoder() -> RewardEncoder:
    torch.manual_seed(0)
    return RewardEncoder(dim=16, hidden=24, rank=8).eval()


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _present(*flags: bool) -> torch.Tensor:
    return torch.tensor(flags)


def test_statistics_are_means_and_spreads_of_maps_and_bands():
    yamnet, wave = load_yamnet(), _noise(2, 20_000)
    raw = audio_statistics(yamnet, wave)
    log_mel = yamnet.log_mel(at_level(wave))
    maps = yamnet.maps(log_mel)
    assert raw.shape == (2, FEATURES)
    torch.testing.assert_close(raw[:, :1024], maps[13].mean(dim=(2, 3)), atol=1e-5, rtol=1e-4)
    spread = (maps[13].var(dim=(2, 3), unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(raw[:, 1024:2048], spread, atol=1e-4, rtol=1e-3)
    bands = raw[:, -256:].unflatten(1, (4, 64))
    torch.testing.assert_close(bands[:, 0], log_mel.mean(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(bands[:, 2].exp() - 0.001, log_mel.exp().mean(dim=1), atol=1e-4, rtol=1e-3)
    steps = (log_mel.diff(dim=1).square() + 1e-5).sqrt().mean(dim=1)
    torch.testing.assert_close(bands[:, 3], steps, atol=1e-5, rtol=1e-4)


def test_statistics_of_a_batch_are_those_of_each_sound(encoder):
    wave = _noise(statistics._MICRO_BATCH + 3, 8000)
    together = encoder.audio_features(wave)
    alone = torch.cat([encoder.audio_features(wave[n : n + 1]) for n in (0, 17)])
    torch.testing.assert_close(together[[0, 17]], alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 10.0])
def test_any_length_and_level_gives_a_finite_score_that_the_level_does_not_change(encoder, seconds):
    wave = _noise(2, round(seconds * 16_000))
    anchor = F.normalize(torch.ones(2, 16), dim=1)
    score = encoder.score(wave, anchor)
    assert score.isfinite().all()
    assert score.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(encoder.score(wave * 0.01, anchor), score, atol=1e-4, rtol=0)


def test_silence_has_finite_features(encoder):
    assert encoder.audio_features(torch.zeros(1, 16_000)).isfinite().all()
    assert encoder.audio_features(torch.zeros(1, 10)).shape == (1, FEATURES)
    assert SHORTEST > 512


def test_bfloat16_features_score_nearly_the_same(encoder):
    wave, anchor = _noise(4, 16_000), F.normalize(torch.randn(4, 16), dim=1)
    exact = encoder.score(wave, anchor)
    encoder.narrow = True
    try:
        torch.testing.assert_close(encoder.score(wave, anchor), exact, atol=0.05, rtol=0)
    finally:
        encoder.narrow = False


def test_the_gradient_reaches_the_wave_only_when_asked_and_points_uphill(encoder):
    wave = _noise(1, 16_000).requires_grad_()
    anchor = F.normalize(torch.randn(1, 16, generator=torch.Generator().manual_seed(5)), dim=1)
    assert not encoder.score(wave, anchor).requires_grad
    score = encoder.score(wave, anchor, grad=True)
    score.sum().backward()
    assert wave.grad is not None
    step = wave.grad / wave.grad.norm() * 0.02
    assert encoder.score(wave.detach() + step, anchor) > score.detach() + 1e-4
    assert encoder.score(wave.detach() - step, anchor) < score.detach()


def test_an_anchor_is_made_of_whatever_an_item_has(encoder):
    torch.manual_seed(1)
    raw = {"text": torch.randn(4, 384), "audio": torch.randn(4, FEATURES), "image": torch.randn(4, 1280)}
    valid = {
        "text": _present(True, True, False, False),
        "audio": _present(True, False, True, False),
        "image": _present(True, False, False, False),
    }
    anchor = encoder.anchor(Cue(raw, valid))
    torch.testing.assert_close(anchor[:3].norm(dim=1), torch.ones(3))
    assert anchor[3].isnan().all()
    words = encoder.anchor(Cue({"text": raw["text"]}, {"text": _present(True, True, True, True)}))
    torch.testing.assert_close(anchor[1], words[1])
    spoiled = {**raw, "image": torch.where(valid["image"][:, None], raw["image"], 1e3)}
    torch.testing.assert_close(encoder.anchor(Cue(spoiled, valid))[:3], anchor[:3])


def test_an_example_may_be_the_plain_embedding_of_a_query_bank(encoder):
    raw = torch.randn(3, FEATURES)
    filled = raw.clone()
    filled[:, EMBEDDING_FIRST:] = encoder.standard_mean("audio")[EMBEDDING_FIRST:]
    torch.testing.assert_close(encoder.embed(raw[:, :1024], "audio"), encoder.embed(filled, "audio"))


def test_the_standardisation_takes_out_mean_and_spread():
    encoder = RewardEncoder(dim=16, hidden=24, rank=8)
    raw = 5 + 3 * torch.randn(500, 384, generator=torch.Generator().manual_seed(0))
    encoder.fit_scale(raw, "text")
    head = encoder.heads["text"]
    scaled = (raw - head.mean) * head.scale
    torch.testing.assert_close(scaled.mean(0), torch.zeros(384), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.ones(384), atol=1e-4, rtol=0)
    torch.testing.assert_close(encoder.standard_mean("text"), raw.mean(0))


def test_features_of_another_size_are_refused(encoder):
    with pytest.raises(UsageError, match="text features of size 7 given, 384 expected"):
        encoder.embed(torch.zeros(1, 7), "text")


def test_what_is_saved_comes_back_with_the_same_scores(encoder, tmp_path):
    encoder.save(tmp_path, {"name": "tiny"}, half=False)
    again = RewardEncoder.load(tmp_path)
    wave, anchor = _noise(2, 16_000), F.normalize(torch.ones(2, 16), dim=1)
    torch.testing.assert_close(again.score(wave, anchor), encoder.score(wave, anchor))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["name"] == "tiny"
    assert card["format"] == reward_encoder.FORMAT


def test_half_precision_files_are_half_as_large_and_score_nearly_the_same(encoder, tmp_path):
    encoder.save(tmp_path / "half", {})
    encoder.save(tmp_path / "whole", {}, half=False)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    wave, anchor = _noise(2, 16_000), F.normalize(torch.ones(2, 16), dim=1)
    again = RewardEncoder.load(tmp_path / "half")
    torch.testing.assert_close(again.score(wave, anchor), encoder.score(wave, anchor), atol=5e-3, rtol=0)


def test_damage_is_refused_with_the_file_named(encoder, tmp_path):
    with pytest.raises(ModelUnavailableError, match="cannot be read"):
        RewardEncoder.load(tmp_path)
    encoder.save(tmp_path, {})
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelUnavailableError, match="damaged") as caught:
        RewardEncoder.load(tmp_path)
    assert str(path) in str(caught.value)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(ModelUnavailableError, match="card is damaged"):
        RewardEncoder.load(tmp_path)


def test_a_separator_is_not_a_reward_encoder():
    from auralign.runtime import weights

    with pytest.raises(ModelUnavailableError, match="not an auralign reward encoder"):
        RewardEncoder.load(weights.path("omnisep-small"))


def test_other_backbones_bring_their_own_sizes_and_pass_no_gradient(monkeypatch, tmp_path):
    monkeypatch.setattr(reward_encoder, "open_backbones", OtherBackbones)
    encoder = RewardEncoder(dim=8, hidden=8, rank=4, encoder="clap:here").eval()
    assert encoder.raw_dims == {"text": 6, "audio": 9}
    wave = _noise(2, 16)
    cue = Cue(
        {"text": encoder.backbones.texts(["a", "b"]), "audio": encoder.audio_features(wave)},
        {"text": _present(True, True), "audio": _present(True, False)},
    )
    assert encoder.anchor(cue).isfinite().all()
    with pytest.raises(UsageError, match="passes no gradient"):
        encoder.score(wave, encoder.anchor(cue), grad=True)
    with pytest.raises(UsageError, match="takes no image"):
        encoder.embed(torch.zeros(1, 5), "image")
    encoder.save(tmp_path, {})
    assert RewardEncoder.load(tmp_path).encoder == "clap:here"
    other = type("Changed", (OtherBackbones,), {"texts": lambda self, texts: torch.ones(len(texts), 6)})
    monkeypatch.setattr(reward_encoder, "open_backbones", other)
    with pytest.raises(ModelUnavailableError, match="not the one this model was trained with"):
        RewardEncoder.load(tmp_path)


def test_the_shipped_encoder_prefers_clean_to_mixed_to_wrong():
    """Two sounds that no training recording holds: a plucked string and hiss."""
    from auralign.runtime import weights

    encoder = RewardEncoder.load(weights.path("reward-small"))
    assert isinstance(encoder.backbones, Backbones)
    time = torch.arange(32_000) / 16_000
    pluck = sum(
        torch.sin(6.2832 * 220 * k * time) * torch.exp(-3 * k * (time % 0.5)) / k for k in range(1, 9)
    )
    hiss = _noise(32_000) * 3
    sounds = torch.stack([pluck, pluck + hiss * pluck.std() / hiss.std(), hiss])
    cue = Cue({"audio": encoder.audio_features(pluck[None])}, {"audio": _present(True)})
    clean, mixed, wrong = encoder.score(sounds, encoder.anchor(cue).expand(3, -1)).tolist()
    assert clean > mixed > wrong
    folder = Path(weights.path("reward-small"))
    assert sum(f.stat().st_size for f in folder.iterdir()) < 4_000_000


def test_an_encoder_refuses_what_it_never_learned_and_stays_so_on_disk(tmp_path):
    encoder = RewardEncoder(dim=8, hidden=8, pooling="mean", modalities=("text", "audio"))
    encoder.save(tmp_path, {})
    for one in (encoder, RewardEncoder.load(tmp_path)):
        assert sorted(one.heads) == ["audio", "text"]
        with pytest.raises(UsageError, match="takes no image"):
            one.embed(torch.zeros(1, 1280), "image")
