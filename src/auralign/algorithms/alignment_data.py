"""Sounds that a reward encoder learns from: targets, what they are taken for, and every way to separate them badly.

A *scene* is a target and an interferer, and the sounds that a separator might make of their mixture, each with its true
SI-SDR. Raw backbone features of all of them are computed once and kept beside the corpus; heads then train on features.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor

from auralign.algorithms.training import equalise
from auralign.data.mixer import MixConfig, Mixer
from auralign.data.sound_bank import SoundBank
from auralign.metrics.sdr import si_sdr
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.separator import SeparatorModel
from auralign.policy.beta_mask import BetaMask
from auralign.runtime.checkpoint import load_checkpoint, save_checkpoint
from auralign.runtime.seed import derive

log = logging.getLogger(__name__)

TARGET, CHANGED, INTERFERER, MIXTURE = range(4)
"""Places of the first four sounds of a scene; the rest are leaks and masked mixtures."""
ESTIMATES = (
    "faint leak",
    "loud leak",
    "ideal mask to a power",
    "ideal mask, Beta noise",
    "ideal mask, patches wrong",
    "ideal mask, half open",
    "ideal mask, turned round",
    "separator",
    "separator, Beta noise",
    "separator, patches wrong",
)
VARIANTS = 4 + len(ESTIMATES)
SIZE = 32  # scenes of one length that are made together
_N_FFT, _HOP = 1024, 256
_LIMIT_DB = 30.0


@dataclass(frozen=True)
class SceneConfig:
    """How the scenes are made."""

    scenes: int = 3200
    """Training scenes; each holds fourteen sounds."""
    validation: int = 512
    """Scenes of the validation split."""
    seconds: tuple[float, ...] = (1.024, 2.048, 2.048, 4.096)
    """Lengths of the sounds; blocks of scenes take them in turn."""
    close: float = 0.3
    """Share of scenes whose interferer is easily taken for the target."""
    gain_db: float = 4.0
    """Standard deviation of the level difference in the mixture, dB."""
    equaliser_db: float = 4.0
    """Standard deviation of a random smooth gain curve over frequency, dB."""
    kappa: float = 9.0
    """Concentration of the Beta noise on masks."""
    separator: str = "omnisep-small"
    """Model whose own estimates are among the sounds; empty takes ideal masks with wrong patches instead."""


@dataclass(frozen=True)
class Scenes:
    """Raw features of many scenes.

    Attributes:
        audio: Features of each sound.
        si_sdr: SI-SDR of each sound against the target, cut to ±30 dB.
        labels: Class of the target and of the interferer.
        sources: Recording that the target and the interferer come from.
    """

    audio: Float[Tensor, "scene variant features"]
    si_sdr: Float[Tensor, "scene variant"]
    labels: Int[Tensor, "scene 2"]
    sources: Int[Tensor, "scene 2"]

    def __len__(self) -> int:
        return len(self.labels)


class SceneMaker:
    """Draws scenes from a bank of clips.

    Args:
        bank: Decoded clips.
        labels: All classes in the order of their numbers.
        kinds: Kind of each class.
        confusable: Classes that each class may be taken for.
        cfg: Ranges.
        separator: Model whose estimates are among the sounds.
        phrases: What it is asked for, one text a class.
    """

    def __init__(
        self,
        bank: SoundBank,
        labels: list[str],
        kinds: dict[str, str],
        confusable: dict[str, set[str]],
        cfg: SceneConfig,
        separator: SeparatorModel | None,
        phrases: Sequence[str],
    ) -> None:
        self.bank, self.cfg, self.separator = bank, cfg, separator
        groups = {c.clip.source or c.clip.id for c in bank.clips}
        numbers = {name: n for n, name in enumerate(sorted(groups))}
        self._source = np.array([numbers[c.clip.source or c.clip.id] for c in bank.clips])
        mix = MixConfig(gain_db=cfg.gain_db, distractor=0.0, single=0.0)
        lengths = sorted({round(s * bank.rate_hz) for s in cfg.seconds})
        far = _complement(labels, confusable, {c.label for c in bank.clips})
        self._apart = {n: Mixer(bank, labels, kinds, replace(mix, samples=n), confusable) for n in lengths}
        self._close = {n: Mixer(bank, labels, kinds, replace(mix, samples=n), far) for n in lengths}
        self._queries: Tensor | None = None
        if separator is not None:
            self._queries = torch.stack([q.vector for q in separator.text_queries(phrases)])

    def block(self, seed: int, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sounds ``scene variant time``, their SI-SDR, labels and sources of one block of scenes."""
        rng = np.random.default_rng(derive(seed, "scenes", number))
        noise = torch.Generator().manual_seed(derive(seed, "scene noise", number))
        length = round(self.cfg.seconds[number % len(self.cfg.seconds)] * self.bank.rate_hz)
        size_close = int(rng.binomial(SIZE, self.cfg.close))
        drawn = [self._apart[length].batch(rng, SIZE - size_close)] if size_close < SIZE else []
        drawn += [self._close[length].batch(rng, size_close)] if size_close else []
        sources = torch.from_numpy(np.concatenate([one.sources for one in drawn]))
        labels = torch.from_numpy(np.concatenate([one.labels for one in drawn]))
        clips = np.concatenate([one.clips for one in drawn])
        sources = equalise(sources, rng, self.cfg.equaliser_db)
        with torch.no_grad():
            sounds = self._variants(sources[:, 0], sources[:, 1], labels[:, 0], rng, noise)
        target = sources[:, :1].expand_as(sounds)
        quality = si_sdr(est=sounds, ref=target).float().nan_to_num(-_LIMIT_DB).clamp(-_LIMIT_DB, _LIMIT_DB)
        quality[:, CHANGED] = _LIMIT_DB
        return sounds, quality, labels, torch.from_numpy(self._source[clips])

    def _variants(
        self,
        target: Float[Tensor, "scene time"],
        other: Float[Tensor, "scene time"],
        labels: Int[Tensor, "scene"],
        rng: np.random.Generator,
        noise: torch.Generator,
    ) -> Float[Tensor, "scene variant time"]:
        mixture = target + other
        length = target.shape[1]
        spec, first, second = (_stft(x) for x in (mixture, target, other))
        ideal = first.abs() / (first.abs() + second.abs() + 1e-8)
        asked = self._masks(mixture, labels) if self.separator is not None else patched(ideal, 1.5, noise)
        power = _uniform(noise, len(target), 0.5, 2.0)[:, None, None]
        open_share = _uniform(noise, len(target), 0.1, 0.8)[:, None, None]
        turned = _uniform(noise, len(target), 0.2, 0.9)[:, None, None]
        spread = float(rng.uniform(0.5, 2.5))
        masks = [
            ideal**power,
            beta_noise(ideal, self.cfg.kappa, noise),
            patched(ideal, spread, noise),
            ideal * (1 - open_share) + open_share,
            ideal * (1 - turned) + (1 - ideal) * turned,
            asked,
            beta_noise(asked, self.cfg.kappa, noise),
            patched(asked, spread, noise),
        ]
        loudness = (_level(target) / _level(other)).clamp(0.05, 20)[
            :, None
        ]  # leaks are relative to the target
        faint, loud = (
            target + other * loudness * 10 ** (_uniform(noise, len(target), low, high)[:, None] / 20)
            for low, high in ((-25.0, -8.0), (-8.0, 10.0))
        )
        changed = self._changed(target, rng, noise)
        masked = [_istft(spec * mask, length) for mask in masks]
        return torch.stack([target, changed, other, mixture, faint, loud, *masked], dim=1)

    def _changed(
        self, target: Float[Tensor, "scene time"], rng: np.random.Generator, noise: torch.Generator
    ) -> Float[Tensor, "scene time"]:
        """The same sound after an equaliser, a shift, a crop to at least half and faint noise."""
        out = equalise(target, rng, 4.0)
        length = target.shape[1]
        keep = int(length * rng.uniform(0.5, 1.0))
        start = int(rng.integers(length - keep + 1))
        out = torch.cat([out[:, start : start + keep], out[:, : length - keep]], dim=1)
        hiss = torch.randn(out.shape, generator=noise) * _level(out)[:, None]
        return out + hiss * 10 ** (float(rng.uniform(-60, -30)) / 20)

    def _masks(
        self, mixture: Float[Tensor, "scene time"], labels: Int[Tensor, "scene"]
    ) -> Float[Tensor, "scene freq frame"]:
        if self.separator is None or self._queries is None:
            raise ValueError("no separator to ask")
        mask: Tensor = self.separator(mixture, self._queries[labels][:, None]).mask[:, 0]
        return mask


def _complement(labels: list[str], confusable: dict[str, set[str]], present: set[str]) -> dict[str, set[str]]:
    """Everything that a class is *not* taken for, so that a mixer draws close pairs; ``music`` holds the others."""
    out = {}
    for label in labels:
        near = {x for x in confusable.get(label, set()) if x in present and x != "music"}
        out[label] = set(labels) - near if near and label != "music" else set()
    return out


def _stft(wave: Float[Tensor, "scene time"]) -> Complex[Tensor, "scene freq frame"]:
    window = torch.hann_window(_N_FFT)
    return torch.stft(
        wave, _N_FFT, _HOP, window=window, center=True, pad_mode="constant", return_complex=True
    )


def _istft(spec: Complex[Tensor, "scene freq frame"], length: int) -> Float[Tensor, "scene time"]:
    return torch.istft(spec, _N_FFT, _HOP, window=torch.hann_window(_N_FFT), center=True, length=length)


def _level(wave: Float[Tensor, "scene time"]) -> Float[Tensor, "scene"]:
    return wave.square().mean(dim=1).sqrt().clamp_min(1e-6)


def _uniform(noise: torch.Generator, size: int, low: float, high: float) -> Float[Tensor, "scene"]:
    return low + (high - low) * torch.rand(size, generator=noise)


def beta_noise(
    mask: Float[Tensor, "scene freq frame"], kappa: float, noise: torch.Generator
) -> Float[Tensor, "scene freq frame"]:
    """One draw of the Beta mask policy around a mask."""
    policy = BetaMask(mask.clamp(0, 1), kappa)
    return policy.sample(noise, 1)[:, 0]


def patched(
    mask: Float[Tensor, "scene freq frame"], spread: float, noise: torch.Generator
) -> Float[Tensor, "scene freq frame"]:
    """A mask whose logits are off by a smooth random field: whole regions too open or too closed."""
    field = torch.randn(len(mask), 1, 12, 6, generator=noise) * spread
    field = F.interpolate(field, size=mask.shape[1:], mode="bilinear", align_corners=True)[:, 0]
    return torch.sigmoid(torch.logit(mask, eps=1e-3) + field)


def scene_features(
    maker: SceneMaker, encoder: RewardEncoder, *, count: int, seed: int, name: str, cache: Path | None
) -> Scenes:
    """Features of ``count`` scenes, block by block; finished blocks are read from ``cache``."""
    identity = [asdict(replace(maker.cfg, scenes=0, validation=0)), seed, name, encoder.encoder, "1"]
    identity += [[(c.clip.id, c.length) for c in maker.bank.clips]]
    key = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for number in range(-(-count // SIZE)):
        path = None if cache is None else cache / f"scenes-{key}" / f"{number:05d}.safetensors"
        if path is not None and path.exists():
            block = load_checkpoint(path).state
        else:
            sounds, quality, labels, sources = maker.block(seed, number)
            raw = encoder.audio_features(sounds.flatten(0, 1)).unflatten(0, sounds.shape[:2])
            block = {"audio": raw.half(), "si_sdr": quality, "labels": labels, "sources": sources}
            if path is not None:
                save_checkpoint(path, block)
            if number % 10 == 0:
                log.info("%s scenes: %d of %d", name, number * SIZE, count)
        for field, value in block.items():
            parts[field].append(value)
    return Scenes(**{field: torch.cat(values)[:count] for field, values in parts.items()})
