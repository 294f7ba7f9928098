"""Captioned recordings held in memory: what BiSep learns from. Nothing here knows a single source."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from auralign.data.clip import Clip
from auralign.data.manifest import read_manifest
from auralign.data.readers.audiocaps import read_bisep_audiocaps
from auralign.data.sound_bank import SoundBank
from auralign.errors import DataError

log = logging.getLogger(__name__)

_PARSED = "parsed_all_caps.json"
_RMS = 0.1
_TRIES = 3  # crops looked at before a quiet one is taken


@dataclass(frozen=True)
class Recording:
    """A stretch of one recording with its texts, at a root mean square of 0.1."""

    wave: Float32[np.ndarray, "time"]
    caption: str
    phrases: tuple[str, ...]


class CaptionedSounds:
    """Some splits of a captioned corpus, decoded once to 16 kHz and cut at random.

    Args:
        clips: Recordings, each with a caption; without phrases, the caption is its own only phrase.
        root: Folder that their paths are relative to.
        samples: Length of a stretch.
        cache: Folder for the decoded samples.
    """

    def __init__(self, clips: Sequence[Clip], root: Path, *, samples: int, cache: Path | None = None) -> None:
        bare = [clip.id for clip in clips if not clip.captions]
        if bare:
            raise DataError(
                f"the recording {bare[0]!r} has no caption",
                where=str(root),
                why=f"so it is with {len(bare)} of {len(clips)}",
                hint="write the field captions of each line of manifest.jsonl, or leave the line out",
            )
        self.clips, self.samples = list(clips), samples
        self._bank = SoundBank(clips, root, cache=cache)

    def __len__(self) -> int:
        return len(self.clips)

    def phrases(self, index: int) -> tuple[str, ...]:
        """The phrases of a recording, each once."""
        clip = self.clips[index]
        return tuple(dict.fromkeys(clip.phrases or clip.captions[:1]))

    def texts(self) -> list[str]:
        """Every caption and phrase once, in order of appearance."""
        both = (text for n, clip in enumerate(self.clips) for text in (*clip.captions, *self.phrases(n)))
        return list(dict.fromkeys(both))

    def cut(self, rng: np.random.Generator, index: int) -> Recording:
        """A random stretch that holds sound if any does; shorter recordings are repeated."""
        length = self._bank.clips[index].length
        best, loudest = np.zeros(self.samples, dtype=np.float32), -1.0
        for _ in range(_TRIES):
            start = int(rng.integers(length - self.samples + 1)) if length > self.samples else 0
            wave = np.resize(self._bank.samples(index, start, self.samples), self.samples)
            power = float(np.square(wave).mean())
            if power > loudest:
                best, loudest = wave, power
            if power > 1e-4:
                break
        best = best * np.float32(_RMS / max(1e-5, loudest**0.5))
        captions = self.clips[index].captions
        caption = captions[int(rng.integers(len(captions)))] if len(captions) > 1 else captions[0]
        return Recording(best.astype(np.float32), caption, self.phrases(index))


def load_captioned(root: Path, splits: Sequence[str], *, samples: int, share: float = 1.0) -> CaptionedSounds:
    """Recordings of some splits of a captioned corpus, or of AudioCaps as BiSep lays it out.

    Args:
        root: Folder with ``manifest.jsonl``, or with ``parsed_all_caps.json``, lists of ids and ``audio/`` (see
            :func:`~auralign.data.readers.audiocaps.read_bisep_audiocaps`).
        splits: Names of splits.
        samples: Length of a stretch.
        share: Only the first share of the recordings, in the manifest's order.

    Raises:
        DataError: The folder is no corpus, or has no recording in these splits.
    """
    if (root / "manifest.jsonl").exists():
        every = read_manifest(root / "manifest.jsonl")
    elif (root / _PARSED).exists():
        every = _audiocaps(root, splits)
    else:
        raise DataError(
            "no captioned corpus is there",
            where=str(root),
            hint=f"make it with: auralign data build captions --from corpora/soundbox --out {root}",
        )
    clips = [clip for clip in every if clip.split in splits]
    if not clips:
        known = ", ".join(sorted({clip.split for clip in every})) or "train, and val with a val_ids.csv"
        raise DataError(
            f"no recording is in the split {' or '.join(splits)}", where=str(root), hint=f"splits: {known}"
        )
    kept = clips[: max(1, round(share * len(clips)))]
    return CaptionedSounds(kept, root, samples=samples, cache=root / ".cache")


def _audiocaps(root: Path, splits: Sequence[str]) -> list[Clip]:
    """Clips of the reader's splits; those whose sound is not on disk are counted, not hidden."""
    found: list[Clip] = []
    for split in dict.fromkeys(splits):
        reading = read_bisep_audiocaps(root, split=split)
        if reading.missing:
            log.warning("%s: %d clips of %s have no sound on disk", root, len(reading.missing), split)
        found += [replace(clip, audio=str(Path(clip.audio).resolve())) for clip in reading.clips]
    return found
