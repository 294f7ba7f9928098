"""Noisy speech made on the fly: any step's batch follows from the seed and the step alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from auralign.data.manifest import read_manifest
from auralign.data.mixtures import active_power
from auralign.data.sound_bank import SoundBank
from auralign.data.speech_effects import band_limited, clipped, hiss, played
from auralign.data.speech_mix_config import SpeechBatch, SpeechMixConfig
from auralign.data.speech_noise import MUSIC, noise_clips
from auralign.data.speech_recipes import (
    RATE_HZ,
    Mono,
    NoisePart,
    RoomDraw,
    SpeechRecipe,
    Spoken,
    lay_out,
    received,
    repeat,
    room_filter,
)
from auralign.errors import DataError

__all__ = ["SpeechBatch", "SpeechMixConfig", "SpeechMixer"]

_ROOM_SEEDS = {"train": 1_000_000, "val": 2_000_000, "test": 3_000_000}
_TRIES = 20
_LEVEL_DB = -26.0  # of every recording of an utterance, while it is active
_PEAK = 0.99


class SpeechMixer:
    """Draws a speaker, an utterance, a room and noise, and sets their levels.

    Args:
        speech: Decoded speech of one split.
        noise: Decoded noise of one split.
        split: ``train``, ``val`` or ``test``; it selects the rooms.
        cfg: Ranges.
    """

    def __init__(self, speech: SoundBank, noise: SoundBank, split: str, cfg: SpeechMixConfig) -> None:
        self.speech, self.noise, self.cfg, self.split = speech, noise, cfg, split
        speakers: dict[str, list[int]] = defaultdict(list)
        for index, entry in enumerate(speech.clips):
            speakers[entry.clip.speaker].append(index)
        self._speakers = {name: np.array(own) for name, own in sorted(speakers.items())}
        seconds = [sum(speech.clips[i].length for i in own) / RATE_HZ for own in self._speakers.values()]
        self._chance = np.sqrt(seconds) / np.sqrt(seconds).sum()
        self._music, self._events = _by_class(noise, music=True), _by_class(noise, music=False)
        first = _ROOM_SEEDS[split]
        self._draws = [RoomDraw(first + n, *cfg.rt60_s) for n in range(cfg.rooms if cfg.reverberant else 0)]
        self._rooms = [room_filter(draw, early_s=cfg.early_s) for draw in self._draws]
        self._power: dict[int, float] = {}

    @classmethod
    def load(
        cls,
        corpus: Path,
        soundbox: Path,
        split: str = "train",
        cfg: SpeechMixConfig | None = None,
        *,
        cache: Path | None = None,
    ) -> SpeechMixer:
        """Load one split of a speech corpus and of the soundbox's noise.

        Args:
            corpus: Folder made by `auralign data build speech`.
            soundbox: Folder made by `auralign data build soundbox`.
            split: ``train``, ``val`` or ``test``.
            cfg: Ranges.
            cache: Folder for decoded sound; decoded every time if not given.

        Raises:
            DataError: The split is unknown, or a corpus is missing, damaged or empty.
        """
        if split not in _ROOM_SEEDS:
            raise DataError(f"there is no split {split!r}", hint=f"splits: {', '.join(_ROOM_SEEDS)}")
        words = [clip for clip in read_manifest(corpus / "manifest.jsonl") if clip.split == split]
        sounds = noise_clips(read_manifest(soundbox / "manifest.jsonl"), split)
        return cls(
            SoundBank(words, corpus, cache=cache),
            SoundBank(sounds, soundbox, cache=cache),
            split,
            cfg or SpeechMixConfig(),
        )

    @property
    def speakers(self) -> tuple[str, ...]:
        """Everyone who may speak."""
        return tuple(self._speakers)

    def batch(self, rng: np.random.Generator, size: int) -> SpeechBatch:
        """One batch; ``rng`` decides everything."""
        cfg = self.cfg
        waves = np.zeros((4, size, cfg.samples), np.float32)
        snr = np.full(size, np.inf, np.float32)
        flags = np.zeros((2, size), bool)
        speakers: list[str] = []
        noises: list[tuple[str, ...]] = []
        for n in range(size):
            clean, heard, noise, info = self._draw(rng, cfg)
            noisy = heard + noise
            degraded = self._degrade(noisy, rng)
            waves[:, n] = clean, noisy if degraded is None else degraded, heard, noise
            snr[n], flags[:, n] = info.snr_db, (info.room is not None, degraded is not None)
            speakers.append(info.speaker)
            names = (self.noise.clips[self.noise.by_id[part.clip]].label for part in info.noise)
            noises.append(tuple(names) or (("hiss",) if np.isfinite(info.snr_db) else ()))
        clean_t, noisy_t, heard_t, noise_t = (torch.from_numpy(wave) for wave in waves)
        return SpeechBatch(
            clean_t,
            noisy_t,
            heard_t,
            noise_t,
            torch.from_numpy(snr),
            torch.from_numpy(flags[0]),
            torch.from_numpy(flags[1]),
            tuple(speakers),
            tuple(noises),
        )

    def draw_recipe(
        self, rng: np.random.Generator, name: str, *, cfg: SpeechMixConfig, speaker: str | None = None
    ) -> SpeechRecipe:
        """Draw a recipe that names clips only, so that it can be frozen.

        Args:
            rng: Decides everything.
            name: Its id.
            cfg: Ranges in place of the mixer's; the rooms stay. Speed, hiss, clipping and band limit must be off.
            speaker: Who speaks; anyone by default.
        """
        if cfg.speed or cfg.hiss or cfg.clipped or cfg.band_limited:
            raise DataError("a frozen recipe has no speed, hiss, clipping or band limit")
        return replace(self._draw(rng, cfg, speaker)[3], id=name)

    def _draw(
        self, rng: np.random.Generator, cfg: SpeechMixConfig, speaker: str | None = None
    ) -> tuple[Mono, Mono, Mono, SpeechRecipe]:
        """Clean, received, noise and what they are made of."""
        speaker, parts, spoken = self._utterance(rng, cfg, speaker)
        number = int(rng.integers(len(self._rooms))) if rng.random() < cfg.reverberant else -1
        heard, clean = received(spoken, self._rooms[number] if number >= 0 else None)
        low, high, _ = cfg.snr_db[_pick(rng, [share for _, _, share in cfg.snr_db])]
        snr_db = float(rng.uniform(low, high))
        sources: list[NoisePart] = []
        noise = np.zeros(cfg.samples, np.float32)
        if rng.random() < cfg.clean:
            snr_db = float("inf")
        elif rng.random() < cfg.hiss:
            noise = hiss(cfg.samples, slope=float(rng.uniform(0, 2)), generator=rng)
        else:
            sources, noise = self._noises(rng, cfg)
        if np.isfinite(snr_db):
            scale_db = (
                _db(active_power(heard)) - snr_db - _db(float(np.mean(np.square(noise, dtype=np.float64))))
            )
            noise = noise * np.float32(10 ** (scale_db / 20))
            sources = [replace(part, gain_db=part.gain_db + scale_db) for part in sources]
        gain_db = self._gain_db(heard + noise, rng, cfg)
        gain = np.float32(10 ** (gain_db / 20))
        recipe = SpeechRecipe(
            id="",
            samples=cfg.samples,
            speaker=speaker,
            speech=parts,
            noise=tuple(replace(p, gain_db=round(p.gain_db + gain_db, 3)) for p in sources),
            snr_db=round(snr_db, 3),
            gain_db=round(gain_db, 3),
            room=self._draws[number] if number >= 0 else None,
        )
        return clean * gain, heard * gain, noise * gain, recipe

    def _gain_db(self, noisy: Mono, rng: np.random.Generator, cfg: SpeechMixConfig) -> float:
        """Gain to the drawn level, less where the peak would leave full scale."""
        wanted = float(rng.uniform(*cfg.level_db)) - _db(float(np.mean(np.square(noisy, dtype=np.float64))))
        highest = float(np.abs(noisy).max())
        return min(wanted, 20 * float(np.log10(_PEAK / max(highest, 1e-9))))

    def _utterance(
        self, rng: np.random.Generator, cfg: SpeechMixConfig, speaker: str | None
    ) -> tuple[str, tuple[Spoken, ...], Mono]:
        """Recordings of one speaker, with pauses, until the time is filled."""
        speed = float(np.exp(rng.uniform(-1, 1) * np.log1p(cfg.speed)))
        samples = int(np.ceil(cfg.samples * speed)) + 1 if cfg.speed else cfg.samples
        for _ in range(_TRIES):
            name = speaker or self.speakers[int(rng.choice(len(self._speakers), p=self._chance))]
            parts = self._parts(rng, self._speakers[name], samples, cfg.pause_s)
            wave = lay_out(parts, self._read, samples)
            if active_power(wave) > 1e-6:  # an excerpt may lie in a pause
                break
        else:
            raise DataError("no utterance with speech in it was found", where=str(self.speech.root))
        return name, parts, played(wave, speed, cfg.samples) if cfg.speed else wave

    def _parts(
        self, rng: np.random.Generator, own: np.ndarray, samples: int, pause_s: tuple[float, float]
    ) -> tuple[Spoken, ...]:
        parts: list[Spoken] = []
        lead = int(rng.uniform(0, 0.4) * RATE_HZ)
        index = int(rng.choice(own))
        over = self.speech.clips[index].length - samples + lead
        start = int(rng.integers(over)) if over > 0 and rng.random() < 0.5 else 0
        at = 0 if start else lead
        while at < samples - RATE_HZ // 10:
            entry = self.speech.clips[index]
            gain_db = round(_LEVEL_DB - _db(self._active(index)) + float(rng.uniform(-2, 2)), 3)
            parts.append(Spoken(entry.clip.id, at, start, gain_db))
            at += entry.length - start + int(rng.uniform(*pause_s) * RATE_HZ)
            start, index = 0, int(rng.choice(own))
        return tuple(parts)

    def _noises(self, rng: np.random.Generator, cfg: SpeechMixConfig) -> tuple[list[NoisePart], Mono]:
        """One or two recordings, each at mean power 0.01; the second up to 10 dB below the first."""
        parts: list[NoisePart] = []
        total = np.zeros(cfg.samples, np.float32)
        for turn in range(2 if rng.random() < cfg.two_noises else 1):
            for _ in range(_TRIES):
                groups = self._music if rng.random() < cfg.music and self._music else self._events
                sources = groups[int(rng.integers(len(groups)))]
                source = sources[int(rng.integers(len(sources)))]
                index = source[int(rng.integers(len(source)))]
                entry = self.noise.clips[index]
                start = int(rng.integers(max(1, entry.length - cfg.samples // 2)))
                if entry.length >= start + cfg.samples:
                    wave = self.noise.samples(index, start, cfg.samples)
                else:
                    wave = repeat(self.noise.samples(index), start, cfg.samples)
                power = float(np.mean(np.square(wave, dtype=np.float64)))
                if power > 1e-8:
                    break
            else:
                raise DataError("no noise that can be heard was found", where=str(self.noise.root))
            gain_db = -20.0 - _db(power) - (float(rng.uniform(0, 10)) if turn else 0.0)
            parts.append(NoisePart(entry.clip.id, start, gain_db))
            total += wave * np.float32(10 ** (gain_db / 20))
        return parts, total

    def _degrade(self, noisy: Mono, rng: np.random.Generator) -> Mono | None:
        """Clip or low-pass some inputs; None for the others."""
        chance = float(rng.random())
        if chance < self.cfg.clipped:
            return clipped(noisy, float(rng.uniform(0.3, 0.8)))
        if chance < self.cfg.clipped + self.cfg.band_limited:
            return band_limited(noisy, float(rng.uniform(3400, 4000)))
        return None

    def _read(self, clip: str) -> Mono:
        return self.speech.samples(self.speech.by_id[clip])

    def _active(self, index: int) -> float:
        if index not in self._power:
            self._power[index] = max(active_power(self.speech.samples(index)), 1e-9)
        return self._power[index]


def _by_class(bank: SoundBank, *, music: bool) -> list[list[list[int]]]:
    """Clip numbers by class and recording; every class is as likely as another, and within it every recording."""
    tree: Mapping[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, entry in enumerate(bank.clips):
        if (entry.label == MUSIC) == music:
            tree[entry.label][entry.clip.source or entry.clip.id].append(index)
    return [[tree[label][source] for source in sorted(tree[label])] for label in sorted(tree)]


def _pick(rng: np.random.Generator, shares: list[float]) -> int:
    weights = np.array(shares) / sum(shares)
    return int(rng.choice(len(weights), p=weights))


def _db(power: float) -> float:
    return 10 * float(np.log10(max(power, 1e-12)))
