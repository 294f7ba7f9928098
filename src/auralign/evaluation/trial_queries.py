"""What the models of a trial share: encoders that are loaded once, features that are computed once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from torch import Tensor

from auralign.errors import UsageError
from auralign.evaluation.items import EXAMPLE_SAMPLES, Asked, SoundboxItems
from auralign.models.bimodal import AlignedEncoder, BimodalTexts
from auralign.models.blind import BlindSeparator
from auralign.models.encoders import Backbones, QueryBackbones
from auralign.models.minilm import MiniLM
from auralign.models.query_encoder import Modality as Kind
from auralign.models.separator import SeparatorModel
from auralign.models.text_tokens import TokenBackbones
from auralign.models.token_heads import TokenHeads
from auralign.models.yamnet import YamNet


class _YamNetOnce(YamNet):
    """Answers the same input again from memory: the models of a trial hear the same mixtures."""

    _heard: tuple[Tensor, list[Tensor]] | None = None

    def maps(self, log_mel: Float[Tensor, "batch frame mel"]) -> list[Tensor]:
        if self._heard is None or not torch.equal(self._heard[0], log_mel):
            self._heard = log_mel, super().maps(log_mel)
        return self._heard[1]


def _hearing_once(network: YamNet) -> _YamNetOnce:
    """The same network with a memory of one input."""
    once = _YamNetOnce(network.class_names)
    once.convs, once.classifier = network.convs, network.classifier
    return once.eval().requires_grad_(False)


class SharedEncoders(Backbones):
    """The built-in encoders, loaded once for all models of a process."""

    def __init__(self) -> None:
        super().__init__()
        self._once: _YamNetOnce | None = None

    @property
    def yamnet(self) -> YamNet:
        """The trunk's YAMNet, with a memory of one input."""
        if self._once is None:
            self._once = _hearing_once(super().yamnet)
        return self._once

    def plain(self) -> Backbones:
        """The same encoders without the memory, for who hears other sounds than the mixture."""
        plain = Backbones()
        plain._loaded = self._loaded
        return plain


class _SharedTokens(TokenBackbones):
    """Words one by one, by the sentence encoder of the others."""

    def __init__(self, shared: SharedEncoders) -> None:
        super().__init__()
        self._shared = shared

    @property
    def minilm(self) -> MiniLM:
        network: MiniLM = self._shared._get("text")
        return network


def share_encoders(models: Sequence[SeparatorModel], shared: SharedEncoders) -> None:
    """Give all models the same frozen encoders; what they answer stays the same.

    Networks that read the tagger read the shared one; words, one vector a text or one by one, go through one sentence
    encoder; blind networks with the same text-audio encoder hear with one.

    Args:
        models: Separators with encoders of their own, which are let go.
        shared: What takes their place.
    """
    tokens = _SharedTokens(shared)
    bimodal: dict[str, BimodalTexts] = {}
    for model in models:
        if type(model.backbones) is Backbones:
            model.backbones = shared
        elif type(model.backbones) is TokenBackbones:
            model.backbones = tokens
        elif isinstance(model.backbones, BimodalTexts):
            first = bimodal.setdefault(model.backbones.spec, model.backbones)
            hears = first.bimodal
            if isinstance(hears, AlignedEncoder) and type(hears.encoder.backbones) is Backbones:
                hears.encoder.backbones = shared.plain()
            model.backbones = first
            if isinstance(model.net, BlindSeparator):
                model.net.share_encoder(hears)
        model.net.share(shared)


class Queries:
    """Query vectors of every model from backbone features that are computed once.

    Args:
        items: The corpus, for pictures and recordings.
        examples: Features of recordings by the built-in encoder, as far as they are known.
    """

    def __init__(self, items: SoundboxItems, examples: Mapping[str, Float[np.ndarray, " dim"]]) -> None:
        self._items = items
        self._raw: dict[tuple[str, Kind, str], Tensor] = {
            ("builtin", "audio", clip): torch.from_numpy(vector)[None] for clip, vector in examples.items()
        }
        self._vectors: dict[tuple[int, Asked], Tensor] = {}

    def vector(self, model: SeparatorModel, asked: Asked) -> Float[Tensor, " dim"]:
        """The unit vector that :class:`auralign.evaluation.run.Answerer` also asks with."""
        key = (id(model), asked)
        if key not in self._vectors and isinstance(model.heads, TokenHeads):
            if asked.images or asked.clips:
                raise UsageError("this model takes words only", where=asked.modality, hint="--query text")
            texts = [self.features(model.backbones, "text", text) for text in asked.texts]
            self._vectors[key] = model.heads.merge(torch.cat(texts))
        if key not in self._vectors:
            kinds: tuple[tuple[Kind, Sequence[str | Path]], ...] = (
                ("text", asked.texts),
                ("image", asked.images),
                ("audio", asked.clips),
            )
            means = []
            for kind, names in kinds:
                if names:
                    raw = torch.cat([self.features(model.backbones, kind, str(name)) for name in names])
                    means.append(F.normalize(model.heads(raw, kind).mean(dim=0), dim=-1))
            self._vectors[key] = F.normalize(torch.stack(means).mean(dim=0), dim=-1)
        return self._vectors[key]

    def features(self, backbones: QueryBackbones, kind: Kind, name: str) -> Float[Tensor, "1 features"]:
        """Backbone features of a text, a picture's path or a clip."""
        key = (backbones.spec, kind, name)
        if key not in self._raw:
            if kind == "text":
                self._raw[key] = backbones.texts([name])
            elif kind == "image":
                self._raw[key] = backbones.images(backbones.read_picture(name)[None])
            else:
                wave = self._items.renderer.samples(name)[:EXAMPLE_SAMPLES]
                self._raw[key] = backbones.audio(torch.from_numpy(wave)[None])
        return self._raw[key]


def write_vectors(path: Path, vectors: Mapping[str, Float[np.ndarray, " dim"]]) -> None:
    """Keep vectors by name, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({name: np.ascontiguousarray(vector) for name, vector in vectors.items()}, temporary)
    temporary.replace(path)


def read_vectors(path: Path | None) -> dict[str, np.ndarray]:
    """What :func:`write_vectors` wrote; nothing for no file."""
    return {} if path is None else load_file(path)
