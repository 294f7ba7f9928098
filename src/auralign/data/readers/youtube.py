"""Clips of YouTube videos: their key, and the file names under which data sets store them.

A video id has exactly 11 characters, may hold ``_`` and may start with ``-``; a name is therefore never split
on ``_``. The key of a clip is the id and the second at which it starts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from auralign.data.readers.layout import AUDIO_SUFFIXES, Listing
from auralign.data.readers.tables import Row

_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_NAME = re.compile(
    r"(?P<id>[A-Za-z0-9_-]{11})(?:_(?P<start>\d+))?|Y(?P<yid>[A-Za-z0-9_-]{11})(?:_(?P<part>\d+))?"
)

CONVENTIONS = ("id_start", "id_start6", "Yid", "c1/c2/id", "label/id", "id")
"""File-name conventions in the order of probing; the last is a bare ``<id>`` in a flat folder."""


@dataclass(frozen=True)
class YoutubeKey:
    """A clip of a video.

    Args:
        id: Video id, 11 characters.
        start_s: Second at which the clip starts; ``None`` for a whole video.

    >>> YoutubeKey("-a_bcdefghi", 30).name
    '-a_bcdefghi_30'
    """

    id: str
    start_s: int | None = None

    @property
    def name(self) -> str:
        """``id`` or ``id_start``, the stable name of the clip."""
        return self.id if self.start_s is None else f"{self.id}_{self.start_s}"


def is_youtube_id(text: str) -> bool:
    """Whether the text has the form of a video id.

    >>> is_youtube_id("--PJHxphWEs"), is_youtube_id("short")
    (True, False)
    """
    return _ID.fullmatch(text) is not None


def parse_clip_name(stem: str) -> YoutubeKey | None:
    """The key in a file name without suffix (``id``, ``id_start``, ``Yid`` or ``Yid_part``), or ``None``.

    >>> parse_clip_name("-0_1_2_3_4x_000030")
    YoutubeKey(id='-0_1_2_3_4x', start_s=30)
    >>> parse_clip_name("Y1mCi6eWXVbg_0")
    YoutubeKey(id='1mCi6eWXVbg', start_s=None)
    """
    match = _NAME.fullmatch(stem)
    if match is None:
        return None
    if match["yid"]:
        return YoutubeKey(match["yid"])
    return YoutubeKey(match["id"], None if match["start"] is None else int(match["start"]))


def youtube_key(row: Row, column: str, start: str | None = None) -> YoutubeKey:
    """The key in two columns of a row.

    Raises:
        DataError: If the id has not 11 characters or the start is no whole second ≥ 0.
    """
    name = row[column]
    if not is_youtube_id(name):
        hint = "a name was split on '_', which ids may hold" if len(name) < 11 else ""
        raise row.bad(column, f"expected a video id of 11 characters, this has {len(name)}", hint=hint)
    if start is None:
        return YoutubeKey(name)
    seconds = row.number(start)
    if seconds < 0 or seconds != int(seconds):
        raise row.bad(start, "expected a whole number of seconds, 0 or more")
    return YoutubeKey(name, int(seconds))


@dataclass
class YoutubeFiles:
    """Finds the file of a clip by probing the naming conventions in each folder.

    A convention without start second cannot tell two clips of one video apart: for videos that ``keys`` lists
    with more than one start it is not used, so nothing is guessed.

    Args:
        folders: Folders to probe, in order.
        keys: All keys that will be asked for.
        hits: How often each convention found a file.
        misses: How many keys have no file.
        ambiguous: How many keys have files under several conventions; the first is taken.
    """

    folders: Sequence[Path]
    keys: Iterable[YoutubeKey] = ()
    hits: Counter[str] = field(default_factory=Counter)
    misses: int = 0
    ambiguous: int = 0

    def __post_init__(self) -> None:
        starts: dict[str, set[int | None]] = {}
        for key in self.keys:
            starts.setdefault(key.id, set()).add(key.start_s)
        self._several = {name for name, seconds in starts.items() if len(seconds) > 1}
        self._files = Listing()

    def names(self, key: YoutubeKey, label: str = "") -> list[tuple[str, str]]:
        """Pairs of convention and relative path without suffix, in probing order."""
        found = []
        if key.start_s is not None:
            found += [("id_start", f"{key.id}_{key.start_s}"), ("id_start6", f"{key.id}_{key.start_s:06d}")]
        if key.id in self._several:
            return found
        found += [("Yid", f"Y{key.id}"), ("c1/c2/id", f"{key.id[0]}/{key.id[1]}/{key.id}")]
        for folder in dict.fromkeys((label, label.replace(" ", "_"), label.replace("_", " "))):
            if folder and "/" not in folder and folder not in (".", ".."):
                found.append(("label/id", f"{folder}/{key.id}"))
        return [*found, ("id", key.id)]

    def find(self, key: YoutubeKey, label: str = "") -> Path | None:
        """The file of a clip, or ``None``; counts hits and misses."""
        found: dict[str, Path] = {}
        for convention, name in self.names(key, label):
            path = self._files.first(self.folders, (name,))
            if path is not None and path not in found.values():
                found.setdefault(convention, path)
        if not found:
            self.misses += 1
            return None
        self.ambiguous += len(found) > 1
        convention = next(iter(found))
        self.hits[convention] += 1
        return found[convention]

    def looked_for(self, key: YoutubeKey, label: str = "") -> str:
        """What was probed for a key, for messages."""
        names = ", ".join(name for _, name in self.names(key, label))
        places = ", ".join(str(folder) for folder in self.folders) or "no folder"
        several = " (a video with several clips: names without a start second are not used)"
        kinds = ",".join(AUDIO_SUFFIXES)
        return f"{{{names}}}{{{kinds}}} in {places}{several if key.id in self._several else ''}"

    def notes(self) -> list[str]:
        """Counts of hits by convention, misses and ambiguities, as sentences."""
        counts = ", ".join(f"{count} as {name}" for name, count in self.hits.items()) or "none"
        found = [f"files found: {counts}; not found: {self.misses}"]
        if self.ambiguous:
            found.append(
                f"{self.ambiguous} clips have files under several names; the first convention was taken"
            )
        return found


def split_clip_file(row: Row, column: str) -> YoutubeKey:
    """The key in a column that holds a file name such as ``<id>_<start:06d>.mp4``.

    Raises:
        DataError: If the name has no such form.
    """
    key = parse_clip_name(Path(row.text(column)).stem)
    if key is None:
        raise row.bad(column, "expected <video id>_<start second> and a suffix")
    return key
