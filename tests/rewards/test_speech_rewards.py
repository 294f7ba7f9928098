"""Speech rewards: batch and group in order, one loudness, silence and nan, presets on frozen scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from auralign.audio.loudness import integrated_loudness
from auralign.errors import UsageError
from auralign.metrics import dnsmos
from auralign.metrics.contract import METRICS, MetricResult
from auralign.metrics.intelligibility import estoi, pesq_wb
from auralign.models.speaker import SpeakerEncoder
from auralign.rewards import speech
from auralign.rewards.base import Scene
from auralign.rewards.load import BUILTIN, RewardConfig, compose, load_reward
from auralign.rewards.speech import (
    DnsMosReward,
    FeatureReward,
    SiSdrReward,
    SpeakerReward,
    estoi_reward,
    normalise_loudness,
    pesq_reward,
    speech_scales,
)
from auralign.rewards.speech_presets import FLOWSE_GRPO, PUBLISHED_SCALES, frozen_rewards


@pytest.fixture(scope="module")
def scene(voice):
    clean = torch.from_numpy(np.stack([voice(1.5, hz, 0) for hz in (110.0, 190.0)]))
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 24000)).astype(np.float32))
    gains = torch.tensor([0.0, 0.02, 0.1])[None, :, None]
    return Scene(clean[:, None] + gains * noise, clean + 0.1 * noise[:, 2], 16000, target=clean)


@pytest.fixture
def fake_dnsmos(monkeypatch):
    """Networks that answer with the root mean square of a window, and how many windows they heard."""
    heard = []

    def loudness(session, batch):
        del session
        heard.append(len(batch))
        rms = batch.square().mean(dim=1, keepdim=True).sqrt()
        return (60 * rms).expand(-1, 3).numpy()

    monkeypatch.setattr(dnsmos, "_raw_p835", loudness)
    monkeypatch.setattr(speech, "_memories", {})
    return heard


def with_estimate(scene: Scene, estimate: torch.Tensor) -> Scene:
    return Scene(estimate, scene.mixture, scene.rate_hz, target=scene.target)


def makers() -> dict:
    torch.manual_seed(0)
    encoder = SpeakerEncoder().eval().requires_grad_(False)
    with torch.no_grad():
        encoder.linear.bias += 0.1  # untrained units would mostly be off
    return {
        "speaker": SpeakerReward(encoder),
        "si_sdr": SiSdrReward(),
        "estoi": estoi_reward(),
        "pesq": pesq_reward(),
        "spectral_features": FeatureReward(),
        "dnsmos_ovrl": DnsMosReward(),
    }


@pytest.mark.parametrize("name", ["si_sdr", "estoi", "pesq", "spectral_features"])
def test_more_noise_is_worth_less(scene, name):
    value = makers()[name](scene)
    assert value.shape == (2, 3)
    assert bool((value[:, :-1] > value[:, 1:]).all())


@pytest.mark.parametrize("name", ["speaker", "si_sdr", "estoi", "pesq", "spectral_features"])
def test_the_level_of_the_estimate_does_not_matter(scene, name):
    reward = makers()[name]
    faint = with_estimate(scene, scene.estimate * torch.tensor([0.05, 0.5, 1.5])[None, :, None])
    torch.testing.assert_close(reward(faint), reward(scene), atol=2e-3, rtol=1e-2)  # PESQ counts in float32


@pytest.mark.parametrize("name", ["speaker", "si_sdr", "estoi", "pesq", "spectral_features", "dnsmos_ovrl"])
def test_rows_and_members_are_scored_apart(scene, name, fake_dnsmos):
    reward = makers()[name]
    turned = Scene(
        scene.estimate.flip(0, 1), scene.mixture.flip(0), scene.rate_hz, target=scene.target.flip(0)
    )
    torch.testing.assert_close(reward(turned), reward(scene).flip(0, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["speaker", "si_sdr", "estoi", "pesq", "spectral_features", "dnsmos_ovrl"])
def test_silence_is_the_worst_and_nan_leaves_its_group(scene, name, fake_dnsmos):
    reward = makers()[name]
    estimate = scene.estimate.clone()
    estimate[0, 1] = 0.0
    estimate[1, 2, 5] = torch.nan
    value = reward(with_estimate(scene, estimate))
    assert value.isnan().tolist() == [[False, False, False], [False, False, True]]
    assert float(value[0, 1]) <= float(value.nan_to_num(9.0).min()) + 1e-6
    assert value.dtype == torch.float32


@pytest.mark.parametrize("name", ["speaker", "si_sdr", "estoi", "pesq", "spectral_features"])
def test_without_a_target_or_with_a_silent_one_there_is_no_score(scene, name):
    reward = makers()[name]
    assert bool(reward(Scene(scene.estimate, scene.mixture, 16000)).isnan().all())
    target = scene.target.clone()
    target[1] = 0.0
    value = reward(Scene(scene.estimate, scene.mixture, 16000, target=target))
    assert value.isnan().all(dim=1).tolist() == [False, True]


def test_paired_rewards_equal_their_metrics_at_one_loudness(scene):
    flat = normalise_loudness(scene.estimate.flatten(0, 1), 16000)
    clean = normalise_loudness(scene.target, 16000)
    for reward, metric in ((estoi_reward(), estoi), (pesq_reward(), pesq_wb)):
        by_hand = [metric(est=e, ref=clean[i // 3], rate_hz=16000).value for i, e in enumerate(flat)]
        torch.testing.assert_close(reward(scene).flatten(), torch.tensor(by_hand))


def test_loudness_is_the_target_unless_the_peak_forbids_and_silence_stays(scene):
    wave = torch.stack([scene.target[0], 0.001 * scene.target[1], 0 * scene.target[0], scene.target[0]])
    wave[3] = 0.0
    wave[3, 100] = 0.5  # a click: its peak comes first
    loud = normalise_loudness(wave, 16000)
    for clip in loud[:2]:
        assert integrated_loudness(clip[None].numpy(), 16000) == pytest.approx(-25.0, abs=0.01)
    assert bool((loud[2] == 0).all())
    assert float(loud[3].max()) == pytest.approx(0.99)
    short = normalise_loudness(torch.full((1, 100), 0.5), 16000)
    assert 10 * math.log10(float(short.square().mean())) == pytest.approx(-25.0, abs=0.01)
    assert bool(normalise_loudness(torch.full((1, 9), torch.nan), 16000).isnan().all())


def test_dnsmos_hears_all_at_one_loudness_and_its_parts_share_one_pass(scene, fake_dnsmos):
    quiet = with_estimate(scene, 0.01 * scene.estimate)
    first = DnsMosReward("ovrl")(quiet)
    windows = sum(fake_dnsmos)
    DnsMosReward("sig")(quiet)
    DnsMosReward("bak")(quiet)
    assert sum(fake_dnsmos) == windows == 6  # a repeated clip is heard once
    torch.testing.assert_close(DnsMosReward("ovrl")(scene), first, atol=1e-4, rtol=1e-4)
    assert sum(fake_dnsmos) == 2 * windows


def test_dnsmos_hears_repeated_clips_once_and_long_ones_twice_unless_told(scene, fake_dnsmos):
    DnsMosReward(most_windows=None, most_repeated=None)(scene)
    all_of_them = sum(fake_dnsmos)
    long = scene.estimate[:1, :1].repeat(1, 1, 9)  # 13.5 s: four windows
    DnsMosReward()(Scene(long, long[:, 0], 16000))
    assert (all_of_them, sum(fake_dnsmos) - all_of_them) == (6 * 3, 2)


def test_a_changed_estimate_is_scored_anew(scene, fake_dnsmos):
    estimate = scene.estimate.clone()
    same = with_estimate(scene, estimate)
    before = DnsMosReward()(same)
    estimate[0, 0] = estimate[0, 2]
    after = DnsMosReward()(same)
    assert float(after[0, 0]) == pytest.approx(float(before[0, 2]), abs=1e-5)
    assert abs(float(before[0, 2] - before[0, 0])) > 1e-3


def test_a_speaker_is_closest_to_itself_and_the_mixture_can_be_the_reference(scene):
    encoder = makers()["speaker"].encoder
    value = SpeakerReward(encoder)(scene)
    torch.testing.assert_close(value[:, 0], torch.ones(2), atol=1e-5, rtol=0)
    same = Scene(scene.mixture[:, None], scene.mixture, 16000)
    torch.testing.assert_close(
        SpeakerReward(encoder, reference="mixture")(same), torch.ones(2, 1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["speaker", "spectral_features", "dnsmos_ovrl"])
def test_another_rate_is_an_error(name):
    wave = torch.zeros(1, 800)
    with pytest.raises(UsageError, match="8000 Hz"):
        makers()[name](Scene(wave[:, None], wave, 8000, target=wave))


def test_builtin_names_name_the_metrics_they_train_on():
    for name in BUILTIN:
        if name in ("semantic", "fidelity", "speech_bert", "word_errors"):
            continue
        reward = load_reward(name)
        assert set(reward.metrics) <= set(METRICS), name


def test_a_speech_model_is_asked_for_by_place_and_layer(monkeypatch):
    asked = []

    class Features:
        @staticmethod
        def load(place, layer):
            asked.append((place, layer))
            return lambda wave: wave.unfold(1, 400, 400)

    monkeypatch.setattr("auralign.models.speech_ssl.SpeechFeatures", Features)
    config = RewardConfig(path="speech_bert:models/wav@lm@14")
    assert config.title == "speech_bert"
    assert load_reward(config.path).metrics == ("speech_bert_score",)
    assert asked == [("models/wav@lm", 14)]
    for wrong in ("speech_bert", "speech_bert:folder", "speech_bert:folder@x", "speech_bert:@3"):
        with pytest.raises(UsageError, match="names no layer"):
            load_reward(wrong)


def test_the_preset_is_the_published_sum():
    composite = compose(
        frozen_rewards(),
        builtin={t.path: (lambda: lambda scene: scene.estimate[..., 0]) for t in FLOWSE_GRPO},
    )
    parts = {"dnsmos_ovrl": [[3.2]], "speaker": [[0.9]], "spectral_features": [[0.8]]}
    total = composite.combine({name: torch.tensor(value) for name, value in parts.items()}).total
    by_hand = 0.6 * (3.2 / 4) / 0.0703 + 0.9 / 0.1387 + 0.8 / 0.0955
    assert float(total) == pytest.approx(by_hand, rel=1e-6)
    own = frozen_rewards({"dnsmos_ovrl": 0.5, "speaker": 0.1, "spectral_features": 0.2})
    assert [one.weight for one in own] == pytest.approx([1.2, 10.0, 5.0])
    assert PUBLISHED_SCALES["dnsmos_ovrl"] == pytest.approx(0.2812)
    with pytest.raises(UsageError, match="speaker"):
        frozen_rewards({"dnsmos_ovrl": 0.5, "speaker": 0.0, "spectral_features": 0.2})


def test_scales_are_population_deviations_of_what_can_be_scored():
    values = torch.tensor([[1.0, 2.0], [4.0, torch.nan]])
    expected = float(np.std([1.0, 2.0, 4.0]))
    assert speech_scales({"a": values})["a"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UsageError, match="does not vary over 2 clips"):
        speech_scales({"a": [1.0, 1.0]})


def test_a_reason_other_than_silence_is_nan_for_paired_rewards(scene):
    odd = speech.PairedReward("estoi", lambda **_: MetricResult(math.nan, "too short"), worst=0.0)
    assert bool(odd(scene).isnan().all())
