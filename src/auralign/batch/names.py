"""Which files a batch will write, decided and checked before any work is done."""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from auralign.audio.level import Level
from auralign.audio.sound import check_rate
from auralign.errors import AudioError, UsageError

FORMATS = frozenset(("wav", "w64", "rf64", "flac", "ogg", "oga", "opus", "mp3", "aiff", "aif", "caf", "au"))
_LOSSLESS = frozenset(("wav", "flac", "w64", "rf64", "aiff", "aif", "caf"))
RESIDUAL = "residual"
"""Name of the stem that holds what is left."""
_LONGEST, _LONGEST_BYTES = 80, 160  # of a file name without suffix; file systems allow 255 bytes in all


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """How the stems of a recording are written, whatever made them.

    Attributes:
        out: Folder for everything.
        level: ``keep``, ``peak[:DBFS]`` or ``lufs[:LUFS]``; one gain for all stems of a recording, so that they still
            add up.
        format: Suffix without dot; the input's where that is lossless, else ``wav``.
        rate_hz: Rate of the stems; ``None`` keeps the recording's.
        name: Path of a stem below ``out``; knows ``{track}``, ``{stem}`` and ``{ext}``.
        overwrite: Do again what is already there.
        dry_run: Only say what would be written.
    """

    out: Path = Path("out")
    level: str = "keep"
    format: str = ""
    rate_hz: int | None = None
    name: str = "{track}/{stem}.{ext}"
    overwrite: bool = False
    dry_run: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """One input with the paths that it will fill."""

    source: str
    track: str
    paths: dict[str, Path]
    manifest: Path


def plan(inputs: Sequence[str], stems: Sequence[str], options: OutputOptions) -> list[Job]:
    """Paths of every stem of every input.

    Raises:
        UsageError: An option cannot be used, two stems would share a path, or a stem would replace an input.
    """
    _check(options)
    jobs: list[Job] = []
    taken: dict[str, str] = {os.path.realpath(source): "" for source in inputs}
    for source, track in zip(inputs, _tracks(inputs), strict=True):
        suffix = options.format.lower().lstrip(".") or _suffix(source)
        paths = {stem: _path(options, track, stem, suffix) for stem in stems}
        manifest = paths[stems[-1]].parent / _manifest_name(options, track)
        for path in (*paths.values(), manifest):
            _claim(path, source, taken)
        jobs.append(Job(source, track, paths, manifest))
    return jobs


def slug(text: str) -> str:
    """A safe file name in any script: letters, digits and dashes, at most 80 characters or 160 bytes.

    >>> slug("  Regen auf Blech / 2 "), slug("...")
    ('regen-auf-blech-2', 'query')
    """
    words = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFC", text.lower())).strip("-_")
    short = words[:_LONGEST].encode("utf-8")[:_LONGEST_BYTES].decode("utf-8", "ignore")
    return short.strip("-_") or "query"


def _check(options: OutputOptions) -> None:
    """What would fail for every file fails here, once."""
    Level.parse(options.level)
    wanted = options.format.lower().lstrip(".")
    if wanted and wanted not in FORMATS:
        raise UsageError(
            f"stems cannot be written as {options.format!r}", where="--format", hint=" ".join(sorted(FORMATS))
        )
    if options.rate_hz is not None:
        try:
            check_rate(options.rate_hz, where="--rate")
        except AudioError as error:
            raise UsageError(error.what, where="--rate", hint="for example 48000") from error
    nearest = next((path for path in (options.out, *options.out.parents) if path.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise UsageError(
            "the output folder cannot be made", where=str(options.out), why=f"{nearest} is a file"
        )


def _path(options: OutputOptions, track: str, stem: str, suffix: str) -> Path:
    try:
        name = options.name.format(track=track, stem=stem, ext=suffix)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"the name template {options.name!r} cannot be filled",
            why=f"{error}",
            hint="use {track}, {stem} and {ext}",
        ) from error
    path = options.out / name
    if not os.path.abspath(path).startswith(os.path.join(os.path.abspath(options.out), "")):
        raise UsageError(f"{path} lies outside of {options.out}", hint="leave '..' out of the name template")
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise UsageError(
            f"the name template {options.name!r} gives {path.name!r}, which is no sound file",
            hint="end it with .{ext}",
        )
    return path


def _claim(path: Path, source: str, taken: dict[str, str]) -> None:
    real = os.path.realpath(path)
    if taken.get(real):
        raise UsageError(
            f"two files would be written to {path}",
            why=f"from {taken[real]} and {source}",
            hint="put {track} and {stem} into the name template",
        )
    if real in taken:
        raise UsageError(f"{path} would replace an input", hint="write into another folder")
    taken[real] = source


def _manifest_name(options: OutputOptions, track: str) -> str:
    return "manifest.json" if "{track}/" in options.name else f"{track}.manifest.json"


def _tracks(inputs: Sequence[str]) -> list[str]:
    """A folder name for each input; where stems of names are equal, folder and suffix join in, then a number."""
    chosen: list[str] = []
    names = [slug(Path(source).stem) for source in inputs]
    for source, name in zip(inputs, names, strict=True):
        if names.count(name) > 1:
            name = slug(f"{Path(os.path.abspath(source)).parent.name} {Path(source).name}")
        number, candidate = 2, name
        while candidate in chosen:
            candidate, number = f"{name}-{number}", number + 1
        chosen.append(candidate)
    return chosen


def _suffix(source: str) -> str:
    suffix = Path(source).suffix.lower().lstrip(".")
    return suffix if suffix in _LOSSLESS else "wav"
