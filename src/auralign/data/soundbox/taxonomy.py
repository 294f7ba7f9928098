"""What each recording is: classes, the packages they come from, and which files belong to which class.

The tables under `taxonomy/` were curated by hand from file names, the descriptions that come with
the pictures, durations, and YAMNet's opinion of each file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from auralign.errors import DataError

FOLDER = Path(__file__).parent / "taxonomy"
_EVENT_FILES = ("animals.toml", "things.toml", "nature_people.toml")
_INSTRUMENT_FILES = ("drums.toml", "instruments.toml")
_TAKE = re.compile(r"[-_. ]*(?:\d+|hardest|hard|med|softest|soft|fast)$", re.IGNORECASE)


@dataclass(frozen=True)
class Package:
    """A Debian package: name, short name used in the tables, licence of its sounds, kept from training."""

    name: str
    short: str
    license: str
    cross: bool = False


@dataclass(frozen=True)
class Pattern:
    """Which files of a package belong to a class, and how they group into sources."""

    package: str
    glob: str
    each: bool = False
    source: str = ""

    def matches(self, path: str) -> bool:
        """Say whether the end of `path` fits; `*` and `?` also match slashes."""
        return fnmatchcase(path, "*/" + self.glob)

    def source_of(self, path: str) -> str:
        """Name the recording session a file belongs to.

        >>> Pattern("widelands-data", "bird1_*.ogg").source_of("/sound/animals/bird1_02.ogg")
        'widelands-data/sound/animals/bird1'
        """
        if self.source:
            return self.source
        folder, _, name = path.rpartition("/")
        stem = name.rpartition(".")[0]
        if not self.each:
            stem = _TAKE.sub("", stem) or stem
        return f"{self.package}/{'/'.join(folder.split('/')[-2:])}/{stem}".lower().replace("//", "/")


@dataclass(frozen=True)
class Speaker:
    """Someone who speaks: utterances of one speaker are joined into clips."""

    id: str
    pattern: Pattern


@dataclass(frozen=True)
class SoundClass:
    """One class of sound: how it is said, what it looks like, and where its recordings are.

    Args:
        name: Plain English name, also the first way to ask for it.
        kind: "event", "instrument" or "speech".
        texts: Ways to say it that training may use; the name is the first.
        texts_test: Ways to say it that are kept for testing.
        audio: Recordings.
        pictures: Ends of picture paths in the package of pictures.
        unseen: The class stays out of training.
        rhythm: Shortest and longest period, in seconds, for stringing single strokes together.
        max_s: Longest clip.
        programs: General MIDI programs that render it.
        range: Lowest and highest MIDI pitch.
        voices: Notes at once.
        speakers: Speakers, for speech.
    """

    name: str
    kind: str
    texts: tuple[str, ...]
    texts_test: tuple[str, ...]
    audio: tuple[Pattern, ...] = ()
    pictures: tuple[str, ...] = ()
    unseen: bool = False
    rhythm: tuple[float, float] | None = None
    max_s: float = 30.0
    programs: tuple[int, ...] = ()
    range: tuple[int, int] = (48, 84)
    voices: int = 1
    speakers: tuple[Speaker, ...] = ()


@dataclass(frozen=True)
class Taxonomy:
    """All classes and packages, which classes may not meet, and sources whose split is settled."""

    packages: Mapping[str, Package]
    classes: Mapping[str, SoundClass]
    confusable: frozenset[frozenset[str]] = field(default_factory=frozenset)
    pinned: Mapping[str, str] = field(default_factory=dict)

    def clash(self, one: str, other: str) -> bool:
        """Say whether two classes are the same, near-synonyms, or part of each other."""
        if one == other:
            return True
        if "music" in (one, other):
            names = {one, other} - {"music"}
            return any(self.classes[name].kind == "instrument" for name in names if name in self.classes)
        return frozenset((one, other)) in self.confusable


def load(folder: Path = FOLDER) -> Taxonomy:
    """Read the tables; `folder` may hold other ones of the same form.

    Raises:
        DataError: A table is not valid, or names a package that does not exist.
    """
    packages = [
        Package(name, row.get("short", name), row["license"], bool(row.get("cross", False)))
        for name, row in _read(folder / "packages.toml").items()
    ]
    short = {package.short: package.name for package in packages}
    classes: dict[str, SoundClass] = {}
    for file, kind in [
        *((name, "event") for name in _EVENT_FILES),
        *((name, "instrument") for name in _INSTRUMENT_FILES),
        ("speech.toml", "speech"),
    ]:
        if not (folder / file).is_file():
            continue
        for name, row in _read(folder / file).items():
            if name in classes:
                raise DataError(f"class {name!r} is defined twice", where=str(folder / file))
            classes[name] = _sound_class(name, kind, row, short, folder / file)
    sets: Iterable[list[str]] = []
    if (folder / "confusable.toml").is_file():
        sets = _read(folder / "confusable.toml")["sets"]
    pinned: dict[str, str] = {}
    if (folder / "splits.toml").is_file():
        rows = _read(folder / "splits.toml")
        pinned = {source: split for split, sources in rows.items() for source in sources}
    return Taxonomy({p.name: p for p in packages}, classes, _pairs(sets, classes), pinned)


def _pairs(sets: Iterable[list[str]], classes: Mapping[str, SoundClass]) -> frozenset[frozenset[str]]:
    pairs = set()
    for names in sets:
        for name in names:
            if name not in classes:
                raise DataError(f"the confusable sets name an unknown class, {name!r}")
        pairs |= {frozenset((a, b)) for a in names for b in names if a != b}
    return frozenset(pairs)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DataError("the taxonomy table cannot be read", where=str(path), why=str(error)) from error


def _pattern(text: str, short: Mapping[str, str], where: Path) -> Pattern:
    package, _, rest = text.partition(":")
    if package.strip() not in short:
        raise DataError(f"unknown package {package.strip()!r} in {text!r}", where=str(where))
    glob, _, flag = rest.strip().partition(" @")
    source = flag.removeprefix("as ").strip() if flag.startswith("as ") else ""
    if flag and not source and flag.strip() != "each":
        raise DataError(f"unknown mark @{flag} in {text!r}", where=str(where))
    return Pattern(short[package.strip()], glob.strip(), flag.strip() == "each", source)


def _sound_class(
    name: str, kind: str, row: Mapping[str, Any], short: Mapping[str, str], where: Path
) -> SoundClass:
    try:
        rhythm = row.get("rhythm")
        low, high = row.get("range", (48, 84))
        return SoundClass(
            name=name,
            kind=kind,
            texts=(name, *(text for text in row["texts"] if text != name)),
            texts_test=tuple(row["texts_test"]),
            audio=tuple(_pattern(text, short, where) for text in row.get("audio", ())),
            pictures=tuple(row.get("pictures", ())),
            unseen=bool(row.get("unseen", False)),
            rhythm=(float(rhythm[0]), float(rhythm[1])) if rhythm else None,
            max_s=float(row.get("max_s", 30.0)),
            programs=tuple(row.get("programs", ())),
            range=(int(low), int(high)),
            voices=int(row.get("voices", 1)),
            speakers=tuple(
                Speaker(item["id"], _pattern(item["audio"], short, where)) for item in row.get("speakers", ())
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"class {name!r} is not valid", where=str(where), why=f"{type(error).__name__}: {error}"
        ) from error
