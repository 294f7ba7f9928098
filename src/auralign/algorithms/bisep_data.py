"""Mixtures of mixtures with their captions and phrases: any step's batch follows from the seed and the step alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from auralign.algorithms.bisep_loss import repeat_phrases
from auralign.data.captioned import CaptionedSounds, Recording
from auralign.models.encoders import QueryBackbones

_TRIES = 20
_ENCODE = 64  # texts at once


@dataclass(frozen=True)
class PairConfig:
    """How mixtures of mixtures are made."""

    samples: int = 32_768
    """Length of a stretch, samples (2.05 s; published: 131,070)."""
    gain: tuple[float, float] = (0.5, 1.5)
    """Range of the gain of each mixture, which are at equal power before."""
    apart: bool = True
    """Never mix two recordings that share a phrase (published: any two)."""
    same: float = 0.7
    """Cosine of sentence vectors from which two phrases say the same."""
    most_phrases: int = 4
    """Longer phrase lists are subsampled."""
    repeat: bool = False
    """Pad short phrase lists by repetition, as published, instead of masking."""
    absent_phrase: bool = True
    """Whether the text that is not there is a phrase; otherwise a caption."""
    single_draw: float = 0.5
    """Semi-supervised: chance that a recording is a single sound."""


@dataclass(frozen=True)
class Texts:
    """Every caption and phrase as backbone features; texts are numbers from here on.

    Attributes:
        names: The texts.
        vectors: Flat queries in half precision.
        unit: Their sentence vectors, float32, for what says nearly the same.
    """

    names: tuple[str, ...]
    vectors: Float[Tensor, "text dim"]
    unit: Float[Tensor, "text pooled"]
    number: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, names: Sequence[str], backbones: QueryBackbones, pooled_dim: int, cache: Path | None
    ) -> Texts:
        """Encode texts once; the features are kept in ``cache``."""
        unique = tuple(dict.fromkeys(names))
        key = hashlib.sha256("\x1f".join((backbones.spec, *unique)).encode()).hexdigest()[:16]
        file = None if cache is None else cache / f"texts-{key}.safetensors"
        if file is not None and file.exists():
            vectors = load_file(file)["vectors"]
        else:
            parts = [
                backbones.texts(list(unique[n : n + _ENCODE])).half() for n in range(0, len(unique), _ENCODE)
            ]
            vectors = torch.cat(parts)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
                save_file({"vectors": vectors}, temporary)
                temporary.replace(file)
        unit = F.normalize(vectors[:, :pooled_dim].float(), dim=1)
        return cls(unique, vectors, unit, {name: n for n, name in enumerate(unique)})


@dataclass(frozen=True)
class Pairs:
    """A batch of mixtures of mixtures, ``mixtures.sum(1)`` each.

    Attributes:
        mixtures: What is to be told apart by captions.
        captions: Number of each mixture's caption.
        phrases: Numbers of its phrases; 0 where there is none.
        share: Weight of each phrase in its mixture; 0 for padding.
        weak: 1 for a mixture of sounds, 0 for a single one, which needs no phrase loss.
        absent: Number of a phrase of neither mixture.
    """

    mixtures: Float[Tensor, "batch mix time"]
    captions: Int[Tensor, "batch mix"]
    phrases: Int[Tensor, "batch mix phrase"]
    share: Float[Tensor, "batch mix phrase"]
    weak: Float[Tensor, "batch mix"]
    absent: Int[Tensor, "batch"]

    def to(self, device: torch.device) -> Pairs:
        """The same batch on another device."""
        return Pairs(**{name: value.to(device) for name, value in vars(self).items()})


class PairMixer:
    """Draws pairs of recordings from mixtures, single sounds or both.

    Args:
        mixtures: Recordings of several sounds; ``None`` for supervised training.
        singles: Recordings of one sound; ``None`` for weak supervision.
        texts: Of all of them.
        cfg: Ranges.
    """

    def __init__(
        self, mixtures: CaptionedSounds | None, singles: CaptionedSounds | None, texts: Texts, cfg: PairConfig
    ) -> None:
        self.cfg, self.texts = cfg, texts
        self._mixtures, self._singles = mixtures, singles

    def batch(self, rng: np.random.Generator, size: int) -> Pairs:
        """One batch; ``rng`` decides everything."""
        cfg = self.cfg
        waves = torch.zeros(size, 2, cfg.samples)
        captions = torch.zeros(size, 2, dtype=torch.long)
        phrases = torch.zeros(size, 2, cfg.most_phrases, dtype=torch.long)
        share = torch.zeros(size, 2, cfg.most_phrases)
        weak = torch.zeros(size, 2)
        absent = torch.zeros(size, dtype=torch.long)
        for n in range(size):
            pair, is_weak = self._pair(rng)
            for k, one in enumerate(pair):
                gain = float(rng.uniform(*cfg.gain)) / len(pair)  # the published mixture is a mean
                waves[n, k] = torch.from_numpy(one.wave) * gain
                captions[n, k] = self.texts.number[one.caption]
                phrases[n, k], share[n, k] = self._padded(rng, one)
                weak[n, k] = float(is_weak[k])
            absent[n] = self._absent(rng, [p for one in pair for p in one.phrases])
        longest = max(1, int((share > 0).sum(dim=2).max()))
        return Pairs(waves, captions, phrases[:, :, :longest], share[:, :, :longest], weak, absent)

    def _pair(self, rng: np.random.Generator) -> tuple[tuple[Recording, Recording], tuple[bool, bool]]:
        first, first_weak = self._one(rng)
        second, second_weak = self._one(rng)
        for _ in range(_TRIES):
            if not self.cfg.apart or not self._share_a_phrase(first, second):
                break
            second, second_weak = self._one(rng)
        return (first, second), (first_weak, second_weak)

    def _one(self, rng: np.random.Generator) -> tuple[Recording, bool]:
        single = self._singles is not None and (self._mixtures is None or rng.random() < self.cfg.single_draw)
        part = self._singles if single else self._mixtures
        if part is None:
            raise ValueError("neither mixtures nor single sounds are given")
        return part.cut(rng, int(rng.integers(len(part)))), not single

    def _share_a_phrase(self, one: Recording, other: Recording) -> bool:
        mine = self.texts.unit[[self.texts.number[p] for p in one.phrases]]
        theirs = self.texts.unit[[self.texts.number[p] for p in other.phrases]]
        return bool(((mine @ theirs.t()) >= self.cfg.same).any())

    def _padded(self, rng: np.random.Generator, one: Recording) -> tuple[Tensor, Tensor]:
        """Phrase numbers and shares, subsampled or padded to ``most_phrases``."""
        size = self.cfg.most_phrases
        found = np.array([self.texts.number[p] for p in one.phrases])
        if len(found) > size:
            found = rng.choice(found, size, replace=False)
        if self.cfg.repeat:
            picks = torch.from_numpy(rng.integers(len(found), size=size))
            index, share = repeat_phrases(len(found), size, picks)
            return torch.from_numpy(found)[index], share
        numbers, share = torch.zeros(size, dtype=torch.long), torch.zeros(size)
        numbers[: len(found)], share[: len(found)] = torch.from_numpy(found), 1.0
        return numbers, share

    def _absent(self, rng: np.random.Generator, heard: Sequence[str]) -> int:
        """A text of a recording none of whose phrases is close to those that are heard.

        A phrase where phrases are asked for, else a caption: it must not be told from the others by its length.
        """
        here = self.texts.unit[[self.texts.number[p] for p in heard]]
        parts = [part for part in (self._mixtures, self._singles) if part is not None]
        least, number = np.inf, 0
        for _ in range(_TRIES):
            part = parts[int(rng.integers(len(parts)))]
            index = int(rng.integers(len(part)))
            phrases = [self.texts.number[p] for p in part.phrases(index)]
            caption = self.texts.number[part.clips[index].captions[0]]
            text = phrases[int(rng.integers(len(phrases)))] if self.cfg.absent_phrase else caption
            all_like = here @ self.texts.unit[phrases].t()
            if not bool((all_like >= self.cfg.same).any()):
                return text
            like = (here @ self.texts.unit[text] if self.cfg.absent_phrase else all_like).max()
            if float(like) < least:  # should every recording share something with what is heard
                least, number = float(like), text
        return number
