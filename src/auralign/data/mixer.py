"""Mixtures made on the fly: any step's batch follows from the seed and the step alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from auralign.data.sound_bank import SoundBank
from auralign.errors import DataError


@dataclass(frozen=True)
class MixConfig:
    """How training mixtures are made."""

    samples: int = 32_768
    """Length of a mixture in samples (32,768 = 2.05 s at 16 kHz)."""
    kinds: tuple[tuple[str, float], ...] = (("event", 0.5), ("instrument", 0.38), ("speech", 0.12))
    """Share of each kind of sound among the sources."""
    gain_db: float = 4.0
    """Standard deviation of the sources' level difference, dB."""
    gain_limit_db: float = 12.0
    """Largest level difference either way, dB."""
    speed: float = 0.2
    """Playback speed is drawn log-uniformly within a factor of ``1 + speed`` either way."""
    equaliser_db: float = 6.0
    """Standard deviation of a random smooth gain curve over frequency, dB."""
    distractor: float = 0.15
    """Chance of a third source that no query asks for."""
    single: float = 0.05
    """Chance that the second source is silent."""
    tile: float = 0.5
    """Chance that a short recording is repeated; otherwise it is placed at random in silence."""


@dataclass(frozen=True)
class MixBatch:
    """Raw material of one training batch; ``sources.sum(1) + distractor`` is the mixture."""

    sources: Float[np.ndarray, "batch source time"]
    distractor: Float[np.ndarray, "batch time"]
    labels: Int[np.ndarray, "batch source"]
    absent: Int[np.ndarray, "batch"]
    clips: Int[np.ndarray, "batch source"]
    audible: Bool[np.ndarray, "batch source"] = field(default_factory=lambda: np.ones((0, 2), dtype=bool))


class Mixer:
    """Draws sources by kind, class, recording, clip and place, and sets their levels.

    Args:
        bank: Decoded clips.
        labels: All classes in the order of their numbers.
        kinds: Kind of each class.
        cfg: Ranges.
        confusable: Classes that must not be taken as different from a class.
    """

    def __init__(
        self,
        bank: SoundBank,
        labels: list[str],
        kinds: Mapping[str, str],
        cfg: MixConfig,
        confusable: Mapping[str, set[str]] | None = None,
    ) -> None:
        self.bank, self.cfg, self.labels = bank, cfg, labels
        number = {label: n for n, label in enumerate(labels)}
        tree: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for n, entry in enumerate(bank.clips):
            tree[number[entry.label]][entry.clip.source or entry.clip.id].append(n)
        self._sources = {label: [clips[s] for s in sorted(clips)] for label, clips in tree.items()}
        by_kind: dict[str, list[int]] = defaultdict(list)
        for label in sorted(tree):
            by_kind[kinds[labels[label]]].append(label)
        self._kinds = [(by_kind[name], share) for name, share in cfg.kinds if by_kind[name]]
        self._present = sorted(tree)
        other = confusable or {}
        self._apart = {
            n: np.array([m for m in self._present if m != n and labels[m] not in other.get(labels[n], set())])
            for n in self._present
        }
        if len(tree) < 4 or not self._kinds or any(len(values) == 0 for values in self._apart.values()):
            raise DataError(
                "the corpus is too small to mix",
                where=str(bank.root),
                why=f"it has {len(tree)} classes of the wanted kinds",
                hint="take at least 4 classes that cannot be taken for each other",
            )
        self._apart_set = {n: set(values.tolist()) for n, values in self._apart.items()}

    def batch(self, rng: np.random.Generator, size: int) -> MixBatch:
        """One batch; ``rng`` decides everything."""
        cfg = self.cfg
        sources = np.zeros((size, 2, cfg.samples), dtype=np.float32)
        distractor = np.zeros((size, cfg.samples), dtype=np.float32)
        labels = np.zeros((size, 2), dtype=np.int64)
        clips = np.zeros((size, 2), dtype=np.int64)
        absent = np.zeros(size, dtype=np.int64)
        audible = np.ones((size, 2), dtype=bool)
        for n in range(size):
            a = self._label(rng)
            b = self._label(rng, apart_from=a)
            labels[n] = a, b
            for k, label in enumerate((a, b)):
                clips[n, k], sources[n, k] = self._draw(rng, label)
            difference = np.clip(rng.normal(0, cfg.gain_db), -cfg.gain_limit_db, cfg.gain_limit_db)
            sources[n, 1] *= 10 ** (difference / 20)
            if rng.random() < cfg.single:
                audible[n, 1] = False
                sources[n, 1] = 0
            third = self._label(rng, apart_from=a)
            heard = {a, b}
            if third in self._apart_set[b] and rng.random() < cfg.distractor:
                heard.add(third)
                distractor[n] = self._draw(rng, third)[1] * 10 ** (rng.uniform(-12, 0) / 20)
            absent[n] = self._absent(rng, {a, b, third}, heard)
        return MixBatch(sources, distractor, labels, absent, clips, audible)

    def example_of(self, rng: np.random.Generator, label: int) -> int:
        """A clip of a class, any recording with equal chance."""
        groups = self._sources[label]
        group = groups[rng.integers(len(groups))]
        return int(group[rng.integers(len(group))])

    def _label(self, rng: np.random.Generator, apart_from: int | None = None) -> int:
        shares = np.array([share for _, share in self._kinds])
        for _ in range(100):
            members = self._kinds[rng.choice(len(shares), p=shares / shares.sum())][0]
            weights = np.array([len(self._sources[m]) ** 0.35 for m in members])
            label = int(rng.choice(members, p=weights / weights.sum()))
            if apart_from is None or label in self._apart_set[apart_from]:
                return label
        return int(rng.choice(self._apart[apart_from if apart_from is not None else 0]))

    def _absent(self, rng: np.random.Generator, avoid: set[int], heard: set[int]) -> int:
        """A class that cannot be taken for any of ``avoid``, or in a small corpus of those that are ``heard``."""
        for _ in range(100):
            label = int(self._present[rng.integers(len(self._present))])
            if all(label in self._apart_set[p] for p in avoid):
                return label
        apart = [m for m in self._present if all(m in self._apart_set[p] for p in heard)]
        return int(rng.choice(apart or [m for m in self._present if m not in heard]))

    def _draw(self, rng: np.random.Generator, label: int) -> tuple[int, np.ndarray]:
        """A clip and a piece of it at unit power over its sounding part, changed in speed."""
        groups = self._sources[label]
        group = groups[rng.integers(len(groups))]
        clip = int(group[rng.integers(len(group))])
        speed = float(np.exp(rng.uniform(-1, 1) * np.log1p(self.cfg.speed)))
        need = int(np.ceil(self.cfg.samples * speed)) + 2
        length = self.bank.clips[clip].length
        piece = self._piece(rng, clip, length, need)
        position = np.arange(
            min(self.cfg.samples, int((len(piece) - 1) / speed) + 1), dtype=np.float32
        ) * np.float32(speed)
        left = position.astype(np.int64)
        share = position - left
        right = np.minimum(left + 1, len(piece) - 1)
        piece = piece[left] * (1 - share) + piece[right] * share
        piece = _at_unit_power(piece)
        if len(piece) < self.cfg.samples:
            piece = self._fill(rng, piece)
        return clip, piece

    def _piece(self, rng: np.random.Generator, clip: int, length: int, need: int) -> np.ndarray:
        if length <= need:
            return self.bank.samples(clip)
        best, best_power = np.zeros(need, dtype=np.float32), -1.0
        for _ in range(3):  # prefer a place with sound
            piece = self.bank.samples(clip, int(rng.integers(length - need)), need)
            power = float(np.square(piece).mean())
            if power > 1e-4:
                return piece
            if power > best_power:
                best, best_power = piece, power
        return best

    def _fill(self, rng: np.random.Generator, piece: np.ndarray) -> np.ndarray:
        """Tile a short piece, or leave it alone somewhere in silence."""
        samples = self.cfg.samples
        if rng.random() < self.cfg.tile:
            gap = np.zeros(int(rng.integers(0, 1 + len(piece) // 2)), dtype=np.float32)
            unit = np.concatenate([piece, gap])
            repeated = np.tile(unit, -(-samples // max(1, len(unit))) + 1)
            start = int(rng.integers(len(unit)))
            return repeated[start : start + samples]
        out = np.zeros(samples, dtype=np.float32)
        start = int(rng.integers(samples - len(piece) + 1))
        out[start : start + len(piece)] = piece
        return out


def _at_unit_power(piece: np.ndarray) -> np.ndarray:
    """Scale to power 0.01 over the frames within 30 dB of the loudest; silence stays silence."""
    usable = piece[: len(piece) // 256 * 256].reshape(-1, 256)
    powers = np.square(usable).mean(axis=1) if len(usable) else np.square(piece).mean(keepdims=True)
    loud = powers[powers > powers.max(initial=0.0) * 1e-3]
    if len(loud) == 0 or loud.mean() < 1e-12:
        return piece.astype(np.float32)
    return (piece * np.float32(0.1 / np.sqrt(loud.mean()))).astype(np.float32)
