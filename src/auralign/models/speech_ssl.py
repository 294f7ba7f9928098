"""The real space of SpeechBERTScore: a layer of a self-supervised speech model that the user has.

HuBERT, WavLM or wav2vec 2.0 in transformers' layout, from a folder or a hub id (extra ``auralign[clap]``). The
score's paper (arXiv:2401.16812) and public re-implementations of FlowSE-GRPO use WavLM-large, layer 14, or
HuBERT-base, layer 8. No such weights come with auralign.
"""

from __future__ import annotations

from typing import Any, final

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from auralign.errors import ModelUnavailableError, UsageError
from auralign.runtime.weights import is_offline

RATE_HZ = 16_000
SHORTEST = 400
"""Samples of one frame; shorter sounds are followed by silence."""
_KINDS = ("hubert", "wavlm", "wav2vec2")


@final
class SpeechFeatures:
    """Hidden states of one layer, 50 frames a second; a :data:`auralign.metrics.speech_features.Features`.

    Args:
        model: A transformers model of one of the three kinds, in evaluation mode.
        layer: Which hidden state: 0 is what the first transformer layer hears.
        unit_variance: Bring each sound to mean 0 and variance 1 first, as the larger models were trained.
    """

    def __init__(self, model: Any, layer: int, *, unit_variance: bool = True) -> None:
        layers = int(model.config.num_hidden_layers)
        if not 0 <= layer <= layers:
            raise UsageError(f"layer {layer} does not exist", where="speech model", hint=f"0 to {layers}")
        self.model, self.layer, self.unit_variance = model, layer, unit_variance

    @classmethod
    def load(cls, place: str, layer: int, *, offline: bool | None = None) -> SpeechFeatures:
        """Load a checkpoint in transformers' layout; its tensors must be safetensors.

        Args:
            place: A folder or a hub id.
            layer: See the class.
            offline: Never ask the hub. ``None`` follows ``$AURALIGN_OFFLINE``.

        Raises:
            ModelUnavailableError: transformers is missing, or the checkpoint cannot be had.
        """
        try:
            from transformers import AutoModel, Wav2Vec2FeatureExtractor
        except ImportError as error:
            raise ModelUnavailableError(
                "a speech model needs the transformers package",
                why=str(error),
                hint="pip install 'auralign[clap]'",
            ) from error
        options: dict[str, Any] = {"local_files_only": is_offline(offline)}
        try:
            model = AutoModel.from_pretrained(place, use_safetensors=True, **options)
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(place, **options)
        except (OSError, ValueError) as error:
            raise ModelUnavailableError(
                "the speech model cannot be loaded", where=place, why=str(error).splitlines()[0]
            ) from error
        if model.config.model_type not in _KINDS:
            raise UsageError(
                f"'{model.config.model_type}' is no speech model", where=place, hint=", ".join(_KINDS)
            )
        return cls(model.eval().requires_grad_(False), layer, unit_variance=bool(extractor.do_normalize))

    def __call__(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch frame dim"]:
        """Frames of each sound at 16 kHz."""
        wave = F.pad(wave.float(), (0, max(0, SHORTEST - wave.shape[1])))
        if self.unit_variance:
            variance = wave.var(dim=1, keepdim=True, correction=0)
            wave = (wave - wave.mean(dim=1, keepdim=True)) / (variance + 1e-7).sqrt()
        states: Tensor = self.model(wave, output_hidden_states=True).hidden_states[self.layer]
        return states
