"""One minus the word error rate as a reward: references, order, silence and nan."""

from __future__ import annotations

import pytest
import torch

from auralign.errors import UsageError
from auralign.metrics.contract import METRICS
from auralign.rewards.base import Scene
from auralign.rewards.load import RewardConfig, load_reward
from auralign.rewards.speech_words import WordErrorReward

CALLS = {100: "please call stella", 200: "please call", 300: "fall please stella now at once"}


class Listener:
    """Says a text by the pitch of the sound, whatever its level, and counts what it heard."""

    def __init__(self) -> None:
        self.heard = 0

    def __call__(self, wave: torch.Tensor) -> list[str]:
        self.heard += len(wave)
        return [CALLS[int(torch.fft.rfft(one).abs().argmax())] for one in wave]  # 1 s: a bin is 1 Hz


def tone(hz: int, gain: float = 0.1) -> torch.Tensor:
    return gain * torch.sin(2 * torch.pi * hz * torch.arange(16000) / 16000)


@pytest.fixture
def scene() -> Scene:
    first = torch.stack([tone(100), tone(200), tone(300)])
    estimate = torch.stack([first, first.flip(0)])
    target = torch.stack([tone(100, 0.3), tone(200, 0.3)])
    return Scene(estimate, target, 16000, target=target)


def test_the_transcript_of_the_clean_speech_is_the_reference(scene):
    # against "please call stella": 0, 1 and more than 3 errors; against "please call": …, 0, 1 insertion
    expected = torch.tensor([[1.0, 2 / 3, 0.0], [0.0, 1.0, 0.5]])
    torch.testing.assert_close(WordErrorReward(Listener())(scene), expected)


def test_a_text_that_is_known_comes_first_and_spares_the_clean_speech(scene):
    listener = Listener()
    texts = Scene(scene.estimate, scene.mixture, 16000, target=scene.target, texts=("Please, CALL!", ""))
    value = WordErrorReward(listener)(texts)
    torch.testing.assert_close(value, torch.tensor([[0.5, 1.0, 0.0], [0.0, 1.0, 0.5]]))
    assert listener.heard == 6 + 1
    alone = Scene(scene.estimate, scene.mixture, 16000, texts=("please call", "..."))
    assert WordErrorReward(Listener())(alone).isnan().tolist() == [[False] * 3, [True] * 3]


def test_silence_is_the_worst_and_what_is_not_finite_leaves_its_group(scene):
    estimate, listener = scene.estimate.clone(), Listener()
    estimate[0, 0] = 0.0
    estimate[1, 1, 5] = torch.nan
    value = WordErrorReward(listener)(Scene(estimate, scene.mixture, 16000, target=scene.target))
    assert float(value[0, 0]) == 0.0
    assert value.isnan().tolist() == [[False, False, False], [False, True, False]]
    assert listener.heard == 4 + 2


def test_without_words_to_compare_with_there_is_no_score(scene):
    listener = Listener()
    assert bool(WordErrorReward(listener)(Scene(scene.estimate, scene.mixture, 16000)).isnan().all())
    target = scene.target.clone()
    target[0] = 0.0
    target[1, 3] = torch.inf
    silent = Scene(scene.estimate, scene.mixture, 16000, target=target)
    assert bool(WordErrorReward(listener)(silent).isnan().all())
    assert listener.heard == 0


def test_another_rate_and_a_reward_without_a_place_are_errors(scene):
    with pytest.raises(UsageError, match="8000 Hz"):
        WordErrorReward(Listener())(Scene(scene.estimate, scene.mixture, 8000))
    with pytest.raises(UsageError, match="word_errors:FOLDER"):
        load_reward("word_errors")


def test_a_recogniser_is_asked_for_by_place(monkeypatch):
    asked = []

    class Recogniser:
        @staticmethod
        def load(place):
            asked.append(place)
            return Listener()

    monkeypatch.setattr("auralign.models.speech_asr.Transcriber", Recogniser)
    config = RewardConfig(path="word_errors:models/asr")
    assert config.title == "word_errors"
    assert set(load_reward(config.path).metrics) <= set(METRICS)
    assert asked == ["models/asr"]
