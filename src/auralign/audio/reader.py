"""Blockwise readers: one interface over libsndfile, PyAV and arrays, with the shared checks."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Any, final

import numpy as np
import soundfile
from jaxtyping import Float32

from auralign.audio.container import BinaryFile, missing_bytes
from auralign.audio.sound import (
    MAX_CHANNELS,
    Sound,
    check_rate,
    first_true,
    nonfinite,
    refuse_nonfinite,
)
from auralign.errors import AudioError

_SEEKABLE_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_BLOCK_SAMPLES = 1 << 19  # 2 MiB of float32 at a time, whatever the header says about channels


@dataclass(frozen=True)
class AudioInfo:
    """What a source says about itself. ``frames`` is None when only decoding would tell."""

    path: str
    rate_hz: int
    channels: int
    frames: int | None
    format: str
    subtype: str
    note: str = ""

    @property
    def duration_s(self) -> float | None:
        """Length in seconds, or None when unknown."""
        return None if self.frames is None else self.frames / self.rate_hz


class AudioReader(ABC):
    """A sound read in blocks; use as a context manager.

    Blocks are float32 ``(channel, time)``, finite, and end with one of zero columns. A source that turns out
    empty, damaged or shorter than declared raises :class:`~auralign.errors.AudioError` where that is found.
    """

    def __init__(self, info: AudioInfo, *, allow_truncated: bool) -> None:
        self.info = info
        self.position = 0
        self.allow_truncated = allow_truncated
        self._ended = False

    @abstractmethod
    def _decode(self, frames: int) -> Float32[np.ndarray, "channel time"]:
        """The next frames, fewer only at the end."""

    @abstractmethod
    def close(self) -> None:
        """Give the file back."""

    def _jump(self, frame: int) -> bool:
        """Go to a frame without decoding, where the format does that exactly."""
        return False

    def read(self, frames: int) -> Float32[np.ndarray, "channel time"]:
        """The next ``frames`` frames, fewer at the end, zero columns after it."""
        if frames < 0:
            raise AudioError(f"cannot read {frames} frames", where=self.info.path)
        step = max(1, _BLOCK_SAMPLES // self.info.channels)
        parts: list[np.ndarray] = []
        wanted = frames
        while wanted and not self._ended:
            part = self._decode(min(step, wanted))
            self._accept(part)
            wanted -= part.shape[1]
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return _joined(parts, self.info.channels)

    def _accept(self, part: Float32[np.ndarray, "channel time"]) -> None:
        bad = nonfinite(part)
        if bad is not None:
            raise self._count_nonfinite(bad)
        self.position += part.shape[1]
        if not part.shape[1]:
            self._ended = True
            self._check_end()

    def _count_nonfinite(self, bad: Any) -> AudioError:
        """Decode the rest, so that the message holds the whole count."""
        channel, frame = first_true(bad)
        count = int(bad.sum())
        step = max(1, _BLOCK_SAMPLES // self.info.channels)
        while (part := self._decode(step)).shape[1]:
            count += int((~np.isfinite(part)).sum())
        return refuse_nonfinite(count, channel, self.position + frame, where=self.info.path)

    def _check_end(self) -> None:
        declared = self.info.frames
        if not self.position:
            raise empty(self.info.path)
        slack = 2304 if self.info.format == "MP3" else 0  # an MP3 without an index estimates its length
        if declared is not None and self.position < declared - slack and not self.allow_truncated:
            raise truncated(
                self.info.path, f"its header declares {declared} frames, {self.position} could be read"
            )

    def skip(self, frames: int) -> None:
        """Go on by so many frames (exactly, decoding them where the format cannot jump)."""
        if frames and self._jump(self.position + frames):
            self.position += frames
            return
        step = max(1, _BLOCK_SAMPLES // self.info.channels)
        while frames > 0 and (got := self.read(min(step, frames)).shape[1]):
            frames -= got

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _joined(parts: list[np.ndarray], channels: int) -> Float32[np.ndarray, "channel time"]:
    """Concatenate along time, letting go of each part as it is copied."""
    out = np.empty((channels, sum(part.shape[1] for part in parts)), np.float32)
    start = 0
    for i, part in enumerate(parts):
        out[:, start : start + part.shape[1]] = part
        start += part.shape[1]
        parts[i] = out[:, :0]
    return out


def empty(where: str) -> AudioError:
    """The error for a sound without samples."""
    return AudioError("the file has no samples", where=where, hint="check the recording")


def truncated(where: str, why: str) -> AudioError:
    """The error for a file that ends before its header says."""
    return AudioError(
        "the file is truncated",
        where=where,
        why=why,
        hint="copy it again, or pass allow_truncated=True to use what is there",
    )


class NamelessFile:
    """A file as libsndfile sees it: content only, no name to guess a format from; I/O errors are kept."""

    def __init__(self, file: BinaryFile) -> None:
        self.file = file
        self.error: Exception | None = None

    def read(self, count: int) -> bytes:
        """Bytes, none after an error."""
        try:
            return self.file.read(count) if self.error is None else b""
        except (OSError, ValueError) as error:
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; a damaged header may ask for a place before the start, which stays put."""
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return self.file.tell()

    def tell(self) -> int:
        """Position."""
        return self.file.tell()


class _Forward(soundfile.SoundFile):
    """A file read onwards; soundfile would seek after every block, which some coders cannot do."""

    def seekable(self) -> bool:
        """No."""
        return False


@final
class SndfileReader(AudioReader):
    """Everything libsndfile knows: WAV, W64, RF64, FLAC, OGG, OPUS, MP3, AIFF, AU, CAF and older ones."""

    def __init__(self, file: BinaryFile, where: str, *, owns_file: bool, allow_truncated: bool) -> None:
        self._raw, self._owns = NamelessFile(file), owns_file
        self._cut = False
        self._file: soundfile.SoundFile | None = None
        try:
            missing = missing_bytes(file)
            self._file = _Forward(self._raw)
            info = self._describe(self._file, where)
            if missing and not allow_truncated:
                lacks = f"{missing} bytes of sound are missing at the end"
                raise truncated(where, "its last page is missing" if info.format == "OGG" else lacks)
        except BaseException:
            self.close()
            raise
        super().__init__(info, allow_truncated=allow_truncated)

    def _describe(self, file: soundfile.SoundFile, where: str) -> AudioInfo:
        rate_hz = check_rate(file.samplerate, where=where)
        if not 1 <= file.channels <= MAX_CHANNELS:
            raise AudioError(f"the header declares {file.channels} channels", where=where)
        frames: int | None = int(file.frames)
        if frames is not None and (frames < 0 or frames >= 2**62):
            frames = None
        if frames == 0:
            raise empty(where)
        note = "MP3 pads its start and end; most decoders remove it" if file.format == "MP3" else ""
        return AudioInfo(where, rate_hz, int(file.channels), frames, file.format, file.subtype, note)

    def _decode(self, frames: int) -> Float32[np.ndarray, "channel time"]:
        nothing = np.empty((self.info.channels, 0), np.float32)
        if self._cut or self._file is None:
            return nothing
        try:
            block = self._file.read(frames, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            self._cut = True
            if self.allow_truncated:
                return nothing
            raise AudioError(
                f"decoding failed after {self.position} frames", where=self.info.path, why=reason(error)
            ) from error
        if self._raw.error is not None:
            raise AudioError(
                f"reading failed after {self.position} frames",
                where=self.info.path,
                why=str(self._raw.error),
            )
        return np.array(block.T, order="C")  # a copy: a short block would keep the whole buffer

    def _jump(self, frame: int) -> bool:
        exact = self.info.subtype.startswith(_SEEKABLE_SUBTYPES) and self.info.frames is not None
        if not exact or self._file is None or self.info.frames is None or frame > self.info.frames:
            return False
        try:
            return int(self._file.seek(frame)) == frame
        except (soundfile.SoundFileError, RuntimeError):
            return False

    def close(self) -> None:
        """Close libsndfile's handle, and the file when it was opened here."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._owns:
            self._raw.file.close()


def reason(error: Exception) -> str:
    """The words of libsndfile without the object it was given."""
    return str(error).rsplit(">: ", 1)[-1].strip().rstrip(".")


@final
class ArrayReader(AudioReader):
    """An array that is already in memory, read like a file."""

    def __init__(self, sound: Sound, where: str) -> None:
        self._sound = sound
        info = AudioInfo(where, sound.rate_hz, sound.channels, sound.frames, "ARRAY", "FLOAT")
        super().__init__(info, allow_truncated=False)

    def _decode(self, frames: int) -> Float32[np.ndarray, "channel time"]:
        return self._sound.samples[:, self.position : self.position + frames]

    def _jump(self, frame: int) -> bool:
        return frame <= self._sound.frames

    def close(self) -> None:
        """Nothing to close."""
