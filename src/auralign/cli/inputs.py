"""Which files the words on a command line mean: files, folders, patterns and standard input."""

from __future__ import annotations

import glob
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from auralign.errors import UsageError

STDIN = "-"
SOUND_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *(
            "wav",
            "wave",
            "w64",
            "rf64",
            "flac",
            "ogg",
            "oga",
            "opus",
            "mp3",
            "aiff",
            "aif",
            "aifc",
            "au",
            "caf",
        ),
        *("m4a", "aac", "mp4", "mov", "mkv", "webm", "avi"),
    )
)


def expand(words: Sequence[str], *, recursive: bool = False) -> list[str]:
    """Paths in the order given, folders and patterns sorted inside, each path once.

    A plain path is kept even when it does not exist, so that the batch can report it and go on.

    Args:
        words: Files, folders, patterns (``"takes/*.wav"``), or ``-`` for standard input.
        recursive: Also look into the folders' folders.

    Raises:
        UsageError: A folder or pattern holds no sound, or there is no word at all.
    """
    found: dict[str, None] = {}
    for word in words:
        if word == STDIN or not (Path(word).is_dir() or _is_pattern(word)):
            found[word] = None
            continue
        paths = _in_folder(Path(word), recursive) if Path(word).is_dir() else _matching(word, recursive)
        if not paths:
            hint = "" if recursive else "add --recursive to look into folders inside"
            raise UsageError("no sound files there", where=word, hint=hint)
        found.update(dict.fromkeys(map(str, paths)))
    if not found:
        raise UsageError("no input given", hint="name files, folders or patterns, or - for standard input")
    return list(found)


@contextmanager
def with_stdin_as_file(paths: Sequence[str]) -> Iterator[list[str]]:
    """Replaces ``-`` by a temporary file that holds everything from standard input.

    Raises:
        UsageError: ``-`` was given but nothing is piped in.
    """
    if STDIN not in paths:
        yield list(paths)
        return
    if sys.stdin.isatty():
        raise UsageError(
            "nothing is piped in", where=STDIN, hint="for example: ffmpeg -i in.mp4 -f wav - | auralign …"
        )
    with tempfile.TemporaryDirectory(prefix="auralign-") as folder:
        target = Path(folder) / "stdin"
        with target.open("wb") as file:
            while block := sys.stdin.buffer.read(1 << 20):
                file.write(block)
        if target.stat().st_size == 0:
            raise UsageError("standard input is empty", where=STDIN)
        yield [str(target) if path == STDIN else path for path in paths]


def _is_pattern(word: str) -> bool:
    return glob.has_magic(word) and not Path(word).exists()


def _in_folder(folder: Path, recursive: bool) -> list[Path]:
    return sorted(path for path in folder.glob("**/*" if recursive else "*") if _is_sound(path))


def _matching(pattern: str, recursive: bool) -> list[Path]:
    paths: list[Path] = []
    for text in sorted(glob.glob(pattern, recursive=True)):
        path = Path(text)
        if path.is_dir():
            paths += _in_folder(path, recursive) if recursive else []
        elif path.is_file():
            paths.append(path)
    return paths


def _is_sound(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SOUND_SUFFIXES and not path.name.startswith(".")
