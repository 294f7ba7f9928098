"""The corpus on disk as JSON lines: one clip a line, checked field by field."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from auralign.data.clip import Clip
from auralign.errors import DataError

_REQUIRED = ("id", "audio", "labels", "kind", "split")
KINDS = ("instrument", "event", "speech")
_TUPLES = ("captions", "labels", "pictures", "phrases")
_NUMBERS = ("duration_s", "offset_s")
_INTEGERS = ("sample_rate", "channels")


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips in the order of their ids; fields that are not stated are left out."""
    rows = []
    for clip in sorted(clips, key=lambda item: item.id):
        row = {key: value for key, value in asdict(clip).items() if value not in ("", (), None)}
        if not clip.offset_s:
            row.pop("offset_s", None)
        rows.append(json.dumps(row, ensure_ascii=False))
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_manifest(path: Path) -> list[Clip]:
    """Read a manifest.

    Raises:
        DataError: The file is missing, or a line is not valid; it names the line and the field.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the manifest cannot be read",
            where=str(path),
            why=str(error),
            hint="build the corpus with `auralign data build soundbox`",
        ) from error
    clips = [_clip(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen:
            raise DataError(f"the clip id {clip.id!r} occurs twice", where=str(path))
        seen.add(clip.id)
    return clips


def _clip(line: str, where: str) -> Clip:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError("the line is not JSON", where=where, why=str(error)) from error
    if not isinstance(row, dict):
        raise DataError("the line is not an object", where=where)
    for name in _REQUIRED:
        if name not in row:
            raise DataError(f"the field {name!r} is missing", where=where)
    known = {item.name for item in fields(Clip)}
    unknown = sorted(set(row) - known)
    if unknown:
        raise DataError(
            f"unknown field {unknown[0]!r}", where=where, hint=f"known: {', '.join(sorted(known))}"
        )
    return Clip(**{name: _value(name, value, where) for name, value in row.items()})


def _value(name: str, value: Any, where: str) -> Any:
    if name in _TUPLES:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise DataError(f"the field {name!r} must be a list of strings", where=where)
        return tuple(value)
    if name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise DataError(f"the field {name!r} must be a number, zero or more", where=where)
        return float(value)
    if name in _INTEGERS:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"the field {name!r} must be a whole number above zero", where=where)
        return value
    if not isinstance(value, str):
        raise DataError(f"the field {name!r} must be text", where=where)
    if name == "kind" and value not in KINDS:
        raise DataError(f"the kind {value!r} is not one of {', '.join(KINDS)}", where=where)
    return value
