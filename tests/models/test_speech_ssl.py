"""Speech models in transformers' layout as the space of SpeechBERTScore, on a tiny random one."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from auralign.errors import ModelUnavailableError, UsageError
from auralign.metrics.speech_features import feature_score
from auralign.models.speech_ssl import SpeechFeatures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    place = tmp_path_factory.mktemp("hubert")
    HubertModel(config).save_pretrained(place)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(place)
    return place


def test_frames_are_the_hidden_states_of_the_layer(folder, voice):
    features = SpeechFeatures.load(str(folder), 1, offline=True)
    wave = torch.from_numpy(voice(1.0, 120.0, 0))[None]
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(folder)(
        wave[0].numpy(), sampling_rate=16000, return_tensors="pt"
    )
    with torch.no_grad():
        states = HubertModel.from_pretrained(folder).eval()(**inputs, output_hidden_states=True).hidden_states
        torch.testing.assert_close(features(wave), states[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(states[1], states[2])


def test_the_score_of_a_sound_with_itself_is_one_and_noise_lowers_it(folder, voice):
    features = SpeechFeatures.load(str(folder), 2, offline=True)
    clean = torch.from_numpy(voice(1.0, 120.0, 0))
    noisy = clean + 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    one, less = (
        feature_score(est=est, ref=clean, rate_hz=16000, features=features, reach=None).value
        for est in (clean, noisy)
    )
    assert one == pytest.approx(1.0, abs=1e-5)
    assert less < one


def test_a_single_sample_has_a_frame(folder):
    assert SpeechFeatures.load(str(folder), 0, offline=True)(torch.ones(2, 1)).shape == (2, 1, 16)


def test_a_missing_model_package_or_layer_is_an_error(folder, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="layer 3"):
        SpeechFeatures.load(str(folder), 3, offline=True)
    with pytest.raises(ModelUnavailableError, match="cannot be loaded"):
        SpeechFeatures.load(str(tmp_path), 1, offline=True)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelUnavailableError, match=r"auralign\[clap\]"):
        SpeechFeatures.load(str(folder), 1)
