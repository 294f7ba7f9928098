"""SpeechBERTScore by hand, spectral features, and what has no score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from auralign.errors import UsageError
from auralign.metrics.speech_features import best_match, feature_score, spectral_features


@pytest.mark.parametrize("reach", [None, 0, 2])
def test_best_match_equals_the_definition_by_loops(reach):
    rng = torch.Generator().manual_seed(0)
    est, ref = torch.randn(2, 7, 5, generator=rng), torch.randn(2, 7, 5, generator=rng)
    for b in range(2):
        total = 0.0
        for i in range(7):
            near = [j for j in range(7) if reach is None or abs(i - j) <= reach]
            total += max(float(torch.cosine_similarity(est[b, i], ref[b, j], dim=0)) for j in near)
        assert float(best_match(est=est, ref=ref, reach=reach)[b]) == pytest.approx(total / 7, abs=1e-6)


def test_precision_does_not_punish_what_is_missing_and_recall_does():
    ref = torch.eye(4)[None]
    est = ref[:, :2]
    assert best_match(est=est, ref=ref).item() == pytest.approx(1.0)
    assert best_match(est=ref, ref=est).item() == pytest.approx(0.5)


def test_more_noise_scores_lower_and_neither_level_nor_shift_of_the_mean_spectrum_matters(voice):
    clean = torch.from_numpy(voice(2.0, 130.0, 0))
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal(32000).astype(np.float32))
    scores = [
        feature_score(est=clean + gain * noise, ref=clean, rate_hz=16000).value
        for gain in (0, 0.003, 0.02, 0.2)
    ]
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    faint = feature_score(est=0.1 * (clean + 0.02 * noise), ref=clean, rate_hz=16000).value
    assert faint == pytest.approx(scores[2], abs=1e-4)


def test_speech_in_other_places_scores_lower_although_its_spectra_are_all_there(voice):
    clean = torch.from_numpy(voice(2.0, 130.0, 0))
    moved = clean.roll(8000)
    near = feature_score(est=moved, ref=clean, rate_hz=16000).value
    anywhere = feature_score(est=moved, ref=clean, rate_hz=16000, reach=None).value
    assert near < anywhere - 0.05


def test_another_space_of_features_can_be_given(voice):
    def energy(wave: torch.Tensor) -> torch.Tensor:
        frames = wave.unfold(1, 400, 400)
        return torch.stack([frames.square().mean(2).sqrt(), torch.full(frames.shape[:2], 0.1)], dim=2)

    clean = torch.from_numpy(voice(1.0, 130.0, 0))
    result = feature_score(est=clean, ref=clean, rate_hz=16000, features=energy, reach=None)
    assert result.value == pytest.approx(1.0)


def test_features_are_finite_on_silence_and_on_single_samples():
    for wave in (torch.zeros(1, 16000), torch.ones(1, 1)):
        features = spectral_features(wave)
        assert features.shape == (1, 1 + wave.shape[1] // 160, 360)
        assert bool(features.isfinite().all())


def test_what_cannot_be_scored_is_nan_with_a_reason(voice):
    clean = torch.from_numpy(voice(1.0, 130.0, 0))
    for est, ref, reason in (
        (0 * clean, clean, "silent estimate"),
        (clean, 0 * clean, "silent reference"),
        (clean * torch.nan, clean, "estimate has NaN or infinite samples"),
    ):
        result = feature_score(est=est, ref=ref, rate_hz=16000)
        assert math.isnan(result.value)
        assert result.reason == reason
    with pytest.raises(UsageError, match="8000"):
        feature_score(est=clean, ref=clean, rate_hz=8000)
    with pytest.raises(UsageError, match="no match within"):
        best_match(est=torch.ones(1, 9, 2), ref=torch.ones(1, 2, 2), reach=3)


def test_what_nobody_hears_in_a_pause_does_not_matter(voice):
    clean = torch.from_numpy(voice(2.0, 130.0, 0))
    clean[8000:16000] = 0.0
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal(32000).astype(np.float32))
    assert feature_score(est=clean + 1e-5 * noise, ref=clean, rate_hz=16000).value > 0.995
    assert feature_score(est=clean + 1e-2 * noise, ref=clean, rate_hz=16000).value < 0.95
