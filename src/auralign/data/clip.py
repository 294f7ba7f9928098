"""One sound on disk and everything that is known about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clip:
    """One line of a manifest: a sound (or a piece of one) with its texts, labels and origin.

    Empty strings, empty tuples and ``None`` mean "not stated by the data set"; nothing is guessed.

    Args:
        id: Unique within its data set, stable between machines.
        audio: Path of the sound: absolute, or relative to the folder of the manifest.
        duration_s: Length of the clip in seconds.
        sample_rate: Samples per second of the stored sound, Hz.
        channels: Number of stored channels.
        captions: Sentences that describe the clip.
        labels: Classes of the clip.
        kind: ``instrument``, ``event`` or ``speech``.
        split: Part of the data set (``train``, ``val``, ``test`` ...).
        source: Recording or source group; clips of one source never cross a split.
        package: Package that the recording was taken from.
        version: Version of that package or data set.
        source_path: Path of the recording inside its package or archive.
        license: Licence of the recording.
        sha256: SHA-256 of the source bytes, hexadecimal.
        speaker: Who speaks, if anybody.
        soundfont: Soundfont of a rendered clip.
        pictures: Paths of pictures that show the source.
        offset_s: Where the clip starts inside the sound file, in seconds.
        dataset: Data set that the clip belongs to.
        phrases: Parts of the caption, each about one sound, as a phrase extractor found them.
        language: Language that is spoken, as an ISO 639 code.

    >>> Clip("7", "rain.wav", labels=("rain",)).labels
    ('rain',)
    """

    id: str
    audio: str
    duration_s: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    kind: str = ""
    split: str = ""
    source: str = ""
    package: str = ""
    version: str = ""
    source_path: str = ""
    license: str = ""
    sha256: str = ""
    speaker: str = ""
    soundfont: str = ""
    pictures: tuple[str, ...] = ()
    offset_s: float = 0.0
    dataset: str = ""
    phrases: tuple[str, ...] = ()
    language: str = ""
