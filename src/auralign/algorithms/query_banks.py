"""Backbone features of everything a training query can be made of, computed once per corpus."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from auralign.data.mixer import MixBatch, Mixer
from auralign.data.sound_bank import SoundBank
from auralign.models.encoders import QueryBackbones
from auralign.models.query_encoder import MODALITIES, Modality, QueryHeads, query_mixup
from auralign.runtime.checkpoint import load_checkpoint, save_checkpoint

_EXAMPLE_S = 4.0  # an audio query listens to at most this much of an example


@dataclass(frozen=True)
class QueryBanks:
    """Raw backbone features: per class for texts and pictures, per clip for sounds."""

    texts: list[Float[Tensor, "_ text"]]
    images: list[Float[Tensor, "_ image"]]
    audio: Float[Tensor, "clip audio"]

    def state(self) -> dict[str, object]:
        """For the cache file."""
        return {"texts": self.texts, "images": self.images, "audio": self.audio}


def build_banks(
    bank: SoundBank,
    texts: list[list[str]],
    pictures: list[list[Path]],
    backbones: QueryBackbones,
    cache: Path | None,
) -> QueryBanks:
    """Compute, or read from ``cache``, the features of all texts, pictures and clips."""
    identity = [
        texts,
        [[p.name for p in group] for group in pictures],
        [(c.clip.id, c.length) for c in bank.clips],
        *([] if backbones.spec == "builtin" else [backbones.spec, backbones.probe()]),
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = None if cache is None else cache / f"queries-{key}.safetensors"
    if path is not None and path.exists():
        stored = load_checkpoint(path).state
        return QueryBanks(stored["texts"], stored["images"], stored["audio"])
    banks = QueryBanks(
        texts=[backbones.texts(group) for group in texts],
        images=[_pictures(group, backbones) for group in pictures],
        audio=torch.cat([_example(bank, n, backbones) for n in range(len(bank.clips))]),
    )
    if path is not None:
        save_checkpoint(path, banks.state())
    return banks


def _pictures(paths: list[Path], backbones: QueryBackbones) -> Float[Tensor, "picture features"]:
    """Features of a class's pictures; none where there are none, or where the encoder takes none."""
    if not paths or "image" not in backbones.dims:
        return torch.zeros(0, backbones.dims.get("image", 0))
    return backbones.images(torch.stack([backbones.read_picture(path) for path in paths]))


def _example(bank: SoundBank, clip: int, backbones: QueryBackbones) -> Float[Tensor, "1 features"]:
    wave = bank.samples(clip, 0, round(_EXAMPLE_S * bank.rate_hz))
    return backbones.audio(torch.from_numpy(wave)[None])


@dataclass(frozen=True)
class RawQueries:
    """Backbone features of each wanted query, and how its modalities are weighed."""

    features: dict[Modality, Float[Tensor, "batch query features"]]
    weights: Float[Tensor, "batch query modality"]
    has_image: Float[Tensor, "batch query"]
    labels: Int[Tensor, "batch query"]

    def to(self, device: torch.device) -> RawQueries:
        """The same queries on another device."""
        features = {name: value.to(device) for name, value in self.features.items()}
        return RawQueries(
            features, self.weights.to(device), self.has_image.to(device), self.labels.to(device)
        )

    def embed(self, heads: QueryHeads, *, unit: bool) -> Float[Tensor, "batch query dim"]:
        """Query-Mixup of the heads' outputs, brought to unit length if ``unit``."""
        empty = self.weights.new_zeros(*self.labels.shape, heads.dim)
        parts = torch.stack(
            [heads(self.features[m], m) if m in heads.heads else empty for m in MODALITIES], dim=2
        )
        mixed = query_mixup(parts, self.weights)
        return torch.nn.functional.normalize(mixed, dim=-1) if unit else mixed


def draw_queries(
    rng: np.random.Generator,
    batch: MixBatch,
    mixer: Mixer,
    banks: QueryBanks,
    shares: tuple[float, float, float, float],
) -> RawQueries:
    """Queries for both sources and the absent class of every mixture.

    Args:
        rng: Decides everything.
        batch: The mixtures.
        mixer: Where audio examples of the same class come from.
        banks: Raw features.
        shares: Chances of a text, audio, image and mixed-up query; a class without pictures falls back to text.
    """
    size = len(batch.labels)
    labels = np.concatenate([batch.labels, batch.absent[:, None]], axis=1)
    features: dict[Modality, Tensor] = {
        "text": torch.zeros(size, 3, banks.texts[0].shape[-1]),
        "audio": torch.zeros(size, 3, banks.audio.shape[-1]),
        "image": torch.zeros(size, 3, banks.images[0].shape[-1]),
    }
    weights = torch.zeros(size, 3, 3)
    has_image = torch.zeros(size, 3)
    for n in range(size):
        for k in range(3):
            label = int(labels[n, k])
            example = mixer.example_of(rng, label)
            features["text"][n, k] = banks.texts[label][int(rng.integers(len(banks.texts[label])))]
            features["audio"][n, k] = banks.audio[example]
            if len(banks.images[label]):
                features["image"][n, k] = banks.images[label][int(rng.integers(len(banks.images[label])))]
                has_image[n, k] = 1
            weights[n, k] = _weights(rng, shares, bool(has_image[n, k]))
    return RawQueries(features, weights, has_image, torch.from_numpy(labels))


def _weights(
    rng: np.random.Generator, shares: tuple[float, float, float, float], has_image: bool
) -> Float[Tensor, "modality"]:
    choice = int(rng.choice(4, p=np.array(shares) / sum(shares)))
    drawn = rng.uniform(0.05, 1, size=3)
    if choice < 3:
        drawn = np.eye(3)[choice]
    if not has_image:
        drawn[2] = 0
        if drawn.sum() == 0:
            drawn[0] = 1
    return torch.from_numpy(drawn / drawn.sum()).float()
