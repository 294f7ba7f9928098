"""A noisy recording with its clean speech, as the readers of speech enhancement sets find them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from auralign.audio.io import probe
from auralign.data.readers.layout import AUDIO_SUFFIXES
from auralign.errors import DataError

RATE_HZ = 16_000

Length = tuple[int, int]
"""Samples and their rate in Hz."""


@dataclass(frozen=True)
class SpeechPair:
    """One item of a speech enhancement set; empty strings and ``None`` mean "not stated by the set".

    Args:
        id: Unique within its data set.
        noisy: Path of the recording to enhance.
        clean: Path of the clean speech; ``None`` for a real recording.
        speaker: Who speaks.
        noise: Kind of noise, or the name of its recording.
        snr_db: Level of the speech over the noise, in dB, as the set states it.
        text: What is said.
        noise_audio: Path of the noise alone, if the set ships it.
        split: Part of the data set.
        source: Where the recording came from, as the set names it.
        dataset: Data set that the pair belongs to.
        rate_hz: Rate of the noisy file, from its header.
        duration_s: Length of the noisy file in seconds, from its header.

    >>> SpeechPair("p232_001", "noisy/p232_001.wav", "clean/p232_001.wav", snr_db=2.5).snr_db
    2.5
    """

    id: str
    noisy: str
    clean: str | None = None
    speaker: str = ""
    noise: str = ""
    snr_db: float | None = None
    text: str = ""
    noise_audio: str | None = None
    split: str = ""
    source: str = ""
    dataset: str = ""
    rate_hz: int | None = None
    duration_s: float | None = None


def with_header(pair: SpeechPair, *, cut_s: float = 0.0) -> SpeechPair:
    """The pair with rate and length from the header of its noisy file, after both headers were compared.

    Args:
        pair: A pair whose files exist.
        cut_s: By how much the lengths may differ, in seconds.

    Raises:
        AudioError: If a file cannot be opened.
        DataError: If the lengths differ by more.
    """
    noisy = probe(pair.noisy)
    if pair.clean is not None:
        clean = probe(pair.clean)
        if noisy.frames is not None and clean.frames is not None:
            lengths = (clean.frames, clean.rate_hz), (noisy.frames, noisy.rate_hz)
            same_length(pair, clean=lengths[0], noisy=lengths[1], cut_s=cut_s)
    return replace(pair, rate_hz=noisy.rate_hz, duration_s=noisy.duration_s)


def same_length(pair: SpeechPair, *, clean: Length, noisy: Length, cut_s: float) -> None:
    """Raise if the lengths of a pair differ by more than ``cut_s``; unequal rates may cost a sample of 16 kHz more."""
    apart_s = abs(clean[0] / clean[1] - noisy[0] / noisy[1])
    rounding_s = 1 / RATE_HZ if clean[1] != noisy[1] else 1e-9
    if apart_s <= cut_s + rounding_s:
        return
    raise DataError(
        f"the clean speech has {clean[0]} samples at {clean[1]} Hz, the noisy recording {noisy[0]} at {noisy[1]} Hz",
        where=pair.noisy,
        why=f"the clean speech is {pair.clean}",
        hint=f"download both again, or allow it with cut_s={math.ceil(apart_s * 1e4) / 1e4:.4f}",
    )


def sounds_in(folder: Path) -> dict[str, Path]:
    """The sounds of a folder by their stem, in order; hidden files (as macOS leaves in archives) are none.

    Raises:
        DataError: If two sounds have one stem.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in AUDIO_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                f"{path.stem!r} is there twice, as {found[path.stem].name} and {path.name}",
                where=str(folder),
                hint="remove one of the two",
            )
        found[path.stem] = path
    return found
