"""Finds the files of a data set below a folder, and says what is there when they are not."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from auralign.errors import DataError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4")
"""Kinds of files that may hold a clip, in the order in which they are tried."""


class Listing:
    """Answers whether files exist, by one listing per folder instead of one question per file."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], frozenset[str]] = {}

    def _below(self, folder: str, head: str) -> frozenset[str]:
        """Names in ``folder/head``; a folder is listed only if its parent names it."""
        names = self._names.get((folder, head))
        if names is None:
            parent, _, leaf = head.rpartition("/")
            there = not head or leaf in self._below(folder, parent)
            names = self._names[folder, head] = self._list(f"{folder}/{head}") if there else frozenset()
        return names

    @staticmethod
    def _list(folder: str) -> frozenset[str]:
        try:
            return frozenset(entry.name for entry in os.scandir(folder))
        except OSError:
            return frozenset()

    def holds(self, folder: Path, name: str) -> bool:
        """Whether the folder holds a file of that name; the name may be a relative path."""
        head, _, tail = name.rpartition("/")
        return tail in self._below(str(folder), head)

    def first(self, folders: Iterable[Path], stems: Sequence[str]) -> Path | None:
        """The first of folders × stems × audio suffixes that exists."""
        for folder in folders:
            place = str(folder)
            for stem in stems:
                head, _, tail = stem.rpartition("/")
                names = self._below(place, head)
                for suffix in AUDIO_SUFFIXES if names else ():
                    if tail + suffix in names:
                        return folder / (stem + suffix)
        return None


def safe_relative(name: str, where: str) -> PurePosixPath:
    """A relative path from a list, refused if it leaves its folder.

    Raises:
        DataError: If the path is empty or holds ``..``.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not name.strip() or ".." in path.parts:
        raise DataError(
            f"path {name!r} is empty or leaves the folder",
            where=where,
            hint="use paths below the data folder",
        )
    return path


class Rerooter:
    """Finds files of lists that were written on another machine, by the end of their paths.

    ``/somewhere/else/audio/dog/x.wav`` is looked for below each folder as ``somewhere/else/audio/dog/x.wav``,
    then ``else/audio/dog/x.wav``, and so on. What exists as written is taken as written.

    Args:
        folders: Folders to look in, in order.
        least: Number of trailing path parts that must agree.
    """

    def __init__(self, folders: Sequence[Path], *, least: int = 1) -> None:
        self.folders, self.least, self.rerooted = tuple(folders), least, 0
        self._files = Listing()

    def find(self, name: str, where: str) -> Path | None:
        """The file, or ``None``."""
        parts = [part for part in safe_relative(name, where).parts if part != "/"]
        if name.startswith("/") and self._files.holds(Path(name).parent, Path(name).name):
            return Path(name)
        for cut in range(max(1, len(parts) - self.least + 1)):
            for folder in self.folders:
                if self._files.holds(folder, "/".join(parts[cut:])):
                    self.rerooted += cut > 0
                    return folder.joinpath(*parts[cut:])
        return None


def need_folder(root: Path, dataset: str) -> Path:
    """The root as an existing folder.

    Raises:
        DataError: If there is no such folder.
    """
    root = Path(root).expanduser()
    if root.is_dir():
        return root.absolute()
    if root.exists():
        raise DataError(
            f"{dataset} is a folder, this is a file", where=str(root), hint="unpack the archive first"
        )
    parent = next((folder for folder in root.parents if folder.is_dir()), Path("."))
    near = difflib.get_close_matches(root.name, _subfolders(parent), 1)
    raise DataError(
        "no such folder",
        where=str(root),
        why=f"{parent} holds {_contents(parent)}",
        hint=f"did you mean {parent / near[0]}?" if near else f"give the folder that holds {dataset}",
    )


def find_any(root: Path, candidates: Sequence[str], *, kind: str = "any") -> Path | None:
    """The first candidate (relative path) that exists below the root; ``kind`` is file, folder or any."""
    for name in candidates:
        path = root / name
        if (kind != "folder" and path.is_file()) or (kind != "file" and path.is_dir()):
            return path
    return None


def find_folders(root: Path, candidates: Sequence[str]) -> list[Path]:
    """All candidate folders that exist below the root, in order; the root itself is ``"."``."""
    return [root / name if name != "." else root for name in candidates if (root / name).is_dir()]


def wrong_root(root: Path, candidates: Sequence[str], dataset: str) -> DataError:
    """The error for a folder that is not this data set: what was expected, what is there, what is near."""
    near = nearest_root(root, candidates)
    if near is not None:
        hint = f"give {near}, which holds {_present(near, candidates)}"
    else:
        twin = _similar(root, candidates)
        hint = (
            f"rename {twin}?"
            if twin
            else f"give the folder that holds {candidates[0]}; docs/data.md shows the layout"
        )
    expected = ", ".join(candidates[:4]) + (" …" if len(candidates) > 4 else "")
    return DataError(
        f"this is not {dataset}: expected one of {expected}",
        where=str(root),
        why=f"the folder holds {_contents(root)}",
        hint=hint,
    )


def nearest_root(root: Path, candidates: Sequence[str]) -> Path | None:
    """A folder near the root, at most two levels away, that does hold one of the candidates."""
    below = [root / name for name in _subfolders(root)]
    below += [folder / name for folder in below for name in _subfolders(folder)]
    for folder in [*below, *list(root.parents)[:2]]:
        if find_any(folder, candidates) is not None:
            return folder
    return None


def _present(folder: Path, candidates: Sequence[str]) -> str:
    return next(name for name in candidates if (folder / name).exists())


def _similar(root: Path, candidates: Sequence[str]) -> str:
    for name in candidates:
        parent = (root / name).parent
        if parent.is_dir():
            near = difflib.get_close_matches(
                Path(name).name, [path.name for path in parent.iterdir()], 1, 0.8
            )
            if near:
                return f"{parent / near[0]} to {Path(name).name}"
    return ""


def _subfolders(folder: Path, limit: int = 100) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())[:limit]
    except OSError:
        return []


def _contents(folder: Path, limit: int = 6) -> str:
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(folder))
    except OSError:
        return "nothing that can be read"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"
