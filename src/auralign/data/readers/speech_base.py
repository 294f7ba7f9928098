"""A noisy recording with its clean speech, as the readers of speech enhancement sets find them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from auralign.audio.io import AudioInfo, probe
from auralign.data.readers.layout import AUDIO_SUFFIXES
from auralign.errors import DataError

RATE_HZ = 16_000


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
            same_length(pair, frames_at_16_khz(clean), frames_at_16_khz(noisy), slack(clean, noisy, cut_s))
    return replace(pair, rate_hz=noisy.rate_hz, duration_s=noisy.duration_s)


def frames_at_16_khz(info: AudioInfo) -> float:
    """Length in samples of 16 kHz, before rounding."""
    return (info.frames or 0) * RATE_HZ / info.rate_hz


def slack(clean: AudioInfo, noisy: AudioInfo, cut_s: float) -> float:
    """Samples of 16 kHz by which lengths may differ: what is cut, and one that rounding costs at unequal rates."""
    return cut_s * RATE_HZ + (1.0 if clean.rate_hz != noisy.rate_hz else 1e-6)


def same_length(pair: SpeechPair, clean: float, noisy: float, most: float) -> None:
    """Raise unless both lengths (in samples of 16 kHz) differ by at most ``most``."""
    if abs(clean - noisy) <= most:
        return
    raise DataError(
        f"the clean speech lasts {clean / RATE_HZ:.4f} s, the noisy recording {noisy / RATE_HZ:.4f} s",
        where=pair.noisy,
        why=f"the clean speech is {pair.clean}",
        hint=f"download both again, or allow it with cut_s={abs(clean - noisy) / RATE_HZ + 5e-5:.4f}",
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
