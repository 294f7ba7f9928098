from __future__ import annotations

import pytest
import torch

from auralign.errors import UsageError
from auralign.models.reward_encoder import RewardEncoder
from auralign.rewards.base import Cue, Scene
from auralign.rewards.semantic import SemanticReward

YES = torch.ones(2, dtype=torch.bool)


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _cue(seed: int, valid: torch.Tensor = YES) -> Cue:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2, 384, generator=generator), torch.randn(2, 1280, generator=generator)
    return Cue(
        {"text": raw[0], "image": raw[1]}, {"text": valid, "image": torch.tensor([True, False]) & valid}
    )


@pytest.fixture(scope="module")
def encoder() -> RewardEncoder:
    torch.manual_seed(0)
    return RewardEncoder(dim=16, hidden=24, rank=8).eval().requires_grad_(False)


def _scene(**changes) -> Scene:
    parts = {
        "estimate": _noise(2, 3, 8000),
        "mixture": _noise(2, 8000, seed=1),
        "rate_hz": 16_000,
        "wanted": _cue(0),
    }
    return Scene(**{**parts, **changes})


def _expected(encoder: RewardEncoder, scene: Scene, cue: Cue) -> torch.Tensor:
    anchor = encoder.anchor(cue)
    return torch.stack([encoder.score(scene.estimate[:, g], anchor) for g in range(3)], dim=1)


def test_the_reward_is_the_similarity_to_wanted_less_half_of_that_to_unwanted(encoder):
    scene = _scene(unwanted=_cue(1))
    wanted, unwanted = (_expected(encoder, scene, cue) for cue in (_cue(0), _cue(1)))
    torch.testing.assert_close(SemanticReward(encoder)(scene), wanted - 0.5 * unwanted)
    torch.testing.assert_close(SemanticReward(encoder, negative=2.0)(scene), wanted - 2 * unwanted)
    torch.testing.assert_close(SemanticReward(encoder, negative=0.0)(scene), wanted)


def test_the_clean_target_joins_the_anchor_unless_told_otherwise(encoder):
    target = _noise(2, 8000, seed=7)
    scene = _scene(target=target)
    joined = Cue(
        {**_cue(0).features, "audio": encoder.audio_features(target)}, {**_cue(0).valid, "audio": YES}
    )
    torch.testing.assert_close(SemanticReward(encoder)(scene), _expected(encoder, scene, joined))
    alone = SemanticReward(encoder, references=False)(scene)
    torch.testing.assert_close(alone, _expected(encoder, scene, _cue(0)))
    silent = _scene(target=torch.zeros(2, 8000))
    torch.testing.assert_close(SemanticReward(encoder)(silent), alone)


def test_what_cannot_be_scored_is_nan_and_silence_is_worst(encoder):
    reward = SemanticReward(encoder)
    assert reward(_scene(wanted=None)).isnan().all()
    estimate = _noise(2, 3, 8000)
    estimate[0, 1, 17] = torch.inf
    estimate[1, 2] = 0
    score = reward(_scene(estimate=estimate))
    assert score.isnan().tolist() == [[False, True, False], [False, False, False]]
    assert float(score[1, 2]) == -1
    torch.testing.assert_close(score[0, [0, 2]], reward(_scene())[0, [0, 2]])
    unknown = reward(_scene(wanted=_cue(0, torch.tensor([True, False]))))
    assert unknown[0].isfinite().all()
    assert unknown[1].isnan().all()


def test_an_unknown_interferer_leaves_the_wanted_part_alone(encoder):
    scene = _scene(unwanted=_cue(1, torch.tensor([True, False])))
    score = SemanticReward(encoder)(scene)
    torch.testing.assert_close(score[1], _expected(encoder, scene, _cue(0))[1])
    assert score[0].isfinite().all()


def test_gradients_reach_the_estimate_when_it_asks(encoder):
    estimate = _noise(2, 3, 8000).requires_grad_()
    SemanticReward(encoder)(_scene(estimate=estimate, unwanted=_cue(1))).sum().backward()
    assert estimate.grad is not None
    assert estimate.grad.isfinite().all()
    assert (estimate.grad.abs().amax(dim=2) > 0).all()
    assert not SemanticReward(encoder)(_scene()).requires_grad


def test_louder_or_quieter_estimates_score_the_same(encoder):
    reward = SemanticReward(encoder)
    torch.testing.assert_close(
        reward(_scene(estimate=_noise(2, 3, 8000) * 0.05)), reward(_scene()), atol=1e-3, rtol=0
    )


def test_wrong_rates_settings_and_cues_are_refused(encoder):
    with pytest.raises(UsageError, match="44100 Hz"):
        SemanticReward(encoder)(_scene(rate_hz=44_100))
    with pytest.raises(UsageError, match="negative is -1"):
        SemanticReward(encoder, negative=-1.0)
    with pytest.raises(UsageError, match="same modalities"):
        Cue({"text": torch.zeros(2, 384)}, {"audio": YES})
