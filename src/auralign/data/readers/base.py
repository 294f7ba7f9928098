"""What every reader returns: the clips found, what is missing, and what was noticed on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from auralign.data.clip import Clip
from auralign.data.readers.speech_base import SpeechPair
from auralign.errors import DataError

RULES: MappingProxyType[str, str] = MappingProxyType(
    {
        "dcase24t9": "noise scaled so that the ratio of mean powers is snr_db; if the mixture peaks above 1, "
        "source and mixture are multiplied by 0.9 / peak",
        "clipsep": "65,535 samples at 16 kHz around centres_s of each clip, short clips repeated, clipped to "
        "[-1, 1], every component divided by the number of components (no level normalisation)",
        "audiosep": "mixture and target were rendered beforehand and are read as they are",
        "bisep": "centred 131,070 samples at 16 kHz, zero-padded, every component divided by their number",
        "premixed": "only the mixture exists; targets are not published",
    }
)
"""Names of the mixing rules of published benchmarks, each with its definition."""


@dataclass(frozen=True)
class MixtureItem:
    """One mixture of a published benchmark list.

    Args:
        id: Unique within its list.
        target: Path of the sound asked for; empty if it is not published.
        interferers: Paths of the other sounds; empty if they are not on disk or not named.
        query: Text that asks for the target.
        snr_db: Level of the target over the interference, in dB; ``None`` if the rule fixes the level.
        mixture: Path of the rendered mixture, if the benchmark ships one.
        rule: Name of the mixing rule, a key of :data:`RULES`.
        labels: Class of the target, then of each interferer; empty if not stated.
        centres_s: Middle of the crop in the target, then in each interferer, in seconds.

    >>> MixtureItem("0", "a.wav", ("b.wav",), "dog", 3.0).rule
    'premixed'
    """

    id: str
    target: str
    interferers: tuple[str, ...]
    query: str
    snr_db: float | None = None
    mixture: str | None = None
    rule: str = "premixed"
    labels: tuple[str, ...] = ()
    centres_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A listed clip or mixture whose sound is not on disk.

    Args:
        id: Its id in the data set.
        where: Metadata file and line that list it.
        reason: What was looked for.
    """

    id: str
    where: str
    reason: str


@dataclass(frozen=True)
class ReadReport:
    """Counts of one reading.

    Args:
        found: Clips and mixtures whose sound is on disk.
        missing: Listed ones whose sound is not.
        skipped: Rows left out on purpose, by reason.
    """

    found: int
    missing: int
    skipped: dict[str, int]

    def __str__(self) -> str:
        left = "".join(f", {count} skipped ({reason})" for reason, count in self.skipped.items())
        return f"{self.found} found, {self.missing} missing{left}"


@dataclass(frozen=True)
class Reading:
    """Everything that a reader learned from a folder.

    Args:
        clips: Clips whose sound is on disk, in the order of the lists.
        missing: Clips and mixtures whose sound is not.
        notes: Things worth saying that are no errors.
        mixtures: Mixtures, for benchmark lists.
        skipped: Rows left out on purpose, by reason.
        pairs: Noisy recordings with their clean speech, for speech enhancement sets.

    >>> Reading(clips=(Clip("1", "a.wav"),)).report
    ReadReport(found=1, missing=0, skipped={})
    """

    clips: tuple[Clip, ...] = ()
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()
    mixtures: tuple[MixtureItem, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    pairs: tuple[SpeechPair, ...] = ()

    @property
    def report(self) -> ReadReport:
        """Counts of found, missing and skipped rows."""
        found = len(self.clips) + len(self.mixtures) + len(self.pairs)
        return ReadReport(found, len(self.missing), dict(self.skipped))


class Collector:
    """Gathers one reading: refuses repeated ids, counts what is missing, refuses an empty result.

    Args:
        dataset: Name of the data set, for clips and messages.
        root: Folder that is read.
    """

    def __init__(self, dataset: str, root: Path) -> None:
        self.dataset, self.root = dataset, root
        self._clips: list[Clip] = []
        self._mixtures: list[MixtureItem] = []
        self._pairs: list[SpeechPair] = []
        self._missing: list[Missing] = []
        self._notes: list[str] = []
        self._skipped: Counter[str] = Counter()
        self._claimed: dict[tuple[str, str], str] = {}

    def claim(self, name: str, where: str, *, what: str = "id") -> None:
        """Take an id; one that was taken before is an error that names both places."""
        first = self._claimed.get((what, name))
        self._claimed[what, name] = where
        if first is not None:
            raise DataError(
                f"{what} {name!r} occurs twice",
                where=where,
                why=f"first at {first}",
                hint="remove one of the two rows, or download the metadata again",
            )

    def clip(self, clip: Clip) -> None:
        """Add a clip whose sound is on disk."""
        self._clips.append(clip)

    def mixture(self, item: MixtureItem) -> None:
        """Add a mixture whose sounds are on disk."""
        self._mixtures.append(item)

    def pair(self, pair: SpeechPair) -> None:
        """Add a noisy recording whose sounds are on disk."""
        self._pairs.append(pair)

    def miss(self, name: str, where: str, reason: str) -> None:
        """Count a row whose sound is not on disk."""
        self._missing.append(Missing(name, where, reason))

    def skip(self, reason: str) -> None:
        """Count a row that is left out on purpose."""
        self._skipped[reason] += 1

    def note(self, text: str) -> None:
        """Say something that is no error, once."""
        if text not in self._notes:
            self._notes.append(text)

    def finish(self) -> Reading:
        """The reading; an error if nothing was found.

        Raises:
            DataError: If every sound is missing, or the lists hold no row at all.
        """
        reading = Reading(
            tuple(self._clips),
            tuple(self._missing),
            tuple(self._notes),
            tuple(self._mixtures),
            dict(self._skipped),
            tuple(self._pairs),
        )
        if reading.report.found:
            return reading
        if self._missing:
            first = self._missing[0]
            raise DataError(
                f"none of the {len(self._missing)} sounds listed by {self.dataset} is on disk",
                where=str(self.root),
                why=f"the first, {first.id!r} of {first.where}, was looked for as {first.reason}",
                hint="put the audio beside the metadata as docs/data.md shows, or give the folder of both",
            )
        why = f"all rows were skipped: {dict(self._skipped)}" if self._skipped else ""
        raise DataError(
            f"the lists of {self.dataset} hold no usable row",
            where=str(self.root),
            why=why,
            hint="download the metadata again, or read another split",
        )


def choose_splits(split: str | None, known: tuple[str, ...], dataset: str) -> tuple[str, ...]:
    """The splits to read: all known ones for ``None``, else the one asked for.

    >>> choose_splits("test", ("train", "test"), "X")
    ('test',)

    Raises:
        DataError: If the data set has no such split.
    """
    if split is None:
        return known
    if split not in known:
        raise DataError(
            f"{dataset} has no split {split!r}", where="split", hint=f"use one of {', '.join(known)}"
        )
    return (split,)


def words(label: str) -> str:
    """A label as words: underscores become spaces, so that it can be a query.

    >>> words("acoustic_guitar ")
    'acoustic guitar'
    """
    return " ".join(label.replace("_", " ").split())
