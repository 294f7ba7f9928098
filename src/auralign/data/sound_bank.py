"""A corpus held in memory as decoded samples, ready for on-the-fly mixing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from auralign.data.clip import Clip
from auralign.errors import DataError


@dataclass(frozen=True)
class BankClip:
    """A clip of the bank: where its samples are and what it is."""

    clip: Clip
    start: int
    length: int

    @property
    def label(self) -> str:
        """Its first class."""
        return self.clip.labels[0]


class SoundBank:
    """Decoded mono sound of many clips in one int16 array, cached beside the corpus.

    Args:
        clips: The clips to hold, with paths relative to ``root``.
        root: Folder of the corpus.
        rate_hz: Sample rate to hold; other rates are resampled once.
        cache: Folder for the decoded array; ``None`` decodes every time.
    """

    def __init__(
        self, clips: Iterable[Clip], root: Path, *, rate_hz: int = 16_000, cache: Path | None = None
    ) -> None:
        self.rate_hz = rate_hz
        self.root = root
        wanted = list(clips)
        if not wanted:
            raise DataError("no clip to load", where=str(root), hint="check the split's name")
        self._samples, lengths = self._load(wanted, cache)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        self.clips = [
            BankClip(clip, int(start), int(length))
            for clip, start, length in zip(wanted, starts, lengths, strict=False)
        ]
        self.by_id = {entry.clip.id: n for n, entry in enumerate(self.clips)}

    def samples(self, index: int, start: int = 0, length: int | None = None) -> Float[np.ndarray, "time"]:
        """Float32 samples of clip ``index`` from ``start``, shorter where the clip ends."""
        entry = self.clips[index]
        stop = entry.length if length is None else min(entry.length, start + length)
        part = self._samples[entry.start + start : entry.start + stop]
        return part.astype(np.float32) / 32_768

    def labels(self) -> list[str]:
        """All classes, sorted."""
        return sorted({entry.label for entry in self.clips})

    def _load(self, clips: Sequence[Clip], cache: Path | None) -> tuple[np.ndarray, np.ndarray]:
        key = hashlib.sha256(
            json.dumps([self.rate_hz, [(c.id, c.audio, c.sha256, c.offset_s) for c in clips]]).encode()
        ).hexdigest()[:16]
        if cache is not None and (cache / f"{key}.npy").exists() and (cache / f"{key}.len.npy").exists():
            return np.load(cache / f"{key}.npy", mmap_mode="r"), np.load(cache / f"{key}.len.npy")
        parts = [self._decode(clip) for clip in clips]
        samples = np.concatenate(parts)
        lengths = np.array([len(part) for part in parts])
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            for name, array in ((f"{key}.len.npy", lengths), (f"{key}.npy", samples)):
                temporary = cache / f".{name}.{os.getpid()}.tmp.npy"  # several processes may do this at once
                np.save(temporary, array)
                temporary.rename(cache / name)
        return samples, lengths

    def _decode(self, clip: Clip) -> np.ndarray:
        path = self.root / clip.audio
        try:
            with soundfile.SoundFile(path) as file:
                if clip.offset_s:
                    file.seek(round(clip.offset_s * file.samplerate))
                frames = -1 if clip.duration_s is None else round(clip.duration_s * file.samplerate)
                wave = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
                rate = file.samplerate
        except (OSError, soundfile.SoundFileError) as error:
            raise DataError(
                "the clip cannot be read", where=str(path), why=str(error), hint="build the corpus again"
            ) from error
        if rate != self.rate_hz:
            wave = soxr.resample(wave, rate, self.rate_hz)
        if len(wave) == 0 or not np.isfinite(wave).all():
            raise DataError("the clip is empty or not finite", where=str(path), hint="build the corpus again")
        samples: np.ndarray = np.round(np.clip(wave, -1, 1) * 32_767).astype(np.int16)
        return samples
