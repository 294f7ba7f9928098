"""Sounds in: files, file objects and arrays become float32 ``(channel, time)`` at a stated rate."""

from __future__ import annotations

import os
import shutil
import tempfile
from io import TextIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile

from auralign.audio.container import BinaryFile
from auralign.audio.decode_av import AvReader, demuxer_for
from auralign.audio.reader import ArrayReader, AudioInfo, AudioReader, SndfileReader, reason
from auralign.audio.resample import resample
from auralign.audio.sound import Sound, check_rate, from_array
from auralign.audio.writer import AudioWriter, WrittenAudio
from auralign.errors import AudioError

__all__ = [
    "AudioInfo",
    "AudioReader",
    "AudioWriter",
    "Sound",
    "WrittenAudio",
    "from_array",
    "open_reader",
    "probe",
    "read",
]


def probe(source: Any, *, allow_truncated: bool = False) -> AudioInfo:
    """What the header says, without decoding the sound.

    Args:
        source: A path, a binary file object, or ``(array, rate_hz)``.
        allow_truncated: Accept a file that ends before its header says.
    """
    with open_reader(source, allow_truncated=allow_truncated) as reader:
        return reader.info


def read(
    source: Any,
    *,
    rate_hz: int | None = None,
    start_s: float | int = 0.0,
    duration_s: float | int | None = None,
    allow_truncated: bool = False,
) -> Sound:
    """Read a whole sound, or the part from ``start_s`` of at most ``duration_s``, resampled to ``rate_hz``.

    Args:
        source: A path, a binary file object, or ``(array, rate_hz)`` with samples ``(time,)`` or
            ``(channel, time)``.
        rate_hz: Rate of the result; by default the source's own.
        start_s: Where to start; beyond the end is an error.
        duration_s: How much to read; what is there when the source is shorter.
        allow_truncated: Return what is there of a file that ends before its header says.
    """
    with open_reader(source, allow_truncated=allow_truncated) as reader:
        info = reader.info
        if not (np.isfinite(start_s) and start_s >= 0):
            raise AudioError(f"start_s is {start_s}, it must be 0 or more", where=info.path)
        if duration_s is not None and not (np.isfinite(duration_s) and duration_s > 0):
            raise AudioError(f"duration_s is {duration_s}, it must be more than 0", where=info.path)
        if rate_hz is not None:
            check_rate(rate_hz, where=info.path)
        reader.skip(round(start_s * info.rate_hz))
        wanted = 2**62 if duration_s is None else max(1, round(duration_s * info.rate_hz))
        samples = reader.read(wanted)
        if not samples.shape[1]:
            raise AudioError(
                f"nothing at {start_s} s, the sound ends at {reader.position / info.rate_hz:.3f} s",
                where=info.path,
            )
    if isinstance(reader, ArrayReader) and duration_s is None and not start_s:
        samples = samples.copy()  # the caller's array stays the caller's
    if rate_hz is not None and rate_hz != info.rate_hz:
        return Sound(resample(samples, info.rate_hz, rate_hz), int(rate_hz))
    return Sound(samples, info.rate_hz)


def open_reader(source: Any, *, allow_truncated: bool = False) -> AudioReader:
    """Open a source for reading in blocks; use it in a ``with`` statement.

    Args:
        source: A path, a binary file object (moved, not closed), or ``(array, rate_hz)``.
        allow_truncated: Accept a file that ends before its header says.
    """
    if isinstance(source, tuple):
        if len(source) != 2:
            raise AudioError(f"expected (array, rate_hz), got a tuple of {len(source)}", where="<array>")
        return ArrayReader(from_array(source[0], source[1]), "<array>")
    if isinstance(source, (str, os.PathLike)):
        where = os.fsdecode(source)
        return _open_file(_open_path(Path(where), where), where, owns_file=True, allow=allow_truncated)
    if callable(getattr(source, "read", None)):
        name = getattr(source, "name", None)
        where = name if isinstance(name, str) else "<file object>"
        file, owns = _seekable(source, where)
        return _open_file(file, where, owns_file=owns, allow=allow_truncated)
    raise AudioError(
        f"cannot read sound from a {type(source).__name__}",
        where=repr(source)[:80],
        hint="pass a path, a binary file object, or (array, rate_hz)",
    )


def _open_path(path: Path, where: str) -> BinaryFile:
    try:
        if path.is_dir():
            raise AudioError("this is a directory, not a sound file", where=where)
        if path.exists() and not path.is_file():
            raise AudioError("this is not a regular file", where=where, hint="pass it as a file object")
        return path.open("rb")
    except FileNotFoundError as error:
        raise AudioError("the file does not exist", where=where) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        raise AudioError("the file cannot be opened", where=where, why=why) from error


def _seekable(source: Any, where: str) -> tuple[BinaryFile, bool]:
    """A binary, seekable view of a file object: a pipe is spooled to disk."""
    if isinstance(source, TextIOBase):
        raise AudioError("the file object is open as text", where=where, hint="open it with 'rb'")
    seekable = getattr(source, "seekable", None)
    if seekable is None or seekable():
        return cast(BinaryFile, source), False
    spool = tempfile.SpooledTemporaryFile(max_size=1 << 24)  # noqa: SIM115 - the reader closes it
    shutil.copyfileobj(source, spool)
    spool.seek(0)
    return cast(BinaryFile, spool), True


def _open_file(file: BinaryFile, where: str, *, owns_file: bool, allow: bool) -> AudioReader:
    try:
        start = file.tell()
        head = file.read(64)
        file.seek(start)
        if not isinstance(head, bytes):
            raise AudioError("the file object is open as text", where=where, hint="open it with 'rb'")
        if not head:
            raise AudioError("the file is empty (0 bytes)", where=where)
        demuxer = demuxer_for(head, where)
        if demuxer is not None:
            return AvReader(file, where, demuxer, owns_file=owns_file, allow_truncated=allow)
        return SndfileReader(file, where, owns_file=owns_file, allow_truncated=allow)
    except soundfile.SoundFileError as error:
        if owns_file:
            file.close()
        why = reason(error)
        if "not a regular file" in why:  # libsndfile's words for an MP3 it cannot start
            why = "no decodable frame"
        raise AudioError("this is not a sound file that can be read", where=where, why=why) from error
    except (OSError, ValueError, TypeError) as error:
        if owns_file:
            file.close()
        raise AudioError("the file cannot be read", where=where, why=str(error)) from error
    except BaseException:
        if owns_file:
            file.close()
        raise
