"""A recogniser of speech that the user has, for word error rates: wav2vec 2.0, HuBERT or WavLM with CTC, or Whisper.

From a folder or a hub id in transformers' layout (extra ``auralign[clap]``). No such weights come with auralign.
Transcripts are greedy, so one sound always has one transcript.
"""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from auralign.errors import ModelUnavailableError, UsageError
from auralign.models.speech_ssl import SHORTEST
from auralign.runtime.weights import is_offline

RATE_HZ = 16_000
LONGEST_WHISPER_S = 30
_CTC = ("hubert", "wavlm", "wav2vec2")


@final
class Transcriber:
    """What is said in sounds at 16 kHz.

    Args:
        model: A transformers model with a CTC head, or Whisper, in evaluation mode.
        processor: Its processor: a feature extractor and a tokenizer.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.kind = str(model.config.model_type)
        if self.kind not in (*_CTC, "whisper"):
            raise UsageError(
                f"'{self.kind}' is no recogniser that can be read here",
                where="speech recogniser",
                hint=f"one of {', '.join((*_CTC, 'whisper'))}",
            )

    @classmethod
    def load(cls, place: str, *, offline: bool | None = None) -> Transcriber:
        """Load a checkpoint in transformers' layout; its tensors must be safetensors.

        Args:
            place: A folder or a hub id.
            offline: Never ask the hub. ``None`` follows ``$AURALIGN_OFFLINE``.

        Raises:
            ModelUnavailableError: transformers is missing, or the checkpoint cannot be had or has no head.
            UsageError: It is another kind of model.
        """
        try:
            from transformers import (
                AutoConfig,
                AutoModelForCTC,
                Wav2Vec2Processor,
                WhisperForConditionalGeneration,
                WhisperProcessor,
            )
        except ImportError as error:
            raise ModelUnavailableError(
                "a speech recogniser needs the transformers package",
                why=str(error),
                hint="pip install 'auralign[clap]'",
            ) from error
        options: dict[str, Any] = {"local_files_only": is_offline(offline)}
        try:
            kind = AutoConfig.from_pretrained(place, **options).model_type
            if kind not in (*_CTC, "whisper"):
                raise UsageError(f"'{kind}' is no recogniser that can be read here", where=place)
            whisper = kind == "whisper"
            maker: Any = WhisperForConditionalGeneration if whisper else AutoModelForCTC
            model, about = maker.from_pretrained(
                place, use_safetensors=True, output_loading_info=True, **options
            )
            processor = (WhisperProcessor if whisper else Wav2Vec2Processor).from_pretrained(place, **options)
        except (OSError, ValueError) as error:
            raise ModelUnavailableError(
                "the speech recogniser cannot be loaded", where=place, why=str(error).splitlines()[0]
            ) from error
        headless = [one for one in about["missing_keys"] if one.startswith("lm_head")]
        if headless and not whisper:  # transformers would draw the head at random and only warn
            raise ModelUnavailableError(
                "the model has no trained head for letters",
                where=place,
                why=f"{', '.join(sorted(headless))} are not in the file",
                hint="take a checkpoint that was fine-tuned with CTC",
            )
        return cls(model.eval().requires_grad_(False), processor)

    def __call__(self, wave: Float[Tensor, "batch time"]) -> list[str]:
        """The transcript of each sound at 16 kHz.

        Raises:
            UsageError: Whisper is given more than it hears at once.
        """
        wave = F.pad(wave.detach().float(), (0, max(0, SHORTEST - wave.shape[1])))
        with torch.no_grad():
            return self._whisper(wave) if self.kind == "whisper" else self._ctc(wave)

    def _features(self, wave: Float[Tensor, "batch time"]) -> Any:
        sounds = list(wave.cpu().numpy())
        return self.processor.feature_extractor(sounds, sampling_rate=RATE_HZ, return_tensors="pt")

    def _ctc(self, wave: Float[Tensor, "batch time"]) -> list[str]:
        values = self._features(wave)["input_values"].to(self.model.device, self.model.dtype)
        tokens, tokenizer = self.model(values).logits.argmax(-1), self.processor.tokenizer
        # marks of a sentence's ends and of unknown letters are no letters; the blank parts what they parted
        kept = (tokenizer.pad_token_id, tokenizer.word_delimiter_token_id)
        marks = [one for one in tokenizer.all_special_ids if one not in kept]
        tokens[torch.isin(tokens, tokens.new_tensor(marks))] = tokenizer.pad_token_id
        texts: list[str] = tokenizer.batch_decode(tokens)
        return texts

    def _whisper(self, wave: Float[Tensor, "batch time"]) -> list[str]:
        if wave.shape[1] > LONGEST_WHISPER_S * RATE_HZ:
            raise UsageError(
                f"the sound lasts {wave.shape[1] / RATE_HZ:.1f} s, Whisper hears {LONGEST_WHISPER_S} s at once",
                where="speech recogniser",
                hint="give shorter sounds",
            )
        features = self._features(wave)["input_features"].to(self.model.device, self.model.dtype)
        tokens = self.model.generate(features, do_sample=False, num_beams=1)
        texts: list[str] = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts
