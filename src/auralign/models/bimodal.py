"""Text and audio in one space, frozen: what tells BiSep, without a clean reference, that an estimate is what was asked.

The built-in encoder is a :class:`~auralign.models.reward_encoder.RewardEncoder` over YAMNet and MiniLM, aligned on
captioned mixtures alone (:mod:`auralign.algorithms.bimodal`); CLAP comes by checkpoint. Both pass gradients to the
sound and none to their own weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.models.clap import ClapEncoder
from auralign.models.encoders import QueryBackbones
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.text_tokens import WordsOnly
from auralign.runtime import weights

BUILT_IN = "bimodal-small"


class BimodalEncoder(ABC):
    """Unit vectors of texts and of mono 16-kHz sounds.

    Attributes:
        spec: What :func:`open_bimodal` was given.
        rate_hz: Rate of the sounds it takes.
        dim: Length of its vectors.
        scale: The inverse temperature it was aligned with, a constant.
    """

    rate_hz = 16_000
    spec: str
    dim: int
    scale: float

    def __deepcopy__(self, memo: dict[int, Any]) -> BimodalEncoder:
        return self  # frozen: copies of a model share it

    @abstractmethod
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of texts, without gradient."""

    @abstractmethod
    def audio(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of sounds of any level; gradients reach the wave."""

    @abstractmethod
    def to(self, device: torch.device) -> BimodalEncoder:
        """Move it."""


class AlignedEncoder(BimodalEncoder):
    """A reward encoder whose heads for words and sounds are used on their own.

    Args:
        encoder: In evaluation mode.
        spec: Where it came from.
    """

    def __init__(self, encoder: RewardEncoder, spec: str) -> None:
        self.spec, self.dim = spec, encoder.dim
        self.encoder = encoder.eval().requires_grad_(False)
        self.scale = float(encoder.temperature_scale)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """The words' head over sentence vectors."""
        raw = self.encoder.backbones.texts(list(texts))
        return self.encoder.embed(raw.to(self.encoder.log_scale.device), "text")

    def audio(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch dim"]:
        """The sounds' head over time statistics of log-mel bands and YAMNet maps."""
        raw = self.encoder.audio_features(wave, grad=torch.is_grad_enabled())
        return self.encoder.embed(raw, "audio")

    def to(self, device: torch.device) -> AlignedEncoder:
        """Move the heads; the tagger follows its input."""
        self.encoder.to(device)
        return self


class ClapBimodal(BimodalEncoder):
    """A CLAP checkpoint: 48 kHz inside, short sounds repeated and padded, as BiSep does.

    Args:
        place: Folder or hub id.
    """

    def __init__(self, place: str) -> None:
        self.spec = f"clap:{place}"
        self._clap = ClapEncoder.from_path(place)
        self.dim = self._clap.dim
        self.scale = float(self._clap.model.logit_scale_a.detach().exp())

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """CLAP text vectors."""
        return self._clap.embed_text(list(texts))

    def audio(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch dim"]:
        """CLAP audio vectors."""
        return self._clap.embed_audio(wave, rate_hz=self.rate_hz)

    def to(self, device: torch.device) -> ClapBimodal:
        """Move the checkpoint."""
        self._clap.to(device)
        return self


class BimodalTexts(WordsOnly):
    """A bimodal encoder's texts as queries, for networks that compare sounds with words.

    Args:
        place: What :func:`open_bimodal` takes.
    """

    def __init__(self, place: str) -> None:
        self.spec = f"bimodal:{place}"
        self.bimodal = open_bimodal(place)
        self.dims = {"text": self.bimodal.dim}

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Unit text vectors."""
        self.refuse_empty(texts)
        return self.bimodal.texts(list(texts))


def open_bimodal(spec: str) -> BimodalEncoder:
    """An encoder by ``builtin``, ``clap:FOLDER_OR_HUB_ID``, or the folder or name of an aligned encoder.

    Raises:
        ModelUnavailableError: It cannot be had.
    """
    kind, _, place = spec.partition(":")
    if kind == "clap" and place:
        return ClapBimodal(place)
    folder = weights.path(BUILT_IN if spec == "builtin" else spec)
    return AlignedEncoder(RewardEncoder.load(Path(folder)), spec)


def as_backbones(place: str) -> QueryBackbones:
    """See :class:`BimodalTexts`."""
    return BimodalTexts(place)
