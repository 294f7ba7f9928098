r"""A reward for words that can still be understood: one minus the word error rate of a recogniser.

.. math:: r = \max(0,\; 1 - \mathrm{WER})

The reference is what is said, where the scene knows it (``scene.texts``), else what the recogniser hears in the clean
speech; the latter forgives the recogniser its own errors and needs no transcripts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.metrics.contract import SILENCE_PEAK
from auralign.metrics.word_errors import normalise_words, word_errors
from auralign.rewards.base import Scene
from auralign.rewards.speech import RATE_HZ, WORST_SHARE, normalise_loudness

Transcribe = Callable[[Float[Tensor, "batch time"]], list[str]]


@final
class WordErrorReward:
    """One minus the word error rate, 0 to 1.

    Silence scores 0; an item without reference words, or without text and clean speech, is nan, as are samples that
    are not finite.

    Args:
        transcribe: Maps sounds at 16 kHz to their texts.
    """

    metrics = ("wer",)

    def __init__(self, transcribe: Transcribe) -> None:
        self.transcribe = transcribe

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """Score every member of every group."""
        if scene.rate_hz != RATE_HZ:
            raise UsageError(
                f"the scene is at {scene.rate_hz} Hz, the reward hears {RATE_HZ}",
                where="word error reward",
                hint="resample the sounds first",
            )
        references = self._references(scene)
        value = scene.estimate.new_full(scene.estimate.shape[:2], torch.nan, dtype=torch.float32)
        finite = scene.estimate.isfinite().all(-1)
        value[finite & torch.tensor([bool(one) for one in references], device=value.device)[:, None]] = (
            WORST_SHARE
        )
        loud = scene.estimate.nan_to_num(posinf=0.0, neginf=0.0).abs().amax(-1) > SILENCE_PEAK
        places = ((value == WORST_SHARE) & loud).nonzero().tolist()
        if not places:
            return value
        heard = torch.stack([scene.estimate[item, member].detach() for item, member in places])
        texts = self.transcribe(normalise_loudness(heard, scene.rate_hz))
        for (item, member), text in zip(places, texts, strict=True):
            rate = word_errors(est=normalise_words(text), ref=references[item]).rate
            value[item, member] = max(WORST_SHARE, 1.0 - rate)
        return value

    def _references(self, scene: Scene) -> list[tuple[str, ...]]:
        """Words of each item; none where nothing is known."""
        words = [normalise_words(text) for text in scene.texts] or [()] * len(scene.estimate)
        if scene.target is None:
            return words
        clean = scene.target.detach()
        usable = clean.isfinite().all(1) & (clean.nan_to_num().abs().amax(1) > SILENCE_PEAK)
        unknown = [item for item, known in enumerate(words) if not known and bool(usable[item])]
        if unknown:
            texts = self.transcribe(normalise_loudness(clean[unknown], scene.rate_hz))
            for item, text in zip(unknown, texts, strict=True):
                words[item] = normalise_words(text)
        return words


def word_errors_reward(place: str = "") -> WordErrorReward:
    """Words by a recogniser of the user's own.

    Args:
        place: A folder or hub id in transformers' layout.
    """
    if not place:
        raise UsageError(
            "no speech recogniser is named", where="reward 'word_errors'", hint="write word_errors:FOLDER"
        )
    from auralign.models.speech_asr import Transcriber

    return WordErrorReward(Transcriber.load(place))
